"""The hub, against a server of our own."""
