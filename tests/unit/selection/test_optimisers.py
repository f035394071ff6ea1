from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import (
    Prefix,
    Progress,
    Ranking,
    bound_from,
    cost_benefit_greedy,
    evaluate,
    lazy_greedy,
    random_ranking,
    round_robin_ranking,
    spread_ranking,
)
from nncift_ray.selection.objectives import facility_location, top_scores
from nncift_ray.selection.partitioned import (
    greedi,
    merge_parts,
    part_of_columns,
    part_tasks,
    search_part,
)
from nncift_ray.selection.problem import DenseScores, add_each, all_gains
from nncift_ray.selection.ties import TieBreak, directions
from tests.unit.selection.instances import (
    ALWAYS_MONOTONE,
    KINDS,
    assert_same_ranking,
    draw_instance,
    draw_tie_break,
    listed,
    streamed,
)

GREEDY_BOUND = 1 - 1 / np.e
SLACK = 1e-4
Search = Callable[..., Ranking]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_is_the_uninterrupted_one(kind: str) -> None:
    objective = draw_instance(7, 40).objective(kind)
    tie_break = draw_tie_break(np.random.default_rng(0), 40)
    saved: list[Prefix] = []

    def save(progress: Progress) -> None:
        saved.append(Prefix(progress.order.copy(), progress.decided.copy()))

    whole = lazy_greedy(objective, Budget(35), on_progress=save, tie_break=tie_break)
    for picked in saved[::3]:
        again = lazy_greedy(objective, Budget(35), prefix=picked, tie_break=tie_break)
        assert_same_ranking(again, whole)
    assert saved[-1].order == pytest.approx(whole.order)


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(kind: str) -> None:
    objective = draw_instance(8, 30).objective(kind)
    small, large = (lazy_greedy(objective, Budget(count)) for count in (9, 20))
    assert small.order.tolist() == large.order[:9].tolist()
    assert small.objective.tobytes() == large.objective[:9].tobytes()
    drawn = [random_ranking(objective, Budget(count), seed=3).order for count in (9, 20)]
    assert drawn[0].tolist() == drawn[1][:9].tolist()


@pytest.mark.parametrize(
    "search",
    [
        lazy_greedy,
        lambda objective, budget, **more: greedi(objective, budget, num_parts=3, **more),
        lambda objective, budget, **more: random_ranking(objective, budget, seed=5, **more),
    ],
)
def test_the_order_of_the_files_changes_no_pick(search: Search) -> None:
    rng = np.random.default_rng(5)
    s, new_number = rng.choice([0.0, 0.5, 1.0], (30, 30)), rng.permutation(30)
    moved = np.empty_like(s)
    moved[:, new_number] = s
    rank = np.empty(30, np.int64)
    rank[new_number] = np.arange(30)
    plain = search(facility_location(listed(s)), Budget(12), tie_rank=np.arange(30))
    renumbered = search(facility_location(listed(moved)), Budget(12), tie_rank=rank)
    assert renumbered.order.tolist() == new_number[plain.order].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_searched_elsewhere_and_in_another_order_change_no_bit(kind: str) -> None:
    objective, budget = draw_instance(11, 40).objective(kind), Budget(10)
    alone = greedi(objective, budget, num_parts=4, seed=2)
    tasks = part_tasks(objective, budget, num_parts=4, seed=2)
    sent = [pickle.loads(pickle.dumps(task)) for task in tasks]  # noqa: S301
    done = [search_part(task) for task in reversed(sent)][::-1]
    assert_same_ranking(merge_parts(objective, budget, done), alone)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(ALWAYS_MONOTONE),
    seed=st.integers(0, 2**20),
    parts=st.integers(1, 5),
    count=st.integers(1, 8),
)
def test_greedi_is_worth_what_it_promises(kind: str, seed: int, parts: int, count: int) -> None:
    objective = draw_instance(seed, 20).objective(kind)
    central = lazy_greedy(objective, Budget(count))
    value = greedi(objective, Budget(count), num_parts=parts, seed=seed).value
    assert central.upper_bound is not None
    assert value >= GREEDY_BOUND**2 / min(parts, count) * central.value - SLACK
    assert value <= central.upper_bound + SLACK


@pytest.mark.parametrize("kind", KINDS)
def test_one_part_is_the_whole_search(kind: str) -> None:
    objective = draw_instance(12, 25).objective(kind)
    central = lazy_greedy(objective, Budget(8))
    alone = greedi(objective, Budget(8), num_parts=1)
    assert alone.order.tolist() == central.order.tolist()
    assert alone.objective.tobytes() == central.objective.tobytes()


def test_searches_in_parts_pick_the_must_includes_first() -> None:
    objective = draw_instance(13, 30).objective("facility_location")
    constraints = Constraints(include=[7, 3], exclude=[0])
    ranking = greedi(objective, Budget(9), num_parts=3, constraints=constraints)
    assert ranking.order[:2].tolist() == [7, 3]
    assert len(set(ranking.order.tolist()) - {0}) == 9


def take_turns(score_IJ: np.ndarray, count: int, free: set[int]) -> list[int]:
    """Round robin in plain Python: each row in turn takes its best free column."""
    picks: list[int] = []
    while len(picks) < count and free:
        for row_J in score_IJ:
            if free and len(picks) < count:
                picks.append(min(free, key=lambda j: (-row_J[j], j)))
                free.discard(picks[-1])
    return picks


