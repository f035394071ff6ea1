"""An embedder without a model, for tests."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from nncift_ray.embedders import F32, I32


class HashEmbedder:
    """Unit vectors that sum a pseudo-random vector per word: shared words make texts similar."""

    def __init__(self, dimension: int = 16) -> None:
        self.dimension = dimension

    def embed(self, texts: Sequence[str]) -> F32:
        vectors_ND = np.zeros((len(texts), self.dimension))
        for n, text in enumerate(texts):
            for word in text.split() or [""]:
                seed = zlib.crc32(word.encode("utf-8", errors="surrogatepass"))
                vectors_ND[n] += np.random.default_rng(seed).standard_normal(self.dimension)
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return (vectors_ND / norms_N1).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> I32:
        return np.fromiter((len(t.split()) for t in texts), dtype=np.int32, count=len(texts))
