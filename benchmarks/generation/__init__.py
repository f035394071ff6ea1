"""How fast answers are written."""
