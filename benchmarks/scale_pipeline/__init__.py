"""Time and memory of the whole pipeline, from files to a ranked subset, as corpora grow."""
