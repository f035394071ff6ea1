from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.errors import ShapeError
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import (
    Ranking,
    cost_benefit_greedy,
    evaluate,
    lazy_greedy,
    random_ranking,
)
from nncift_ray.selection.objectives import (
    facility_location,
    facility_location_conditional_gain,
    graph_cut,
    graph_cut_conditional_gain,
    graph_cut_mutual_information,
    saturated_coverage,
)
from nncift_ray.selection.partitioned import greedi
from nncift_ray.selection.problem import DenseScores, InfluenceScale, Objective, SparseScores
from tests.oracles import naive_greedy
from tests.unit.selection.instances import (
    ALWAYS_MONOTONE,
    FORMULA_TOLERANCE,
    KINDS,
    Instance,
    draw_instance,
    listed,
)

GREEDY_BOUND = 1 - 1 / np.e  # Nemhauser et al. 1978
ROUNDING = 1e-9
GOLDEN = {
    "facility_location": [1, 4, 5, 0, 6],
    "mutual_information": [1, 4, 0, 2, 3],
    "query_mutual_information": [4, 1, 5, 2, 6],
    "conditional_gain": [1, 4, 5, 0, 6],
    "saturated": [1, 4, 0, 2, 3],
    "cut_mutual_information": [4, 6, 3, 2, 5],
    "cut": [1, 4, 6, 5, 3],
    "cut_conditional_gain": [1, 4, 6, 5, 0],
    "top": [0, 1, 2, 3, 4],
}


def prices(objective: Objective) -> np.ndarray:
    return np.arange(objective.num_columns) % 3 + 1


OPTIMISERS: dict[str, Callable[[Objective, int], Ranking]] = {
    "naive": lambda objective, count: naive_greedy(objective, Budget(count)),
    "lazy": lambda objective, count: lazy_greedy(objective, Budget(count)),
    "cost_benefit": lambda objective, count: cost_benefit_greedy(
        objective, Budget(max_cost=2 * count), costs=prices(objective)
    ),
    "greedi": lambda objective, count: greedi(objective, Budget(count), num_parts=3),
    "random": lambda objective, count: random_ranking(objective, Budget(count), seed=1),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    optimiser=st.sampled_from(sorted(OPTIMISERS)),
    seed=st.integers(0, 2**20),
    size=st.integers(1, 12),
    count=st.integers(0, 14),
    dense=st.booleans(),
)
def test_the_value_reported_is_that_of_the_formula_after_every_pick(
    kind: str, optimiser: str, seed: int, size: int, count: int, dense: bool
) -> None:
    instance = draw_instance(seed, size)
    objective = instance.objective(kind, dense=dense)
    ranking = OPTIMISERS[optimiser](objective, count)
    expected = [instance.value(kind, ranking.order[: n + 1]) for n in range(len(ranking.order))]
    np.testing.assert_allclose(ranking.objective, expected, rtol=0, atol=FORMULA_TOLERANCE * size)
    np.testing.assert_allclose(ranking.objective, np.cumsum(ranking.gain))
    assert evaluate(objective, ranking.order).tobytes() == ranking.objective.tobytes()
    assert len(set(ranking.order.tolist())) == len(ranking.order)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_has_falling_gains_and_those_said_to_be_monotone_none_below_zero(
    kind: str,
) -> None:
    instance = draw_instance(3, 6)
    for picks in itertools.chain.from_iterable(itertools.combinations(range(6), n) for n in (1, 3)):
        for j in sorted(set(range(6)) - set(picks)):
            few, many = picks[:1], picks
            early = instance.value(kind, [*few, j]) - instance.value(kind, few)
            late = instance.value(kind, [*many, j]) - instance.value(kind, many)
            assert late <= early + ROUNDING
            if kind in ALWAYS_MONOTONE:
                assert late >= -ROUNDING


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", ALWAYS_MONOTONE)
def test_problems_know_that_they_are_monotone(kind: str, dense: bool) -> None:
    assert draw_instance(4, 7).objective(kind, dense=dense).problem().is_monotone()


@pytest.mark.parametrize(("lambda_", "monotone"), [(0.5, True), (0.6, False)])
def test_graph_cut_of_symmetric_influence_is_monotone_up_to_a_half(
    lambda_: float, monotone: bool
) -> None:
    s = np.full((4, 4), 0.5, np.float32)
    np.fill_diagonal(s, 0)
    for scores in (listed(s), DenseScores(s)):
        assert graph_cut(scores, lambda_).problem().is_monotone() is monotone


def test_graph_cut_is_not_monotone_where_an_example_is_helped_more_than_it_helps() -> None:
    """Influence is not symmetric: example 2 helps nobody and is helped by the others."""
    s = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 0]], np.float32)
    ranking = lazy_greedy(graph_cut(listed(s), 0.25), Budget(3))
    assert ranking.order.tolist() == [0, 1, 2]
    assert ranking.gain.tolist() == [1.0, 1.0, -0.5]
    assert ranking.upper_bound is None


