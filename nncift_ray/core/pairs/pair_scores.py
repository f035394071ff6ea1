"""Influence of every pair from projected activations: exact, streamed, top K of every row.

The first layer reads [e_i; 0; e_j], so it splits and is computed once per example:

    s_ij = w . relu(a_i + b_j) + bias,   a_i = W_row e_i + bias_1,   b_j = W_col e_j

A pair then costs H additions of a maximum, because relu(x) = max(x, 0) gives

    w_h relu(a + b) = w_h b + max(w_h a, -w_h b)   for w_h >= 0
    w_h relu(a + b) = w_h b + min(w_h a, -w_h b)   for w_h <  0

where the first term belongs to the column alone. Each pair is summed over h in one fixed order with
plain IEEE additions (vectors run across columns), so its score has the same bits whatever the tile
size, the row block or K.

Suffixes: I rows (helped), J columns (helpers), H hidden units, K kept columns, T columns of a tile.
Source of the network: NN-CIFT, arXiv 2502.09969, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.pair_kernel import (
    FIRST_KEY,
    LAST_COLUMN,
    NO_KEY,
    add_tile,
    weigh_columns,
)
from nncift_ray.core.pairs.score_histogram import CountedRows
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_COLUMN = -1


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Count, extremes and sums of the scores of each row, in the unit of the labels."""

    num_pairs_I: I64
    min_I: F32
    max_I: F32
    sum_I: F64
    sum_of_squares_I: F64

    @classmethod
    def empty(cls, num_rows: int) -> ScoreStatistics:
        """Return the statistics of no pair, for so many rows."""
        return cls(
            np.zeros(num_rows, np.int64),
            np.full(num_rows, np.inf, np.float32),
            np.full(num_rows, -np.inf, np.float32),
            np.zeros(num_rows),
            np.zeros(num_rows),
        )

    def copy(self) -> ScoreStatistics:
        """Return a copy that further columns do not change."""
        return ScoreStatistics(
            self.num_pairs_I.copy(),
            self.min_I.copy(),
            self.max_I.copy(),
            self.sum_I.copy(),
            self.sum_of_squares_I.copy(),
        )

    def total(self) -> ScoreTotal:
        """Merge the rows; the sums are correctly rounded, so the order of the rows is no matter."""
        if len(self.num_pairs_I) == 0:
            return ScoreTotal(0, math.inf, -math.inf, 0.0, 0.0)
        return ScoreTotal(
            num_pairs=int(self.num_pairs_I.sum()),
            min=float(self.min_I.min()),
            max=float(self.max_I.max()),
            sum=math.fsum(self.sum_I),
            sum_of_squares=math.fsum(self.sum_of_squares_I),
        )


@dataclass(frozen=True, slots=True)
class ScoreTotal:
    """Count, extremes and sums over many pairs; (0, inf, -inf, 0, 0) when there are none."""

    num_pairs: int
    min: float
    max: float
    sum: float
    sum_of_squares: float

    def merge(self, other: ScoreTotal) -> ScoreTotal:
        """Return the total over both; merge in a fixed order where the last bit matters."""
        return ScoreTotal(
            self.num_pairs + other.num_pairs,
            min(self.min, other.min),
            max(self.max, other.max),
            self.sum + other.sum,
            self.sum_of_squares + other.sum_of_squares,
        )


@dataclass(frozen=True, slots=True)
class TopKState:
    """What has been kept so far for I rows: a heap of keys (see `pair_kernel`) for each.

    Made by `top_k_rows` and changed in place by it; hand it back with further columns.
    """

    key_IK: I64
    statistics: ScoreStatistics


@dataclass(frozen=True, slots=True)
class TopK:
    """The best columns of each row, best first, equal scores by smaller column.

    `index_IK` is -1 and `score_IK` -inf where a row has fewer than K columns. `statistics` and the
    lists cover all columns seen by `state`; `column_max_J` covers the columns of this call only:
    the maximum over the rows of this call (-inf when there are none).
    """

    index_IK: I32
    score_IK: F32
    statistics: ScoreStatistics
    column_max_J: F32
    state: TopKState = field(repr=False)


