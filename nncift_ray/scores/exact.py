"""Influence of every pair from projected activations: exact, streamed, top K of every row.

The first layer reads [e_i; 0; e_j], so it splits and is computed once per example:

    s_ij = w . relu(a_i + b_j) + bias,   a_i = W_row e_i + bias_1,   b_j = W_col e_j

A pair then costs H additions of a maximum, because relu(x) = max(x, 0) gives

    w_h relu(a + b) = w_h b + max(w_h a, -w_h b)   for w_h >= 0
    w_h relu(a + b) = w_h b + min(w_h a, -w_h b)   for w_h <  0

where the first term belongs to the column alone. Each pair is summed over h in one fixed order with
plain IEEE additions (vectors run across columns), so its score has the same bits whatever the tile
size, the row block, the number of threads or K.

The pair network has no output weights. Where w is empty, the last number of an activation is the
example's own effect, and the others meet in an inner product:

    s_ij = a_i[F] + b_j[F] + max(a_i[:F] . b_j[:F], 0)^2 + bias,   F = H - 1

Every function takes row (helped) activations a [I, H], first-layer bias included, column (helper)
activations b [J, H], output weights w [H] (or [0]) and the output bias. Scores are in the unit of
the labels, raw and signed. All raise ShapeError where H differs between the arrays, and ValueError
where an activation is not finite; the message names the first such row.

Suffixes: I rows (helped), J columns (helpers), H hidden units, K kept columns, T columns of a tile,
C listed columns, G groups of rows.
Source of the network: NN-CIFT, arXiv 2502.09969, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.scores.kernel import (
    FIRST_KEY,
    GATHERED_COLUMNS,
    LAST_COLUMN,
    NO_KEY,
    ONE,
    add_tile,
    offer_pairs,
    pack_pairs,
    pack_panels,
    score_lists,
    score_tile,
    sum_tile,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_COLUMN = -1
#: Columns scored at once. A packed tile of 4 * H times so many bytes stays in the second cache.
TILE_COLUMNS = 1024
ROWS_AT_ONCE = 8  # a run of rows that is no multiple of it leaves a group of the kernel unfilled
MAX_SCORE = 2.0**10  # in size, of one score that is added exactly
MAX_SUM = 2.0**31  # in size, of one sum: beyond it 64 bits overflow

Result = TypeVar("Result")


class ScoreStatistics(NamedTuple):
    """Count, extremes and sums of the scores of each row."""

    num_pairs_I: I64
    min_I: F32
    max_I: F32
    sum_I: F64
    sum_of_squares_I: F64

    @classmethod
    def empty(cls, num_rows: int) -> ScoreStatistics:
        """Return the statistics of no pair, for so many rows."""
        low, high = (np.full(num_rows, value, np.float32) for value in (np.inf, -np.inf))
        return cls(np.zeros(num_rows, np.int64), low, high, np.zeros(num_rows), np.zeros(num_rows))

    def rows(self, rows: slice) -> ScoreStatistics:
        """Return the statistics of some rows, sharing memory with these."""
        return ScoreStatistics._make(values[rows] for values in self)

    def total(self) -> ScoreTotal:
        """Merge the rows; the sums are correctly rounded, so the order of the rows is no matter."""
        return ScoreTotal(
            num_pairs=int(self.num_pairs_I.sum()),
            min=float(self.min_I.min(initial=np.inf)),
            max=float(self.max_I.max(initial=-np.inf)),
            sum=math.fsum(self.sum_I),
            sum_of_squares=math.fsum(self.sum_of_squares_I),
        )


@dataclass(frozen=True, slots=True)
class ScoreTotal:
    """Count, extremes and sums over many pairs; by default, of none."""

    num_pairs: int = 0
    min: float = math.inf
    max: float = -math.inf
    sum: float = 0.0
    sum_of_squares: float = 0.0

    @classmethod
    def of(cls, score_N: F32) -> ScoreTotal:
        """Return the total of some scores; the sums are correctly rounded."""
        wide_N = score_N.astype(np.float64)
        return cls(
            num_pairs=len(score_N),
            min=float(score_N.min(initial=np.inf)),
            max=float(score_N.max(initial=-np.inf)),
            sum=math.fsum(wide_N),
            sum_of_squares=math.fsum(wide_N**2),
        )

    def merge(self, other: ScoreTotal) -> ScoreTotal:
        """Return the total over both; merge in a fixed order where the last bit matters."""
        return ScoreTotal(
            self.num_pairs + other.num_pairs,
            min(self.min, other.min),
            max(self.max, other.max),
            self.sum + other.sum,
            self.sum_of_squares + other.sum_of_squares,
        )


class TopKState(NamedTuple):
    """What has been kept so far for I rows: a heap of keys for each (see `kernel`).

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

    @classmethod
    def of_state(cls, state: TopKState, column_max_J: F32) -> TopK:
        """Return the lists of a state, and statistics that further columns do not change."""
        statistics = ScoreStatistics._make(values.copy() for values in state.statistics)
        return cls(*read_keys(state.key_IK), statistics, column_max_J, state)


