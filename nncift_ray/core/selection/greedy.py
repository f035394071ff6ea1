"""Greedy maximisation: the plain oracle, the lazy search, and the one that minds costs.

Each picks, at every step, the column of greatest marginal gain among those admitted, ties by
`tie_rank`; plain and lazy return the same ranking to the last bit (`problem` says why a gain
computed earlier is a bound in floating point too).

Greedy reaches 1 - 1/e of the best value of a monotone submodular function under a count budget
(Nemhauser et al. 1978), half of it under quotas (Fisher et al. 1978). Lazy evaluation: Minoux 1978.
Suffixes: J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.admission import (
    ADMITTED,
    FREE,
    Admission,
    admits,
    admits_each,
)
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.fetching import fetch_column
from nncift_ray.core.selection.problem import Columns, Objective, Problem, State, gain_of, gains_of
from nncift_ray.core.selection.search import (
    CLOSES,
    NUM_PICKED,
    PROGRESS_STEPS,
    STOPS,
    Log,
    Progress,
    Ranking,
    Rule,
    Search,
    close,
    judge,
    take,
)

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

__all__ = [
    "Budget",
    "Constraints",
    "Progress",
    "Ranking",
    "cost_benefit_greedy",
    "lazy_greedy",
    "naive_greedy",
]


def naive_greedy(
    objective: Objective | Problem,
    budget: Budget,
    costs: NDArray[np.number] | None = None,
    *,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
    rule: Rule = "gain",
) -> Ranking:
    """Pick greedily, computing every gain anew at every step: the oracle of `lazy_greedy`.

    Arguments, result and errors as there. Time: selected * entries.
    """
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix, rule=rule,
    )  # fmt: skip
    stopped = False
    while search.picked < search.limit and not stopped:
        candidates = _admitted(search)
        if len(candidates) == 0:
            break
        gains = np.empty(len(candidates))
        gains_of(search.columns, search.state, candidates, gains)
        key = gains / search.admission.cost_J[candidates] if rule == "gain_per_cost" else gains
        best = int(np.lexsort((candidates, search.rank_J[candidates], -key))[0])
        verdict = judge(search.admission, search.log, gains[best], search.stop_gain)
        if verdict == CLOSES:
            close(search.admission, search.log)
        elif verdict == STOPS:
            stopped = True
        else:
            j, gain = int(candidates[best]), float(gains[best])
            take(search.columns, search.state, search.admission, search.log, j, gain)
            search.report_progress()
    return search.ranking(stopped=stopped)


def _admitted(search: Search) -> I64:
    open_J = np.flatnonzero(search.admission.open_J)
    verdicts = np.empty(len(open_J), np.int64)
    admits_each(search.admission, open_J, verdicts)
    return open_J[verdicts == ADMITTED]


def lazy_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
    rule: Rule = "gain",
) -> Ranking:
    """Pick greedily, computing a gain anew only when its old value leads a heap.

    Args:
        objective: The set function.
        budget: How much may be selected. It is filled, with picks of no gain or of a negative one
            (functions that are not monotone) where there is nothing better; see `stop_gain`.
        costs: Cost of each column [J], finite and >= 0; needed by a cost budget.
        tie_rank: Rank of each column [J] among equals, smaller first (that of the example ids in
            sorted order, so that the order of the files does not matter); None takes the column
            numbers. Picks of no gain go on in this order until the budget is full.
        constraints: Musts and quotas.
        on_progress: Called with a `Progress` about 100 times.
        stop_gain: Stop before a pick whose gain is below this share, in [0, 1), of the value so
            far (or of 0 while the value is negative). The first pick and `include` are always
            made; minima are still met, by their groups' best. 0 stops before the first pick that
            would lower the value. None never stops.
        prefix: What an interrupted run of the same arguments had picked (`Progress.order`). It is
            replayed, and the ranking is that of the run without interruption, to the last bit.
        rule: What leads: the gain, or the gain per cost.

    Returns:
        The selected columns in the order of picking, with gains, values and an upper bound.

    Raises:
        ValueError: If costs are missing, negative, not finite or (by gain per cost) 0; if
            constraints or prefix cannot be met.
        ShapeError: If costs, tie_rank or groups are not [J].

    Memory: about 45 bytes a column, 4 a row, besides the problem's 8 an entry.
    """
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix, rule=rule,
    )  # fmt: skip
    per_cost = rule == "gain_per_cost"
    heap = np.flatnonzero(search.admission.open_J).astype(np.int32)
    heap_key = search.gain_J[heap]
    if per_cost:
        heap_key /= search.admission.cost_J[heap]
    # Where no term is negative a gain of 0 cannot fall further.
    floor = 0.0 if search.problem.never_falls() else -math.inf
    heapify(heap, heap_key, search.rank_J)
    heap_size, stopped = len(heap), False
    stride = max(1, math.ceil(search.limit / PROGRESS_STEPS))
    while search.picked < search.limit and heap_size > 0 and not stopped:
        heap_size, stopped = _pick(
            search.columns, search.state, search.admission, search.log, search.rank_J,
            heap, heap_key, heap_size, min(search.picked + stride, search.limit),
            search.stop_gain, per_cost, floor,
        )  # fmt: skip
        search.report_progress()
    return search.ranking(stopped=stopped)


def cost_benefit_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    costs: NDArray[np.number],
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefixes: Mapping[Rule, Sequence[int] | I64] | None = None,
) -> Ranking:
    """Search by gain per cost and by gain, lazily, and return the better one.

    Of equal ones it returns that by gain per cost.

    For monotone submodular functions under a cost budget that is at least (1 - 1/e)/2 of the best
    value, where each rule alone can be arbitrarily bad.

    Args:
        objective: As in `lazy_greedy`, like the rest.
        budget: With `max_cost`, as a rule.
        costs: Cost of each column [J], finite and > 0.
        tie_rank: Ranks among equals.
        constraints: Musts and quotas.
        on_progress: Called by both searches; `Progress.rule` says which.
        stop_gain: When to stop.
        prefixes: What an interrupted run had picked by each rule.

    Returns:
        The better ranking; `rule` names what it was ranked by. It is a prefix order of its own
        budget only: another budget may be won by the other rule.

    Source: Leskovec et al. 2007 (CELF), section 3; Khuller et al. 1999.
    """
    by_rule: list[Ranking] = []
    rules: tuple[Rule, Rule] = ("gain_per_cost", "gain")
    for rule in rules:
        ranking = lazy_greedy(
            objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
            on_progress=on_progress, stop_gain=stop_gain, prefix=(prefixes or {}).get(rule, ()),
            rule=rule,
        )  # fmt: skip
        by_rule.append(ranking)
    better = by_rule[0] if by_rule[0].value >= by_rule[1].value else by_rule[1]
    bounds = [ranking.upper_bound for ranking in by_rule if ranking.upper_bound is not None]
    return Ranking(
        better.order, better.gain, better.objective, min(bounds) if bounds else None,
        better.stopped_by, better.rule,
    )  # fmt: skip


@compiled
def precedes(key: float, column: int, other_key: float, other: int, rank_J: I64) -> bool:
    """Whether a column is picked before another at their present keys."""
    if key != other_key:
        return key > other_key
    # Ranks that are equal fall back on the column number, as a stable sort would.
    if rank_J[column] != rank_J[other]:
        return rank_J[column] < rank_J[other]
    return column < other


@compiled
def sink(heap: I32, heap_key: F64, size: int, place: int, rank_J: I64) -> None:
    """Move the column at `place` down until no child comes before it.

    Keys lie beside the columns of the heap: looked up by column, each comparison would miss the
    cache.
    """
    column, key = heap[place], heap_key[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and precedes(
            heap_key[right], heap[right], heap_key[child], heap[child], rank_J
        ):
            child = right
        if not precedes(heap_key[child], heap[child], key, column, rank_J):
            break
        heap[place], heap_key[place] = heap[child], heap_key[child]
        place = child
    heap[place], heap_key[place] = column, key


@compiled
def heapify(heap: I32, heap_key: F64, rank_J: I64) -> None:
    """Put the column to be picked first on top."""
    for place in range(len(heap) // 2 - 1, -1, -1):
        sink(heap, heap_key, len(heap), place, rank_J)


@compiled
def _pick(
    columns: Columns, state: State, admission: Admission, log: Log, rank_J: I64,
    heap: I32, heap_key: F64, heap_size: int, until: int,
    stop_gain: float, per_cost: bool, floor: float,
) -> tuple[int, bool]:  # fmt: skip
    """Pick until `until` columns are selected; return the heap's size and whether to stop."""
    while log.num[NUM_PICKED] < until and heap_size > 0:
        j = heap[0]
        if admission.slots[FREE] == 0:
            return heap_size, True
        if admits(admission, j) == ADMITTED:
            price = admission.cost_J[j] if per_cost else 1.0
            gain = heap_key[0]
            if gain > floor or per_cost:
                for near in range(1, min(3, heap_size)):
                    fetch_column(columns, heap[near])
                gain = gain_of(columns, state, j)
                key = gain / price
                if key != heap_key[0]:
                    heap_key[0] = key
                    sink(heap, heap_key, heap_size, 0, rank_J)
                    continue
            verdict = judge(admission, log, gain, stop_gain)
            if verdict == STOPS:
                return heap_size, True
            if verdict == CLOSES:
                close(admission, log)
                continue
            take(columns, state, admission, log, j, gain)
        heap_size -= 1
        heap[0], heap_key[0] = heap[heap_size], heap_key[heap_size]
        sink(heap, heap_key, heap_size, 0, rank_J)
    return heap_size, False
