"""Greedy maximisation of a `CoverageProblem`: the plain oracle and the lazy one.

Both pick, at every step, the column of greatest marginal gain among those that still fit the
budget, ties by `tie_rank`; they return the same ranking to the last bit. The gain of a column is
one sum in float64 over its rows in ascending order. Rounded addition is monotone in each operand,
and covering more only lowers each operand, so a gain computed earlier is never below the one
computed now: the lazy bound holds in floating point too, ties included.

Greedy reaches 1 - 1/e of the best value under a count budget (Nemhauser et al. 1978); under a cost
budget it ranks by plain gain and skips what does not fit. Lazy evaluation: Minoux 1978.
Suffixes: I rows, J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.objectives import CoverageProblem, Objective
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PROGRESS_STEPS = 100  # calls of on_progress in a whole run


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be selected: at most so many columns, at most so much total cost, or both."""

    max_count: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when nothing bounds the selection or a bound is negative."""
        if self.max_count is None and self.max_cost is None:
            msg = "a budget needs max_count, max_cost or both"
            raise ValueError(msg)
        if (self.max_count or 0) < 0 or not (self.max_cost or 0.0) >= 0:
            msg = f"a budget cannot be negative: {self}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The selected columns, best first.

    Attributes:
        order: Columns [S].
        gain: What each pick added to the objective [S], never rising under a count budget.
        objective: Value after each pick [S].
    """

    order: I64
    gain: F64
    objective: F64


def naive_greedy(
    objective: Objective,
    budget: Budget,
    costs: NDArray[np.number] | None = None,
    *,
    tie_rank: NDArray[np.integer] | None = None,
) -> Ranking:
    """Pick greedily, computing every gain anew at every step: the oracle of `lazy_greedy`.

    Arguments, result and errors as there. Time: selected * entries.
    """
    problem = objective.problem()
    limit, cost_J, rank_J = _prepare(problem, budget, costs, tie_rank)
    remaining = math.inf if budget.max_cost is None else float(budget.max_cost)
    open_J = np.ones(problem.num_columns, np.bool_)
    cover_I = np.zeros(problem.num_rows, np.float32)
    order: list[int] = []
    gains: list[float] = []
    while len(order) < limit:
        allowed = np.flatnonzero(open_J & (cost_J <= remaining))
        if len(allowed) == 0:
            break
        gain = np.array([_gain(*_arrays(problem), cover_I, j) for j in allowed])
        best = int(allowed[np.lexsort((rank_J[allowed], -gain))[0]])
        order.append(best)
        gains.append(_gain(*_arrays(problem), cover_I, best))
        _cover(*_arrays(problem), cover_I, best)
        open_J[best] = False
        remaining -= cost_J[best]
    gain_S = np.array(gains, np.float64)
    return Ranking(np.array(order, np.int64), gain_S, np.cumsum(gain_S))


