"""Choose the instruction data that teaches a language model most, on Ray (NN-CIFT)."""

__version__ = "0.1.0"