class RescoredTopK(NamedTuple):
    """The best of the listed columns of each row, best first, equal scores by smaller column."""

    index_IK: I32  # -1 where fewer than K columns were listed
    score_IK: F32  # -inf there
    num_pairs_I: I64  # distinct columns listed, and so scored


class ColumnSums(NamedTuple):
    """Sums of the columns of one call, and the statistics of all calls for the same rows."""

    sum_GJ: I64  # whole numbers of 2**-32 of the labels' unit
    statistics: ScoreStatistics


def score_block(a_IH: F32, b_JH: F32, w_H: F32, bias: float) -> F32:
    """Return the score of every pair [I, J], the plain way: the oracle of the streamed kernel.

    Summed in float64, rounded to float32. Memory: 4 * I * J bytes, and 8 * J * H for one row.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    b64_JH, w64_H = b_JH.astype(np.float64), w_H.astype(np.float64)
    if len(w_H) == 0:
        a64_IH = a_IH.astype(np.float64)
        square_IJ = np.maximum(a64_IH[:, :-1] @ b64_JH[:, :-1].T, 0.0) ** 2
        return (square_IJ + a64_IH[:, -1:] + b64_JH[:, -1] + bias).astype(np.float32)
    score_IJ = np.empty((len(a_IH), len(b_JH)), np.float32)
    for i, a_H in enumerate(a_IH):
        score_IJ[i] = np.maximum(a_H.astype(np.float64) + b64_JH, 0.0) @ w64_H + bias
    return score_IJ


def score_matrix(a_IH: F32, b_JH: F32, w_H: F32, bias: float, *, num_threads: int = 1) -> F32:
    """Return the score of every pair [I, J], with the bits of `top_k_rows`.

    Memory: 4 * I * J bytes and one tile.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    score_IJ = np.empty((len(a_IH), len(b_JH)), np.float32)

    def score(rows: slice) -> None:
        rows_IH, sign_H = prepare_rows(a_IH[rows], w_H)
        for columns, panel_PHC, base_X in _tiles(b_JH, w_H, bias, TILE_COLUMNS):
            width = columns.stop - columns.start
            score_tile(rows_IH, panel_PHC, base_X, sign_H, width, columns.start, score_IJ[rows])

    run_parts(len(a_IH), num_threads, score)
    return score_IJ