def lazy_greedy(
    objective: Objective,
    budget: Budget,
    *,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Pick greedily, computing a gain anew only when its old value leads a heap.

    Args:
        objective: The set function.
        budget: How much may be selected.
        costs: Cost of each column [J], finite and >= 0; needed by a cost budget.
        tie_rank: Rank of each column [J] among equals, smaller first (that of the example ids in
            sorted order, so that the order of the files does not matter); None takes the column
            numbers. Picks of no gain go on in this order until the budget is full.
        on_progress: Called with (columns selected so far, most that may be) about 100 times.

    Returns:
        The selected columns in the order of picking, with gains and values.

    Raises:
        ValueError: If costs are missing, negative or not finite.
        ShapeError: If costs or tie_rank are not [J].

    Memory: 21 bytes a column, 4 a row, besides the problem's 8 an entry.
    """
    problem = objective.problem()
    limit, cost_J, rank_J = _prepare(problem, budget, costs, tie_rank)
    remaining = np.array([math.inf if budget.max_cost is None else float(budget.max_cost)])
    cover_I = np.zeros(problem.num_rows, np.float32)
    heap = np.arange(problem.num_columns, dtype=np.int32)
    heap_gain = np.empty(problem.num_columns, np.float64)
    _all_gains(*_arrays(problem), cover_I, heap_gain)
    _heapify(heap, heap_gain, rank_J)
    order, gain_S = np.empty(limit, np.int64), np.empty(limit, np.float64)
    picked, heap_size = 0, problem.num_columns
    stride = max(1, math.ceil(limit / PROGRESS_STEPS))
    while picked < limit and heap_size > 0:
        picked, heap_size = _pick(
            *_arrays(problem), cover_I, rank_J, cost_J, remaining, heap, heap_gain, heap_size,
            order, gain_S, picked, min(picked + stride, limit),
        )  # fmt: skip
        if on_progress is not None:
            on_progress(picked, limit)
    gain_S = gain_S[:picked].copy()
    return Ranking(order[:picked].copy(), gain_S, np.cumsum(gain_S))


def _prepare(
    problem: CoverageProblem,
    budget: Budget,
    costs: NDArray[np.number] | None,
    tie_rank: NDArray[np.integer] | None,
) -> tuple[int, F64, I64]:
    """Return the most picks there can be, the costs and the tie ranks, checked."""
    num_columns = problem.num_columns
    for name, values in (("costs", costs), ("tie_rank", tie_rank)):
        if values is not None and values.shape != (num_columns,):
            msg = f"{name} is {values.shape}, expected [{num_columns}] (one a column)"
            raise ShapeError(msg)
    if budget.max_cost is not None and costs is None:
        msg = "a cost budget needs the cost of every column (tokens of every example)"
        raise ValueError(msg)
    cost_J = np.zeros(num_columns) if costs is None else costs.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(cost_J) & (cost_J >= 0)))
    if len(bad):
        msg = f"cost of column {bad[0]} is {cost_J[bad[0]]}: costs are finite numbers >= 0"
        raise ValueError(msg)
    limit = num_columns if budget.max_count is None else min(budget.max_count, num_columns)
    rank_J = np.arange(num_columns) if tie_rank is None else tie_rank.astype(np.int64)
    return limit, cost_J, rank_J


def _arrays(problem: CoverageProblem) -> tuple[I64, I32, F32, F64]:
    return problem.indptr, problem.rows, problem.values, problem.modular_J


@compiled
def _gain(indptr: I64, rows: I32, values: F32, modular_J: F64, cover_I: F32, j: int) -> float:
    """Return f(A + j) - f(A), summed over the rows of column j in ascending order."""
    gain = modular_J[j]
    for entry in range(indptr[j], indptr[j + 1]):
        covered = cover_I[rows[entry]]
        if values[entry] > covered:
            gain += np.float64(values[entry]) - np.float64(covered)
    return gain


@compiled
def _cover(indptr: I64, rows: I32, values: F32, modular_J: F64, cover_I: F32, j: int) -> None:
    """Add column j to the selection: raise what its rows are covered by."""
    for entry in range(indptr[j], indptr[j + 1]):
        if values[entry] > cover_I[rows[entry]]:
            cover_I[rows[entry]] = values[entry]


@compiled
def _all_gains(
    indptr: I64, rows: I32, values: F32, modular_J: F64, cover_I: F32, gain_J: F64
) -> None:
    for j in range(len(gain_J)):
        gain_J[j] = _gain(indptr, rows, values, modular_J, cover_I, j)


@compiled
def _before(gain: float, column: int, other_gain: float, other: int, rank_J: I64) -> bool:
    """Whether a column is picked before another at their present gains."""
    if gain != other_gain:
        return gain > other_gain
    # Ranks that are equal fall back on the column number, as a stable sort would.
    if rank_J[column] != rank_J[other]:
        return rank_J[column] < rank_J[other]
    return column < other


@compiled
def _sink(heap: I32, heap_gain: F64, size: int, place: int, rank_J: I64) -> None:
    """Move the column at `place` down until no child comes before it.

    Gains lie beside the columns of the heap: looked up by column, each comparison would miss the
    cache.
    """
    column, gain = heap[place], heap_gain[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _before(
            heap_gain[right], heap[right], heap_gain[child], heap[child], rank_J
        ):
            child = right
        if not _before(heap_gain[child], heap[child], gain, column, rank_J):
            break
        heap[place], heap_gain[place] = heap[child], heap_gain[child]
        place = child
    heap[place], heap_gain[place] = column, gain


@compiled
def _heapify(heap: I32, heap_gain: F64, rank_J: I64) -> None:
    for place in range(len(heap) // 2 - 1, -1, -1):
        _sink(heap, heap_gain, len(heap), place, rank_J)


@compiled
def _pick(
    indptr: I64, rows: I32, values: F32, modular_J: F64,
    cover_I: F32, rank_J: I64, cost_J: F64, remaining: F64,
    heap: I32, heap_gain: F64, heap_size: int, order: I64, gain_S: F64, picked: int, stop: int,
) -> tuple[int, int]:  # fmt: skip
    """Pick until `stop` columns are selected or none is left; return (picked, heap size)."""
    while picked < stop and heap_size > 0:
        j = heap[0]
        fits = cost_J[j] <= remaining[0]
        # What does not fit now never will: the remaining budget only falls.
        if fits and heap_gain[0] > 0:
            fresh = _gain(indptr, rows, values, modular_J, cover_I, j)
            if fresh != heap_gain[0]:
                heap_gain[0] = fresh
                _sink(heap, heap_gain, heap_size, 0, rank_J)
                continue
        gain = heap_gain[0]
        heap_size -= 1
        heap[0], heap_gain[0] = heap[heap_size], heap_gain[heap_size]
        _sink(heap, heap_gain, heap_size, 0, rank_J)
        if fits:
            order[picked], gain_S[picked] = j, gain
            picked += 1
            remaining[0] -= cost_J[j]
            _cover(indptr, rows, values, modular_J, cover_I, j)
    return picked, heap_size
