"""Stages that read a corpus, hold rows out, embed, watch it drift, and write the subset."""
