"""Whether a column may be picked now, under budget and constraints, and what a pick uses up.

Once a column is refused it stays refused, since slots, money and quotas only run out and what is
reserved never leaves more room than before: a lazy search may drop it for good. Costs that are
whole numbers (tokens) are added without rounding, so the minima are met for certain.
Suffixes: J columns, G groups (the last one stands for "no group").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.errors import ShapeError

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

ADMITTED, TOO_DEAR, OVER_QUOTA = 0, 1, 2
FREE, RESERVED = 0, 1  # places in `slots` and `money`
NO_LIMIT = np.iinfo(np.int64).max


class Admission(NamedTuple):
    """What is left of the budget and the quotas; the kernels change it as columns are picked.

    `slots` holds the picks left and those of them reserved for minima; `money` the cost left and
    that of the cheapest columns that would meet the minima. `by_cost` lists the open columns of
    each group that has a minimum, cheapest first; `edge_G` is the place in it of the dearest
    column reserved. `bounded` is False where nothing but the number of picks is limited, so that a
    search of a million columns need not look up groups and costs.
    """

    bounded: bool
    open_J: Bools
    group_J: I32
    cost_J: F64
    need_G: I64
    left_G: I64
    slots: I64
    money: F64
    by_cost: I32
    place_J: I32
    start_G: I64
    edge_G: I64


def open_admission(
    num_columns: int,
    budget: Budget,
    costs: NDArray[np.number] | None,
    constraints: Constraints,
) -> Admission:
    """Return what may be picked at the start.

    Raises:
        ShapeError: If costs or groups are not one a column.
        ValueError: If costs are missing or no costs, a listed column does not exist, or the minima
            cannot be met.
    """
    cost_J = _check_costs(num_columns, budget, costs)
    group_J, num_groups = _groups(num_columns, constraints)
    open_J = np.ones(num_columns, np.bool_)
    open_J[_check_columns("exclude", constraints.exclude, num_columns)] = False
    _check_columns("include", constraints.include, num_columns)
    need_G, left_G = np.zeros(num_groups + 1, np.int64), np.full(num_groups + 1, NO_LIMIT)
    for group in range(num_groups):
        need_G[group] = constraints.minimum(group)
        most = constraints.maximum(group)
        left_G[group] = NO_LIMIT if most is None else most
    slots = np.array([limit_of(budget, num_columns), need_G.sum()])
    _check_minima(need_G, np.bincount(group_J[open_J], minlength=num_groups + 1), int(slots[FREE]))
    money = np.array([math.inf if budget.max_cost is None else float(budget.max_cost), 0.0])
    if budget.max_cost is not None and need_G.any():
        return _with_reserve(open_J, group_J, cost_J, need_G, left_G, slots, money)
    none, no_places = np.zeros(0, np.int32), np.zeros(num_groups + 1, np.int64)
    bounded = budget.max_cost is not None or num_groups > 0
    return Admission(
        bounded,
        open_J,
        group_J,
        cost_J,
        need_G,
        left_G,
        slots,
        money,
        none,
        none,
        no_places,
        no_places,
    )


def limit_of(budget: Budget, num_columns: int) -> int:
    """Return the most picks there can be."""
    return num_columns if budget.max_count is None else min(budget.max_count, num_columns)


@compiled
def admits(admission: Admission, j: int) -> int:
    """Return ADMITTED, or why an open column may not be picked, now or ever."""
    if not admission.bounded:
        return ADMITTED
    group = admission.group_J[j]
    needed = admission.need_G[group] > 0
    if admission.left_G[group] <= 0:
        return OVER_QUOTA
    if not needed and admission.slots[FREE] <= admission.slots[RESERVED]:
        return OVER_QUOTA
    cost = admission.cost_J[j]
    if needed and len(admission.by_cost) > 0:
        # Picked for its group's minimum, it takes the place of the dearest column reserved.
        edge = admission.by_cost[admission.edge_G[group]]
        cost -= min(cost, admission.cost_J[edge])
    return TOO_DEAR if cost > admission.money[FREE] - admission.money[RESERVED] else ADMITTED


@compiled
def admits_each(admission: Admission, columns_S: I64, verdict_S: I64) -> None:
    """Write `admits` of some open columns."""
    for place in range(len(columns_S)):
        verdict_S[place] = admits(admission, columns_S[place])


@compiled
def spend(admission: Admission, j: int) -> None:
    """Take what picking an admitted column uses up."""
    admission.open_J[j] = False
    admission.slots[FREE] -= 1
    if not admission.bounded:
        return
    group = admission.group_J[j]
    admission.left_G[group] -= 1
    admission.money[FREE] -= admission.cost_J[j]
    if admission.need_G[group] == 0:
        return
    admission.need_G[group] -= 1
    admission.slots[RESERVED] -= 1
    if len(admission.by_cost) > 0:
        edge = admission.edge_G[group]
        inside = admission.place_J[j] <= edge
        freed = j if inside else np.int64(admission.by_cost[edge])
        admission.money[RESERVED] -= admission.cost_J[freed]
        if not inside:
            edge -= 1
        while edge >= admission.start_G[group] and not admission.open_J[admission.by_cost[edge]]:
            edge -= 1
        admission.edge_G[group] = max(edge, admission.start_G[group])


def _with_reserve(
    open_J: Bools, group_J: I32, cost_J: F64, need_G: I64, left_G: I64, slots: I64, money: F64
) -> Admission:
    """Reserve the cheapest columns that meet the minima."""
    needed = np.flatnonzero(open_J & (need_G[group_J] > 0))
    by_cost = needed[np.lexsort((needed, cost_J[needed], group_J[needed]))].astype(np.int32)
    place_J = np.zeros(len(group_J), np.int32)
    place_J[by_cost] = np.arange(len(by_cost), dtype=np.int32)
    sizes_G = np.bincount(group_J[by_cost], minlength=len(need_G))
    start_G = np.concatenate([[0], np.cumsum(sizes_G)[:-1]]).astype(np.int64)
    for group in np.flatnonzero(need_G):
        first = start_G[group]
        money[RESERVED] += cost_J[by_cost[first : first + need_G[group]]].sum()
    if money[RESERVED] > money[FREE]:
        msg = (
            f"min_per_group costs at least {money[RESERVED]:g} (the cheapest columns),"
            f" the budget is {money[FREE]:g}"
        )
        raise ValueError(msg)
    edge_G = np.maximum(start_G + need_G - 1, start_G)
    return Admission(
        True,
        open_J,
        group_J,
        cost_J,
        need_G,
        left_G,
        slots,
        money,
        by_cost,
        place_J,
        start_G,
        edge_G,
    )


def _check_costs(num_columns: int, budget: Budget, costs: NDArray[np.number] | None) -> F64:
    if costs is not None and costs.shape != (num_columns,):
        msg = f"costs is {costs.shape}, expected [{num_columns}] (one a column)"
        raise ShapeError(msg)
    if budget.max_cost is not None and costs is None:
        msg = "a cost budget needs the cost of every column (tokens of every example)"
        raise ValueError(msg)
    cost_J = np.zeros(num_columns) if costs is None else costs.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(cost_J) & (cost_J >= 0)))
    if len(bad):
        msg = f"cost of column {bad[0]} is {cost_J[bad[0]]}: costs are finite numbers >= 0"
        raise ValueError(msg)
    return cost_J


def _groups(num_columns: int, constraints: Constraints) -> tuple[I32, int]:
    """Return the group of each column, "no group" counted as the last, and how many there are."""
    num_groups = constraints.num_groups
    if constraints.group_J is None:
        return np.full(num_columns, num_groups, np.int32), num_groups
    if constraints.group_J.shape != (num_columns,):
        msg = f"group_J is {constraints.group_J.shape}, expected [{num_columns}] (one a column)"
        raise ShapeError(msg)
    group_J = constraints.group_J.astype(np.int32)
    return np.where(group_J < 0, np.int32(num_groups), group_J), num_groups


def _check_columns(name: str, listed: object, num_columns: int) -> I64:
    columns = np.asarray(listed, np.int64).reshape(-1)
    bad = columns[(columns < 0) | (columns >= num_columns)]
    if len(bad):
        msg = f"{name} names column {bad[0]}, there are {num_columns}"
        raise ValueError(msg)
    return columns


def _check_minima(need_G: I64, size_G: I64, limit: int) -> None:
    short = np.flatnonzero(need_G > size_G)
    if len(short):
        g = short[0]
        msg = f"group {g}: min_per_group is {need_G[g]}, it has {size_G[g]} columns to pick from"
        raise ValueError(msg)
    if need_G.sum() > limit:
        msg = f"min_per_group adds up to {need_G.sum()}, at most {limit} can be picked"
        raise ValueError(msg)
