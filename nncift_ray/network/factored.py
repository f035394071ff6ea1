"""A network cut in two: what is computed once per example, and what is left per pair.

Plain numpy, so that scoring workers need no torch. Suffixes: N examples, D inputs, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
COLUMN_BIAS, INPUT_MEAN, INPUT_SCALE = "column.bias", "input.mean", "input.scale"
INPUT_WIDTHS = "input.widths"
PAIR_NAMES = {COLUMN_BIAS, INPUT_MEAN, INPUT_SCALE, INPUT_WIDTHS}

MAX_SCALAR = 4.0  # standard deviations: beyond it a scalar input counts as this


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """How raw inputs [N, D] are made ready: embedding, profile blocks, scalars, side by side.

    The embedding stays as it is. Blocks are centred and brought to length 1: hidden states of a
    language model share a large part that says nothing. Scalars are centred, scaled and bounded.
    What is not known of an example (NaN) counts as average: such blocks resemble nothing.
    """

    mean_D: F32
    scale_D: F32  # of the scalars; 1 elsewhere
    widths: tuple[int, ...]  # of the embedding, then of each block; what is left are scalars

    @classmethod
    def fit(cls, raw_ND: F32, widths: Sequence[int]) -> Inputs:
        """Fit to a sample of the examples that will be scored.

        Raises:
            ShapeError: If there are fewer inputs than the widths add up to.
        """
        first_scalar = sum(widths)
        if raw_ND.ndim != 2 or first_scalar > raw_ND.shape[1]:
            raise ShapeError(f"inputs {raw_ND.shape} are narrower than blocks of {tuple(widths)}")
        known_ND = raw_ND[np.isfinite(raw_ND).all(axis=1)].astype(np.float64)
        if len(known_ND) == 0:
            raise ShapeError("no example has a profile: see the errors table of the step profiles")
        mean_D = known_ND.mean(axis=0)
        mean_D[: widths[0]] = 0.0
        scale_D = np.ones(raw_ND.shape[1])
        spread = known_ND[:, first_scalar:].std(axis=0)
        scale_D[first_scalar:] = np.where(spread > 0, spread, 1.0)
        return cls(mean_D.astype(np.float32), scale_D.astype(np.float32), tuple(widths))

    @property
    def blocks(self) -> list[slice]:
        """Where the embedding and each block lie."""
        ends = np.cumsum(self.widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, self.widths, strict=True)]

    @property
    def scalars(self) -> slice:
        """Where the scalars lie."""
        return slice(sum(self.widths), len(self.mean_D))

    def prepare(self, raw_ND: F32) -> F32:
        """Return inputs ready to be multiplied [N, D]; a row's bits depend on the row alone."""
        x_ND = (raw_ND - self.mean_D) / self.scale_D
        profile_ND = x_ND[:, self.widths[0] :]
        profile_ND[np.isnan(profile_ND)] = 0.0
        for block in self.blocks[1:]:
            length_N1 = np.sqrt(np.square(x_ND[:, block]).sum(axis=1, keepdims=True))
            x_ND[:, block] /= np.maximum(length_N1, np.finfo(np.float32).tiny)
        x_ND[:, self.scalars] = np.clip(x_ND[:, self.scalars], -MAX_SCALAR, MAX_SCALAR)
        return x_ND


