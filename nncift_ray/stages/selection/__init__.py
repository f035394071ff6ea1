"""Stages that select by a set function over the scores."""