@pytest.mark.parametrize("form", ["dense", "lists", "streamed"])
def test_rows_take_their_best_free_column_in_turn(form: str) -> None:
    rng = np.random.default_rng(21)
    score_IJ = (0.1 + 0.8 * rng.integers(1, 9, (7, 40)) / 9).astype(np.float32)  # with equals
    lists = listed(score_IJ)
    scores = {"dense": DenseScores(score_IJ), "lists": lists, "streamed": streamed(lists, 3)}[form]
    ranking = round_robin_ranking(facility_location(scores), Budget(30))
    assert ranking.order.tolist() == take_turns(score_IJ, 30, set(range(40)))
    assert (ranking.rule, ranking.stopped_by) == ("turns", "budget")
    np.testing.assert_allclose(
        ranking.objective, evaluate(facility_location(lists), ranking.order), atol=SLACK
    )


def test_a_forbidden_column_costs_no_turn() -> None:
    score_IJ = np.float32([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.2, 0.6]])
    constraints = Constraints(np.array([0, 0, 1, 1]), [0, 0], [1, 2], exclude=[0])
    found = round_robin_ranking(
        facility_location(listed(score_IJ)), Budget(3), constraints=constraints
    )
    # Row 0 takes column 1, of whose group one is allowed; row 1 goes on to its next.
    assert found.order.tolist() == [1, 3, 2]


def test_lists_that_end_before_the_budget_are_told() -> None:
    found = round_robin_ranking(facility_location(listed(np.float32([[0, 0.5, 0, 1]]))), Budget(3))
    assert (found.order.tolist(), found.stopped_by) == ([3, 1], "exhausted")


def test_what_lies_near_a_better_pick_waits_until_all_others_are_taken() -> None:
    rng = np.random.default_rng(4)
    score_J, vector_JD = rng.random(40), rng.standard_normal((40, 3)).astype(np.float32)
    unit_JD = vector_JD / np.linalg.norm(vector_JD, axis=1, keepdims=True)
    tie_break = TieBreak(np.ones(40, np.float32), lambda rows: directions(vector_JD[rows], 3))
    left, found = np.argsort(-score_J).tolist(), list[int]()
    for most in (0.9, 2.0):
        for j in left:
            if j not in found and (not found or (unit_JD[found] @ unit_JD[j]).max() <= most):
                found.append(j)
    count = 30
    ranking = spread_ranking(top_scores(score_J), Budget(count), score_J, tie_break, 0.1)
    assert ranking.order.tolist() == found[:count]
    assert found != np.argsort(-score_J).tolist()  # so that the distance is seen


def test_parts_are_drawn_evenly_by_rank_and_seed() -> None:
    part = part_of_columns(np.arange(10_000), 4, seed=1)
    assert np.abs(np.bincount(part, minlength=4) - 2500).max() < 200
    assert (part != part_of_columns(np.arange(10_000), 4, seed=2)).mean() > 0.7


def test_cost_benefit_takes_the_better_of_two_rules() -> None:
    """By gain per cost alone the tiny column would keep the money from the great one."""
    costs = np.array([1, 100])
    great = cost_benefit_greedy(
        top_scores(np.array([2.0, 150.0])), Budget(max_cost=100), costs=costs
    )
    assert (great.order.tolist(), great.rule) == ([1], "gain")
    many = np.array([1, 1, 1, 3])
    small = cost_benefit_greedy(
        top_scores(np.array([2.0, 2.0, 2.0, 3.0])), Budget(max_cost=3), costs=many
    )
    assert (sorted(small.order.tolist()), small.rule) == ([0, 1, 2], "gain_per_cost")


def test_cost_benefit_resumes_each_of_its_searches() -> None:
    objective = draw_instance(14, 30).objective("facility_location")
    costs, saved = np.arange(30) % 4 + 1, {}
    budget = Budget(max_cost=20)
    whole = cost_benefit_greedy(
        objective, budget, costs=costs,
        on_progress=lambda progress: saved.setdefault(
            progress.rule, Prefix(progress.order[:4].copy(), progress.decided[:4].copy())
        ),
    )  # fmt: skip
    assert set(saved) == {"gain", "gain_per_cost"}
    assert_same_ranking(cost_benefit_greedy(objective, budget, costs=costs, prefixes=saved), whole)


def test_the_share_of_the_best_is_told_for_any_selection() -> None:
    objective = draw_instance(15, 40).objective("facility_location")
    greedy, drawn = lazy_greedy(objective, Budget(8)), random_ranking(objective, Budget(8), seed=0)
    assert greedy.share_of_best is not None
    assert drawn.share_of_best is not None
    assert GREEDY_BOUND <= greedy.share_of_best <= 1
    assert drawn.share_of_best < greedy.share_of_best
    assert drawn.rule == "random"


def test_the_upper_bound_is_no_worse_than_that_of_the_end_alone() -> None:
    place = np.random.default_rng(0).standard_normal((200, 4))
    place /= np.linalg.norm(place, axis=1, keepdims=True)
    objective = facility_location(listed((place @ place.T + 1).astype(np.float32) / 2.001))
    budget, problem = Budget(20), objective.problem()
    ranking = lazy_greedy(objective, budget)
    state, gain_J, left_J = problem.empty_state(), np.empty(200), np.ones(200, np.bool_)
    add_each(problem, state, ranking.order)
    all_gains(problem, state, gain_J)
    left_J[ranking.order] = False
    at_the_end = bound_from(ranking.value, gain_J[left_J], np.zeros(180), budget)
    assert ranking.upper_bound is not None
    assert ranking.value <= ranking.upper_bound <= at_the_end


def test_a_search_in_no_parts_is_refused() -> None:
    objective = draw_instance(0, 9).objective("facility_location")
    with pytest.raises(ValueError, match="num_parts"):
        greedi(objective, Budget(3), num_parts=0)
