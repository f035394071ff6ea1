"""Stages that score pairs: project, index, exact and pruned, and labels that are the scores."""
