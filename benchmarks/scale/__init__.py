"""How time and memory of the pruned path grow, from 10,000 rows to a million."""
