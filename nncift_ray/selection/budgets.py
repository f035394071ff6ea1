"""How much may be selected, and of what: budgets, quotas, must-include and exclude lists.

`Limits` is what is left of them during a search; the kernels ask `verdict` before a pick and
`spend` after it. Suffixes: J columns, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

FEASIBLE, TOO_EXPENSIVE, OVER_QUOTA = 0, 1, 2
FREE, RESERVED = 0, 1  # places in `slots` and `cost`
NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be selected: at most so many columns, at most so much total cost, or both."""

    max_count: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when nothing bounds the selection or a bound is negative."""
        if self.max_count is None and self.max_cost is None:
            raise ValueError("a budget needs max_count, max_cost or both")
        if (self.max_count or 0) < 0 or not (self.max_cost or 0.0) >= 0:
            raise ValueError(f"a budget cannot be negative: {self}")

    def most_picks(self, num_columns: int) -> int:
        """Return the most picks there can be."""
        return num_columns if self.max_count is None else min(self.max_count, num_columns)


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """Which selections are allowed within the budget.

    The rules, in the order they apply:
    - `include` is picked first, in the order given, whatever it gains; `exclude` never.
    - At most `max_per_group[g]` picks of group g, those of `include` counted (a partition matroid).
    - At least `min_per_group[g]`: what the groups still lack is reserved. A column of a group that
      has its minimum is picked only while more slots are free than are reserved, and, under a cost
      budget, only while the cheapest columns that would meet the minima still fit afterwards. So
      the minima are always met, and greedy picks freely until the reserve is all that is left.
    With minima the ranking is no prefix order: a smaller budget begins to reserve earlier.

    Attributes:
        group_J: Group of each column, 0..G-1; -1 for a column of no group.
        min_per_group: Least picks of each group [G].
        max_per_group: Most picks of each group [G]; None for no limit (of one group or of all).
        include: Columns that must be picked, best first.
        exclude: Columns that must not be.
    """

    group_J: NDArray[np.integer] | None = None
    min_per_group: Sequence[int] | None = None
    max_per_group: Sequence[int | None] | None = None
    include: Sequence[int] = field(default=())
    exclude: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        """Raise ValueError naming both sides of a contradiction."""
        include = {int(j) for j in self.include}
        both = sorted(include & {int(j) for j in self.exclude})
        if both:
            msg = f"column {both[0]} is in include and in exclude ({len(both)} such columns)"
            raise ValueError(msg)
        if len(include) != len(self.include):
            raise ValueError("include names a column twice")
        if self.group_J is None:
            if self.min_per_group is not None or self.max_per_group is not None:
                msg = "min_per_group and max_per_group need group_J, the group of each column"
                raise ValueError(msg)
            return
        least, most = self.quotas()
        low, high = self.group_J.min(initial=0), self.group_J.max(initial=-1)
        if low < -1:
            raise ValueError(f"group_J holds {low}: groups are 0, 1, ..., and -1 is no group")
        if len(least) != len(most):
            msg = f"min_per_group has {len(least)} groups, the other quota {len(most)}"
            raise ValueError(msg)
        if high >= len(least):
            raise ValueError(f"group_J names group {high}, the quotas have {len(least)} groups")
        for group in np.flatnonzero((least < 0) | (most < 0) | (least > most)):
            msg = "min_per_group must be at least 0 and at most max_per_group"
            raise ValueError(f"group {group}: {msg}, got {least[group]} and {most[group]}")

    def quotas(self) -> tuple[I64, I64]:
        """Return the least and the most picks of each group [G], NO_LIMIT where there is none."""
        given = [len(q) for q in (self.min_per_group, self.max_per_group) if q is not None]
        highest = -1 if self.group_J is None else int(self.group_J.max(initial=-1))
        num_groups = max(given, default=highest + 1)
        least = [0] * num_groups if self.min_per_group is None else self.min_per_group
        most = [None] * num_groups if self.max_per_group is None else self.max_per_group
        limits = [NO_LIMIT if limit is None else limit for limit in most]
        return np.array(least, np.int64), np.array(limits, np.int64)


class Limits(NamedTuple):
    """What is left of the budget and the quotas; the kernels change it as columns are picked.

    Attributes:
        bounded: False where nothing but the number of picks is limited, so that a search of a
            million columns need not look up groups and costs.
        open_J: Columns that may still be picked: neither picked nor excluded.
        group_J: Group of each column, "no group" as the last.
        cost_J: Cost of each column.
        need_G: Picks that each group's minimum still lacks.
        left_G: Picks that each group's maximum still allows.
        slots: Picks left, and those of them reserved for minima.
        cost: Cost left, and that of the cheapest columns that would meet the minima.
        by_cost: Open columns of groups with a minimum, by group, cheapest first; empty where the
            cost is not limited.
        place_J: Place of each column in `by_cost`.
        start_G: First place of each group in `by_cost`.
        edge_G: Place of the most expensive column that is reserved for each group.
    """

    bounded: bool
    open_J: Bools
    group_J: I32
    cost_J: F64
    need_G: I64
    left_G: I64
    slots: I64
    cost: F64
    by_cost: I32
    place_J: I32
    start_G: I64
    edge_G: I64


def open_limits(
    num_columns: int,
    budget: Budget,
    costs: NDArray[np.number] | None,
    constraints: Constraints,
) -> Limits:
    """Return the limits of a search that has picked nothing.

    Raises:
        ShapeError: If costs or groups are not one a column.
        ValueError: If costs are missing or no costs, a listed column does not exist, or the minima
            cannot be met.
    """
    cost_J = _check_costs(num_columns, budget, costs)
    least_G, most_G = constraints.quotas()
    need_G, left_G, num_groups = np.append(least_G, 0), np.append(most_G, NO_LIMIT), len(least_G)
    group_J = _groups(num_columns, constraints.group_J, num_groups)
    open_J = np.ones(num_columns, np.bool_)
    open_J[_check_columns("exclude", constraints.exclude, num_columns)] = False
    _check_columns("include", constraints.include, num_columns)
    slots = np.array([budget.most_picks(num_columns), need_G.sum()])
    _check_minima(need_G, np.bincount(group_J[open_J], minlength=num_groups + 1), int(slots[FREE]))
    cost = np.array([math.inf if budget.max_cost is None else float(budget.max_cost), 0.0])
    bounded = budget.max_cost is not None or num_groups > 0
    none, no_places = np.zeros(0, np.int32), np.zeros(num_groups + 1, np.int64)
    limits = Limits(
        bounded, open_J, group_J, cost_J, need_G, left_G, slots, cost, none, none, no_places,
        no_places,
    )  # fmt: skip
    return _with_reserve(limits) if budget.max_cost is not None and need_G.any() else limits


def _with_reserve(limits: Limits) -> Limits:
    """Reserve the cheapest columns that meet the minima."""
    group_J, cost_J, need_G, cost = limits.group_J, limits.cost_J, limits.need_G, limits.cost
    needed = np.flatnonzero(limits.open_J & (need_G[group_J] > 0))
    by_cost = needed[np.lexsort((needed, cost_J[needed], group_J[needed]))].astype(np.int32)
    place_J = np.zeros(len(group_J), np.int32)
    place_J[by_cost] = np.arange(len(by_cost), dtype=np.int32)
    sizes_G = np.bincount(group_J[by_cost], minlength=len(need_G))
    start_G = np.concatenate([[0], np.cumsum(sizes_G)[:-1]]).astype(np.int64)
    for group in np.flatnonzero(need_G):
        first = start_G[group]
        cost[RESERVED] += cost_J[by_cost[first : first + need_G[group]]].sum()
    if cost[RESERVED] > cost[FREE]:
        msg = (
            f"min_per_group costs at least {cost[RESERVED]:g} (the cheapest columns),"
            f" the budget is {cost[FREE]:g}"
        )
        raise ValueError(msg)
    edge_G = np.maximum(start_G + need_G - 1, start_G)
    return limits._replace(by_cost=by_cost, place_J=place_J, start_G=start_G, edge_G=edge_G)


def _check_costs(num_columns: int, budget: Budget, costs: NDArray[np.number] | None) -> F64:
    if costs is not None and costs.shape != (num_columns,):
        raise ShapeError(f"costs is {costs.shape}, expected [{num_columns}] (one a column)")
    if budget.max_cost is not None and costs is None:
        raise ValueError("a cost budget needs the cost of every column (tokens of every example)")
    cost_J = np.zeros(num_columns) if costs is None else costs.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(cost_J) & (cost_J >= 0)))
    if len(bad):
        msg = f"cost of column {bad[0]} is {cost_J[bad[0]]}: costs are finite numbers >= 0"
        raise ValueError(msg)
    return cost_J


def _groups(num_columns: int, group_J: NDArray[np.integer] | None, num_groups: int) -> I32:
    """Return the group of each column, "no group" counted as the last."""
    if group_J is None:
        return np.full(num_columns, num_groups, np.int32)
    if group_J.shape != (num_columns,):
        raise ShapeError(f"group_J is {group_J.shape}, expected [{num_columns}] (one a column)")
    return np.where(group_J < 0, num_groups, group_J).astype(np.int32)


def _check_columns(name: str, listed: Sequence[int], num_columns: int) -> I64:
    columns = np.asarray(listed, np.int64).reshape(-1)
    bad = columns[(columns < 0) | (columns >= num_columns)]
    if len(bad):
        raise ValueError(f"{name} names column {bad[0]}, there are {num_columns}")
    return columns


def _check_minima(need_G: I64, size_G: I64, most_picks: int) -> None:
    short = np.flatnonzero(need_G > size_G)
    if len(short):
        g = short[0]
        msg = f"group {g}: min_per_group is {need_G[g]}, it has {size_G[g]} columns to pick from"
        raise ValueError(msg)
    if need_G.sum() > most_picks:
        msg = f"min_per_group adds up to {need_G.sum()}, at most {most_picks} can be picked"
        raise ValueError(msg)


@compiled
def verdict(limits: Limits, j: int) -> int:
    """Return FEASIBLE, or why an open column may not be picked, now or ever."""
    if not limits.bounded:
        return FEASIBLE
    group = limits.group_J[j]
    needed = limits.need_G[group] > 0
    if limits.left_G[group] <= 0:
        return OVER_QUOTA
    if not needed and limits.slots[FREE] <= limits.slots[RESERVED]:
        return OVER_QUOTA
    cost = limits.cost_J[j]
    if needed and len(limits.by_cost) > 0:
        # Picked for its group's minimum, it takes the place of the most expensive one reserved.
        edge = limits.by_cost[limits.edge_G[group]]
        cost -= min(cost, limits.cost_J[edge])
    return TOO_EXPENSIVE if cost > limits.cost[FREE] - limits.cost[RESERVED] else FEASIBLE


@compiled
def verdicts(limits: Limits, columns_S: I64, verdict_S: I64) -> None:
    """Write the `verdict` on some open columns."""
    for place in range(len(columns_S)):
        verdict_S[place] = verdict(limits, columns_S[place])


@compiled
def spend(limits: Limits, j: int) -> None:
    """Take what picking a feasible column uses up."""
    limits.open_J[j] = False
    limits.slots[FREE] -= 1
    if not limits.bounded:
        return
    group = limits.group_J[j]
    limits.left_G[group] -= 1
    limits.cost[FREE] -= limits.cost_J[j]
    if limits.need_G[group] == 0:
        return
    limits.need_G[group] -= 1
    limits.slots[RESERVED] -= 1
    if len(limits.by_cost) > 0:
        edge = limits.edge_G[group]
        inside = limits.place_J[j] <= edge
        freed = j if inside else np.int64(limits.by_cost[edge])
        limits.cost[RESERVED] -= limits.cost_J[freed]
        if not inside:
            edge -= 1
        while edge >= limits.start_G[group] and not limits.open_J[limits.by_cost[edge]]:
            edge -= 1
        limits.edge_G[group] = max(edge, limits.start_G[group])
