"""Nodes that die while a run is at work: what is lost (nothing) and what is done twice."""
