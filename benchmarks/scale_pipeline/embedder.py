"""A tiny embedder: the packaged model's own word vectors, shortened, their mean as the text's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nncift_ray.engines.models import EMBEDDED_EMBEDDER, resolve_embedder

DIMENSION = 64


def write_embedder(folder: Path) -> list[str]:
    """Save it in the sentence-transformers layout; return whole words of its vocabulary."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    path = resolve_embedder(EMBEDDED_EMBEDDER).path
    big = SentenceTransformer(path, device="cpu", local_files_only=True)
    encoder = big[0].auto_model
    weight_VD = encoder.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    weight_VD -= weight_VD.mean(axis=0)
    _, _, axes = np.linalg.svd(weight_VD[::8], full_matrices=False)
    short_VD = torch.tensor((weight_VD @ axes[:DIMENSION].T).astype(np.float32))
    tokenizer = big.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    small = StaticEmbedding(tokenizer, embedding_weights=short_VD)
    SentenceTransformer(modules=[small], device="cpu").save_pretrained(str(folder))
    words = sorted(big.tokenizer.get_vocab())
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 3]
