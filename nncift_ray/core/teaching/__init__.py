"""What the teachers compute: distances, ratings and projected gradients."""