def top_k_rows(
    a_IH: F32,
    b_JH: F32,
    w_H: F32,
    bias: float,
    k: int,
    *,
    column_offset: int = 0,
    tile_columns: int = TILE_COLUMNS,
    state: TopKState | None = None,
    num_threads: int = 1,
) -> TopK:
    """Return the K best columns of every row, of all pairs scored tile by tile.

    `column_offset` is the index of the first column among all; `tile_columns` and `num_threads`
    change no bit. `state` is what an earlier call returned for the same rows, to go on with further
    columns, in any order.

    Raises:
        ShapeError: If the state is of other rows or another K.
        ValueError: If k or tile_columns is below 1.

    Memory: 8 * I * K bytes for the lists, 4 * I * H for the prepared rows, a tile per thread.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    if tile_columns < 1:
        msg = f"tile_columns must be at least 1, got {tile_columns}"
        raise ValueError(msg)
    whole = start_state(len(a_IH), k, column_offset, len(b_JH), state)

    def score(rows: slice) -> F32:
        column_max_J = np.full(len(b_JH), -np.inf, np.float32)
        statistics = whole.statistics.rows(rows)
        rows_IH, sign_H = prepare_rows(a_IH[rows], w_H)
        for columns, panel_PHC, base_X in _tiles(b_JH, w_H, bias, tile_columns):
            add_tile(
                rows_IH, panel_PHC, base_X, sign_H, column_offset + columns.start,
                whole.key_IK[rows], statistics, column_max_J[columns],
            )  # fmt: skip
        return column_max_J

    return TopK.of_state(whole, np.maximum.reduce(run_parts(len(a_IH), num_threads, score)))


def top_k_tiles(
    a_IH: F32,
    tiles: Iterable[tuple[int, F32]],
    w_H: F32,
    bias: float,
    k: int,
    *,
    state: TopKState | None = None,
    num_threads: int = 1,
) -> TopK | None:
    """Return `top_k_rows` over tiles of columns (first column, activations); None without tiles.

    `column_max_J` is of all their columns, in the order of the tiles.
    """
    top: TopK | None = None
    maxima: list[F32] = []
    for first_column, b_JH in tiles:
        top = top_k_rows(
            a_IH, b_JH, w_H, bias, k, column_offset=first_column, state=state,
            num_threads=num_threads,
        )  # fmt: skip
        state = top.state
        maxima.append(top.column_max_J)
    return None if top is None else replace(top, column_max_J=np.concatenate(maxima))


def sum_columns(
    a_IH: F32,
    b_JH: F32,
    w_H: F32,
    bias: float,
    group_I: I64,
    num_groups: int,
    *,
    tile_columns: int = TILE_COLUMNS,
    statistics: ScoreStatistics | None = None,
    num_threads: int = 1,
) -> ColumnSums:
    """Return the exact sum of each column's scores within each group of rows.

    The scores are those of `top_k_rows`, to the last bit, rounded to whole numbers of 2**-32.
    `group_I` is the group of each row, in 0..num_groups - 1. `statistics` are what an earlier call
    returned for the same rows, to go on with further columns; they change in place.

    Raises:
        ShapeError: If groups or statistics are of other rows.
        ValueError: If a group does not exist, or a score is 2**10 or more in size.

    Memory: 8 * G * J bytes per thread for the sums, 4 * I * H for the prepared rows, a tile.
    """
    check_activations(a_IH, b_JH, w_H, bias)
    whole = ScoreStatistics.empty(len(a_IH)) if statistics is None else statistics
    _check_groups(len(a_IH), group_I, num_groups, whole)

    def add(rows: slice) -> I64:
        sum_GJ = np.zeros((num_groups, len(b_JH)), np.int64)
        part = whole.rows(rows)
        rows_IH, sign_H = prepare_rows(a_IH[rows], w_H)
        for columns, panel_PHC, base_X in _tiles(b_JH, w_H, bias, tile_columns):
            sum_GT = np.zeros((num_groups, columns.stop - columns.start), np.int64)
            sum_tile(rows_IH, panel_PHC, base_X, sign_H, group_I[rows], part, sum_GT)
            sum_GJ[:, columns] = sum_GT
        return sum_GJ

    parts = run_parts(len(a_IH), num_threads, add)
    if len(a_IH) and len(b_JH):
        # A score that is not finite leaves no trace in the extremes, but does in a sum of squares.
        finite = bool(np.isfinite(whole.sum_of_squares_I).all())
        _check_scores(float(whole.min_I.min()), float(whole.max_I.max()), finite=finite)
    return ColumnSums(np.sum(parts, axis=0), whole)


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
    if a_IH.shape[1] != b_JH.shape[1] or len(w_H) not in (0, a_IH.shape[1]):
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


def run_parts(
    num_rows: int,
    num_threads: int,
    task: Callable[[slice], Result],
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[Result]:
    """Return what a task returns for runs of rows that cover all rows, in order, one a thread.

    No rows are one empty run. Runs are cut at multiples of `rows_at_once`.
    """
    groups = -(-num_rows // rows_at_once)
    step = max(1, -(-groups // max(num_threads, 1))) * rows_at_once
    parts = [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    if len(parts) < 2:
        return [task(part) for part in parts or [slice(0, 0)]]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(task, parts))


# Rows and columns made ready for the kernel.


def unit_order(w_H: F32) -> tuple[I64, F32]:
    """Return hidden units, those with weights >= 0 first, and their signs in that order.

    A unit of sign 1 adds a maximum; one of sign -1 a minimum, taken as a maximum of negatives.
    """
    order_H = np.argsort(w_H < 0, kind="stable")
    return order_H, np.where(w_H[order_H] < 0, -1, 1).astype(np.float32)


def prepare_rows(a_IH: F32, w_H: F32) -> tuple[F32, F32]:
    """Return w_h a_ih times its unit's sign, in kernel order, and the signs; a alone without w."""
    if len(w_H) == 0:
        return np.ascontiguousarray(a_IH, np.float32), np.ones(0, np.float32)
    order_H, sign_H = unit_order(w_H)
    return np.ascontiguousarray((a_IH * w_H)[:, order_H]) * sign_H, sign_H


