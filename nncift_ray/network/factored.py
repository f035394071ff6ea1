"""The InfluenceNetwork cut in two: what is computed once per example, and what is left per pair.

Plain numpy, so that scoring workers need no torch. Suffixes: N examples, D embedding, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F32 = NDArray[np.float32]

ROW_WEIGHT, ROW_BIAS, COLUMN_WEIGHT = "row.weight", "row.bias", "column.weight"
OUTPUT_WEIGHT, OUTPUT_BIAS = "output.weight", "output.bias"


@dataclass(frozen=True, slots=True, eq=False)
class FactoredNetwork:
    """Weights of s_ij = w . relu(W_row e_i + b_row + W_col e_j) + bias, in the unit of the labels.

    Attributes:
        w_row_HD: Weights of the helped embedding [H, D].
        b_row_H: First-layer bias [H], counted with the row.
        w_col_HD: Weights of the helper embedding [H, D]; [H, 0] in a pointwise network.
        w_H: Output weights [H].
        bias: Output bias.

    Source: NN-CIFT, arXiv 2502.09969, section 3. The separator 0 of the paper's input drops out.
    """

    w_row_HD: F32
    b_row_H: F32
    w_col_HD: F32
    w_H: F32
    bias: float

    def __post_init__(self) -> None:
        """Raise ShapeError when the arrays do not belong together."""
        num_hidden, dim = self.w_row_HD.shape
        col_shapes = ((num_hidden, dim), (num_hidden, 0))
        if self.b_row_H.shape != (num_hidden,) or self.w_H.shape != (num_hidden,):
            msg = f"{num_hidden} hidden units, but b_row {self.b_row_H.shape}, w {self.w_H.shape}"
            raise ShapeError(msg)
        if self.w_col_HD.shape not in col_shapes:
            msg = f"column weights are {self.w_col_HD.shape}, expected one of {col_shapes}"
            raise ShapeError(msg)

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it reads."""
        return self.w_row_HD.shape[1]

    @property
    def num_hidden(self) -> int:
        """Number H of hidden units."""
        return self.w_row_HD.shape[0]

    @property
    def pointwise(self) -> bool:
        """Whether it scores examples (True) or pairs (False)."""
        return self.w_col_HD.shape[1] == 0

    def project_rows(self, e_ND: NDArray[np.floating]) -> F32:
        """Return row activations a = W_row e + b_row [N, H], first-layer bias included.

        The bits of a row do not depend on which other rows are in the call.

        Raises:
            ShapeError: If the embeddings are not [N, D].
        """
        return _project(self._check(e_ND), self.w_row_HD, self.b_row_H)

    def project_columns(self, e_ND: NDArray[np.floating]) -> F32:
        """Return column activations b = W_col e [N, H].

        Raises:
            ShapeError: If the embeddings are not [N, D], or the network is pointwise.
        """
        if self.pointwise:
            msg = "a pointwise network has no columns: score its rows with score_points"
            raise ShapeError(msg)
        return _project(self._check(e_ND), self.w_col_HD, np.zeros(self.num_hidden, np.float32))

    def score_points(self, a_NH: F32) -> F32:
        """Return the scores [N] of examples by a pointwise network, w . relu(a_n) + bias.

        Raises:
            ShapeError: If the activations are not [N, H].
            ValueError: If one is not finite; the message names the first such row.
        """
        if a_NH.ndim != 2 or a_NH.shape[1] != self.num_hidden:
            msg = f"activations are {a_NH.shape}, the network has {self.num_hidden} hidden units"
            raise ShapeError(msg)
        bad = np.flatnonzero(~np.isfinite(a_NH).all(axis=1))
        if len(bad):
            msg = f"activations: row {bad[0]} is not finite; embed these examples anew"
            raise ValueError(msg)
        hidden_NH = np.maximum(a_NH.astype(np.float64), 0.0)
        # A sum in numpy's own fixed order; a matrix product may change with the number of rows.
        score_N = (hidden_NH * self.w_H.astype(np.float64)).sum(axis=1) + self.bias
        return score_N.astype(np.float32)

    def to_state(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays of a checkpoint by name; a pointwise one has no "column.weight"."""
        state = {
            ROW_WEIGHT: self.w_row_HD,
            ROW_BIAS: self.b_row_H,
            OUTPUT_WEIGHT: self.w_H,
            OUTPUT_BIAS: np.array([self.bias], np.float32),
        }
        return state if self.pointwise else {**state, COLUMN_WEIGHT: self.w_col_HD}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.float32]]) -> FactoredNetwork:
        """Build a network from the arrays of a checkpoint, as `to_state` returns them.

        Raises:
            ShapeError: If an array is missing or unknown, or shapes do not agree.
        """
        needed = {ROW_WEIGHT, ROW_BIAS, OUTPUT_WEIGHT, OUTPUT_BIAS}
        if not needed <= set(state) <= needed | {COLUMN_WEIGHT}:
            msg = f"checkpoint holds {sorted(state)}, expected {sorted(needed)} (+ {COLUMN_WEIGHT})"
            raise ShapeError(msg)
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}
        row_HD = arrays[ROW_WEIGHT]
        return cls(
            w_row_HD=row_HD,
            b_row_H=arrays[ROW_BIAS],
            w_col_HD=arrays.get(COLUMN_WEIGHT, np.zeros((len(row_HD), 0), np.float32)),
            w_H=arrays[OUTPUT_WEIGHT],
            bias=float(arrays[OUTPUT_BIAS].reshape(-1)[0]),
        )

    def _check(self, e_ND: NDArray[np.floating]) -> F32:
        if e_ND.ndim != 2 or e_ND.shape[1] != self.embedding_dim:
            msg = f"embeddings are {e_ND.shape}, the network reads [N, {self.embedding_dim}]"
            raise ShapeError(msg)
        return np.ascontiguousarray(e_ND, np.float32)


def _project(e_ND: F32, w_HD: F32, b_H: F32) -> F32:
    """Return e W^T + b, each row summed over D in order.

    A library's matrix product may round a row differently in a call of another size; here shards
    of any size give the same bits.
    """
    out_NH = np.empty((len(e_ND), len(w_HD)), np.float32)
    _project_into(e_ND, np.ascontiguousarray(w_HD.T), b_H, out_NH)
    return out_NH


@compiled
def _project_into(e_ND: F32, w_DH: F32, b_H: F32, out_NH: F32) -> None:
    num_dims, num_hidden = w_DH.shape
    whole = num_dims - num_dims % 4
    for n in range(e_ND.shape[0]):
        out_H = out_NH[n]
        out_H[:] = b_H
        for d in range(0, whole, 4):
            e0, e1, e2, e3 = e_ND[n, d], e_ND[n, d + 1], e_ND[n, d + 2], e_ND[n, d + 3]
            for h in range(num_hidden):
                x = out_H[h] + e0 * w_DH[d, h]
                x = x + e1 * w_DH[d + 1, h]
                x = x + e2 * w_DH[d + 2, h]
                out_H[h] = x + e3 * w_DH[d + 3, h]
        for d in range(whole, num_dims):
            for h in range(num_hidden):
                out_H[h] = out_H[h] + e_ND[n, d] * w_DH[d, h]


# Networks on disk: safetensors for the numbers, JSON for the facts about them. Never a pickle.


def write_network(
    sink: Any, block: str, network: FactoredNetwork, facts: Mapping[str, Any]
) -> None:
    """Write the network of a block to a step's ``Sink``, with facts such as its sizes."""
    sink.write_file(f"network-{block}.safetensors", safetensors.numpy.save(network.to_state()))
    sink.write_file(f"network-{block}.json", json.dumps(facts, indent=1, sort_keys=True).encode())


def read_network(fit: Any, block: str) -> FactoredNetwork:
    """Read the network of a block from the fit step's output."""
    state = safetensors.numpy.load(fit.read_file(f"network-{block}.safetensors"))
    return FactoredNetwork.from_state(state)
