"""No subset within the budget can be worth more than this.

For monotone submodular f, any picks A and any subset O within the budget,
f(O) <= f(A + O) <= f(A) + sum of the gains on top of A of O's columns, so f(A) plus the largest
such sum that the budget allows bounds every value there is (Nemhauser et al. 1978; Leskovec et al.
2007, "online bound"). It holds for any A: where gains still fall fast, the middle of a ranking
bounds better than its end.
Suffixes: J columns, S selected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.budget import Budget
from nncift_ray.core.selection.problem import Problem, add_each, all_gains

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def upper_bound(
    problem: Problem,
    order_S: I64,
    value_S: F64,
    selectable_J: NDArray[np.bool_],
    cost_J: F64,
    budget: Budget,
) -> float | None:
    """Return the least bound that the beginning, the middle and the end of a ranking give.

    It is made of the ranking alone, so an interruption does not change it.

    Args:
        problem: The set function.
        order_S: The ranking.
        value_S: Value after each pick.
        selectable_J: Columns that may be selected, those of the ranking included.
        cost_J: Cost of each column.
        budget: Of the whole selection.

    Returns:
        The bound; None for a function that is not monotone.

    Time: three passes over the entries.
    """
    if not problem.is_monotone():
        return None
    state, gain_J, left_J = (
        problem.empty_state(),
        np.empty(problem.num_columns),
        selectable_J.copy(),
    )
    bound, done = float("inf"), 0
    for place in (0, len(order_S) // 2, len(order_S)):
        add_each(problem.columns, state, order_S[done:place])
        left_J[order_S[done:place]] = False
        all_gains(problem.columns, state, gain_J)
        value = float(value_S[place - 1]) if place else 0.0
        bound = min(bound, bound_from(value, gain_J, left_J, cost_J, budget))
        done = place
    return bound


def bound_from(
    value: float, gain_J: F64, open_J: NDArray[np.bool_], cost_J: F64, budget: Budget
) -> float:
    """Return f(A) plus the largest sum of gains that the whole budget could buy.

    Args:
        value: f(A).
        gain_J: Gain of each column on top of A [J], >= 0.
        open_J: Columns that are not in A and may be selected.
        cost_J: Cost of each column.
        budget: Of the whole selection, A included: O need not contain A.

    Returns:
        The bound: over a cost budget that of the fractional knapsack.
    """
    open_gain = gain_J[open_J]
    bound = float("inf")
    if budget.max_count is not None:
        bound = value + _largest(open_gain, budget.max_count)
    if budget.max_cost is not None:
        bound = min(bound, value + _knapsack(open_gain, cost_J[open_J], budget.max_cost))
    return bound


def _largest(gain: F64, count: int) -> float:
    """Return the sum of the `count` largest gains."""
    if count >= len(gain):
        return float(gain.sum())
    if count == 0:
        return 0.0
    return float(np.partition(gain, len(gain) - count)[len(gain) - count :].sum())


def _knapsack(gain: F64, cost: F64, money: float) -> float:
    """Return the most gain that the money buys when columns may be cut."""
    free = cost <= 0
    total = float(gain[free].sum())
    gain, cost = gain[~free], cost[~free]
    order = np.argsort(-(gain / cost), kind="stable")
    spent = np.cumsum(cost[order])
    whole = int(np.searchsorted(spent, money, side="right"))
    total += float(gain[order[:whole]].sum())
    if whole < len(order):
        left = money - (spent[whole - 1] if whole else 0.0)
        total += float(gain[order[whole]] * left / cost[order[whole]])
    return total
