"""Which pairs to label at the same teacher cost: designs of the label sample, compared."""