def score_block(a_IH: F32, b_JH: F32, w_H: F32, bias: float) -> F32:
    """Score every pair of a block the plain way: the oracle of the streamed kernel.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included.
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.

    Returns:
        [I, J] influence in the unit of the labels, summed in float64, rounded to float32.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 4 * I * J bytes for the result and 8 * J * H for one row.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    b64_JH, w64_H = b_JH.astype(np.float64), w_H.astype(np.float64)
    score_IJ = np.empty((len(a_IH), len(b_JH)), np.float32)
    for i, a_H in enumerate(a_IH):
        score_IJ[i] = np.maximum(a_H.astype(np.float64) + b64_JH, 0.0) @ w64_H + bias
    return score_IJ


def score_points(a_NH: F32, w_H: F32, bias: float) -> F32:
    """Score examples by a pointwise network: w . relu(a_n) + bias, [N], unit of the labels.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.
    """
    check_activations(a_NH, np.zeros((0, len(w_H)), np.float32), w_H, bias)
    hidden_NH = np.maximum(a_NH.astype(np.float64), 0.0)
    # A sum along H in numpy's own fixed order; a matrix product may change with the number of rows.
    return ((hidden_NH * w_H.astype(np.float64)).sum(axis=1) + bias).astype(np.float32)


def top_k_rows(
    a_IH: F32,
    b_JH: F32,
    w_H: F32,
    bias: float,
    k: int,
    *,
    column_offset: int = 0,
    tile_columns: int = 1024,
    state: TopKState | None = None,
    counted: CountedRows | None = None,
) -> TopK:
    """Score all pairs tile by tile and keep the K best columns of every row.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included.
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.
        k: Columns kept per row, at least 1; rows with fewer columns are padded.
        column_offset: Index of the first column of `b_JH` among all columns.
        tile_columns: Columns scored at once. A packed tile of 4 * H * tile_columns bytes should
            stay in the second-level cache; the result does not depend on it.
        state: What an earlier call returned for the same rows, to go on with further columns.
            The order in which columns arrive does not change the lists.
        counted: Rows whose scores are counted, and the counts; changed in place.

    Returns:
        Lists, statistics and column maxima in the unit of the labels (raw and signed).

    Raises:
        ShapeError: If H differs between the arrays, or the state is of other rows or another K.
        ValueError: If an activation is not finite (the message names the first such row), or k or
            tile_columns is below 1.

    Memory: 8 * I * K bytes for the lists, 4 * I * H for the prepared rows, one tile.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    if tile_columns < 1:
        msg = f"tile_columns must be at least 1, got {tile_columns}"
        raise ValueError(msg)
    num_rows = len(a_IH)
    state = start_state(num_rows, k, column_offset, len(b_JH), state)
    column_max_J = np.full(len(b_JH), -np.inf, np.float32)
    counted = CountedRows.none(num_rows) if counted is None else counted
    if num_rows:
        order_H, num_max = unit_order(w_H)
        rows_IH = prepare_rows(a_IH, w_H, order_H)
        for start in range(0, len(b_JH), tile_columns):
            part = slice(start, start + tile_columns)
            tile_HT, base_T = pack_tile(b_JH[part], w_H, order_H, bias)
            add_tile(
                rows_IH,
                tile_HT,
                base_T,
                num_max,
                column_offset + start,
                state.key_IK,
                state.statistics.num_pairs_I,
                state.statistics.min_I,
                state.statistics.max_I,
                state.statistics.sum_I,
                state.statistics.sum_of_squares_I,
                counted.is_counted_I,
                counted.count_B,
                column_max_J[part],
            )
    index_IK, score_IK = read_keys(state.key_IK)
    return TopK(index_IK, score_IK, state.statistics.copy(), column_max_J, state)


def top_k_vector(score_J: F32, k: int) -> tuple[I64, F32]:
    """Return the indices and values of the k largest scores, best first, ties by smaller index.

    Fewer than k scores return all of them.

    Raises:
        ValueError: If a score is NaN; the message names the first one.
    """
    bad = np.flatnonzero(np.isnan(score_J))
    if len(bad):
        msg = f"score {bad[0]} is NaN ({len(bad)} of {len(score_J)}): score these examples anew"
        raise ValueError(msg)
    # Ascending by negated score: the best come first, and the stable sort keeps index order.
    index = np.argsort(-score_J, kind="stable")[: max(k, 0)]
    return index.astype(np.int64), score_J[index]


