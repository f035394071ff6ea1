"""A corpus with planted faults, selected from: what the method does, in minutes on a laptop."""
