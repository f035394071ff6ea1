"""What a language model says of every example: losses, features, and what its neighbours tell."""
