"""An embedder whose batch does not fit halves it, and goes on so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.errors import ModelError


class SmallModel:
    """Encodes a text as its length; of more texts at once than fit it runs out of memory."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, list[int]()

    def encode(self, texts: list[str], *, batch_size: int, **options: Any) -> np.ndarray:
        self.tried.append(batch_size)
        if batch_size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.array([[len(text)] for text in texts], np.float32)


def embedder(model: SmallModel) -> SentenceTransformerEmbedder:
    made = object.__new__(SentenceTransformerEmbedder)
    made._model, made._batch_texts, made.dimension = model, 256, 1
    return made


def test_the_batch_is_halved_until_it_fits_and_the_order_is_kept() -> None:
    model = SmallModel(most=100)
    small = embedder(model)
    assert small.embed(["a", "abc", "ab"]).tolist() == [[1.0], [3.0], [2.0]]
    assert small.embed(["ab"]).tolist() == [[2.0]]
    assert model.tried == [256, 128, 64, 64]


def test_a_gpu_without_room_for_one_text_says_so() -> None:
    with pytest.raises(ModelError, match="no memory to embed a text"):
        embedder(SmallModel(most=0)).embed(["a"])
