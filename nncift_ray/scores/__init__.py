"""Influence of all pairs: projected, scored exactly or through an index, kept as lists or sums."""
