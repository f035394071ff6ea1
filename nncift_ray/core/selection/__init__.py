"""Set functions over influence, and the greedy search for a subset."""
