"""What a network knows of pairs, beside an additive model, a cosine and the paper's network."""
