from __future__ import annotations

import numpy as np
import pytest

from tests.hash_embedder import HashEmbedder

UNIT_TOLERANCE = 1e-6


def test_hash_embeddings_are_unit_vectors_and_shared_words_are_similar() -> None:
    a, b, c, empty = HashEmbedder(64).embed(["red green blue", "red green teal", "one two", ""])
    for vector in (a, b, c, empty):
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=UNIT_TOLERANCE)
    assert a @ b > a @ c
