"""Greedy in parts (GreeDi), for a ground set whose lists exceed one machine.

A part is some of the columns with all their rows, so a gain computed in a part is that of the whole
problem. Parts are drawn by a seeded hash of the tie ranks, and what the parts return is read in
the order of the parts: neither the number of workers, nor their order, nor the order of the files
changes a pick. A worker reads the columns of its part alone (`Objective.restricted`).
Suffixes: J columns, S selected or listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import Ranking, lazy_greedy, splitmix64
from nncift_ray.selection.problem import Objective
from nncift_ray.selection.ties import TieBreak

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PartTask:
    """A greedy search among some columns: what is sent to a worker.

    Attributes:
        objective: The set function of all columns.
        columns: Columns of the part [S], must-includes first.
        budget: Of the part.
        tie_rank: Their ranks [S].
        constraints: In numbers of the part.
        tie_break: In numbers of the part.
        stop_gain: As in `lazy_greedy`.
    """

    objective: Objective
    columns: I64
    budget: Budget
    tie_rank: I64
    constraints: Constraints
    tie_break: TieBreak | None = None
    stop_gain: float | None = None


def search_part(task: PartTask) -> Ranking:
    """Search a part; the ranking is in the numbers of the whole ground set."""
    ranking = lazy_greedy(
        task.objective.restricted(task.columns),
        task.budget,
        tie_rank=task.tie_rank,
        tie_break=task.tie_break,
        constraints=task.constraints,
        stop_gain=task.stop_gain,
    )
    # The bound is one over the part alone.
    return replace(ranking, order=task.columns[ranking.order], upper_bound=None)


def greedi(
    objective: Objective,
    budget: Budget,
    *,
    num_parts: int,
    seed: int = 0,
    tie_rank: NDArray[np.integer] | None = None,
    tie_break: TieBreak | None = None,
    constraints: Constraints | None = None,
    stop_gain: float | None = None,
) -> Ranking:
    """Search every part with the whole budget, then among what the parts picked.

    For monotone submodular functions under a count budget B the result is worth at least
    (1 - 1/e)^2 / min(num_parts, B) of the best, and over random parts at least (1 - 1/e) / 2 in
    expectation (Barbosa et al. 2015).

    Args:
        objective: The set function.
        budget: How many columns may be selected (a count).
        num_parts: Parts of the first round, at least 1.
        seed: Seed of the parts.
        tie_rank: Rank of each column [J] among equals; it decides its part too.
        tie_break: As in `lazy_greedy`.
        constraints: Must-include and exclude lists, and quotas. Must-includes are picked first in
            every part.
        stop_gain: When the last search stops; the parts fill their budget.

    Returns:
        The ranking, in numbers of the whole ground set. `upper_bound` is None: no machine saw all
        columns.

    Raises:
        ValueError: As `lazy_greedy`.

    Source: Mirzasoleiman et al. 2013, Distributed submodular maximization (GreeDi).
    """
    tasks = part_tasks(
        objective, budget, num_parts=num_parts, seed=seed, tie_rank=tie_rank, tie_break=tie_break,
        constraints=constraints,
    )  # fmt: skip
    rankings = [search_part(task) for task in tasks]
    return merge_parts(
        objective, budget, rankings, tie_rank=tie_rank, tie_break=tie_break,
        constraints=constraints, stop_gain=stop_gain,
    )  # fmt: skip


def part_tasks(
    objective: Objective,
    budget: Budget,
    *,
    num_parts: int,
    seed: int = 0,
    tie_rank: NDArray[np.integer] | None = None,
    tie_break: TieBreak | None = None,
    constraints: Constraints | None = None,
) -> list[PartTask]:
    """Return the searches of the first round of `greedi`; a part without a column has none."""
    if num_parts < 1:
        raise ValueError(f"num_parts must be at least 1, got {num_parts}")
    constraints = constraints or Constraints()
    rank_J = _ranks(objective, tie_rank)
    open_J = np.ones(objective.num_columns, np.bool_)
    for listed in (constraints.include, constraints.exclude):
        open_J[np.asarray(listed, np.int64)] = False
    columns = np.flatnonzero(open_J)
    part_S = part_of_columns(rank_J[columns], num_parts, seed)
    parts = [columns[part_S == part] for part in range(num_parts)]
    return [
        _task(objective, part, budget, rank_J, tie_break, constraints)
        for part in parts
        if len(part)
    ]


def merge_parts(
    objective: Objective,
    budget: Budget,
    rankings: Sequence[Ranking],
    *,
    tie_rank: NDArray[np.integer] | None = None,
    tie_break: TieBreak | None = None,
    constraints: Constraints | None = None,
    stop_gain: float | None = None,
) -> Ranking:
    """Search among what the parts picked; return that or, if it is better, the best part's picks.

    A part is only asked for the minima that it can meet, so its picks may miss some; then they are
    no result.

    Memory: at most num_parts times the budget in columns.
    """
    constraints = constraints or Constraints()
    union = np.concatenate([np.zeros(0, np.int64), *[ranking.order for ranking in rankings]])
    union = np.setdiff1d(union, np.asarray(constraints.include, np.int64))
    rank_J = _ranks(objective, tie_rank)
    task = _task(objective, union, budget, rank_J, tie_break, constraints, whole=True)
    merged = search_part(replace(task, stop_gain=stop_gain))
    if stop_gain is not None:
        return merged
    allowed = [ranking for ranking in rankings if _meets_minima(ranking.order, constraints)]
    return max([merged, *allowed], key=lambda ranking: ranking.value)


def part_of_columns(rank_J: I64, num_parts: int, seed: int) -> I64:
    """Return the part of each column [J]: a seeded hash of its tie rank."""
    return (splitmix64(seed, rank_J) % np.uint64(num_parts)).astype(np.int64)


def _meets_minima(order_S: I64, constraints: Constraints) -> bool:
    if constraints.group_J is None:
        return True
    group_S, (least_G, _) = constraints.group_J[order_S], constraints.quotas()
    return bool((np.bincount(group_S[group_S >= 0], minlength=len(least_G)) >= least_G).all())


def _ranks(objective: Objective, tie_rank: NDArray[np.integer] | None) -> I64:
    return np.arange(objective.num_columns) if tie_rank is None else tie_rank.astype(np.int64)


def _task(
    objective: Objective,
    columns: I64,
    budget: Budget,
    rank_J: I64,
    tie_break: TieBreak | None,
    constraints: Constraints,
    *,
    whole: bool = False,
) -> PartTask:
    """Return the search among some candidates, in tie order, and the must-includes.

    Minima are asked of a part as far as it can meet them, so that all parts together can.
    """
    columns = columns[np.lexsort((columns, rank_J[columns]))]
    listed = np.concatenate([np.asarray(constraints.include, np.int64), columns])
    group_S = None if constraints.group_J is None else constraints.group_J[listed]
    minima = constraints.min_per_group
    if minima is not None and group_S is not None and not whole:
        sizes = np.bincount(group_S[group_S >= 0], minlength=len(minima))
        minima = [min(int(least), int(size)) for least, size in zip(minima, sizes, strict=True)]
    inside = replace(
        constraints,
        group_J=group_S,
        min_per_group=minima,
        include=range(len(constraints.include)),
        exclude=(),
    )
    among = None if tie_break is None else tie_break.restricted(listed)
    return PartTask(objective, listed, budget, rank_J[listed], inside, among)
