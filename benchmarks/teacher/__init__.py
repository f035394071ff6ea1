"""How fast the teachers label: prefix reuse, batched gradients, ratings; beside the plain loops."""
