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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.kernel import (
    FIRST_KEY,
    GATHERED_COLUMNS,
    LAST_COLUMN,
    NO_KEY,
    NUM_BINS,
    NUM_ROWS,
    ONE,
    PANEL_COLUMNS,
    CountedRows,
    add_tile,
    count_values,
    key_of,
    replace_worst,
    score_gathered,
    score_panel,
    sum_tile,
    weigh_columns,
)

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


# Columns packed into panels in any order, and rows scored against some of the panels.


PACKED_AT_ONCE = 64 * PANEL_COLUMNS  # places filled at once: 1.6 MB at 100 hidden units


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Columns of a network packed side by side; made by `pack_panels`."""

    panel_PHC: F32  # -w_h b_jh, units of a minimum negated, 0 where there is no column
    base_X: F32  # bias + sum_h w_h b_jh; -inf where there is no column, and so is its score
    column_X: I32  # the column's number, or -1
    sign_H: F32  # 1 for units of a maximum, -1 for units of a minimum
    order_H: I64
    w_H: F32
    bias: float

    def prepare_rows(self, a_IH: F32) -> F32:
        """Return row activations in the kernel's order and sign.

        Raises:
            ShapeError: If H differs.
            ValueError: If an activation is not finite; the message names the first such row.
        """
        check_activations(a_IH, np.zeros((0, len(self.w_H)), np.float32), self.w_H, self.bias)
        return prepare_rows(a_IH, self.w_H, self.order_H) * self.sign_H


def padded_places(columns: NDArray[np.integer]) -> I32:
    """Return columns as places of whole panels, the last filled up with -1."""
    padding = np.full(-len(columns) % PANEL_COLUMNS, NO_COLUMN, np.int32)
    return np.concatenate([columns.astype(np.int32), padding])


def pack_panels(b_JH: F32, w_H: F32, bias: float, column_X: I32) -> Panels:
    """Pack columns into panels.

    Args:
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.
        column_X: Column at each place, -1 for none; whole panels (`padded_places`).

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 4 * X * H bytes, H padded to two multiples of four.
    """
    check_activations(np.zeros((0, len(w_H)), np.float32), b_JH, w_H, bias)
    order_H, num_max = unit_order(w_H)
    sign_H = np.where(np.arange(len(order_H)) < num_max, 1, -1).astype(np.float32)
    panel_PHC = np.empty((len(column_X) // PANEL_COLUMNS, len(order_H), PANEL_COLUMNS), np.float32)
    base_X = np.empty(len(column_X), np.float32)
    for start in range(0, len(column_X), PACKED_AT_ONCE):
        part_X = column_X[start : start + PACKED_AT_ONCE]
        b_XH = np.where(part_X[:, None] == NO_COLUMN, np.float32(0), b_JH[part_X])
        tile_HX, base_X[start : start + len(part_X)] = pack_tile(b_XH, w_H, order_H, bias)
        tile_HPC = (tile_HX * sign_H[:, None]).reshape(len(order_H), -1, PANEL_COLUMNS)
        first = start // PANEL_COLUMNS
        panel_PHC[first : first + tile_HPC.shape[1]] = tile_HPC.transpose(1, 0, 2)
    base_X[column_X == NO_COLUMN] = -np.inf
    return Panels(panel_PHC, base_X, column_X, sign_H, order_H, w_H, bias)


def score_matrix(a_IH: F32, b_JH: F32, w_H: F32, bias: float) -> F32:
    """Score every pair of a block and return all scores [I, J], in the unit of the labels.

    The scores have the bits of `pair_scores.top_k_rows`; `pair_scores.score_block` is the slow
    oracle of both.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 8 * I * J bytes and the panels.
    """
    panels = pack_panels(b_JH, w_H, bias, padded_places(np.arange(len(b_JH))))
    score_IX = np.empty((len(a_IH), len(panels.base_X)), np.float32)
    rows_IH = panels.prepare_rows(a_IH)
    _score_all(rows_IH, panels.panel_PHC, panels.base_X, panels.sign_H, score_IX)
    return np.ascontiguousarray(score_IX[:, : len(b_JH)])


@compiled
def gather_rows(rows_IH: F32, chosen_N: I64, first: int, group_HR: F32) -> None:
    """Write eight of the chosen rows, from `first` on, side by side; the last one fills up."""
    for r in range(NUM_ROWS):
        i = chosen_N[min(first + r, len(chosen_N) - 1)]
        for h in range(len(group_HR)):
            group_HR[h, r] = rows_IH[i, h]


@compiled
def score_panels(group_HR: F32, panel_PHC: F32, sign_H: F32, base_X: F32, score_RX: F32) -> None:
    """Score eight rows against neighbouring panels."""
    for p in range(len(panel_PHC)):
        score_panel(group_HR, panel_PHC[p], sign_H, base_X, score_RX, p * PANEL_COLUMNS)


@compiled
def _score_all(rows_IH: F32, panel_PHC: F32, base_X: F32, sign_H: F32, score_IX: F32) -> None:
    chosen = np.arange(len(rows_IH))
    group_HR = np.empty((len(sign_H), NUM_ROWS), np.float32)
    score_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    for first in range(0, len(rows_IH), NUM_ROWS):
        gather_rows(rows_IH, chosen, first, group_HR)
        score_panels(group_HR, panel_PHC, sign_H, base_X, score_RX)
        for r in range(min(NUM_ROWS, len(rows_IH) - first)):
            score_IX[first + r] = score_RX[r]


# Sums of influence by column, exact: how much a candidate helps the rows of each subtask.


MAX_SCORE = 2.0**10  # in size, of one score
MAX_SUM = 2.0**31  # in size, of one sum: beyond it 64 bits overflow


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """Sums of the columns of one call, and the statistics of all calls for the same rows."""

    sum_GJ: I64  # whole numbers of 2**-32 of the labels' unit
    statistics: ScoreStatistics


def sum_columns(
    a_IH: F32,
    b_JH: F32,
    w_H: F32,
    bias: float,
    group_I: I64,
    num_groups: int,
    *,
    tile_columns: int = 1024,
    statistics: ScoreStatistics | None = None,
    counted: CountedRows | None = None,
) -> ColumnSums:
    """Score all pairs tile by tile and add up each column within each group of rows.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included.
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.
        group_I: Group of each row [I], in 0..num_groups - 1.
        num_groups: Groups G.
        tile_columns: Columns scored at once; changes no bit (see `pair_scores.top_k_rows`).
        statistics: What an earlier call returned for the same rows, to go on with further columns;
            changed in place.
        counted: Rows whose scores are counted, and the counts; changed in place.

    Returns:
        Sums of the columns given, and statistics of the raw scores. The scores are those of
        `top_k_rows`, to the last bit.

    Raises:
        ShapeError: If H differs between the arrays, or groups or statistics are of other rows.
        ValueError: If an activation is not finite, a group is outside 0..G-1, or a score is 2**10
            or more in size.

    Memory: 8 * G * J bytes for the sums, 4 * I * H for the prepared rows, one tile.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    statistics = ScoreStatistics.empty(len(a_IH)) if statistics is None else statistics
    _check_rows(len(a_IH), group_I, num_groups, statistics)
    sum_GJ = np.zeros((num_groups, len(b_JH)), np.int64)
    if len(a_IH) == 0:
        return ColumnSums(sum_GJ, statistics)
    counted = CountedRows.none(len(a_IH)) if counted is None else counted
    order_H, num_max = unit_order(w_H)
    rows_IH = prepare_rows(a_IH, w_H, order_H)
    for start in range(0, len(b_JH), tile_columns):
        part = slice(start, start + tile_columns)
        tile_HT, base_T = pack_tile(b_JH[part], w_H, order_H, bias)
        sum_GT = np.zeros((num_groups, len(base_T)), np.int64)
        sum_tile(
            rows_IH,
            tile_HT,
            base_T,
            num_max,
            group_I,
            statistics.num_pairs_I,
            statistics.min_I,
            statistics.max_I,
            statistics.sum_I,
            statistics.sum_of_squares_I,
            counted.is_counted_I,
            counted.count_B,
            sum_GT,
        )
        sum_GJ[:, part] = sum_GT
    if len(b_JH):
        # A score that is not finite leaves no trace in the extremes, but does in a sum of squares.
        low, high = float(statistics.min_I.min()), float(statistics.max_I.max())
        _check_scores(low, high, finite=bool(np.isfinite(statistics.sum_of_squares_I).all()))
    return ColumnSums(sum_GJ, statistics)


