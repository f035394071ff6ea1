"""Greedy in parts, for a ground set whose lists exceed one machine.

A part is some of the columns with all their rows, so a gain computed in a part is that of the whole
problem. Parts are drawn by a seeded hash of the tie ranks, and what the parts return is read in
the order of the parts: neither the number of workers, nor their order, nor the order of the files
changes a pick.

`run(function, tasks)` calls the function on each task and returns the results in order: `map` on
one core, or a cluster's; function and tasks can be sent to another process. What a part reads is
a `ColumnSource`'s affair: a `Problem` in memory, or something that reads the lists it needs from
storage.
Suffixes: I rows, J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.jit import compiled
from nncift_ray.selection.greedy import Budget, Constraints, Ranking, lazy_greedy, mixed_each
from nncift_ray.selection.problem import (
    COVERAGE,
    PAIRWISE,
    SATURATION,
    Columns,
    ColumnSource,
    Problem,
    Run,
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


# Greedy in parts, for a ground set whose lists exceed one machine.


__all__ = [
    "ColumnSource",
    "PartTask",
    "Run",
    "first_tasks",
    "greedi",
    "multi_round_greedy",
    "part_of_columns",
    "search_part",
]


@dataclass(frozen=True, slots=True, eq=False)
class PartTask:
    """A greedy search among some columns: what is sent to a worker.

    Attributes:
        source: Where the columns come from.
        columns: Columns of the part [S].
        budget: Of the part.
        costs: Their costs [S], or None.
        tie_rank: Their ranks [S].
        constraints: In numbers of the part.
        stop_gain: As in `lazy_greedy`.
    """

    source: ColumnSource
    columns: I64
    budget: Budget
    costs: NDArray[np.number] | None
    tie_rank: I64
    constraints: Constraints
    stop_gain: float | None = None


def search_part(task: PartTask) -> Ranking:
    """Search a part; the ranking is in the numbers of the whole ground set."""
    ranking = lazy_greedy(
        task.source.restricted(task.columns),
        task.budget,
        costs=task.costs,
        tie_rank=task.tie_rank,
        constraints=task.constraints,
        stop_gain=task.stop_gain,
    )
    # The bound is one over the part alone.
    return replace(ranking, order=task.columns[ranking.order], upper_bound=None)


def part_of_columns(rank_J: I64, num_parts: int, seed: int) -> I64:
    """Return the part of each column [J]: a seeded hash of its tie rank."""
    bits_J = np.empty(len(rank_J), np.uint64)
    mixed_each(seed, rank_J, bits_J)
    return (bits_J % np.uint64(num_parts)).astype(np.int64)


def greedi(
    source: ColumnSource,
    budget: Budget,
    *,
    num_parts: int,
    seed: int = 0,
    run: Run = map,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    stop_gain: float | None = None,
) -> Ranking:
    """Search every part with the whole budget, then among what the parts picked.

    The better of that and the best part's own picks is returned. For monotone submodular functions
    under a count budget B it is worth at least (1 - 1/e)^2 / min(num_parts, B) of the best, and
    over random parts at least (1 - 1/e) / 2 in expectation (Barbosa et al. 2015).

    Args:
        source: The columns: a `Problem`, or what reads them part by part.
        budget: How much may be selected.
        num_parts: Parts of the first round.
        seed: Seed of the parts.
        run: Maps a function over tasks, in order.
        costs: Cost of each column [J].
        tie_rank: Rank of each column [J] among equals; it decides its part too.
        constraints: Musts and quotas. Musts are picked first in every part.
        stop_gain: When the last search stops; the parts fill their budget.

    Returns:
        The ranking, in numbers of the whole ground set. `upper_bound` is None: no machine saw all
        columns.

    Raises:
        ValueError: As `lazy_greedy`; if quotas with minima meet a cost budget.

    Memory: the last search holds at most num_parts times the budget in columns.
    Source: Mirzasoleiman et al. 2013, Distributed submodular maximization (GreeDi).
    """
    ground = _Ground.checked(source, budget, num_parts, costs, tie_rank, constraints)
    tasks = ground.parts(ground.candidates, num_parts, seed, budget)
    rankings: list[Ranking] = list(run(search_part, tasks))
    union = np.concatenate([np.zeros(0, np.int64), *[ranking.order for ranking in rankings]])
    union = ground.in_order(np.setdiff1d(union, ground.include))
    merged = search_part(replace(ground.task(union, budget, whole=True), stop_gain=stop_gain))
    best = max(rankings, key=lambda ranking: ranking.value, default=merged)
    return best if best.value > merged.value and stop_gain is None else merged


@dataclass(frozen=True, slots=True, eq=False)
class _Ground:
    """The ground set that parts are cut from: open candidates in tie order, musts apart."""

    source: ColumnSource
    costs: NDArray[np.number] | None
    rank_J: I64
    constraints: Constraints
    include: I64
    candidates: I64

    @classmethod
    def checked(
        cls,
        source: ColumnSource,
        budget: Budget,
        num_parts: int,
        costs: NDArray[np.number] | None,
        tie_rank: NDArray[np.integer] | None,
        constraints: Constraints | None,
    ) -> _Ground:
        """Return the ground set, or raise ValueError where parts cannot be searched."""
        if num_parts < 1:
            msg = f"num_parts must be at least 1, got {num_parts}"
            raise ValueError(msg)
        constraints = constraints or Constraints()
        minima = any(constraints.minimum(group) for group in range(constraints.num_groups))
        if minima and budget.max_cost is not None:
            msg = "min_per_group with a cost budget needs the search in one piece (lazy_greedy)"
            raise ValueError(msg)
        num_columns = source.num_columns
        rank_J = np.arange(num_columns) if tie_rank is None else tie_rank.astype(np.int64)
        include = np.asarray(constraints.include, np.int64)
        open_J = np.ones(num_columns, np.bool_)
        open_J[include] = False
        open_J[np.asarray(constraints.exclude, np.int64)] = False
        ground = cls(source, costs, rank_J, constraints, include, np.zeros(0, np.int64))
        return replace(ground, candidates=ground.in_order(np.flatnonzero(open_J)))

    def parts(self, columns: I64, num_parts: int, seed: int, budget: Budget) -> list[PartTask]:
        """Return the searches of the parts of some columns; empty parts have none."""
        part_S = part_of_columns(self.rank_J[columns], num_parts, seed)
        return [
            self.task(mine, budget)
            for part in range(num_parts)
            if len(mine := columns[part_S == part])
        ]

    def settled(self, count: int, num_parts: int, run: Run) -> _Ground:
        """Return the ground set without what bounding settles."""
        include, exclude = self.include, self.constraints.exclude
        bounded = bound_columns(
            self.source, count, include=include, exclude=exclude, num_parts=num_parts, run=run
        )
        musts = replace(self.constraints, include=bounded.included.tolist())
        return replace(
            self,
            constraints=musts,
            include=bounded.included,
            candidates=self.in_order(bounded.open),
        )

    def in_order(self, columns: I64) -> I64:
        """Return columns by tie rank."""
        return columns[np.lexsort((columns, self.rank_J[columns]))]

    def task(self, columns: I64, budget: Budget, *, whole: bool = False) -> PartTask:
        """Return the search among some candidates and the musts.

        Minima are asked of a part as far as it can meet them, so that all parts together can.
        """
        listed = np.concatenate([self.include, columns])
        costs = None if self.costs is None else self.costs[listed]
        given = self.constraints
        group_S = None if given.group_J is None else given.group_J[listed]
        minima = given.min_per_group
        if minima is not None and group_S is not None and not whole:
            sizes = np.bincount(group_S[group_S >= 0], minlength=len(minima))
            minima = [min(int(least), int(size)) for least, size in zip(minima, sizes, strict=True)]
        constraints = replace(
            given,
            group_J=group_S,
            min_per_group=minima,
            include=list(range(len(self.include))),
            exclude=(),
        )
        return PartTask(self.source, listed, budget, costs, self.rank_J[listed], constraints)


def multi_round_greedy(
    source: ColumnSource,
    budget: Budget,
    *,
    num_parts: int,
    num_rounds: int = 4,
    seed: int = 0,
    run: Run = map,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    stop_gain: float | None = None,
    bounding: bool = False,
) -> Ranking:
    """Thin the ground set out round by round, so that no machine holds more than a part of it.

    In every round the columns left are cut into parts anew, as many as machines of
    ceil(J / num_parts) columns need, and each part keeps its greedy picks: all parts together a
    number that falls evenly from J to the budget. The last search ranks what is left.

    Args:
        source: As in `greedi`, like all that is not named here.
        budget: With max_count alone.
        num_parts: Parts of the first round.
        num_rounds: Rounds; more lose less, since a pick must survive parts that shrink slowly.
        seed: Seed of the parts; each round draws its own.
        run: Maps a function over tasks, in order.
        tie_rank: Rank of each column among equals.
        constraints: Musts; quotas are refused.
        stop_gain: When the last search stops.
        bounding: Whether columns that are in every best subset are settled first, and those in
            none left out (`bounding`); the settled ones lead the ranking.

    Returns:
        The ranking, in numbers of the whole ground set; `upper_bound` is None.

    Raises:
        ValueError: Without max_count, with max_cost or with quotas.

    Source: Boether et al., MLSys 2025, arXiv 2402.16442.
    """
    if budget.max_count is None or budget.max_cost is not None:
        msg = "a search in rounds needs a budget of max_count alone"
        raise ValueError(msg)
    if constraints is not None and constraints.num_groups:
        msg = "a search in rounds takes no quotas; use greedi or lazy_greedy"
        raise ValueError(msg)
    if num_rounds < 1:
        msg = f"num_rounds must be at least 1, got {num_rounds}"
        raise ValueError(msg)
    ground = _Ground.checked(source, budget, num_parts, None, tie_rank, constraints)
    if bounding:
        ground = ground.settled(budget.max_count, num_parts, run)
    left = ground.candidates
    capacity = max(1, math.ceil(len(left) / num_parts))
    for number, target in enumerate(_targets(ground, budget.max_count, num_rounds)):
        cut, kept = _cut_and_kept(len(left), capacity, target)
        tasks = ground.parts(left, cut, seed + number, Budget(kept + len(ground.include)))
        orders = [ranking.order[len(ground.include) :] for ranking in run(search_part, tasks)]
        left = ground.in_order(np.concatenate([np.zeros(0, np.int64), *orders]))
    return search_part(replace(ground.task(left, budget, whole=True), stop_gain=stop_gain))


def _targets(ground: _Ground, max_count: int, num_rounds: int) -> F64:
    """Return how many columns are to be left after each round, falling evenly to the budget."""
    wanted = max(max_count - len(ground.include), 0)
    size = len(ground.candidates)
    return np.linspace(size, min(wanted, size), num_rounds + 1)[1:]


def _cut_and_kept(num_left: int, capacity: int, target: float) -> tuple[int, int]:
    """Return into how many parts a round cuts, and how many columns each of them keeps."""
    cut = max(1, math.ceil(num_left / capacity))
    return cut, math.ceil(float(target) / cut)


def first_tasks(
    source: ColumnSource,
    budget: Budget,
    *,
    num_parts: int,
    num_rounds: int | None = None,
    seed: int = 0,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    bounding: bool = False,
) -> list[PartTask]:
    """Return the searches of the first round, for a caller that runs them ahead.

    Args:
        source: As in `greedi`, like all that is not named here.
        budget: With max_count.
        num_parts: Parts of the first round.
        num_rounds: None for those of `greedi`, else those of `multi_round_greedy`.
        seed: Seed of the parts.
        tie_rank: Rank of each column among equals.
        constraints: Musts and quotas.
        bounding: As in `multi_round_greedy`.

    Returns:
        The tasks of `search_part` that `run` is given first when either is called with the same
        arguments, in that order.
    """
    ground = _Ground.checked(source, budget, num_parts, None, tie_rank, constraints)
    if num_rounds is None:
        return ground.parts(ground.candidates, num_parts, seed, budget)
    if bounding:
        ground = ground.settled(budget.max_count or 0, num_parts, map)
    size = len(ground.candidates)
    target = _targets(ground, budget.max_count or 0, num_rounds)[0]
    cut, kept = _cut_and_kept(size, max(1, math.ceil(size / num_parts)), float(target))
    return ground.parts(ground.candidates, cut, seed, Budget(kept + len(ground.include)))
