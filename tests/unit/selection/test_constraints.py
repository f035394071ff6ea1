from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.errors import ShapeError
from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import (
    Prefix,
    Ranking,
    cost_benefit_greedy,
    lazy_greedy,
    random_ranking,
)
from nncift_ray.selection.objectives import facility_location, top_scores
from nncift_ray.selection.partitioned import greedi
from tests.oracles import naive_greedy
from tests.unit.selection.instances import (
    KINDS,
    assert_same_ranking,
    draw_instance,
    draw_tie_break,
    listed,
)

SIZE = 14


def draw_constraints(rng: np.random.Generator, size: int) -> Constraints:
    """Draw quotas over three groups (and none) and lists of two, maybe impossible to meet."""
    group = rng.integers(-1, 3, size)
    least = rng.integers(0, 3, 3)
    most = [None if rng.random() < 0.3 else int(least[g] + rng.integers(0, 4)) for g in range(3)]
    listed_columns = rng.permutation(size)
    include, exclude = listed_columns[: rng.integers(0, 3)], listed_columns[3 : 3 + rng.integers(3)]
    return Constraints(group, least.tolist(), most, include.tolist(), exclude.tolist())


def assert_allowed(ranking: Ranking, constraints: Constraints) -> None:
    """Check must-includes, exclusions and both quotas."""
    picks, include = ranking.order.tolist(), list(constraints.include)
    assert picks[: len(include)] == include
    assert not set(picks) & set(constraints.exclude)
    assert constraints.group_J is not None
    for group, (least, most) in enumerate(zip(*constraints.quotas(), strict=True)):
        assert least <= (constraints.group_J[ranking.order] == group).sum() <= most


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**20),
    size=st.integers(6, SIZE),
    count=st.integers(5, 12),
    money=st.one_of(st.none(), st.integers(8, 50)),
    stop_gain=st.sampled_from([None, 0.0, 0.05, 0.3]),
    per_cost=st.booleans(),
    dense=st.booleans(),
    cut=st.floats(0, 1),
)
def test_lazy_and_resumed_and_plain_greedy_agree_to_the_last_bit_under_constraints(
    kind: str, seed: int, size: int, count: int, money: int | None, stop_gain: float | None,
    per_cost: bool, dense: bool, cut: float,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    objective = draw_instance(seed, size).objective(kind, dense=dense)
    arguments: dict[str, Any] = {
        "costs": rng.integers(1, 9, size),
        "tie_rank": rng.permutation(size),
        "constraints": draw_constraints(rng, size),
        "stop_gain": stop_gain,
        "rule": "gain_per_cost" if per_cost else "gain",
        "tie_break": draw_tie_break(rng, size) if cut < 0.8 else None,
    }
    budget = Budget(count, money)
    try:
        plain = naive_greedy(objective, budget, **arguments)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error).split(":")[0].split(" [")[0][:12]):
            lazy_greedy(objective, budget, **arguments)
        return
    lazy = lazy_greedy(objective, budget, **arguments)
    assert_same_ranking(lazy, plain)
    assert_allowed(lazy, arguments["constraints"])
    assert money is None or arguments["costs"][lazy.order].sum() <= money
    num = int(cut * len(lazy.order))
    picked = Prefix(lazy.order[:num], lazy.decided[:num])
    assert_same_ranking(lazy_greedy(objective, budget, **arguments, prefix=picked), lazy)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), parts=st.integers(1, 4))
