"""A model of word vectors (no transformer) as the embedder: any length, a bare tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.embedders import SentenceTransformerEmbedder

VOCABULARY = {"[UNK]": 0, "red": 1, "blue": 2, "green": 3}
VECTORS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformerEmbedder:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("static")
    static = StaticEmbedding(tokenizer, embedding_weights=np.array(VECTORS, dtype=np.float32))
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder))
    return SentenceTransformerEmbedder(Path(folder), device="cpu")


def test_a_text_is_the_mean_of_its_words(embedder: SentenceTransformerEmbedder) -> None:
    vectors = embedder.embed(["red", "red blue", "blue blue"])
    expected = [[1, 0], [2**-0.5, 2**-0.5], [0, 1]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_no_length_is_too_long_and_words_are_counted(embedder: SentenceTransformerEmbedder) -> None:
    long = embedder.embed(["green " * 3000 + "blue " * 3000])
    np.testing.assert_allclose(long, [[-(2**-0.5), 2**-0.5]], atol=1e-6)
    assert embedder.count_tokens(["red blue", "", "green " * 3000]).tolist() == [2, 0, 3000]
