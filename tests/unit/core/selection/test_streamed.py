"""A set function read part by part is the whole one to the last bit, and holds a part of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from nncift_ray.selection.greedy import Budget, Constraints, lazy_greedy
from nncift_ray.selection.objectives import (
    FacilityLocation,
    GraphCut,
    Objective,
    Problem,
    SaturatedCoverage,
    column_source,
    coverage,
)
from nncift_ray.selection.partitioned import (
    bound_columns,
    greedi,
    multi_round_greedy,
    part_of_columns,
)
from nncift_ray.selection.problem import ColumnSource, SparseScores, StreamedScores
from nncift_ray.selection.redundancy import stand, stand_in_parts
from tests.unit.core.selection.instances import (
    KINDS,
    Instance,
    assert_same_ranking,
    draw_instance,
    listed,
)

LISTED = tuple(kind for kind in KINDS if kind != "top")  # top scores have no lists
SIZE, PARTS = 40, 4


def cut_by_rows(scores: SparseScores, rows: int) -> Iterator[SparseScores]:
    for start in range(0, scores.num_rows, rows):
        indptr = scores.indptr[start : start + rows + 1]
        at = slice(indptr[0], indptr[-1])
        yield SparseScores(
            indptr - indptr[0], scores.indices[at], scores.data[at], scores.num_columns
        )


def wide_instance(seed: int) -> Instance:
    """Draw values of very different sizes, whose sums depend on the order of the terms."""
    rng, drawn = np.random.default_rng(seed), draw_instance(seed, SIZE)
    within, cross = (
        (matrix > 0) * (rng.random(matrix.shape) ** 20).astype(np.float32)
        for matrix in (drawn.within, drawn.cross)
    )
    return replace(drawn, within=within, cross=cross)


def objectives(kind: str, batch_rows: int = 7) -> tuple[Objective, Any]:
    """Return the objective on lists in memory, and on the same lists streamed."""
    objective: Any = wide_instance(3).objective(kind)
    lists = objective.scores
    streamed = StreamedScores(
        lists.num_rows, lists.num_columns, partial(cut_by_rows, lists, batch_rows)
    )
    return objective, replace(objective, scores=streamed)


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
    objective, streamed = objectives(kind, batch_rows)
    source, whole = column_source(streamed), objective.problem()
    assert not isinstance(source, Problem)
    for size in (0, 1, 9, SIZE):
        columns = np.random.default_rng(size).permutation(SIZE)[:size]
        assert_same_problem(source.restricted(columns), whole.restricted(columns))
    assert_same_problem(streamed.problem(), whole)


@pytest.mark.parametrize("search", [greedi, multi_round_greedy])
@pytest.mark.parametrize("kind", LISTED)
def test_a_search_in_parts_of_a_stream_picks_the_same(
    kind: str, search: Callable[..., Any]
) -> None:
    objective, streamed = objectives(kind)
    common: dict[str, Any] = {
        "num_parts": PARTS,
        "seed": 2,
        "tie_rank": np.random.default_rng(1).permutation(SIZE),
        "constraints": Constraints(include=[5], exclude=[7]),
    }
    whole = search(objective.problem(), Budget(10), **common)
    assert_same_ranking(search(column_source(streamed), Budget(10), **common), whole)


@pytest.mark.parametrize("num_parts", [1, 3, 60])
@pytest.mark.parametrize("kind", LISTED)
def test_what_was_skipped_stands_the_same_in_parts(kind: str, num_parts: int) -> None:
    objective, streamed = objectives(kind)
    order = lazy_greedy(objective, Budget(8)).order
    best, value = coverage(objective, order)
    streamed_best, streamed_value = coverage(streamed, order)
    assert streamed_best.tolist() == best.tolist()
    assert streamed_value.tobytes() == value.tobytes()
    whole = stand(objective.problem(), order, best)
    parts = stand_in_parts(column_source(streamed), order, best, num_parts)
    for name in ("alone_J", "gain_J", "rank_J"):
        assert getattr(parts, name).tobytes() == getattr(whole, name).tobytes(), name
    skipped = np.setdiff1d(np.arange(SIZE), order)[::-1]
    for mine, expected in zip(parts.takers_of(skipped), whole.takers_of(skipped), strict=True):
        assert mine[0].tolist() == expected[0].tolist()
        assert mine[1].tobytes() == expected[1].tobytes()


def test_a_selection_of_nothing_is_read_in_parts_too() -> None:
    objective, streamed = objectives("facility_location")
    nothing = np.zeros(0, np.int64)
    whole = stand(objective.problem(), nothing, np.full(SIZE, -1))
    parts = stand_in_parts(column_source(streamed), nothing, np.full(SIZE, -1), 3)
    assert parts.gain_J.tobytes() == whole.gain_J.tobytes()


@pytest.mark.parametrize("kind", ["facility_location", "saturated"])
def test_bounding_reads_a_stream(kind: str) -> None:
    objective, streamed = objectives(kind)
    whole = bound_columns(objective.problem(), 10, num_parts=3)
    parts = bound_columns(column_source(streamed), 10, num_parts=3)
    assert parts.included.tolist() == whole.included.tolist()
    assert parts.open.tolist() == whole.open.tolist()


def test_bounding_refuses_a_streamed_graph_cut() -> None:
    with pytest.raises(ValueError, match="pairs lie across parts"):
        bound_columns(column_source(objectives("cut")[1]), 10, num_parts=3)


def test_no_rows_are_no_entries() -> None:
    none = StreamedScores(0, 5, lambda: iter(()))
    problem = column_source(FacilityLocation(none)).restricted(np.array([3, 1]))
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


@pytest.mark.parametrize("objective", [FacilityLocation, SaturatedCoverage, GraphCut])
def test_a_part_takes_the_memory_of_a_part(objective: Callable[..., Any]) -> None:
    streamed = objective(StreamedScores(ROWS, ROWS, drawn_batches))
    source: ColumnSource = column_source(streamed)
    part_J = part_of_columns(np.arange(ROWS), NUM_PARTS, 0)
    parts = [np.flatnonzero(part_J == part) for part in range(NUM_PARTS)]
    column_source(objective(listed(np.eye(3)))).restricted(np.arange(3))  # compiles
    whole = peak_bytes(streamed.problem)
    assert peak_bytes(partial(source.restricted, parts[0])) < whole / 4
    entries = [len(source.restricted(part).values) for part in parts]
    share = NUM_PARTS if objective is not GraphCut else NUM_PARTS**2 / 2  # the pairs inside
    assert max(entries) < 1.2 * ROWS * LIST / share
