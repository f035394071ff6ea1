"""Greedy over a random sample at every step: one pass over the entries, whatever the budget.

Suffixes: J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.admission import (
    ADMITTED,
    Admission,
    admits,
)
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.draws import mixed
from nncift_ray.core.selection.greedy import precedes
from nncift_ray.core.selection.problem import Columns, Objective, Problem, State, gain_of
from nncift_ray.core.selection.search import (
    CLOSES,
    NUM_PICKED,
    PROGRESS_STEPS,
    STOPS,
    Log,
    Progress,
    Ranking,
    Search,
    close,
    judge,
    take,
)

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def stochastic_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    epsilon: float = 0.1,
    seed: int = 0,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
) -> Ranking:
    """Pick the best of ceil(J / B * ln(1 / epsilon)) columns drawn at every step.

    For monotone submodular functions under a count budget B the value is in expectation at least
    1 - 1/e - epsilon of the best. Columns are drawn with replacement from those not picked, by a
    hash of (seed, number of the pick, number of the draw) over the columns in tie order: neither
    the order of the files nor an interruption changes a draw. Where a whole sample is refused by
    quotas or costs, the best of all that are admitted is picked.

    Args:
        objective: As in `lazy_greedy`, like all that is not named here.
        budget: With max_count: the sample is sized by it.
        epsilon: What may be lost, in (0, 1); smaller draws more.
        seed: Seed of the draws.
        costs: Cost of each column.
        tie_rank: Rank of each column among equals, and in what draws are made from.
        constraints: Musts and quotas.
        on_progress: Called about 100 times.
        stop_gain: As in `lazy_greedy`, of the best of a sample.
        prefix: What an interrupted run had picked.

    Returns:
        The ranking: a prefix order for this budget, since the sample's size depends on it.

    Raises:
        ValueError: As `lazy_greedy`; without max_count; if epsilon is outside (0, 1).

    Source: Mirzasoleiman et al. 2015, Lazier than lazy greedy, arXiv 1409.7938.
    """
    if budget.max_count is None:
        msg = "stochastic greedy needs max_count: its samples are sized by it"
        raise ValueError(msg)
    if not 0 < epsilon < 1:
        msg = f"epsilon must lie in (0, 1), got {epsilon}"
        raise ValueError(msg)
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix,
    )  # fmt: skip
    pool, place_J, pool_size = _pool(search)
    share = len(pool) / max(search.limit, 1)
    sample = max(1, math.ceil(share * math.log(1 / epsilon)))
    stride, stopped = max(1, math.ceil(search.limit / PROGRESS_STEPS)), False
    while search.picked < search.limit and pool_size > 0 and not stopped:
        pool_size, stopped = _pick_sampled(
            search.columns, search.state, search.admission, search.log, search.rank_J,
            pool, place_J, pool_size, sample, seed,
            min(search.picked + stride, search.limit), search.stop_gain,
        )  # fmt: skip
        search.report_progress()
    return search.ranking(stopped=stopped)


def _pool(search: Search) -> tuple[I32, I32, int]:
    """Return the columns to draw from in tie order, their places, and how many are left.

    What is picked already leaves the pool in the order of picking, as in a run that was never
    interrupted.
    """
    num_columns = search.problem.num_columns
    was_open = search.admission.open_J.copy()
    picked_S = search.log.order[: search.picked]
    was_open[picked_S] = True
    by_rank = np.lexsort((np.arange(num_columns), search.rank_J))
    pool = by_rank[was_open[by_rank]].astype(np.int32)
    place_J = np.full(num_columns, -1, np.int32)
    place_J[pool] = np.arange(len(pool), dtype=np.int32)
    return pool, place_J, _remove_all(pool, place_J, len(pool), picked_S)


@compiled
def _remove_all(pool: I32, place_J: I32, size: int, picked_S: I64) -> int:
    for j in picked_S:
        size = _remove(pool, place_J, size, j)
    return size


@compiled
def _remove(pool: I32, place_J: I32, size: int, j: int) -> int:
    """Let the last column of the pool take the place of column j; return the new size."""
    place, last = place_J[j], pool[size - 1]
    pool[place], place_J[last] = last, place
    return size - 1


@compiled
def _pick_sampled(
    columns: Columns, state: State, admission: Admission, log: Log, rank_J: I64,
    pool: I32, place_J: I32, pool_size: int, sample: int, seed: int, until: int, stop_gain: float,
) -> tuple[int, bool]:  # fmt: skip
    """Pick until `until` columns are selected; return the pool's size and whether to stop."""
    drawn = np.empty(sample, np.int32)
    while log.num[NUM_PICKED] < until and pool_size > 0:
        for draw in range(sample):
            drawn[draw] = pool[_place(mixed(mixed(seed, log.num[NUM_PICKED]), draw), pool_size)]
        best, gain = _best_of(columns, state, admission, rank_J, drawn)
        if best < 0:
            best, gain = _best_of(columns, state, admission, rank_J, pool[:pool_size])
        if best < 0:
            return 0, False
        verdict = judge(admission, log, gain, stop_gain)
        if verdict == STOPS:
            return pool_size, True
        if verdict == CLOSES:
            close(admission, log)
            continue
        take(columns, state, admission, log, best, gain)
        pool_size = _remove(pool, place_J, pool_size, best)
    return pool_size, False


@compiled
def _place(bits: np.uint64, size: int) -> int:
    return int(bits % np.uint64(size))


@compiled
def _best_of(
    columns: Columns, state: State, admission: Admission, rank_J: I64, listed: I32
) -> tuple[int, float]:
    """Return the admitted column of greatest gain, -1 if none is, and its gain."""
    best, best_gain = -1, -np.inf
    for j in listed:
        if admits(admission, j) != ADMITTED:
            continue
        gain = gain_of(columns, state, j)
        if best < 0 or precedes(gain, j, best_gain, best, rank_J):
            best, best_gain = j, gain
    return best, best_gain
