"""Sums of influence by column, exact: how much a candidate helps the rows of each subtask.

    sum_gj = sum_{i in g} round(s_ij * 2**32)          score_j = max_g sum_gj / (n_g * 2**32)

Each score is rounded once to a whole number of 2**-32 and added as an integer, so a sum has the
same bits however its rows are cut into shards and in whatever order they come. A candidate's score
is its mean over the rows of the subtask where that is highest; with one subtask, the plain mean.

Range: scores below 2**10 in size (checked by `sum_columns` and `to_fixed_point`), and a sum below
2**31 (checked by `check_sum_range` for the rows of all shards): two billion rows of scores below 1,
two million of the largest.

Suffixes: I rows (helped), J columns (helpers), H hidden units, G groups of rows (subtasks).
Source of the score: LESS, arXiv 2402.04333, section 4 (maximum over subtasks of the mean).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.pair_kernel import ONE, sum_tile
from nncift_ray.core.pairs.pair_scores import (
    ScoreStatistics,
    check_activations,
    pack_tile,
    prepare_rows,
    unit_order,
)
from nncift_ray.core.pairs.score_histogram import CountedRows
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

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