def test_graph_cut_fills_its_budget_unless_told_to_stop_at_picks_that_cost() -> None:
    s = np.full((3, 3), 0.5, np.float32)
    filled = lazy_greedy(graph_cut(listed(s), 1.0), Budget(3))
    assert filled.gain.tolist() == [1.0, 0.0, -1.0]
    stopped = lazy_greedy(graph_cut(listed(s), 1.0), Budget(3), stop_gain=0.0)
    assert stopped.gain.tolist() == [1.0, 0.0]
    assert stopped.stopped_by == "stop_gain"


def test_graph_cut_takes_both_orders_of_a_pair_and_the_diagonal() -> None:
    s = np.array([[0.5, 1.0], [0.25, 0.125]], np.float32)
    for scores in (listed(s), DenseScores(s)):
        value = evaluate(graph_cut(scores, 0.5), np.array([0, 1]))
        assert value.tolist() == [0.75 - 0.25, 1.875 - 0.5 * 1.875]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "top"])
def test_the_most_harmful_score_counts_as_nothing_and_no_negative_score_as_a_penalty(
    kind: str,
) -> None:
    """What a negative raw score means: column 0 is the global minimum everywhere, 1 is negative."""
    raw = np.full((3, 3), 1.0, np.float32)
    raw[:, 0], raw[:, 1] = -1.0, -0.5
    s = InfluenceScale(-1.0, 1.0).apply(raw)
    old = np.zeros((3, 1), np.float32)
    instance = Instance(s, s, old, np.zeros(3))
    alone = [instance.value(kind, [j]) for j in range(3)]
    assert alone[0] == pytest.approx(0)
    assert alone[1] > 0
    ranking = lazy_greedy(instance.objective(kind), Budget(3))
    assert ranking.order[0] == 2
    if kind in ALWAYS_MONOTONE:
        assert (ranking.gain >= 0).all()


def test_saturated_coverage_values_a_second_helper_until_there_is_enough() -> None:
    s = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
    ranking = lazy_greedy(saturated_coverage(listed(s), alpha=0.6), Budget(4))
    np.testing.assert_allclose(ranking.gain, [0.5, 0.5, 0.2, 0.0], atol=ROUNDING)


def test_conditional_gain_forgets_rows_that_the_existing_data_serve() -> None:
    s = np.array([[0.9, 0.0], [0.0, 0.5]], np.float32)
    existing = np.array([1.0, 0.0], np.float32)
    ranking = lazy_greedy(facility_location_conditional_gain(listed(s), existing), Budget(2))
    assert ranking.order.tolist() == [1, 0]
    assert ranking.gain.tolist() == [0.5, 0.0]
    plain = lazy_greedy(facility_location_conditional_gain(listed(s), existing, nu=0.0), Budget(2))
    assert plain.order.tolist() == [0, 1]


def test_helpers_are_selected_by_every_objective_and_not_those_they_help() -> None:
    """Published error 5: column 2 helps every row; row 0 is helped most."""
    s = np.full((4, 4), 0.1, np.float32)
    s[0, :], s[:, 2] = 0.5, 0.9
    for objective in (
        facility_location(listed(s)),
        facility_location_conditional_gain(listed(s), np.full(4, 0.05, np.float32)),
        saturated_coverage(listed(s), 0.9),
        graph_cut(listed(s), 0.1),
        graph_cut_mutual_information(listed(s)),
    ):
        assert lazy_greedy(objective, Budget(1)).order.tolist() == [2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(ALWAYS_MONOTONE),
    seed=st.integers(0, 2**20),
    count=st.integers(1, 4),
    dense=st.booleans(),
)
def test_greedy_and_its_bound_enclose_the_best_value(
    kind: str, seed: int, count: int, dense: bool
) -> None:
    instance = draw_instance(seed, 7)
    best = max(instance.value(kind, picks) for picks in itertools.combinations(range(7), count))
    ranking = lazy_greedy(instance.objective(kind, dense=dense), Budget(count))
    slack = FORMULA_TOLERANCE * 7
    assert GREEDY_BOUND * best - slack <= ranking.value <= best + slack
    assert ranking.upper_bound is not None
    assert ranking.upper_bound >= best - slack


@settings(max_examples=40, deadline=None, derandomize=True)
@given(kind=st.sampled_from(ALWAYS_MONOTONE), seed=st.integers(0, 2**20), money=st.integers(1, 12))
def test_cost_benefit_greedy_and_its_bound_enclose_the_best_value_for_the_money(
    kind: str, seed: int, money: int
) -> None:
    instance = draw_instance(seed, 6)
    costs = np.random.default_rng(seed).integers(1, 6, 6)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(6), n) for n in range(7))
    affordable = [picks for picks in subsets if costs[list(picks)].sum() <= money]
    best = max(instance.value(kind, picks) for picks in affordable)
    ranking = cost_benefit_greedy(instance.objective(kind), Budget(max_cost=money), costs=costs)
    slack = FORMULA_TOLERANCE * 7
    assert costs[ranking.order].sum() <= money
    assert GREEDY_BOUND / 2 * best - slack <= ranking.value <= best + slack
    assert ranking.upper_bound is not None
    assert ranking.upper_bound >= best - slack


