"""Cosine candidates: the nearest embeddings, whatever the network says. Kept as the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from nncift_ray.core.candidates.protocol import F32, State, check_names
from nncift_ray.core.network.factored import FactoredNetwork


@dataclass(frozen=True, slots=True)
class CosineGenerator:
    """Embeddings are their own features (D of them) and queries."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "embeddings"

    num_features: int

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IH: F32, column_sample_JH: F32, *, seed: int
    ) -> Self:
        """Return the one there is for embeddings of this length; nothing is learnt."""
        del row_sample_IH, column_sample_JH, seed
        return cls(network.embedding_dim)

    def column_features(self, column_TX: F32) -> F32:
        """Return unit embeddings [T, D] as they are."""
        return np.ascontiguousarray(column_TX, np.float32)

    def row_queries(self, row_IX: F32) -> F32:
        """Return unit embeddings [I, D] as they are."""
        return np.ascontiguousarray(row_IX, np.float32)

    def to_state(self) -> dict[str, F32]:
        """Return the number of features, as an array."""
        return {"num_features": np.array([self.num_features], np.float32)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        check_names(state, {"num_features"}, "cosine")
        return cls(int(state["num_features"][0]))
