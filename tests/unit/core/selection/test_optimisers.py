from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.selection.greedy import (
    Budget,
    Constraints,
    Progress,
    Ranking,
    bound_from,
    cost_benefit_greedy,
    lazy_greedy,
    random_ranking,
    stochastic_greedy,
)
from nncift_ray.selection.objectives import FacilityLocation, TopScores
from nncift_ray.selection.partitioned import greedi, multi_round_greedy, part_of_columns
from nncift_ray.selection.problem import add_each, all_gains
from tests.unit.core.selection.instances import (
    ALWAYS_MONOTONE,
    KINDS,
    assert_same_ranking,
    draw_instance,
    listed,
)

GREEDY_BOUND = 1 - 1 / np.e
EPSILON = 0.2
SLACK = 1e-4
Search = Callable[..., Ranking]


def in_parts(search: Callable[..., Ranking]) -> Search:
    return lambda objective, budget, **more: search(
        objective.problem(), budget, num_parts=3, **more
    )


@pytest.mark.parametrize("search", [lazy_greedy, stochastic_greedy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_is_the_uninterrupted_one(search: Search, kind: str) -> None:
    objective = draw_instance(7, 40).objective(kind)
    saved: list[np.ndarray] = []

    def save(progress: Progress) -> None:
        saved.append(progress.order.copy())

    whole = search(objective, Budget(20), on_progress=save)
    for picked in saved[::5]:
        assert_same_ranking(search(objective, Budget(20), prefix=picked), whole)
    assert saved[-1].tolist() == whole.order.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(kind: str) -> None:
    objective = draw_instance(8, 30).objective(kind)
    small, large = (lazy_greedy(objective, Budget(count)) for count in (9, 20))
    assert small.order.tolist() == large.order[:9].tolist()
    assert small.objective.tobytes() == large.objective[:9].tobytes()
    drawn = [random_ranking(objective, Budget(count), seed=3).order for count in (9, 20)]
    assert drawn[0].tolist() == drawn[1][:9].tolist()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(kind=st.sampled_from(ALWAYS_MONOTONE), seed=st.integers(0, 2**20))
def test_stochastic_greedy_loses_no_more_than_its_epsilon_on_average(kind: str, seed: int) -> None:
    objective = draw_instance(seed, 24).objective(kind)
    value = np.mean(
        [
            stochastic_greedy(objective, Budget(6), epsilon=EPSILON, seed=draw).value
            for draw in range(8)
        ]
    )
    bound = lazy_greedy(objective, Budget(6)).value  # no more than the best
    assert value >= (GREEDY_BOUND - EPSILON) * bound - SLACK


def test_stochastic_greedy_depends_on_its_seed_and_on_nothing_else() -> None:
    objective = draw_instance(9, 60).objective("facility_location")
    first, again, other = (
        stochastic_greedy(objective, Budget(10), epsilon=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert_same_ranking(first, again)
    assert first.order.tolist() != other.order.tolist()


def test_stochastic_greedy_that_draws_everything_picks_what_greedy_picks() -> None:
    objective = draw_instance(10, 20).objective("conditional_gain")
    thorough = stochastic_greedy(objective, Budget(10), epsilon=1e-12)
    assert thorough.value == pytest.approx(lazy_greedy(objective, Budget(10)).value)


@pytest.mark.parametrize(
    "search",
    [
        lazy_greedy,
        stochastic_greedy,
        in_parts(greedi),
        in_parts(multi_round_greedy),
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
    plain = search(FacilityLocation(listed(s)), Budget(12), tie_rank=np.arange(30))
    renumbered = search(FacilityLocation(listed(moved)), Budget(12), tie_rank=rank)
    assert renumbered.order.tolist() == new_number[plain.order].tolist()


def backwards(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
    """Run tasks last first, each as if sent to another process."""
    done = [function(pickle.loads(pickle.dumps(task))) for task in reversed(tasks)]  # noqa: S301
    return reversed(done)


def in_threads(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(function, tasks))


@pytest.mark.parametrize("run", [backwards, in_threads])
@pytest.mark.parametrize("search", [greedi, multi_round_greedy])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_change_no_bit_of_a_search_in_parts(
    kind: str, search: Callable[..., Ranking], run: Any
) -> None:
    problem = draw_instance(11, 40).objective(kind).problem()
    alone = search(problem, Budget(10), num_parts=4, seed=2)
    assert_same_ranking(search(problem, Budget(10), num_parts=4, seed=2, run=run), alone)


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
    value = greedi(objective.problem(), Budget(count), num_parts=parts, seed=seed).value
    assert central.upper_bound is not None
    assert value >= GREEDY_BOUND**2 / min(parts, count) * central.value - SLACK
    assert value <= central.upper_bound + SLACK


@pytest.mark.parametrize("search", [greedi, multi_round_greedy])
@pytest.mark.parametrize("kind", KINDS)
def test_one_part_is_the_whole_search(kind: str, search: Callable[..., Ranking]) -> None:
    objective = draw_instance(12, 25).objective(kind)
    central = lazy_greedy(objective, Budget(8))
    alone = search(objective.problem(), Budget(8), num_parts=1)
    assert alone.order.tolist() == central.order.tolist()
    assert alone.objective.tobytes() == central.objective.tobytes()


@pytest.mark.parametrize("search", [greedi, multi_round_greedy])
def test_searches_in_parts_pick_the_musts_first(search: Callable[..., Ranking]) -> None:
    problem = draw_instance(13, 30).objective("facility_location").problem()
    constraints = Constraints(include=[7, 3], exclude=[0])
    ranking = search(problem, Budget(9), num_parts=3, constraints=constraints)
    assert ranking.order[:2].tolist() == [7, 3]
    assert len(set(ranking.order.tolist()) - {0}) == 9


def test_parts_are_drawn_evenly_by_rank_and_seed() -> None:
    part = part_of_columns(np.arange(10_000), 4, seed=1)
    assert np.abs(np.bincount(part, minlength=4) - 2500).max() < 200
    assert (part != part_of_columns(np.arange(10_000), 4, seed=2)).mean() > 0.7


def test_cost_benefit_takes_the_better_of_two_rules() -> None:
    """By gain per cost alone the tiny column would keep the money from the great one."""
    costs = np.array([1, 100])
    great = cost_benefit_greedy(
        TopScores(np.array([2.0, 150.0])), Budget(max_cost=100), costs=costs
    )
    assert (great.order.tolist(), great.rule) == ([1], "gain")
    many = np.array([1, 1, 1, 3])
    small = cost_benefit_greedy(
        TopScores(np.array([2.0, 2.0, 2.0, 3.0])), Budget(max_cost=3), costs=many
    )
    assert (sorted(small.order.tolist()), small.rule) == ([0, 1, 2], "gain_per_cost")


def test_cost_benefit_resumes_each_of_its_searches() -> None:
    objective = draw_instance(14, 30).objective("facility_location")
    costs, saved = np.arange(30) % 4 + 1, {}
    budget = Budget(max_cost=20)
    whole = cost_benefit_greedy(
        objective, budget, costs=costs,
        on_progress=lambda progress: saved.setdefault(progress.rule, progress.order[:4].copy()),
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
    objective = FacilityLocation(listed((place @ place.T + 1).astype(np.float32) / 2.001))
    budget, problem = Budget(20), objective.problem()
    ranking = lazy_greedy(objective, budget)
    state, gain_J, left_J = problem.empty_state(), np.empty(200), np.ones(200, np.bool_)
    add_each(problem.columns, state, ranking.order)
    all_gains(problem.columns, state, gain_J)
    left_J[ranking.order] = False
    at_the_end = bound_from(ranking.value, gain_J, left_J, np.zeros(200), budget)
    assert ranking.upper_bound is not None
    assert ranking.value <= ranking.upper_bound <= at_the_end


@pytest.mark.parametrize(
    ("search", "match"),
    [
        (lambda o: stochastic_greedy(o, Budget(max_cost=3), costs=np.ones(9)), "needs max_count"),
        (lambda o: stochastic_greedy(o, Budget(3), epsilon=0.0), "epsilon"),
        (lambda o: greedi(o.problem(), Budget(3), num_parts=0), "num_parts"),
        (lambda o: multi_round_greedy(o.problem(), Budget(3), num_parts=1, num_rounds=0), "rounds"),
    ],
)
def test_settings_without_a_meaning_are_refused(search: Search, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        search(draw_instance(0, 9).objective("facility_location"))
