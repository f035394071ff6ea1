"""What decides where gains do not: quality, distance, and the rank behind exact equals only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.errors import ShapeError, StageError
from nncift_ray.recipe.sections import NetworkConfig, SelectionConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from nncift_ray.selection import ties
from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import Ranking, lazy_greedy
from nncift_ray.selection.objectives import facility_location, top_scores
from nncift_ray.selection.partitioned import greedi
from nncift_ray.selection.step import SelectStage
from nncift_ray.selection.ties import DECIDED_BY, UNIT, TieBreak, direction_width, directions
from tests.chain import GivenQuality, run_chain
from tests.oracles import naive_greedy
from tests.unit.selection.instances import (
    ALWAYS_MONOTONE,
    assert_same_ranking,
    draw_instance,
    draw_tie_break,
    listed,
)

NUM_CANDIDATES, BUDGET = 60, 20


def on_a_circle(*degrees: float, quality: list[float] | None = None) -> TieBreak:
    """Return columns by their angle, of quality 1 if nothing is said."""
    angle = np.radians(degrees)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    worth = np.ones(len(vectors)) if quality is None else quality
    return TieBreak(np.array(worth, np.float32), lambda columns: directions(vectors[columns], 2))


def one_serves_all(num_columns: int) -> np.ndarray:
    """Column 0 is best for every row, so no other gains anything after it."""
    scores = np.full((5, num_columns), 0.5, np.float32)
    scores[:, 0] = 1.0
    return scores


def reasons(ranking: Ranking) -> list[str]:
    return [DECIDED_BY[code] for code in ranking.decided]


def test_picks_without_gain_lie_farthest_from_the_nearest_pick() -> None:
    tie_break = on_a_circle(0, 10, 180, 100, 90)
    objective = facility_location(listed(one_serves_all(5)))
    ranking = lazy_greedy(objective, Budget(5), tie_break=tie_break)
    assert ranking.order.tolist() == [0, 2, 4, 1, 3]
    assert reasons(ranking) == ["objective", "distance", "distance", "id", "distance"]


def test_quality_goes_before_distance() -> None:
    tie_break = on_a_circle(0, 10, 180, 100, quality=[0.1, 1.0, 0.4, 0.98])
    objective = facility_location(listed(one_serves_all(4)))
    ranking = lazy_greedy(objective, Budget(4), tie_break=tie_break)
    assert ranking.order.tolist() == [0, 3, 1, 2]  # 0.98 and 1 are the same step
    assert reasons(ranking) == ["objective", "distance", "quality", "distance"]


def test_the_rank_decides_between_exact_equals_only() -> None:
    objective = facility_location(listed(one_serves_all(4)))
    rank = np.array([0, 3, 2, 1])
    ranking = lazy_greedy(objective, Budget(4), tie_break=on_a_circle(0, 90, 90, 90), tie_rank=rank)
    assert ranking.order.tolist() == [0, 3, 2, 1]
    assert reasons(ranking)[1:3] == ["id", "id"]


def test_a_tie_of_large_gains_goes_to_the_farther_and_is_said() -> None:
    scores = np.kron(np.eye(4), np.ones((3, 1))).astype(np.float32)  # a column for three rows each
    ranking = lazy_greedy(
        facility_location(listed(scores)), Budget(4), tie_break=on_a_circle(0, 20, 150, 60)
    )
    assert ranking.order.tolist() == [0, 2, 3, 1]
    assert ranking.gain.tolist() == [3.0] * 4
    assert reasons(ranking) == ["id", "distance", "distance", "objective"]


def test_a_gain_of_a_thousandth_of_the_mean_decides_nothing() -> None:
    scores = np.zeros((3, 3), np.float32)
    scores[:, 0], scores[0, 1], scores[2, 2] = 0.9, 0.9015, 0.9016
    ranking = lazy_greedy(
        facility_location(listed(scores)), Budget(3), tie_break=on_a_circle(0, 90, 10)
    )
    assert ranking.order.tolist() == [0, 1, 2]  # 2 gains more than 1, and lies nearer
    assert reasons(ranking)[1] == "distance"


def test_a_sort_by_score_is_decided_by_scores_however_small() -> None:
    scores = np.array([1e6, 0.1, 0.2, -5.0])
    ranking = lazy_greedy(top_scores(scores), Budget(4), tie_break=on_a_circle(0, 180, 10, 90))
    assert ranking.order.tolist() == [0, 2, 1, 3]
    assert reasons(ranking) == ["objective"] * 4


def test_must_includes_and_exclusions_hold_among_equals() -> None:
    objective = facility_location(listed(one_serves_all(5)))
    constraints = Constraints(include=[1], exclude=[2])
    ranking = lazy_greedy(
        objective, Budget(4), tie_break=on_a_circle(0, 10, 180, 100, 90), constraints=constraints
    )
    assert ranking.order.tolist() == [1, 0, 3, 4]
    assert reasons(ranking)[:2] == ["include", "objective"]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(kind=st.sampled_from(ALWAYS_MONOTONE), seed=st.integers(0, 2**20), size=st.integers(1, 30))
def test_lazy_is_naive_greedy_through_both_phases(kind: str, seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    objective, budget = draw_instance(seed, size).objective(kind), Budget(max_count=size)
    options: dict[str, Any] = {
        "tie_rank": rng.permutation(size), "tie_break": draw_tie_break(rng, size),
    }  # fmt: skip
    assert_same_ranking(
        lazy_greedy(objective, budget, **options), naive_greedy(objective, budget, **options)
    )


def test_blocks_of_picks_and_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = facility_location(listed(one_serves_all(40)))
    tie_break = draw_tie_break(np.random.default_rng(1), 40)
    constraints = Constraints(include=list(range(7)))
    whole = lazy_greedy(objective, Budget(30), tie_break=tie_break, constraints=constraints)
    monkeypatch.setattr(ties, "BLOCK", 3)
    blocked = lazy_greedy(objective, Budget(30), tie_break=tie_break, constraints=constraints)
    assert_same_ranking(whole, blocked)


def test_a_search_in_one_part_is_the_search_in_one_piece() -> None:
    objective = facility_location(listed(one_serves_all(40)))
    tie_break = draw_tie_break(np.random.default_rng(2), 40)
    whole = lazy_greedy(objective, Budget(25), tie_break=tie_break)
    parts = greedi(objective, Budget(25), num_parts=1, tie_break=tie_break)
    assert parts.order.tolist() == whole.order.tolist()


def test_products_of_directions_are_whole_numbers_that_float32_holds() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 1024)).astype(np.float32)
    whole = directions(vectors, 1024)
    exact = whole.astype(np.int64) @ whole.astype(np.int64).T
    assert np.abs(exact).max() < 2**24
    np.testing.assert_array_equal(whole @ whole.T, exact)
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    np.testing.assert_allclose(exact / UNIT**2, cosine, atol=2e-3)


def test_long_directions_of_many_columns_are_projected_and_zero_vectors_stay() -> None:
    assert direction_width(1000, 1024) == 1024
    assert direction_width(1_000_000, 1024) == 134
    projected = directions(np.random.default_rng(0).standard_normal((9, 500), np.float32), 20)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), UNIT, rtol=1e-3)
    assert not directions(np.zeros((2, 500), np.float32), 20).any()


def test_what_is_of_another_table_is_refused() -> None:
    objective = facility_location(listed(one_serves_all(3)))
    with pytest.raises(ShapeError, match="quality is"):
        lazy_greedy(objective, Budget(3), tie_break=on_a_circle(0, 90))
    with pytest.raises(ValueError, match="quality must lie"):
        lazy_greedy(objective, Budget(3), tie_break=on_a_circle(0, 9, 90, quality=[1, np.nan, 1]))
    short = TieBreak(np.ones(3, np.float32), lambda columns: np.zeros((2, 2), np.float32))
    with pytest.raises(ShapeError, match="2 directions, expected 3"):
        lazy_greedy(objective, Budget(3), tie_break=short)


# In a run.


def run(stage: Stage, folder: Path) -> StageOutput:
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    folder = tmp_path_factory.mktemp("ties")
    return run_chain(
        folder, num_candidates=NUM_CANDIDATES, num_targets=0, num_existing=0,
        objective="facility_location", budget=BUDGET,
        network=NetworkConfig(kind="paper", num_hidden=8, seed=1),
    )  # fmt: skip


def select(
    outputs: dict[str, StageOutput],
    folder: Path,
    worth: dict[int, float | None] | None,
    **selection: Any,
) -> SimpleNamespace:
    profiles = None if worth is None else run(GivenQuality(worth), folder)
    wanted = SelectionConfig(**{"objective": "facility_location", "budget": BUDGET} | selection)
    stage = SelectStage(outputs["score_pairs"], outputs["embed"], wanted, profiles=profiles)
    output = run(stage, folder)
    return SimpleNamespace(
        rows=output.read("ranking")["row_index"].to_pylist(),
        decided=output.read("ranking")["decided_by"].to_pylist(),
        facts=output.manifest.facts(),
        notices=stage.notices(output),
    )


def test_a_run_says_what_decided_its_picks(outputs: dict[str, StageOutput], tmp_path: Path) -> None:
    found = select(outputs, tmp_path, None)
    assert found.facts["num_decided"] == found.decided.count("objective") < BUDGET
    assert found.facts["num_by_distance"] == found.decided.count("distance") > 0
    assert found.notices[0].startswith(f"{found.facts['num_decided']} of {BUDGET} picks were")
    scores = select(outputs, tmp_path, None, objective="random")
    assert set(scores.decided) == {"random"}
    assert scores.notices == []


def test_candidates_of_no_quality_are_picked_last(
    outputs: dict[str, StageOutput], tmp_path: Path
) -> None:
    plain = select(outputs, tmp_path, None)
    bad = dict.fromkeys(plain.rows[:10], 0.0)
    found = select(outputs, tmp_path, {row: bad.get(row, 1.0) for row in range(NUM_CANDIDATES)})
    assert not set(bad) & set(found.rows)
    assert (found.facts["num_halved"], found.facts["num_halved_picks"]) == (10, 0)
    assert "more than halves the worth of 10 candidates, 0 of them picked" in found.notices[-1]


def test_full_quality_and_none_known_select_as_without_profiles(
    outputs: dict[str, StageOutput], tmp_path: Path
) -> None:
    plain = select(outputs, tmp_path, None).rows
    assert select(outputs, tmp_path, dict.fromkeys(range(NUM_CANDIDATES), 1.0)).rows == plain
    assert select(outputs, tmp_path, {0: 1.0, 5: None}).rows == plain
    bad = dict.fromkeys(plain[:10], 0.0)
    unread = select(outputs, tmp_path, bad, quality="none")
    assert unread.rows == plain
    assert unread.facts["quality"] == "none"


def test_quality_outside_its_range_is_refused(
    outputs: dict[str, StageOutput], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"quality does not lie in \[0, 1\]"):
        select(outputs, tmp_path, {0: 1.5})