def check_activations(a_IH: F32, b_JH: F32, w_H: F32, bias: float) -> None:
    """Raise ShapeError on differing H, ValueError naming the first row that is not finite."""
    if a_IH.ndim != 2 or b_JH.ndim != 2 or w_H.ndim != 1:
        msg = f"expected a[I,H], b[J,H], w[H]; got shapes {a_IH.shape}, {b_JH.shape}, {w_H.shape}"
        raise ShapeError(msg)
    if not a_IH.shape[1] == b_JH.shape[1] == len(w_H):
        msg = f"hidden units differ: a {a_IH.shape[1]}, b {b_JH.shape[1]}, w {len(w_H)}"
        raise ShapeError(msg)
    if not (np.isfinite(w_H).all() and math.isfinite(bias)):
        msg = "the output weights or bias are not finite: train the network anew"
        raise ValueError(msg)
    for name, values_NH in (("row (helped)", a_IH), ("column (helper)", b_JH)):
        bad = np.flatnonzero(~np.isfinite(values_NH).all(axis=1))
        if len(bad):
            msg = (
                f"{name} activations: row {bad[0]} is not finite ({len(bad)} of {len(values_NH)});"
                " embed these examples anew"
            )
            raise ValueError(msg)


def start_state(
    num_rows: int, k: int, column_offset: int, num_columns: int, state: TopKState | None
) -> TopKState:
    """Return the state to go on with: the one given, checked, or an empty one.

    Raises:
        ShapeError: If the state is of other rows or another K.
        ValueError: If k is below 1, or the columns pass the largest number that lists can hold.
    """
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise ValueError(msg)
    if column_offset < 0 or column_offset + num_columns > np.iinfo(np.int32).max:
        msg = f"columns must be numbered 0..2**31-2; got {column_offset} + {num_columns}"
        raise ValueError(msg)
    if state is None:
        empty_IK = np.tile(NO_KEY + np.arange(k, dtype=np.int64), (num_rows, 1))
        return TopKState(empty_IK, ScoreStatistics.empty(num_rows))
    if state.key_IK.shape != (num_rows, k):
        msg = f"the state holds rows x K = {state.key_IK.shape}, this call {(num_rows, k)}"
        raise ShapeError(msg)
    return state


def read_keys(key_IK: I64) -> tuple[I32, F32]:
    """Return the columns and scores of keys, best first; -1 and -inf where places are empty."""
    sorted_IK = np.sort(key_IK, axis=1)[:, ::-1]
    none_IK = sorted_IK < FIRST_KEY
    ordered_IK = (sorted_IK >> 32).astype(np.int32)
    score_IK = (ordered_IK ^ ((ordered_IK >> 31) & 0x7FFFFFFF)).view(np.float32)
    index_IK = (LAST_COLUMN - (sorted_IK & 0xFFFFFFFF)).astype(np.int32)
    score_IK[none_IK], index_IK[none_IK] = -np.inf, NO_COLUMN
    return index_IK, score_IK


def unit_order(w_H: F32) -> tuple[I64, int]:
    """Return hidden units with weights >= 0 (a maximum) first, and how many of them there are."""
    return np.argsort(w_H < 0, kind="stable"), int((w_H >= 0).sum())


def prepare_rows(a_IH: F32, w_H: F32, order_H: I64) -> F32:
    """Return w_h a_ih in kernel order."""
    return np.ascontiguousarray((a_IH * w_H)[:, order_H])


def pack_tile(b_TH: F32, w_H: F32, order_H: I64, bias: float) -> tuple[F32, F32]:
    """Return -w_h b_jh as [H, T] in kernel order and the column term bias + sum_h w_h b_jh [T]."""
    tile_HT = np.empty((len(order_H), len(b_TH)), np.float32)
    base_T = np.full(len(b_TH), bias, np.float64)
    place_H = np.empty(len(w_H), np.int64)
    place_H[order_H] = np.arange(len(w_H))
    weigh_columns(np.ascontiguousarray(b_TH), w_H, place_H, tile_HT, base_T)
    return tile_HT, base_T.astype(np.float32)
