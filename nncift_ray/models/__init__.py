"""What computes with a language model or an embedder: a Protocol, the real thing, a tiny fake."""
