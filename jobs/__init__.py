"""Entry points that `ray job submit` runs, and their recipes."""