def _tiles(b_JH: F32, w_H: F32, bias: float, tile_columns: int) -> Iterator[tuple[slice, F32, F32]]:
    """Yield the columns of each tile, packed as panels [P, H, C], and their terms."""
    order_H, sign_H = unit_order(w_H)
    place_H = np.argsort(order_H)
    for start in range(0, len(b_JH), tile_columns):
        columns = slice(start, min(start + tile_columns, len(b_JH)))
        b_TH = np.ascontiguousarray(b_JH[columns])
        if len(w_H) == 0:
            yield columns, *pack_pairs(b_TH, bias)
        else:
            yield columns, *pack_panels(b_TH, w_H, place_H, sign_H, float(bias))


# What is kept of a row's best columns, as keys, and the lists that they stand for.


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


def add_pairs(state: TopKState, row_P: I64, column_P: I64, score_P: F32) -> None:
    """Offer given pairs to the lists of their rows; the statistics stay as they are.

    A state of the lists that `top_k_rows` returned then goes on with further columns as it would
    have: they hold the best K of what came before, and nothing else could return.

    Raises:
        ValueError: If a score is not finite; the message names the pair.
    """
    bad = np.flatnonzero(~np.isfinite(score_P))
    if len(bad):
        at = bad[0]
        msg = f"the score {score_P[at]} of row {row_P[at]}, column {column_P[at]} is not finite"
        raise ValueError(msg)
    offer_pairs(state.key_IK, row_P, column_P, score_P)


# Exact sums: scores as whole numbers of 2**-32, so that no order of adding changes a bit.


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

    Sums [J] of each group are whole numbers of 2**-32, over so many rows [J] each; where all of
    those are 0 the score is NaN.

    Raises:
        ShapeError: If the two do not belong together.
        ValueError: If there is no group.
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


def _check_groups(
    num_rows: int, group_I: I64, num_groups: int, statistics: ScoreStatistics
) -> None:
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


