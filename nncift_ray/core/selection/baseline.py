"""The baseline of every selection, a random one, and the value of any selection.

Suffixes: J columns, S selected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.admission import ADMITTED, Admission, admits
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.draws import mixed_each
from nncift_ray.core.selection.problem import Columns, Objective, Problem, State, add, gain_of
from nncift_ray.core.selection.search import (
    NUM_PICKED,
    Log,
    Ranking,
    Search,
    take,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def random_ranking(
    objective: Objective | Problem,
    budget: Budget,
    *,
    seed: int,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
) -> Ranking:
    """Pick at random, within budget and constraints, and say what that is worth.

    The order is that of a hash of (seed, tie rank): the order of the files is no matter, and a
    larger budget begins with the picks of a smaller one.

    Args:
        objective: What the picks are valued by; it chooses nothing.
        budget: As in `lazy_greedy`, like the rest.
        seed: Seed of the order.
        costs: Cost of each column.
        tie_rank: What stands for each column in the hash, distinct; None takes the column numbers.
        constraints: Musts and quotas.

    Returns:
        The ranking; its upper bound holds for every selection, so `share_of_best` does too.
    """
    search = Search(objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints)
    key_J = np.empty(search.problem.num_columns, np.uint64)
    mixed_each(seed, search.rank_J, key_J)
    order_J = np.lexsort((search.rank_J, key_J))
    _take_in_order(search.columns, search.state, search.admission, search.log, order_J)
    return search.ranking(stopped=False, rule="random")


def evaluate(objective: Objective | Problem, order_S: I64) -> F64:
    """Return the value of the first 1, 2, ..., S of some columns: [S] float64.

    Raises:
        ValueError: If a column is listed twice or does not exist.
    """
    problem = objective if isinstance(objective, Problem) else objective.problem()
    order_S = np.asarray(order_S, np.int64)
    if len(order_S) and not 0 <= order_S.min() <= order_S.max() < problem.num_columns:
        msg = f"columns {order_S.min()}..{order_S.max()}, there are {problem.num_columns}"
        raise ValueError(msg)
    if len(np.unique(order_S)) < len(order_S):
        msg = "a selection lists a column twice"
        raise ValueError(msg)
    gain_S = np.empty(len(order_S))
    _add_in_order(problem.columns, problem.empty_state(), order_S, gain_S)
    return np.cumsum(gain_S)


@compiled
def _take_in_order(
    columns: Columns, state: State, admission: Admission, log: Log, order_J: I64
) -> None:
    for j in order_J:
        if log.num[NUM_PICKED] == len(log.order):
            return
        if not admission.open_J[j]:
            continue
        if admits(admission, j) == ADMITTED:
            take(columns, state, admission, log, j, gain_of(columns, state, j))


@compiled
def _add_in_order(columns: Columns, state: State, order_S: I64, gain_S: F64) -> None:
    for place in range(len(order_S)):
        gain_S[place] = gain_of(columns, state, order_S[place])
        add(columns, state, order_S[place])