def to_fixed_point(score_J: F32) -> I64:
    """Return scores as whole numbers of 2**-32, rounded half to even.

    Raises:
        ValueError: If a score is not finite, or 2**10 or more in size.
    """
    if len(score_J):
        finite = bool(np.isfinite(score_J).all())
        _check_scores(float(score_J.min()), float(score_J.max()), finite=finite)
    return np.rint(score_J.astype(np.float64) * ONE).astype(np.int64)


def check_sum_range(num_rows: int, low: float, high: float) -> None:
    """Check that so many scores between two bounds can be added in 64 bits.

    Raises:
        ValueError: If their sum might reach 2**31 in size.
    """
    largest = max(abs(low), abs(high))
    if not num_rows * largest < MAX_SUM:
        msg = (
            f"{num_rows:,} scores of size {largest:g} cannot be added exactly (their sum may pass"
            " 2**31): let the teacher divide its labels by a constant"
        )
        raise ValueError(msg)


def best_group_mean(sum_GJ: Sequence[I64], num_rows_GJ: Sequence[I64]) -> F64:
    """Return the score of each column [J]: its mean in the group where that is highest.

    Args:
        sum_GJ: Sums over rows of each group [J], whole numbers of 2**-32.
        num_rows_GJ: Rows that each sum is over [J]; where that is 0 the group says nothing.

    Returns:
        Raw and signed scores in the unit of the labels; NaN where no group says anything.

    Raises:
        ShapeError: If the two do not belong together.
        ValueError: If there is no group.

    Memory: 24 * J bytes besides the arguments.
    """
    if [len(sum_J) for sum_J in sum_GJ] != [len(num_J) for num_J in num_rows_GJ]:
        msg = f"sums of {len(sum_GJ)} groups, rows of {len(num_rows_GJ)}, or of other columns"
        raise ShapeError(msg)
    if len(sum_GJ) == 0:
        msg = "a mean needs at least one group"
        raise ValueError(msg)
    best_J = np.full(len(sum_GJ[0]), -np.inf)
    for sum_J, num_J in zip(sum_GJ, num_rows_GJ, strict=True):
        mean_J = np.full(len(sum_J), -np.inf)
        np.divide(sum_J, num_J * ONE, out=mean_J, where=num_J > 0)
        np.maximum(best_J, mean_J, out=best_J)
    best_J[np.isneginf(best_J)] = np.nan
    return best_J