@dataclass(frozen=True, slots=True, eq=False)
class PackedColumns:
    """All columns of a network, prepared for scoring in any order; made by `pack_columns`."""

    weighted_JH: F32  # -w_h b_jh, units of a minimum negated; H a multiple of 16, 0 where padded
    base_J: F32  # bias + sum_h w_h b_jh
    sign_H: F32  # 1 for units of a maximum, -1 for units of a minimum; [0] for inner products
    num_hidden: int  # without padding, and without the columns' own effect
    w_H: F32
    bias: float

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.base_J)


def pack_columns(b_JH: F32, w_H: F32, bias: float) -> PackedColumns:
    """Return all columns prepared for `rescore_rows`.

    Memory: 4 * J * H bytes, H padded to a multiple of 16, and one tile.
    """
    check_activations(b_JH[:0], b_JH, w_H, bias)
    num_hidden = len(w_H) or b_JH.shape[1] - 1
    width = -(-num_hidden // GATHERED_COLUMNS) * GATHERED_COLUMNS
    sign_H = np.ones(width if len(w_H) else 0, np.float32)
    sign_H[: len(w_H)] = unit_order(w_H)[1]
    weighted_JH = np.zeros((len(b_JH), width), np.float32)
    base_J = np.empty(len(b_JH), np.float32)
    for columns, panel_PHC, base_X in _tiles(b_JH, w_H, bias, TILE_COLUMNS):
        count = columns.stop - columns.start
        by_column_XH = panel_PHC.transpose(0, 2, 1).reshape(-1, num_hidden)
        weighted_JH[columns, :num_hidden], base_J[columns] = by_column_XH[:count], base_X[:count]
    return PackedColumns(weighted_JH, base_J, sign_H, num_hidden, w_H, bias)


def rescore_rows(
    a_IH: F32,
    columns: PackedColumns,
    candidate_IC: NDArray[np.integer],
    k: int,
    *,
    num_threads: int = 1,
) -> RescoredTopK:
    """Return the K best of the listed columns of every row, scored exactly.

    A pair's score has the bits that `top_k_rows` gives it, and listing every column gives the lists
    of that function. Columns [I, C] may be listed in any order; one listed twice counts once, -1 is
    no column.

    Raises:
        ShapeError: If rows and lists do not belong together.
        ValueError: If a listed column does not exist, or k is below 1.

    Memory: 12 * I * C bytes while it works, 8 * I * K for the result, 4 * I * H for the rows.
    """
    num_hidden = columns.num_hidden
    check_activations(a_IH, a_IH[:0], columns.w_H, columns.bias)
    _check_lists(len(a_IH), len(columns), candidate_IC, k)

    def rescore(rows: slice) -> RescoredTopK:
        num_rows = len(a_IH[rows])
        rows_IH = np.zeros((num_rows, columns.weighted_JH.shape[1]), np.float32)
        prepared_IH = prepare_rows(a_IH[rows], columns.w_H)[0]
        rows_IH[:, :num_hidden] = prepared_IH[:, :num_hidden]
        offset_I = np.ascontiguousarray(prepared_IH[:, -1])  # of the pair network alone
        # Ascending: equal columns are neighbours.
        listed_IC = np.sort(candidate_IC[rows].astype(np.int32), axis=1)
        key_IC = np.empty((num_rows, max(k, listed_IC.shape[1])), np.int64)
        num_pairs_I = np.zeros(num_rows, np.int64)
        score_lists(
            rows_IH, offset_I, columns.sign_H, columns.weighted_JH, columns.base_J, listed_IC,
            key_IC, num_pairs_I,
        )  # fmt: skip
        best_IK = np.partition(key_IC, key_IC.shape[1] - k, axis=1)[:, -k:]
        return RescoredTopK(*read_keys(best_IK), num_pairs_I)

    parts = run_parts(len(a_IH), num_threads, rescore)
    return RescoredTopK._make(np.concatenate(values) for values in zip(*parts, strict=True))


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