@dataclass(frozen=True, slots=True, eq=False)
class FactoredNetwork:
    """Weights of a network, in the unit of the labels.

    The paper's: s_ij = w . relu(a_i + b_j) + bias with a = W_row e + b_row and b = W_col e.

    The pair network, which has no output weights: s_ij = a_i[F] + b_j[F] + max(a_i[:F] . b_j[:F],
    0)^2 + bias with F = H - 1, a = W_row x + b_row, b = W_col x + b_col and x as ``inputs`` says.

    Attributes:
        w_row_HD: Weights of the helped example [H, D].
        b_row_H: First-layer bias [H], counted with the row.
        w_col_HD: Weights of the helper [H, D]; [H, 0] in a pointwise network.
        w_H: Output weights [H]; [0] in a pair network.
        bias: Output bias.
        b_col_H: First-layer bias of the helper [H], of a pair network.
        inputs: How the inputs of a pair network are made ready.

    Source: NN-CIFT, arXiv 2502.09969, section 3. The separator 0 of the paper's input drops out.
    """

    w_row_HD: F32
    b_row_H: F32
    w_col_HD: F32
    w_H: F32
    bias: float
    b_col_H: F32 | None = None
    inputs: Inputs | None = None

    def __post_init__(self) -> None:
        """Raise ShapeError when the arrays do not belong together."""
        num_hidden, dim = self.w_row_HD.shape
        col_shapes = ((num_hidden, dim), (num_hidden, 0))
        num_outputs = num_hidden if self.inputs is None else 0
        if self.b_row_H.shape != (num_hidden,) or self.w_H.shape != (num_outputs,):
            msg = f"{num_hidden} hidden units, but b_row {self.b_row_H.shape}, w {self.w_H.shape}"
            raise ShapeError(msg)
        if self.w_col_HD.shape not in col_shapes:
            msg = f"column weights are {self.w_col_HD.shape}, expected one of {col_shapes}"
            raise ShapeError(msg)

    @property
    def num_inputs(self) -> int:
        """Length D of what it reads of an example."""
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
        none_H = np.zeros(self.num_hidden, np.float32)
        b_col_H = none_H if self.b_col_H is None else self.b_col_H
        return _project(self._check(e_ND), self.w_col_HD, b_col_H)

    def score_pairs(self, a_PH: F32, b_PH: F32) -> F32:
        """Return the scores [P] of pairs of activations, up to the rounding of the kernels."""
        if self.inputs is None:
            return np.maximum(a_PH + b_PH, 0) @ self.w_H + np.float32(self.bias)
        product_P = (a_PH[:, :-1] * b_PH[:, :-1]).sum(axis=1)
        own_P = a_PH[:, -1] + b_PH[:, -1] + np.float32(self.bias)
        return np.maximum(product_P, 0) ** 2 + own_P

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
        if not self.pointwise:
            state[COLUMN_WEIGHT] = self.w_col_HD
        if self.inputs is not None and self.b_col_H is not None:
            state |= {
                COLUMN_BIAS: self.b_col_H,
                INPUT_MEAN: self.inputs.mean_D,
                INPUT_SCALE: self.inputs.scale_D,
                INPUT_WIDTHS: np.array(self.inputs.widths, np.float32),
            }
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.float32]]) -> FactoredNetwork:
        """Build a network from the arrays of a checkpoint, as `to_state` returns them.

        Raises:
            ShapeError: If an array is missing or unknown, or shapes do not agree.
        """
        needed = {ROW_WEIGHT, ROW_BIAS, OUTPUT_WEIGHT, OUTPUT_BIAS}
        optional = {COLUMN_WEIGHT, *PAIR_NAMES}
        if not needed <= set(state) <= needed | optional or len(PAIR_NAMES & set(state)) in (
            1,
            2,
            3,
        ):
            msg = f"checkpoint holds {sorted(state)}, expected {sorted(needed)} (+ {COLUMN_WEIGHT})"
            raise ShapeError(msg)
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}
        row_HD = arrays[ROW_WEIGHT]
        inputs = None
        if INPUT_MEAN in arrays:
            widths = tuple(int(width) for width in arrays[INPUT_WIDTHS])
            inputs = Inputs(arrays[INPUT_MEAN], arrays[INPUT_SCALE], widths)
        return cls(
            w_row_HD=row_HD,
            b_row_H=arrays[ROW_BIAS],
            w_col_HD=arrays.get(COLUMN_WEIGHT, np.zeros((len(row_HD), 0), np.float32)),
            w_H=arrays[OUTPUT_WEIGHT],
            bias=float(arrays[OUTPUT_BIAS].reshape(-1)[0]),
            b_col_H=arrays.get(COLUMN_BIAS),
            inputs=inputs,
        )

    def _check(self, e_ND: NDArray[np.floating]) -> F32:
        if e_ND.ndim != 2 or e_ND.shape[1] != self.num_inputs:
            msg = f"inputs are {e_ND.shape}, the network reads [N, {self.num_inputs}]"
            raise ShapeError(msg)
        x_ND = np.ascontiguousarray(e_ND, np.float32)
        return x_ND if self.inputs is None else self.inputs.prepare(x_ND)


def cosine_network(width: int) -> FactoredNetwork:
    """Return the pair network of no label, s_ij = max(cosine, 0)^2 of vectors of this width."""
    mean_D, scale_D = np.zeros(width, np.float32), np.ones(width, np.float32)
    inputs = Inputs(mean_D, scale_D, (0, width))  # a block is brought to length 1
    weight_HD, bias_H = np.eye(width + 1, width, dtype=np.float32), np.zeros(width + 1, np.float32)
    none = np.zeros(0, np.float32)
    return FactoredNetwork(weight_HD, bias_H, weight_HD, none, 0.0, b_col_H=bias_H, inputs=inputs)


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
