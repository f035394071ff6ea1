"""Settle columns before a search: those in every best subset, and those in none.

Let k columns be picked. For a submodular function, S the columns settled as picked and R those
still open, the gain of column j within any best subset lies between

    least_j = f(j | S + R - j)      and      most_j = f(j | S),

since a best subset contains S and lies in S + R. So, with k' = k - |S| picks to go (Boether et al.,
MLSys 2025, state it for pairwise functions; the argument needs submodularity alone):

    shrink   most_j < the k'-th largest `least`: j is in no best subset. Of the k' columns that
             beat it a subset that holds j leaves one out, and exchanging the two raises its value.
    grow     least_j > the (k'+1)-th largest `most`: j is in every best subset. Fewer than k' other
             columns could beat it, so a subset without j holds one that j does better than.

What that leaves: every best subset of exactly k columns survives, and greedy among what is left, S
picked first, is worth at least 1 - 1/e of the best for monotone f. Shrinking alone does not even
change greedy's picks: as long as picks are to be made, one of the k' that beat a shrunk column is
open and gains more. Growing makes S the first picks, which greedy would have made later; after a
second pass the picks may differ, the guarantee does not.

Gains are sums of rounded numbers, so a column is settled only where it wins by more than the
rounding (`MARGIN`).
Suffixes: I rows, J columns, S some columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.column_source import ColumnSource, Run
from nncift_ray.core.selection.problem import (
    COVERAGE,
    PAIRWISE,
    SATURATION,
    Columns,
    Problem,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

MARGIN = 1e-9  # of the largest gain: what a sum of a million rounded terms may be off by, and more


class RowTotals(NamedTuple):
    """What all columns together do for each row: their best and second best, or their sum.

    The sum is that of a saturation problem, where the other two are empty; else the sum is.
    """

    best_I: F32
    second_I: F32
    sum_I: F64


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """What is settled.

    Attributes:
        included: Columns in every best subset, musts first, then in the order they were settled.
        open: Columns that a search decides about, in ascending order.
        num_excluded: How many columns are in no best subset.
        passes: How often all columns were looked at.
    """

    included: I64
    open: I64
    num_excluded: int
    passes: int


@dataclass(frozen=True, slots=True, eq=False)
class BoundTask:
    """Some columns to look at: what is sent to a worker.

    Attributes:
        source: Where the columns come from.
        columns: Columns [S], all of them open or settled as picked.
        picked_S: Which of them are settled as picked.
        totals: What all open and picked columns do for the rows, and what the picked ones do; None
            where that is what is asked.
    """

    source: ColumnSource
    columns: I64
    picked_S: Bools
    totals: tuple[RowTotals, RowTotals] | None = None


def bound_columns(
    source: ColumnSource,
    count: int,
    *,
    grow: bool = True,
    max_passes: int = 10,
    include: Sequence[int] | I64 = (),
    exclude: Sequence[int] | I64 = (),
    num_parts: int = 1,
    run: Run = map,
) -> Bounded:
    """Settle what can be settled about a search for `count` columns.

    Args:
        source: The columns. A pairwise problem has to be a `Problem`: its pairs lie across parts.
        count: Picks k, musts counted; all of them are made, whatever they gain.
        grow: Also settle columns as picked. Without it greedy's ranking of what is left is that of
            all columns.
        max_passes: Passes at most.
        include: Columns that must be picked: settled from the start.
        exclude: Columns that must not be.
        num_parts: Into how many parts the columns are cut, in ascending order.
        run: Maps a function over tasks, in order.

    Returns:
        What is in, what is out and what is open.

    Memory: 8 bytes a row of every part at a time, 16 a column.
    Source: Boether et al., MLSys 2025, arXiv 2402.16442, the exact form of bounding.
    """
    open_J, in_J = np.ones(source.num_columns, np.bool_), np.zeros(source.num_columns, np.bool_)
    included = [int(j) for j in include]
    in_J[included] = True
    open_J[included] = False
    open_J[np.asarray(exclude, np.int64)] = False
    num_closed = int(open_J.sum())
    passes = 0
    while passes < max_passes:
        to_go, open_S = count - len(included), np.flatnonzero(open_J)
        if to_go <= 0 or len(open_S) <= to_go:
            break
        passes += 1
        least, most = gain_limits(source, open_J, in_J, num_parts=num_parts, run=run)
        margin = MARGIN * max(1.0, float(np.abs(most[open_S]).max()))
        shrunk = _beaten(open_S, most, least, to_go, margin)
        grown = _unbeatable(open_S, most, least, to_go, margin) if grow else open_S[:0]
        open_J[shrunk] = False
        open_J[grown], in_J[grown] = False, True
        included += grown[np.argsort(-least[grown], kind="stable")].tolist()
        if len(shrunk) + len(grown) == 0:
            break
    num_settled = len(included) - len(include)
    num_excluded = num_closed - int(open_J.sum()) - num_settled
    return Bounded(np.array(included, np.int64), np.flatnonzero(open_J), num_excluded, passes)


def gain_limits(
    source: ColumnSource, open_J: Bools, in_J: Bools, *, num_parts: int = 1, run: Run = map
) -> tuple[F64, F64]:
    """Return the least and the most that each open column can gain: [J] twice."""
    least, most = np.zeros(source.num_columns), np.zeros(source.num_columns)
    if isinstance(source, Problem) and source.kind == PAIRWISE:
        _pair_limits(source.columns, np.flatnonzero(open_J), open_J, in_J, least, most)
        return least, most
    parts = np.array_split(np.flatnonzero(open_J | in_J), num_parts)
    tasks = [BoundTask(source, part, in_J[part]) for part in parts if len(part)]
    totals = _merged(list(run(part_totals, tasks)))
    tasks = [replace(task, totals=totals) for task in tasks]
    for task, (least_S, most_S) in zip(tasks, run(part_limits, tasks), strict=True):
        least[task.columns], most[task.columns] = least_S, most_S
    return least, most


def part_totals(task: BoundTask) -> tuple[RowTotals, RowTotals]:
    """Return what a part's columns do for the rows: all of them, and the picked ones.

    Raises:
        ValueError: If the columns are those of a pairwise problem.
    """
    problem = task.source.restricted(task.columns)
    if problem.kind == PAIRWISE:
        msg = "bounding a pairwise problem in parts is not possible: its pairs lie across parts"
        raise ValueError(msg)
    return (
        _row_totals(problem, np.arange(len(task.columns))),
        _row_totals(problem, np.flatnonzero(task.picked_S)),
    )


def part_limits(task: BoundTask) -> tuple[F64, F64]:
    """Return the least and the most that each column of a part can gain: [S] twice."""
    problem = task.source.restricted(task.columns)
    least_S, most_S = np.zeros(len(task.columns)), np.zeros(len(task.columns))
    assert task.totals is not None  # noqa: S101 - set by `gain_limits`
    _limits(problem.columns, problem.cap_I, *task.totals, least_S, most_S)
    return least_S, most_S


def _merged(parts: Sequence[tuple[RowTotals, RowTotals]]) -> tuple[RowTotals, RowTotals]:
    """Return the totals of all parts together, added in their order."""
    return _sum_of([everything for everything, _ in parts]), _sum_of([mine for _, mine in parts])


def _sum_of(totals: Sequence[RowTotals]) -> RowTotals:
    best_I, second_I, sum_I = totals[0]
    for other in totals[1:]:
        both = np.minimum(best_I, other.best_I)
        second_I = np.maximum(both, np.maximum(second_I, other.second_I))
        best_I = np.maximum(best_I, other.best_I)
        sum_I = sum_I + other.sum_I
    return RowTotals(best_I, second_I, sum_I)


def _beaten(open_S: I64, most: F64, least: F64, to_go: int, margin: float) -> I64:
    """Return the open columns that are in no best subset."""
    bar = np.partition(least[open_S], len(open_S) - to_go)[len(open_S) - to_go]
    return open_S[most[open_S] < bar - margin]


def _unbeatable(open_S: I64, most: F64, least: F64, to_go: int, margin: float) -> I64:
    """Return the open columns that are in every best subset."""
    place = len(open_S) - to_go - 1  # there are more open columns than picks to go
    bar = np.partition(most[open_S], place)[place]
    return open_S[least[open_S] > bar + margin]


def _row_totals(problem: Problem, columns_S: I64) -> RowTotals:
    num_best = problem.num_rows if problem.kind == COVERAGE else 0
    best_I, second_I = (np.zeros(num_best, np.float32) for _ in range(2))
    totals = RowTotals(best_I, second_I, np.zeros(problem.num_rows - num_best))
    _add_totals(problem.columns, columns_S, totals)
    return totals


@compiled
def _row_of(columns: Columns, j: int, entry: int) -> int:
    return int(entry - columns.indptr[j] if columns.dense else columns.rows[entry])


@compiled
def _add_totals(columns: Columns, columns_S: I64, totals: RowTotals) -> None:
    for j in columns_S:
        for entry in range(columns.indptr[j], columns.indptr[j + 1]):
            i, value = _row_of(columns, j, entry), columns.values[entry]
            if columns.kind == SATURATION:
                totals.sum_I[i] += np.float64(value)
            elif value > totals.best_I[i]:
                totals.second_I[i], totals.best_I[i] = totals.best_I[i], value
            elif value > totals.second_I[i]:
                totals.second_I[i] = value


@compiled
def _limits(
    columns: Columns, cap_I: F64, totals: RowTotals, within: RowTotals, least: F64, most: F64
) -> None:
    """Write what each column gains on top of all others, and on top of what is picked."""
    for j in range(len(least)):
        last, first = columns.modular_J[j], columns.modular_J[j]
        for entry in range(columns.indptr[j], columns.indptr[j + 1]):
            i, value = _row_of(columns, j, entry), np.float64(columns.values[entry])
            if columns.kind == SATURATION:
                others = totals.sum_I[i] - value
                last += min(value, max(cap_I[i] - others, 0.0))
                first += min(value, max(cap_I[i] - within.sum_I[i], 0.0))
            else:
                # Where two columns share the best value, the second is the best: nothing is lost.
                if columns.values[entry] == totals.best_I[i]:
                    last += value - np.float64(totals.second_I[i])
                first += max(value - np.float64(within.best_I[i]), 0.0)
        least[j], most[j] = last, first


@compiled
def _pair_limits(
    columns: Columns, candidates: I64, open_J: Bools, in_J: Bools, least: F64, most: F64
) -> None:
    for j in candidates:
        last, first = columns.modular_J[j], columns.modular_J[j]
        for entry in range(columns.indptr[j], columns.indptr[j + 1]):
            other, weight = _row_of(columns, j, entry), np.float64(columns.values[entry])
            if other == j:
                continue
            if in_J[other]:
                first -= weight
            if in_J[other] or open_J[other]:
                last -= weight
        least[j], most[j] = last, first
