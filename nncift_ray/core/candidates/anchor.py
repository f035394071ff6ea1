"""Anchor candidates: a column is described by how much it helps a few hundred sampled rows.

    profile_jr = s_rj - mean_j s_rj            r = 1..R anchor rows, exact scores
    phi_j = profile_j V                        V [R, F]: leading principal directions
    q_i = argmin_q sum_c ((s_ic - mean_c s_ic) - q . (phi_c - mean_c phi_c))^2
                                               c = 1..C landmark columns, exact scores

Trained networks have profiles of low rank (32 directions leave out 0.1-0.2 % of the variance), and
the fit sees the row through the network itself, so q_i . phi_j follows s_ij up to the row's mean.

Suffixes: I rows, J columns, T columns of a tile, H hidden units, R anchor rows, C landmark columns,
F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from nncift_ray.core.candidates.protocol import F32, State, check_names
from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.panels import score_matrix
from nncift_ray.core.pairs.products import multiply_rows
from nncift_ray.errors import ShapeError

NUM_ANCHORS = 256
NUM_LANDMARKS = 512
NUM_FEATURES = 64
# Directions whose spread is below this share of the largest are rounding errors of float32 scores.
SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AnchorGenerator:
    """Fitted anchors, directions and landmarks."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "activations"

    anchor_RH: F32
    mean_R: F32
    direction_RF: F32
    landmark_CH: F32
    fit_CF: F32  # pseudo-inverse of the landmarks' centred features, transposed
    w_H: F32
    bias: float

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        return self.direction_RF.shape[1]

    @classmethod
    def fit(
        cls,
        network: FactoredNetwork,
        row_sample_IH: F32,
        column_sample_JH: F32,
        *,
        seed: int,
        num_anchors: int = NUM_ANCHORS,
        num_landmarks: int = NUM_LANDMARKS,
        num_features: int = NUM_FEATURES,
    ) -> Self:
        """Fit on random samples of the rows and columns that will be scored.

        Args:
            network: The fitted network.
            row_sample_IH: Row activations to draw anchors from.
            column_sample_JH: Column activations to find directions on and draw landmarks from;
                some thousands.
            seed: Of both draws.
            num_anchors: Anchor rows R, or all rows where there are fewer.
            num_landmarks: Landmark columns C, or all columns where there are fewer.
            num_features: Features F, or as many directions as the profiles have.

        Raises:
            ShapeError: If a sample is empty or H differs.
            ValueError: If an activation is not finite; the message names the first such row.

        Memory: 8 * R * J bytes.
        """
        if len(row_sample_IH) == 0 or len(column_sample_JH) == 0:
            msg = f"cannot fit on {len(row_sample_IH)} rows and {len(column_sample_JH)} columns"
            raise ShapeError(msg)
        generator = np.random.default_rng(seed)
        anchor_RH = _draw(row_sample_IH, num_anchors, generator)
        landmark_CH = _draw(column_sample_JH, num_landmarks, generator)
        score_RJ = score_matrix(anchor_RH, column_sample_JH, network.w_H, network.bias)
        mean_R = score_RJ.mean(axis=1, dtype=np.float64).astype(np.float32)
        direction_RF = _principal_directions(score_RJ - mean_R[:, None], num_features)
        score_RC = score_matrix(anchor_RH, landmark_CH, network.w_H, network.bias)
        fit_CF = _fit_to_landmarks(_features(score_RC, mean_R, direction_RF))
        return cls(anchor_RH, mean_R, direction_RF, landmark_CH, fit_CF, network.w_H, network.bias)

    def column_features(self, column_TX: F32) -> F32:
        """Return the profiles of columns in F directions [T, F], in the unit of the labels."""
        score_RT = score_matrix(self.anchor_RH, column_TX, self.w_H, self.bias)
        return _features(score_RT, self.mean_R, self.direction_RF)

    def row_queries(self, row_IX: F32) -> F32:
        """Return the query vectors of rows [I, F] (dimensionless)."""
        score_IC = score_matrix(row_IX, self.landmark_CH, self.w_H, self.bias)
        # The mean first: it is large beside what tells columns apart, and would cost its bits.
        return multiply_rows(score_IC - score_IC.mean(axis=1, keepdims=True), self.fit_CF)

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        return {
            "anchor": self.anchor_RH,
            "mean": self.mean_R,
            "direction": self.direction_RF,
            "landmark": self.landmark_CH,
            "fit": self.fit_CF,
            "output.weight": self.w_H,
            "output.bias": np.array([self.bias], np.float32),
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        names = {"anchor", "mean", "direction", "landmark", "fit", "output.weight", "output.bias"}
        check_names(state, names, "anchor")
        return cls(
            state["anchor"],
            state["mean"],
            state["direction"],
            state["landmark"],
            state["fit"],
            state["output.weight"],
            float(state["output.bias"][0]),
        )


def _draw(sample_NH: F32, count: int, generator: np.random.Generator) -> F32:
    chosen = generator.permutation(len(sample_NH))[:count]
    return np.ascontiguousarray(sample_NH[np.sort(chosen)])


def _features(score_RT: F32, mean_R: F32, direction_RF: F32) -> F32:
    centred_TR: F32 = score_RT.T - mean_R
    return multiply_rows(centred_TR, direction_RF)


def _principal_directions(profile_RJ: F32, num_features: int) -> F32:
    """Return the directions of largest spread [R, F], each with its largest entry positive."""
    wide_RJ = profile_RJ.astype(np.float64)
    spread_R, direction_RR = np.linalg.eigh(wide_RJ @ wide_RJ.T)
    order = np.argsort(-spread_R, kind="stable")[:num_features]
    kept = order[spread_R[order] > SMALLEST_SPREAD**2 * spread_R[order[0]]]
    if len(kept) == 0:  # every column scores alike: one feature, 0 for all of them
        return np.zeros((len(spread_R), 1), np.float32)
    direction_RF = direction_RR[:, kept]
    largest_F = direction_RF[np.abs(direction_RF).argmax(axis=0), np.arange(len(kept))]
    return np.asarray(direction_RF * np.sign(largest_F), np.float32)


def _fit_to_landmarks(feature_CF: F32) -> F32:
    """Return the matrix that turns a row's centred scores into its least-squares query."""
    centred_CF = feature_CF.astype(np.float64) - feature_CF.mean(axis=0, dtype=np.float64)
    square_F, direction_FF = np.linalg.eigh(centred_CF.T @ centred_CF)
    # Directions in which the landmarks hardly differ say nothing: their part of a query is 0.
    sure_F = square_F > SMALLEST_SPREAD**2 * square_F[-1]
    inverse_F = np.divide(1.0, square_F, out=np.zeros_like(square_F), where=sure_F)
    return np.asarray((centred_CF @ direction_FF * inverse_F) @ direction_FF.T, np.float32)
