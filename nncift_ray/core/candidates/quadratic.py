"""Quadratic candidates: each hidden unit's ReLU is replaced by a parabola that fits its inputs.

    relu(z) ~ c0 + c1 z + c2 z^2   on sampled z = a_ih + b_jh, least squares for each hidden unit h
    s_ij ~ (row's own terms) + sum_h 2 c2_h w_h a_ih b_jh + sum_h w_h (c1_h b_jh + c2_h b_jh^2)

so the query [2 c2 w a_i ; 1] times the features [b_j ; sum_h w_h (c1_h b_jh + c2_h b_jh^2)] orders
the columns. Cheaper to build than anchors, and less exact.

Suffixes: I rows, J columns, T columns of a tile, H hidden units, F = H + 1 features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from nncift_ray.core.candidates.protocol import F32, State, check_names
from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.products import multiply_rows
from nncift_ray.errors import ShapeError

NUM_SAMPLED = 256  # rows and columns whose pairs the parabolas are fitted on
PARABOLA_TERMS = 3


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticGenerator:
    """Fitted parabolas, multiplied by the output weights."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "activations"

    linear_H: F32  # w_h c1_h
    square_H: F32  # w_h c2_h

    @property
    def num_features(self) -> int:
        """Length F of a feature vector: H + 1."""
        return len(self.linear_H) + 1

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IH: F32, column_sample_JH: F32, *, seed: int
    ) -> Self:
        """Fit on the pairs of up to 256 rows and 256 columns of the samples.

        Raises:
            ShapeError: If a sample is empty.
        """
        if len(row_sample_IH) == 0 or len(column_sample_JH) == 0:
            msg = f"cannot fit on {len(row_sample_IH)} rows and {len(column_sample_JH)} columns"
            raise ShapeError(msg)
        generator = np.random.default_rng(seed)
        row_IH, column_JH = (
            sample[generator.permutation(len(sample))[:NUM_SAMPLED]].astype(np.float64)
            for sample in (row_sample_IH, column_sample_JH)
        )
        coefficient_H3 = np.empty((network.num_hidden, PARABOLA_TERMS))
        for h in range(network.num_hidden):
            z_P = np.add.outer(row_IH[:, h], column_JH[:, h]).ravel()
            terms_P3 = np.stack([np.ones_like(z_P), z_P, z_P**2], axis=1)
            coefficient_H3[h] = np.linalg.lstsq(
                terms_P3.T @ terms_P3, terms_P3.T @ np.maximum(z_P, 0.0)
            )[0]
        weighted_H3 = (coefficient_H3 * network.w_H[:, None]).astype(np.float32)
        return cls(weighted_H3[:, 1].copy(), weighted_H3[:, 2].copy())

    def column_features(self, column_TX: F32) -> F32:
        """Return activations and the column's own term [T, H + 1]."""
        own_T1 = multiply_rows(column_TX, self.linear_H[:, None])
        own_T1 += multiply_rows(np.square(column_TX), self.square_H[:, None])
        return np.concatenate([column_TX, own_T1], axis=1)

    def row_queries(self, row_IX: F32) -> F32:
        """Return weighted activations and 1 [I, H + 1]."""
        one_I1 = np.ones((len(row_IX), 1), np.float32)
        return np.concatenate([2 * row_IX * self.square_H, one_I1], axis=1)

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        return {"linear": self.linear_H, "square": self.square_H}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        check_names(state, {"linear", "square"}, "quadratic")
        return cls(state["linear"], state["square"])
