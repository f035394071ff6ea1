"""Measurements against named peers and the limits of the machine."""