def _check_rows(num_rows: int, group_I: I64, num_groups: int, statistics: ScoreStatistics) -> None:
    if group_I.shape != (num_rows,) or len(statistics.num_pairs_I) != num_rows:
        msg = (
            f"{num_rows} rows, but groups of {group_I.shape} and statistics of"
            f" {len(statistics.num_pairs_I)}"
        )
        raise ShapeError(msg)
    if num_rows and not 0 <= group_I.min() <= group_I.max() < num_groups:
        msg = f"groups {group_I.min()}..{group_I.max()} named, there are {num_groups}"
        raise ValueError(msg)


def _check_scores(low: float, high: float, *, finite: bool) -> None:
    if not (finite and math.isfinite(low) and -MAX_SCORE < low and high < MAX_SCORE):
        msg = (
            f"scores reach from {low:g} to {high:g}, and must lie within"
            f" +-{MAX_SCORE:g} to be added exactly: let the teacher divide its labels by a constant"
        )
        raise ValueError(msg)


# Exact influence of listed pairs: the columns that an approximate search proposed for each row.


TILE_COLUMNS = 1024  # columns packed at once: 400 kB at 100 hidden units


@dataclass(frozen=True, slots=True, eq=False)
class PackedColumns:
    """All columns of a network, prepared for scoring in any order; made by `pack_columns`."""

    weighted_JH: F32  # -w_h b_jh, units of a minimum negated; H a multiple of 16, 0 where padded
    base_J: F32  # bias + sum_h w_h b_jh
    sign_H: F32  # 1 for units of a maximum, -1 for units of a minimum
    order_H: I64
    w_H: F32
    bias: float

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.base_J)