def test_every_optimiser_honours_the_constraints(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    objective = draw_instance(seed, SIZE).objective("facility_location")
    constraints, budget = draw_constraints(rng, SIZE), Budget(8)
    try:
        lazy_greedy(objective, budget, constraints=constraints)
    except ValueError:
        return
    costs = np.ones(SIZE)
    for ranking in (
        random_ranking(objective, budget, constraints=constraints, seed=seed),
        cost_benefit_greedy(objective, budget, costs=costs, constraints=constraints),
        greedi(objective, budget, num_parts=parts, constraints=constraints, seed=seed),
    ):
        assert_allowed(ranking, constraints)


def test_minima_are_reserved_and_the_rest_is_free() -> None:
    """Group 1 holds the worst scores; its two slots are the last of five."""
    score, group = np.arange(8.0)[::-1], np.array([0, 0, 0, 0, 0, 0, 1, 1])
    constraints = Constraints(group, min_per_group=[0, 2])
    ranking = lazy_greedy(top_scores(score), Budget(5), constraints=constraints)
    assert ranking.order.tolist() == [0, 1, 2, 6, 7]


def test_maxima_close_a_group() -> None:
    constraints = Constraints(np.array([0, 0, 0, 1, -1]), max_per_group=[1, None])
    ranking = lazy_greedy(top_scores(np.arange(5.0)[::-1]), Budget(5), constraints=constraints)
    assert ranking.order.tolist() == [0, 3, 4]
    assert ranking.stopped_by == "exhausted"


def test_cost_for_minima_is_reserved() -> None:
    """Column 0 (cost 5) would leave 1 of 6 for group 1, whose cheapest costs 2."""
    costs, group = np.array([5, 4, 3, 2]), np.array([0, 0, 1, 1])
    constraints = Constraints(group, min_per_group=[0, 1])
    ranking = lazy_greedy(
        top_scores(np.array([4.0, 3.0, 2.0, 1.0])), Budget(max_cost=6), costs=costs,
        constraints=constraints,
    )  # fmt: skip
    assert ranking.order.tolist() == [1, 3]


def test_must_includes_come_first_in_the_order_given_with_their_gains() -> None:
    s = np.array([[0.9, 0.2, 0.5], [0.9, 0.2, 0.5]], np.float32)
    constraints = Constraints(include=[1, 2])
    ranking = lazy_greedy(facility_location(listed(s)), Budget(3), constraints=constraints)
    assert ranking.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(ranking.gain, [0.4, 0.6, 0.8], rtol=1e-6)


def test_stop_gain_still_meets_minima() -> None:
    constraints = Constraints(np.array([0, 0, 1, 1]), min_per_group=[0, 1])
    ranking = lazy_greedy(
        top_scores(np.array([5.0, 0.1, 0.03, 0.02])), Budget(4), constraints=constraints,
        stop_gain=0.1,
    )  # fmt: skip
    assert ranking.order.tolist() == [0, 2]
    assert ranking.stopped_by == "stop_gain"


def test_stop_gain_stops_at_the_first_pick_that_adds_less_than_its_share() -> None:
    score = np.array([8.0, 2.0, 1.0, 0.9])
    ranking = lazy_greedy(top_scores(score), Budget(4), stop_gain=0.1)
    assert ranking.order.tolist() == [0, 1, 2]  # 1.0 is a tenth of 10, 0.9 less than that of 11
    assert ranking.stopped_by == "stop_gain"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"include": [1], "exclude": [2, 1]}, "column 1 is in include and in exclude"),
        ({"include": [1, 1]}, "include names a column twice"),
        ({"min_per_group": [1]}, "need group_J"),
        (
            {"group_J": np.zeros(3, int), "min_per_group": [2], "max_per_group": [1]},
            "group 0: .* got 2 and 1",
        ),
        ({"group_J": np.array([0, 4, 1]), "max_per_group": [1, 1]}, "names group 4, .* 2 groups"),
        ({"group_J": np.array([0, -2, 1])}, "holds -2"),
        ({"group_J": np.zeros(3, int), "max_per_group": [-1]}, "at least 0"),
        (
            {"group_J": np.zeros(3, int), "min_per_group": [0], "max_per_group": [1, 1]},
            "has 1 groups, the other quota 2",
        ),
    ],
)
def test_contradictions_are_refused_with_both_sides(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Constraints(**arguments)


@pytest.mark.parametrize(
    ("constraints", "budget", "match"),
    [
        (
            Constraints(np.array([0, 1, 1]), [2, 0]),
            Budget(3),
            "group 0: min.* is 2.* has 1",
        ),
        (Constraints(np.array([0, 1, 1]), [1, 2]), Budget(2), "adds up to 3, at most 2"),
        (Constraints(include=[0, 1]), Budget(1), "include: column 1"),
        (Constraints(include=[7]), Budget(1), "include names column 7, there are 3"),
        (Constraints(exclude=[-1]), Budget(1), "exclude names column -1"),
        (
            Constraints(np.array([0, 1, 1]), max_per_group=[None, 1], include=[1, 2]),
            Budget(3),
            "include: column 2",
        ),
        (Constraints(np.array([0, 1, 1]), [0, 2]), Budget(max_cost=5), "costs at least 6"),
    ],
)
def test_what_cannot_be_met_is_refused(
    constraints: Constraints, budget: Budget, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        lazy_greedy(
            top_scores(np.arange(3.0)), budget, costs=np.full(3, 3), constraints=constraints
        )


def test_groups_of_another_table_are_refused() -> None:
    with pytest.raises(ShapeError, match="group_J"):
        lazy_greedy(
            top_scores(np.arange(3.0)), Budget(1), constraints=Constraints(np.zeros(4, int))
        )


@pytest.mark.parametrize(
    ("prefix", "match"),
    [
        ([2, 0], "prefix has column 2 at 0, include has 1"),
        ([1, 9], "prefix names column 9"),
        ([1, 0, 0], "prefix: column 0 cannot be pick"),
        ([1, 0, 2, 3], "prefix: column 3 cannot be pick"),
    ],
)
def test_a_prefix_of_another_run_is_refused(prefix: list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lazy_greedy(
            top_scores(np.arange(4.0)), Budget(3), prefix=Prefix(prefix, [0] * len(prefix)),
            constraints=Constraints(include=[1]),
        )  # fmt: skip


@pytest.mark.parametrize("stop_gain", [-0.1, 1.0, np.nan])
def test_a_stop_gain_that_is_no_share_is_refused(stop_gain: float) -> None:
    with pytest.raises(ValueError, match="stop_gain"):
        lazy_greedy(top_scores(np.arange(3.0)), Budget(1), stop_gain=stop_gain)


def test_gain_per_cost_refuses_free_columns() -> None:
    with pytest.raises(ValueError, match="cost of column 1 is 0"):
        cost_benefit_greedy(
            top_scores(np.arange(3.0)), Budget(max_cost=1), costs=np.array([1, 0, 1])
        )
