from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.selection.greedy import Budget, Constraints, lazy_greedy
from nncift_ray.selection.objectives import GraphCut, TopScores
from nncift_ray.selection.partitioned import (
    BoundTask,
    bound_columns,
    gain_limits,
    multi_round_greedy,
    part_totals,
)
from tests.unit.core.selection.instances import (
    ALWAYS_MONOTONE,
    KINDS,
    assert_same_ranking,
    draw_instance,
    listed,
)

SIZE = 8
SLACK = 1e-5


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**20),
    count=st.integers(1, SIZE),
    dense=st.booleans(),
)
def test_bounding_keeps_every_best_subset(kind: str, seed: int, count: int, dense: bool) -> None:
    instance = draw_instance(seed, SIZE)
    bounded = bound_columns(instance.objective(kind, dense=dense).problem(), count)
    values = {
        picks: instance.value(kind, picks) for picks in itertools.combinations(range(SIZE), count)
    }
    best = max(values.values())
    kept = set(bounded.included.tolist()) | set(bounded.open.tolist())
    for picks, value in values.items():
        if value >= best - SLACK**2:
            assert set(bounded.included.tolist()) <= set(picks) <= kept
    assert bounded.num_excluded == SIZE - len(kept)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**20), count=st.integers(1, 12))
def test_shrinking_alone_changes_no_pick_of_greedy(kind: str, seed: int, count: int) -> None:
    objective = draw_instance(seed, 20).objective(kind)
    bounded = bound_columns(objective.problem(), count, grow=False)
    outside = np.setdiff1d(np.arange(20), bounded.open)
    among = lazy_greedy(objective, Budget(count), constraints=Constraints(exclude=outside.tolist()))
    whole = lazy_greedy(objective, Budget(count))
    assert among.order.tolist() == whole.order.tolist()
    assert among.gain.tobytes() == whole.gain.tobytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(ALWAYS_MONOTONE), seed=st.integers(0, 2**20), count=st.integers(1, 4))
def test_greedy_among_what_bounding_leaves_keeps_its_guarantee(
    kind: str, seed: int, count: int
) -> None:
    instance = draw_instance(seed, SIZE)
    best = max(instance.value(kind, p) for p in itertools.combinations(range(SIZE), count))
    problem = instance.objective(kind).problem()
    ranking = multi_round_greedy(problem, Budget(count), num_parts=1, bounding=True)
    assert len(ranking.order) == count
    assert ranking.value >= (1 - 1 / np.e) * best - SLACK


@pytest.mark.parametrize("kind", ALWAYS_MONOTONE)
def test_parts_settle_what_the_whole_settles(kind: str) -> None:
    problem = draw_instance(21, 40).objective(kind).problem()
    whole = bound_columns(problem, 12)
    parts = bound_columns(problem, 12, num_parts=5)
    assert parts.included.tolist() == whole.included.tolist()
    assert parts.open.tolist() == whole.open.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_limits_enclose_the_gain_on_top_of_any_picks(kind: str) -> None:
    instance, everything = draw_instance(22, 6), np.ones(6, np.bool_)
    problem = instance.objective(kind).problem()
    least, most = gain_limits(problem, everything, ~everything)
    for j in range(6):
        others = [k for k in range(6) if k != j]
        for size in (0, 2, 5):
            for picks in itertools.combinations(others, size):
                gain = instance.value(kind, [*picks, j]) - instance.value(kind, picks)
                assert least[j] - SLACK <= gain <= most[j] + SLACK


def test_independent_scores_are_settled_altogether() -> None:
    bounded = bound_columns(TopScores(np.array([0.1, 5.0, 3.0, 0.2, 4.0])).problem(), 2)
    assert bounded.included.tolist() == [1, 4]
    assert bounded.num_excluded == 3
    assert len(bounded.open) == 0


def test_equal_columns_stay_open() -> None:
    bounded = bound_columns(TopScores(np.ones(4)).problem(), 2)
    assert (len(bounded.included), len(bounded.open)) == (0, 4)


def test_weak_diversity_lets_graph_cut_be_settled_and_strong_does_not() -> None:
    s = np.random.default_rng(0).random((30, 30)).astype(np.float32) ** 4
    few, many = (
        len(bound_columns(GraphCut(listed(s), lambda_).problem(), 6).open)
        for lambda_ in (0.01, 0.5)
    )
    assert few < 10 < many


def test_musts_are_settled_first_and_exclusions_gone() -> None:
    problem = TopScores(np.array([0.1, 5.0, 3.0, 0.2, 4.0])).problem()
    bounded = bound_columns(problem, 3, include=[3], exclude=[1])
    assert bounded.included.tolist() == [3, 4, 2]


@pytest.mark.parametrize("kind", ["top", "query_mutual_information", "facility_location"])
def test_a_search_in_rounds_after_bounding_does_not_depend_on_its_workers(kind: str) -> None:
    problem = draw_instance(23, 40).objective(kind).problem()
    first, second = (
        multi_round_greedy(problem, Budget(10), num_parts=4, bounding=True, run=run)
        for run in (map, lambda function, tasks: [function(task) for task in tasks])
    )
    assert_same_ranking(first, second)


def test_pairs_across_parts_are_refused() -> None:
    problem = GraphCut(listed(np.ones((4, 4), np.float32))).problem()
    with pytest.raises(ValueError, match="across parts"):
        part_totals(BoundTask(problem, np.arange(2), np.zeros(2, np.bool_)))
