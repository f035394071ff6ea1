from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.errors import ShapeError
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import Ranking, lazy_greedy
from nncift_ray.selection.objectives import (
    facility_location,
    facility_location_mutual_information,
    facility_location_query_mutual_information,
    top_scores,
)
from nncift_ray.selection.problem import InfluenceScale, Objective, SparseScores
from tests.oracles import naive_greedy
from tests.unit.selection.instances import assert_same_ranking, from_lists

GREEDY_BOUND = 1 - 1 / np.e  # Nemhauser et al. 1978


def make_scores(seed: int, rows: int, columns: int, per_row: int) -> SparseScores:
    """Draw lists with many ties and repeated columns, some empty, from signed raw scores."""
    rng = np.random.default_rng(seed)
    index = np.full((rows, per_row), -1, np.int32)
    for i in range(rows):
        listed = rng.permutation(columns)[: rng.integers(0, min(per_row, columns) + 1)]
        index[i, : len(listed)] = listed
    raw = rng.choice(np.array([-1.0, -0.3, 0.1, 0.1, 0.7, 1.0], np.float32), index.shape)
    return from_lists(index, raw, columns, InfluenceScale(-1.0, 1.0))


def make_objective(kind: int, seed: int, size: int) -> Objective:
    if kind == 3:
        score = np.random.default_rng(seed).choice(np.array([-2.0, -0.5, 0.0, 0.25, 3.0]), size)
        return top_scores(score)
    column_max = np.random.default_rng(seed + 1).random(size).astype(np.float32).round(1)
    scores = make_scores(seed, size if kind < 2 else size // 2, size, 5)
    if kind == 0:
        return facility_location(scores)
    if kind == 1:
        return facility_location_mutual_information(scores, column_max, 0.7)
    return facility_location_query_mutual_information(scores, column_max, 0.3)


def full_scores(dense: np.ndarray) -> SparseScores:
    rows, columns = dense.shape
    indptr = np.arange(rows + 1, dtype=np.int64) * columns
    indices = np.tile(np.arange(columns, dtype=np.int32), rows)
    return SparseScores(indptr, indices, dense.astype(np.float32).reshape(-1), columns)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.integers(0, 3),
    seed=st.integers(0, 2**20),
    size=st.integers(1, 25),
    max_count=st.one_of(st.none(), st.integers(0, 30)),
    max_cost=st.one_of(st.none(), st.integers(0, 60)),
    ties=st.booleans(),
)
def test_lazy_greedy_is_naive_greedy_to_the_last_bit(
    kind: int, seed: int, size: int, max_count: int | None, max_cost: int | None, ties: bool
) -> None:
    if max_count is None and max_cost is None:
        max_count = size
    rng = np.random.default_rng(seed + 2)
    objective, costs = make_objective(kind, seed, size), rng.integers(0, 9, size)
    rank = rng.permutation(size) if ties else None
    budget = Budget(max_count, max_cost)
    lazy = lazy_greedy(objective, budget, costs=costs, tie_rank=rank)
    assert_same_ranking(lazy, naive_greedy(objective, budget, costs=costs, tie_rank=rank))


def test_ranking_of_a_small_instance_is_frozen() -> None:
    s = [[1.0, 0.5, 0, 0.25], [0.25, 1.0, 0.5, 0], [0, 0.5, 1.0, 0.75], [0.5, 0, 0.25, 1.0]]
    ranking = lazy_greedy(facility_location(full_scores(np.array(s))), Budget(max_count=4))
    assert ranking.order.tolist() == [1, 3, 0, 2]
    assert ranking.gain.tolist() == [2.0, 1.25, 0.5, 0.25]
    assert ranking.objective.tolist() == [2.0, 3.25, 3.75, 4.0]


def test_the_best_pick_comes_first() -> None:
    """Published error 10: an ascending sort selects the worst rows."""
    s = np.random.default_rng(4).random((20, 20))
    ranking = lazy_greedy(facility_location(full_scores(s)), Budget(max_count=20))
    assert ranking.order[0] == s.astype(np.float32).sum(axis=0, dtype=np.float64).argmax()
    assert (np.diff(ranking.gain) <= 0).all()


def test_every_column_stays_selectable() -> None:
    """Published error 6: sampled rows were excluded from selection."""
    ranking = lazy_greedy(facility_location(make_scores(0, 30, 30, 4)), Budget(max_count=99))
    assert sorted(ranking.order.tolist()) == list(range(30))


@pytest.mark.parametrize("greedy", [lazy_greedy, naive_greedy])
def test_ties_and_picks_of_no_gain_follow_the_tie_rank(greedy: Callable[..., Ranking]) -> None:
    objective = facility_location(full_scores(np.ones((3, 4))))
    ranking = greedy(objective, Budget(max_count=4), tie_rank=np.array([2, 3, 0, 1]))
    assert ranking.order.tolist() == [2, 3, 0, 1]
    assert ranking.gain.tolist() == [3.0, 0.0, 0.0, 0.0]


def test_columns_that_do_not_fit_the_cost_budget_are_skipped() -> None:
    s = np.array([[1.0, 0.9, 0.1], [1.0, 0.0, 0.1]])
    ranking = lazy_greedy(
        facility_location(full_scores(s)), Budget(max_cost=5), costs=np.array([6, 4, 1])
    )
    assert ranking.order.tolist() == [1, 2]


def test_progress_ends_at_the_number_selected() -> None:
    seen = []
    lazy_greedy(
        facility_location(make_scores(0, 500, 500, 4)),
        Budget(max_count=250),
        on_progress=lambda progress: seen.append((progress.picked, progress.limit)),
    )
    assert seen[-1] == (250, 250)
    assert len(seen) <= 100
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("budget", [{}, {"max_count": -1}, {"max_cost": -0.5}])
def test_a_budget_that_bounds_nothing_or_is_negative_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**budget)


@pytest.mark.parametrize("cost", [-1.0, np.nan])
def test_costs_that_are_no_costs_are_refused(cost: float) -> None:
    costs = np.array([1.0, cost, 1.0])
    with pytest.raises(ValueError, match="cost of column 1"):
        lazy_greedy(facility_location(make_scores(0, 3, 3, 2)), Budget(max_cost=3), costs=costs)


def test_a_cost_budget_without_costs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the cost"):
        lazy_greedy(facility_location(make_scores(0, 3, 3, 2)), Budget(max_cost=3))


def test_tie_ranks_of_another_table_are_refused() -> None:
    with pytest.raises(ShapeError, match="tie_rank"):
        lazy_greedy(facility_location(make_scores(0, 3, 3, 2)), Budget(1), tie_rank=np.arange(4))