@dataclass(frozen=True, slots=True, eq=False)
class RescoredTopK:
    """The best of the listed columns of each row, best first, equal scores by smaller column."""

    index_IK: I32  # -1 where fewer than K columns were listed
    score_IK: F32  # -inf there
    num_pairs_I: I64  # distinct columns listed, and so scored


def pack_columns(b_JH: F32, w_H: F32, bias: float) -> PackedColumns:
    """Prepare all columns for `rescore_rows`.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 4 * J * H bytes, H padded to two multiples of four, and one tile.
    """
    check_activations(np.zeros((0, len(w_H)), np.float32), b_JH, w_H, bias)
    order_H, num_max = unit_order(w_H)
    num_hidden = len(w_H)
    num_padded = -(-num_hidden // GATHERED_COLUMNS) * GATHERED_COLUMNS
    sign_H = np.where(np.arange(num_padded) < num_max, 1, -1).astype(np.float32)
    weighted_JH = np.zeros((len(b_JH), num_padded), np.float32)
    base_J = np.empty(len(b_JH), np.float32)
    for start in range(0, len(b_JH), TILE_COLUMNS):
        part = slice(start, start + TILE_COLUMNS)
        tile_HT, base_J[part] = pack_tile(b_JH[part], w_H, order_H, bias)
        weighted_JH[part, :num_hidden] = (tile_HT * sign_H[:num_hidden, None]).T
    return PackedColumns(weighted_JH, base_J, sign_H, order_H, w_H, bias)


def rescore_rows(
    a_IH: F32, columns: PackedColumns, candidate_IC: NDArray[np.integer], k: int
) -> RescoredTopK:
    """Score the listed columns of every row exactly and keep the K best.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included, units in their own order.
        columns: All columns, from `pack_columns`.
        candidate_IC: Listed columns of each row [I, C], in any order; a column listed twice counts
            once, -1 is no column.
        k: Columns kept per row, at least 1.

    Returns:
        Lists in the unit of the labels (raw and signed). A pair's score has the bits that
        `pair_scores.top_k_rows` gives it, and listing every column gives the lists of that
        function.

    Raises:
        ShapeError: If rows, hidden units and lists do not belong together.
        ValueError: If an activation is not finite (the message names the first such row), a
            listed column does not exist, or k is below 1.

    Memory: 12 * I * C bytes while it works, 8 * I * K for the result, 4 * I * H for the rows.
    """
    check_activations(a_IH, np.zeros((0, len(columns.w_H)), np.float32), columns.w_H, columns.bias)
    _check_lists(len(a_IH), len(columns), candidate_IC, k)
    num_hidden = len(columns.w_H)
    rows_IH = np.zeros((len(a_IH), len(columns.sign_H)), np.float32)
    rows_IH[:, :num_hidden] = prepare_rows(a_IH, columns.w_H, columns.order_H)
    rows_IH[:, :num_hidden] *= columns.sign_H[:num_hidden]
    # Ascending: equal columns are neighbours.
    listed_IC = np.sort(candidate_IC.astype(np.int32), axis=1)
    key_IC = np.empty((len(a_IH), max(k, listed_IC.shape[1])), np.int64)
    num_pairs_I = np.zeros(len(a_IH), np.int64)
    _score_lists(
        rows_IH,
        columns.sign_H,
        columns.weighted_JH,
        columns.base_J,
        listed_IC,
        key_IC,
        num_pairs_I,
    )
    best_IK = np.partition(key_IC, key_IC.shape[1] - k, axis=1)[:, -k:]
    return RescoredTopK(*read_keys(best_IK), num_pairs_I)


def _check_lists(
    num_rows: int, num_columns: int, candidate_IC: NDArray[np.integer], k: int
) -> None:
    if candidate_IC.ndim != 2 or len(candidate_IC) != num_rows:
        msg = f"{num_rows} rows, but lists of {candidate_IC.shape}; expected one list a row"
        raise ShapeError(msg)
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise ValueError(msg)
    if candidate_IC.size == 0:
        return
    low, high = int(candidate_IC.min()), int(candidate_IC.max())
    if low < NO_COLUMN or high >= num_columns:
        msg = (
            f"columns {low}..{high} are listed, there are {num_columns} (and {NO_COLUMN} for none):"
            " was the index built from other columns?"
        )
        raise ValueError(msg)


@compiled
def _score_lists(
    rows_IH: F32, sign_H: F32, weighted_JH: F32, base_J: F32, listed_IC: I32, key_IC: I64,
    num_pairs_I: I64,
) -> None:  # fmt: skip
    num_listed = listed_IC.shape[1]
    # The last group is filled up, and another follows that is fetched and not scored.
    num_places = num_listed + 2 * GATHERED_COLUMNS
    padded_C = np.empty(num_places, np.int32)
    score_C = np.empty(num_places, np.float32)
    for i in range(len(rows_IH)):
        count = _move_distinct(listed_IC[i])
        num_pairs_I[i] = count
        for c in range(key_IC.shape[1]):
            key_IC[i, c] = NO_KEY + c
        if count == 0:
            continue
        padded_C[:count] = listed_IC[i, :count]
        padded_C[count:] = listed_IC[i, count - 1]
        for c in range(0, count, GATHERED_COLUMNS):
            score_gathered(rows_IH[i], sign_H, weighted_JH, base_J, padded_C, c, score_C)
        for c in range(count):
            key_IC[i, c] = key_of(score_C[c], listed_IC[i, c])


@compiled
def _move_distinct(listed_C: I32) -> int:
    """Move the distinct columns of an ascending list to its front and return their number."""
    count = 0
    for c in range(len(listed_C)):
        column = listed_C[c]
        if column >= 0 and (count == 0 or column != listed_C[count - 1]):
            listed_C[count] = column
            count += 1
    return count


@compiled
def insert_best(index_K: I32, score_K: F32, column: int, score: float) -> None:
    """Insert a column into a list sorted best first, if it belongs there; ties by column."""
    place = len(score_K)
    while place > 0 and (
        score > score_K[place - 1] or (score == score_K[place - 1] and column < index_K[place - 1])
    ):
        place -= 1
        if place + 1 < len(score_K):
            index_K[place + 1], score_K[place + 1] = index_K[place], score_K[place]
    if place < len(score_K):
        index_K[place], score_K[place] = column, score


# The CPU kernels on several threads of one process, which share one copy of the columns.

Result = TypeVar("Result")

ROWS_AT_ONCE = 8  # a run of rows that is no multiple of it leaves a group of the kernel unfilled


def run_parts(
    num_rows: int,
    num_threads: int,
    task: Callable[[slice], Result],
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[Result]:
    """Call a task with runs of rows that cover all rows, each on a thread; in the rows' order.

    No rows are one empty run. Runs are cut at multiples of `rows_at_once`.

    Raises:
        Exception: The first that a task raised.
    """
    groups = -(-num_rows // rows_at_once)
    step = max(1, -(-groups // max(num_threads, 1))) * rows_at_once
    parts = [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    if len(parts) < 2:
        return [task(part) for part in parts or [slice(0, 0)]]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(task, parts))


@dataclass(frozen=True, slots=True)
class CpuThreads:
    """The kernels of `pair_scores`, `column_sums` and `rescoring`, on threads.

    Arguments, results and errors are those of the functions of one thread, to the last bit.
    """

    num_threads: int = 1

    def top_k_rows(
        self,
        a_IH: F32,
        b_JH: F32,
        w_H: F32,
        bias: float,
        k: int,
        *,
        column_offset: int = 0,
        state: TopKState | None = None,
        counted: CountedRows | None = None,
    ) -> TopK:
        """Do `pair_scores.top_k_rows`."""
        whole = start_state(len(a_IH), k, column_offset, len(b_JH), state)

        def score(rows: slice) -> tuple[F32, I64 | None]:
            part = None if counted is None else counted.part(rows)
            top = top_k_rows(
                a_IH[rows],
                b_JH,
                w_H,
                bias,
                k,
                column_offset=column_offset,
                state=TopKState(whole.key_IK[rows], _rows_of(whole.statistics, rows)),
                counted=part,
            )
            return top.column_max_J, None if part is None else part.count_B

        parts = run_parts(len(a_IH), self.num_threads, score)
        _add_counts(counted, [count_B for _, count_B in parts])
        column_max_J = np.maximum.reduce([column_max for column_max, _ in parts])
        index_IK, score_IK = read_keys(whole.key_IK)
        return TopK(index_IK, score_IK, whole.statistics.copy(), column_max_J, whole)

    def sum_columns(
        self,
        a_IH: F32,
        b_JH: F32,
        w_H: F32,
        bias: float,
        group_I: I64,
        num_groups: int,
        *,
        statistics: ScoreStatistics | None = None,
        counted: CountedRows | None = None,
    ) -> ColumnSums:
        """Do `column_sums.sum_columns`; sums are whole numbers, so they add up exactly."""
        whole = ScoreStatistics.empty(len(a_IH)) if statistics is None else statistics

        def add(rows: slice) -> tuple[I64, I64 | None]:
            part = None if counted is None else counted.part(rows)
            sums = sum_columns(
                a_IH[rows],
                b_JH,
                w_H,
                bias,
                group_I[rows],
                num_groups,
                statistics=_rows_of(whole, rows),
                counted=part,
            )
            return sums.sum_GJ, None if part is None else part.count_B

        parts = run_parts(len(a_IH), self.num_threads, add)
        _add_counts(counted, [count_B for _, count_B in parts])
        return ColumnSums(np.sum([sum_GJ for sum_GJ, _ in parts], axis=0), whole)

    def rescore_rows(
        self, a_IH: F32, columns: PackedColumns, candidate_IC: NDArray[np.integer], k: int
    ) -> RescoredTopK:
        """Do `rescoring.rescore_rows`."""
        return _join(
            run_parts(
                len(a_IH),
                self.num_threads,
                lambda rows: rescore_rows(a_IH[rows], columns, candidate_IC[rows], k),
            )
        )


def _rows_of(statistics: ScoreStatistics, rows: slice) -> ScoreStatistics:
    """Return the statistics of some rows, sharing memory with those of all."""
    return ScoreStatistics(
        statistics.num_pairs_I[rows],
        statistics.min_I[rows],
        statistics.max_I[rows],
        statistics.sum_I[rows],
        statistics.sum_of_squares_I[rows],
    )


def _add_counts(counted: CountedRows | None, parts: list[I64 | None]) -> None:
    for count_B in parts:
        if counted is not None and count_B is not None:
            counted.count_B[:] += count_B


def _join(parts: list[RescoredTopK]) -> RescoredTopK:
    return RescoredTopK(
        np.concatenate([part.index_IK for part in parts]),
        np.concatenate([part.score_IK for part in parts]),
        np.concatenate([part.num_pairs_I for part in parts]),
    )


# Lists of best columns that were kept, made ready to go on with further columns.


def state_of_lists(index_IK: I32, score_IK: F32) -> TopKState:
    """Return the state that `top_k_rows` was in when it returned these lists.

    With further columns it then keeps what it would have kept of all columns at once: the lists
    hold the best K of what came before, ties by smaller column, and nothing else could return.
    The statistics begin anew, so they are of the further columns only.

    Args:
        index_IK: Columns [I, K], -1 where a row has fewer; the places may stand in any order.
        score_IK: Their scores [I, K].

    Raises:
        ShapeError: If the two differ in shape.
        ValueError: If a kept score is NaN.
    """
    if index_IK.shape != score_IK.shape or index_IK.ndim != 2:
        msg = f"lists are [I, K] twice; got {index_IK.shape} and {score_IK.shape}"
        raise ShapeError(msg)
    kept_IK = index_IK >= 0
    if np.isnan(score_IK[kept_IK]).any():
        msg = "a kept score is NaN: score these rows anew"
        raise ValueError(msg)
    # As `pair_kernel` makes keys: -0 counts as 0, and a larger key is a better column.
    bits_IK = (score_IK.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    ordered_IK = bits_IK ^ ((bits_IK >> 31) & 0x7FFFFFFF)
    key_IK = (ordered_IK << 32) + (LAST_COLUMN - index_IK.astype(np.int64))
    key_IK[~kept_IK] = NO_KEY
    # Ascending is a heap with the worst at its root; empty places come first, each its own key.
    key_IK = np.sort(key_IK, axis=1)
    num_places = key_IK.shape[1]
    place_IK = np.tile(np.arange(num_places, dtype=np.int64), (len(key_IK), 1))
    empty_IK = place_IK < num_places - kept_IK.sum(axis=1, keepdims=True)
    return TopKState(
        np.where(empty_IK, NO_KEY + place_IK, key_IK), ScoreStatistics.empty(len(key_IK))
    )


# Activations stored in half precision: what fits into it, and what it does to scores.


LARGEST_HALF = float(np.finfo(np.float16).max)  # 65,504; beyond it float16 knows infinity only


@dataclass(frozen=True, slots=True)
class RoundingError:
    """How far scores move, in the unit of the labels.

    Attributes:
        max: Largest absolute difference.
        mean: Mean absolute difference.
        num_pairs: Scores compared: pairs, or examples of a pointwise network.
    """

    max: float
    mean: float
    num_pairs: int


def first_beyond_half(a_NH: F32) -> int | None:
    """Return the first row that holds a number beyond float16, None where all fit."""
    rows_N = np.flatnonzero((np.abs(a_NH) > LARGEST_HALF).any(axis=1))
    return int(rows_N[0]) if len(rows_N) else None


def round_to_half(a_NH: F32) -> F32:
    """Return activations as they are read again from float16.

    Raises:
        ValueError: If one is beyond float16.
    """
    row = first_beyond_half(a_NH)
    if row is not None:
        raise ValueError(f"row {row} holds an activation beyond {LARGEST_HALF:,.0f}")
    return a_NH.astype(np.float16).astype(np.float32)


def rounding_error(network: FactoredNetwork, a_IH: F32, b_JH: F32 | None) -> RoundingError:
    """Compare scores of activations in float16 with those in float32, by the plain oracle.

    Args:
        network: Whose output weights and bias score.
        a_IH: Row activations [I, H], one or more.
        b_JH: Column activations [J, H], one or more; None: a pointwise network has none.

    Raises:
        ValueError: If an activation is not finite, or beyond float16.
    """
    w_H, bias = network.w_H, network.bias
    if b_JH is None:
        exact = score_points(a_IH, w_H, bias)
        rounded = score_points(round_to_half(a_IH), w_H, bias)
    else:
        exact = score_block(a_IH, b_JH, w_H, bias)
        rounded = score_block(round_to_half(a_IH), round_to_half(b_JH), w_H, bias)
    change = np.abs(rounded.astype(np.float64) - exact)
    return RoundingError(float(change.max()), float(change.mean()), change.size)


# Scores that are given pair by pair, not computed: best columns, sums of columns, statistics.


class BestColumns:
    """The K best columns of every row, of the pairs that were given.

    Memory: 8 * I * K bytes.
    """

    def __init__(self, num_rows: int, num_columns: int, k: int) -> None:
        """Keep at most k columns a row; fewer where there are fewer columns.

        Raises:
            ValueError: If k is below 1, or there are more columns than lists can number.
        """
        k = min(k, max(1, num_columns))
        self._num_columns = num_columns
        self._key_IK = start_state(num_rows, k, 0, num_columns, None).key_IK

    def add(self, row_P: I64, column_P: I64, score_P: F32) -> None:
        """Fold pairs in.

        Raises:
            ShapeError: If the three differ in length.
            ValueError: If a row or column does not exist, or a score is not finite.
        """
        _check_pairs(row_P, len(self._key_IK), column_P, self._num_columns, score_P)
        _offer_pairs(self._key_IK, row_P, column_P, score_P)

    def lists(self, rows: slice = slice(None)) -> tuple[I32, F32]:
        """Return columns and scores [I, K] of some rows, best first; -1 and -inf where no more.

        Memory: some 40 * I * K bytes more, so ask for a part of many rows at a time.
        """
        return read_keys(self._key_IK[rows])


class GivenSums:
    """The sum of every column over the rows of each group, and of how many pairs it is.

    Memory: 16 * G * J bytes.
    """

    def __init__(self, group_I: I64, num_groups: int, num_columns: int) -> None:
        """Begin with nothing; ``group_I`` is the group of each row."""
        self._group_I = group_I
        self.sum_GJ = np.zeros((num_groups, num_columns), np.int64)  # whole numbers of 2**-32
        self.num_GJ = np.zeros((num_groups, num_columns), np.int64)

    def add(self, row_P: I64, column_P: I64, score_P: F32) -> None:
        """Fold pairs in.

        Raises:
            ShapeError: If the three differ in length.
            ValueError: If a row or column does not exist, or a score is not finite, or 2**10 or
                more in size.
        """
        num_columns = self.sum_GJ.shape[1]
        _check_pairs(row_P, len(self._group_I), column_P, num_columns, score_P)
        place_P = self._group_I[row_P] * num_columns + column_P
        np.add.at(self.sum_GJ.reshape(-1), place_P, to_fixed_point(score_P))
        np.add.at(self.num_GJ.reshape(-1), place_P, 1)


class ScoreTally:
    """Count, extremes, sums and distribution of the scores that were given."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count_B = np.zeros(NUM_BINS, np.int64)
        self._total = ScoreTotal(0, math.inf, -math.inf, 0.0, 0.0)

    def add(self, score_P: F32) -> None:
        """Fold scores in; sums are correctly rounded within a call, and added call by call."""
        if not len(score_P):
            return
        self.count_B += count_values(score_P)
        wide_P = score_P.astype(np.float64)
        self._total = self._total.merge(
            ScoreTotal(
                num_pairs=len(score_P),
                min=float(score_P.min()),
                max=float(score_P.max()),
                sum=math.fsum(wide_P),
                sum_of_squares=math.fsum(wide_P**2),
            )
        )

    def total(self) -> ScoreTotal:
        """Return count, extremes and sums."""
        return self._total


def _check_pairs(row_P: I64, num_rows: int, column_P: I64, num_columns: int, score_P: F32) -> None:
    if not len(row_P) == len(column_P) == len(score_P):
        msg = f"{len(row_P)} rows, {len(column_P)} columns and {len(score_P)} scores of pairs"
        raise ShapeError(msg)
    for name, place_P, size in (("row", row_P, num_rows), ("column", column_P, num_columns)):
        if len(place_P) and not 0 <= place_P.min() <= place_P.max() < size:
            msg = f"{name}s {place_P.min()}..{place_P.max()} named, there are {size}"
            raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(score_P))
    if len(bad):
        at = bad[0]
        msg = f"the score {score_P[at]} of row {row_P[at]}, column {column_P[at]} is not finite"
        raise ValueError(msg)


@compiled
def _offer_pairs(key_IK: I64, row_P: I64, column_P: I64, score_P: F32) -> None:
    """Offer each pair to the heap of its row."""
    for p in range(len(row_P)):
        key_K = key_IK[row_P[p]]
        key = key_of(score_P[p], column_P[p])
        if key > key_K[0]:
            replace_worst(key_K, key)
