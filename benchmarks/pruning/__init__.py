"""What pruning by the network's own features finds and saves, on real rows."""
