"""Greedy in parts (GreeDi), for a ground set whose lists exceed one machine.

A part is some of the columns with all their rows, so a gain computed in a part is that of the whole
problem. Parts are drawn by a seeded hash of the tie ranks, and what the parts return is read in
the order of the parts: neither the number of workers, nor their order, nor the order of the files
changes a pick. A worker reads the columns of its part alone (`Objective.restricted`).
Suffixes: J columns, S selected or listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import Ranking, SearchOptions, lazy_greedy, splitmix64
from nncift_ray.selection.problem import Objective

I64 = NDArray[np.int64]


class PartTask(NamedTuple):
    """A greedy search among some columns, which is what a worker is sent."""

    objective: Objective  # of all columns
    columns: I64  # of the part, must-includes first
    budget: Budget
    options: SearchOptions  # in numbers of the part


def search_part(task: PartTask) -> Ranking:
    """Search a part; the ranking is in the numbers of the whole ground set."""
    ranking = lazy_greedy(task.objective.restricted(task.columns), task.budget, **task.options)
    # The bound is one over the part alone.
    return replace(ranking, order=task.columns[ranking.order], upper_bound=None)


def greedi(
    objective: Objective,
    budget: Budget,
    *,
    num_parts: int,
    seed: int = 0,
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Search every part with the whole budget (a count), then among what the parts picked.

    Must-includes are picked first in every part; `stop_gain` ends the last search alone. Options
    and errors are those of `lazy_greedy`. No machine saw all columns, so there is no upper bound.

    For monotone submodular functions under a count budget B the result is worth at least
    (1 - 1/e)^2 / min(num_parts, B) of the best, and over random parts at least (1 - 1/e) / 2 in
    expectation (Barbosa et al. 2015).

    Source: Mirzasoleiman et al. 2013, Distributed submodular maximization (GreeDi).
    """
    tasks = part_tasks(objective, budget, num_parts=num_parts, seed=seed, **options)
    return merge_parts(objective, budget, [search_part(task) for task in tasks], **options)


def part_tasks(
    objective: Objective,
    budget: Budget,
    *,
    num_parts: int,
    seed: int = 0,
    **options: Unpack[SearchOptions],
) -> list[PartTask]:
    """Return the searches of the first round of `greedi`; a part without a column has none."""
    if num_parts < 1:
        raise ValueError(f"num_parts must be at least 1, got {num_parts}")
    rank_J, constraints = _ranks(objective, options), _constraints(options)
    open_J = np.ones(objective.num_columns, np.bool_)
    for listed in (constraints.include, constraints.exclude):
        open_J[np.asarray(listed, np.int64)] = False
    columns = np.flatnonzero(open_J)
    part_S = part_of_columns(rank_J[columns], num_parts, seed)
    parts = [columns[part_S == part] for part in range(num_parts)]
    return [_task(objective, part, budget, options) for part in parts if len(part)]


def merge_parts(
    objective: Objective,
    budget: Budget,
    rankings: Sequence[Ranking],
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Search among what the parts picked; return that or, if it is better, the best part's picks.

    A part is only asked for the minima that it can meet, so its picks may miss some; then they are
    no result.

    Memory: at most num_parts times the budget in columns.
    """
    constraints, stop_gain = _constraints(options), options.get("stop_gain")
    union = np.concatenate([np.zeros(0, np.int64), *[ranking.order for ranking in rankings]])
    union = np.setdiff1d(union, np.asarray(constraints.include, np.int64))
    task = _task(objective, union, budget, options, whole=True)
    task.options["stop_gain"] = stop_gain
    merged = search_part(task)
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


def _constraints(options: SearchOptions) -> Constraints:
    return options.get("constraints") or Constraints()


def _ranks(objective: Objective, options: SearchOptions) -> I64:
    tie_rank = options.get("tie_rank")
    return np.arange(objective.num_columns) if tie_rank is None else tie_rank.astype(np.int64)


def _task(
    objective: Objective,
    columns: I64,
    budget: Budget,
    options: SearchOptions,
    *,
    whole: bool = False,
) -> PartTask:
    """Return the search among some candidates, in tie order, and the must-includes.

    Minima are asked of a part as far as it can meet them, so that all parts together can.
    """
    rank_J, constraints = _ranks(objective, options), _constraints(options)
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
    among: SearchOptions = {"tie_rank": rank_J[listed], "constraints": inside}
    if (tie_break := options.get("tie_break")) is not None:
        among["tie_break"] = tie_break.restricted(listed)
    return PartTask(objective, listed, budget, among)
