"""A set function read part by part is the whole one to the last bit, and holds a part of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import evaluate, lazy_greedy
from nncift_ray.selection.objectives import (
    coverage,
    facility_location,
    graph_cut,
    marginal_gains,
    saturated_coverage,
)
from nncift_ray.selection.partitioned import greedi, part_of_columns
from nncift_ray.selection.problem import (
    PAIRWISE,
    Objective,
    Problem,
    SparseScores,
    StreamedScores,
)
from tests.unit.selection.instances import (
    KINDS,
    Instance,
    assert_same_ranking,
    draw_instance,
    listed,
)

LISTED = tuple(kind for kind in KINDS if kind != "top")  # top scores have no lists
SIZE, PARTS = 40, 4


def wide_instance(seed: int) -> Instance:
    """Draw values of very different sizes, whose sums depend on the order of the terms."""
    rng, drawn = np.random.default_rng(seed), draw_instance(seed, SIZE)
    within, cross = (
        (matrix > 0) * (rng.random(matrix.shape) ** 20).astype(np.float32)
        for matrix in (drawn.within, drawn.cross)
    )
    return replace(drawn, within=within, cross=cross)


def objectives(kind: str, batch_rows: int = 7) -> tuple[Objective, Objective]:
    """Return the objective on lists in memory, and on the same lists streamed."""
    instance = wide_instance(3)
    return instance.objective(kind), instance.objective(kind, batch_rows=batch_rows)


def restrict(problem: Problem, columns: np.ndarray) -> Problem:
    """Take columns out of a whole problem, one after another."""
    number = {int(j): place for place, j in enumerate(columns)}
    indptr, rows, values = [0], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for j in columns:
        part = slice(problem.indptr[j], problem.indptr[j + 1])
        row, value = problem.rows[part], problem.values[part]
        if problem.kind == PAIRWISE:
            inside = np.array([int(i) in number for i in row], bool)
            row, value = np.array([number[int(i)] for i in row[inside]], np.int32), value[inside]
        indptr.append(indptr[-1] + len(row))
        rows.append(row)
        values.append(value)
    num_rows = len(columns) if problem.kind == PAIRWISE else problem.num_rows
    return problem._replace(
        indptr=np.array(indptr), rows=np.concatenate(rows), values=np.concatenate(values),
        modular_J=problem.modular_J[columns], num_rows=num_rows,
    )  # fmt: skip


def assert_same_problem(one: Problem, other: Problem) -> None:
    assert (one.kind, one.num_rows, one.dense) == (other.kind, other.num_rows, other.dense)
    for name in ("indptr", "rows", "values", "modular_J", "cap_I"):
        mine, others = getattr(one, name), getattr(other, name)
        assert (mine.dtype, mine.tobytes()) == (others.dtype, others.tobytes()), name


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize("kind", LISTED)
def test_columns_read_from_a_stream_are_those_of_the_whole_problem(
    kind: str, batch_rows: int
) -> None:
    objective, in_batches = objectives(kind, batch_rows)
    whole = objective.problem()
    assert_same_problem(in_batches.problem(), whole)
    for size in (0, 1, 9, SIZE):
        columns = np.random.default_rng(size).permutation(SIZE)[:size]
        assert_same_problem(in_batches.restricted(columns), restrict(whole, columns))
        assert_same_problem(objective.restricted(columns), restrict(whole, columns))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_a_matrix_have_the_gains_of_the_whole(kind: str) -> None:
    objective, columns = wide_instance(4).objective(kind, dense=True), np.array([7, 2, 30, 11])
    part = evaluate(objective.restricted(columns), np.array([2, 0, 3]))
    assert part.tobytes() == evaluate(objective, columns[[2, 0, 3]]).tobytes()


@pytest.mark.parametrize("kind", LISTED)
def test_a_search_in_parts_of_a_stream_picks_the_same(kind: str) -> None:
    objective, in_batches = objectives(kind)
    common: dict[str, Any] = {
        "num_parts": PARTS,
        "seed": 2,
        "tie_rank": np.random.default_rng(1).permutation(SIZE),
        "constraints": Constraints(include=[5], exclude=[7]),
    }
    whole = greedi(objective, Budget(10), **common)
    assert_same_ranking(greedi(in_batches, Budget(10), **common), whole)


@pytest.mark.parametrize("num_parts", [1, 3, 60])
@pytest.mark.parametrize("kind", LISTED)
def test_marginal_gains_are_the_same_in_parts(kind: str, num_parts: int) -> None:
    objective, in_batches = objectives(kind)
    order = lazy_greedy(objective, Budget(8)).order
    best, value = coverage(objective, order)
    streamed_best, streamed_value = coverage(in_batches, order)
    assert streamed_best.tolist() == best.tolist()
    assert streamed_value.tobytes() == value.tobytes()
    whole = marginal_gains(objective, order, best)
    parts = marginal_gains(in_batches, order, best, num_parts)
    for name in ("alone_J", "gain_J", "rank_J"):
        assert getattr(parts, name).tobytes() == getattr(whole, name).tobytes(), name
    skipped = np.setdiff1d(np.arange(SIZE), order)[::-1]
    both = zip(parts.redundant_with(skipped), whole.redundant_with(skipped), strict=True)
    for mine, expected in both:
        assert mine[0].tolist() == expected[0].tolist()
        assert mine[1].tobytes() == expected[1].tobytes()


def test_what_picks_make_redundant_is_what_a_column_lost() -> None:
    objective = wide_instance(5).objective("facility_location")
    order = lazy_greedy(objective, Budget(8)).order
    gains = marginal_gains(objective, order, coverage(objective, order)[0])
    skipped = np.setdiff1d(np.arange(SIZE), order)
    lost = [amount.sum() for _, amount in gains.redundant_with(skipped)]
    np.testing.assert_allclose(lost, (gains.alone_J - gains.gain_J)[skipped], atol=1e-6)
    assert np.ptp(lost) > 0


def test_a_selection_of_nothing_is_read_in_parts_too() -> None:
    objective, in_batches = objectives("facility_location")
    nothing, uncovered = np.zeros(0, np.int64), np.full(SIZE, -1)
    whole = marginal_gains(objective, nothing, uncovered)
    parts = marginal_gains(in_batches, nothing, uncovered, 3)
    assert parts.gain_J.tobytes() == whole.gain_J.tobytes()


def test_no_rows_are_no_entries() -> None:
    none = StreamedScores(0, 5, lambda: iter(()))
    problem = facility_location(none).restricted(np.array([3, 1]))
    assert (problem.num_rows, problem.num_columns, len(problem.values)) == (0, 2, 0)


ROWS, LIST, NUM_PARTS = 20_000, 40, 8
BATCH = 1_000


def drawn_batches() -> Iterator[SparseScores]:
    """Draw long lists batch by batch: they are nowhere in one piece."""
    for start in range(0, ROWS, BATCH):
        rng = np.random.default_rng(start)
        first, step = rng.integers(0, ROWS, (BATCH, 1)), 2 * rng.integers(1, 200, (BATCH, 1)) + 1
        indices = ((first + step * np.arange(LIST)) % ROWS).astype(np.int32).reshape(-1)
        data = rng.random(BATCH * LIST, np.float32)
        yield SparseScores(np.arange(BATCH + 1) * LIST, indices, data, ROWS)


def peak_bytes(make: Callable[[], Any]) -> int:
    tracemalloc.start()
    kept = make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak


@pytest.mark.parametrize("objective", [facility_location, saturated_coverage, graph_cut])
def test_a_part_takes_the_memory_of_a_part(objective: Callable[..., Any]) -> None:
    made: Objective = objective(StreamedScores(ROWS, ROWS, drawn_batches))
    part_J = part_of_columns(np.arange(ROWS), NUM_PARTS, 0)
    parts = [np.flatnonzero(part_J == part) for part in range(NUM_PARTS)]
    objective(listed(np.eye(3))).restricted(np.arange(3))  # compiles
    whole = peak_bytes(made.problem)
    assert peak_bytes(partial(made.restricted, parts[0])) < whole / 3
    entries = [len(made.restricted(part).values) for part in parts]
    share = NUM_PARTS if objective is not graph_cut else NUM_PARTS**2 / 2  # the pairs inside
    assert max(entries) < 1.2 * ROWS * LIST / share