@pytest.mark.parametrize("kind", KINDS)
def test_dense_and_listed_influence_give_the_same_ranking(kind: str) -> None:
    rng = np.random.default_rng(5)
    within, cross = (rng.random((n, 70)).astype(np.float32) for n in (70, 4))
    instance = Instance(within, cross, rng.random((70, 2)).astype(np.float32) / 9, rng.random(70))
    lists, matrix = (
        lazy_greedy(instance.objective(kind, dense=dense), Budget(12)) for dense in (False, True)
    )
    assert lists.order.tolist() == matrix.order.tolist()
    np.testing.assert_allclose(lists.objective, matrix.objective, rtol=FORMULA_TOLERANCE)


def test_golden_rankings() -> None:
    """Frozen: a change of these changes what users get for the same scores."""
    rng = np.random.default_rng(11)
    within, cross = (rng.random((n, 8)).astype(np.float32).round(3) for n in (8, 3))
    instance = Instance(within, cross, within[:, :2] / 4, np.arange(8.0)[::-1])
    orders = {k: lazy_greedy(instance.objective(k), Budget(5)).order.tolist() for k in KINDS}
    assert orders == GOLDEN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 5, 6, 99])
def test_budgets_from_nothing_to_more_than_there_is(kind: str, count: int) -> None:
    ranking = lazy_greedy(draw_instance(6, 5).objective(kind), Budget(count))
    assert len(ranking.order) == min(count, 5)
    assert ranking.stopped_by == ("budget" if count <= 5 else "exhausted")


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_is_picked(kind: str) -> None:
    one = Instance(*(np.ones((1, 1), np.float32) for _ in range(3)), np.ones(1))
    for optimiser in OPTIMISERS.values():
        assert optimiser(one.objective(kind), 1).order.tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_all_zero_are_picked_in_tie_order_for_nothing(kind: str) -> None:
    zero = np.zeros((4, 4), np.float32)
    instance = Instance(zero, zero, zero, np.zeros(4))
    rank = np.array([3, 1, 0, 2])
    for dense in (False, True):
        ranking = lazy_greedy(instance.objective(kind, dense=dense), Budget(3), tie_rank=rank)
        assert ranking.order.tolist() == [2, 1, 3]
        assert ranking.gain.tolist() == [0, 0, 0]


def test_a_duplicate_is_worth_nothing_after_its_twin_and_the_smaller_id_goes_first() -> None:
    s = np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.1]], np.float32)
    ranking = lazy_greedy(facility_location(listed(s)), Budget(3), tie_rank=np.array([1, 0, 2]))
    assert ranking.order.tolist() == [1, 0, 2]
    assert ranking.gain[1:].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_influence_that_is_not_scaled_or_no_number_is_refused(bad: float) -> None:
    matrix = np.array([[0.5, bad]], np.float32)
    with pytest.raises(ValueError, match="must be scaled"):
        DenseScores(matrix)
    with pytest.raises(ValueError, match="must be scaled"):
        SparseScores(np.array([0, 2]), np.array([0, 1], np.int32), matrix[0], 2)


def test_a_dense_matrix_of_another_kind_is_refused() -> None:
    with pytest.raises(ShapeError, match="float32"):
        DenseScores(np.zeros((2, 2)))


def test_a_list_that_names_a_column_twice_is_refused() -> None:
    twice = SparseScores(np.array([0, 2]), np.array([1, 1], np.int32), np.ones(2, np.float32), 2)
    with pytest.raises(ValueError, match="row 0 names a column twice"):
        facility_location(twice).problem()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda s: graph_cut(s, -1.0), "lambda_"),
        (lambda s: saturated_coverage(s, 0.0), "alpha"),
        (lambda s: facility_location_conditional_gain(s, np.zeros(2, np.float32), -1.0), "nu"),
        (
            lambda s: facility_location_conditional_gain(s, np.full(2, 3.0, np.float32)),
            "existing_max",
        ),
        (lambda s: graph_cut_conditional_gain(s, np.array([1.0, -1.0])), "existing_sum_J"),
    ],
)
def test_bad_weights_and_terms_are_refused(build: Callable[..., Objective], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(listed(np.eye(2, dtype=np.float32)))


def test_a_value_asked_for_a_column_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        evaluate(facility_location(listed(np.eye(2, dtype=np.float32))), np.array([1, 1]))
