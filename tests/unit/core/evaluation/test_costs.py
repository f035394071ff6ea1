"""Costs: priced, added up, compared, and extrapolated by each step's own law."""

from __future__ import annotations

import pytest

from nncift_ray.evaluate.statistics import (
    LAWS,
    Prices,
    Size,
    StepCost,
    add_up,
    extrapolate,
    measure_step,
    reduction_percent,
)

PRICES = Prices(per_gpu_hour=3.6, per_cpu_hour=0.036)
SMALL, LARGE = Size(1_000, 100), Size(10_000, 100)


def step(name: str, seconds: float = 10.0, tokens: int | None = None) -> StepCost:
    return StepCost(name, seconds, 2.0, 40.0, tokens, 0.5)


def test_a_gpu_is_priced_with_its_cpus() -> None:
    # Four actors worked 50 s each in a minute: 200 GPU-seconds at 0.001 dollars.
    cost = measure_step(
        "label", wall_seconds=60, worker_seconds=200, num_cpus=8, num_gpus=1, prices=PRICES,
        num_tokens=7,
    )  # fmt: skip
    assert cost == StepCost("label", 60, 200, 1600, 7, pytest.approx(0.2))


def test_without_a_gpu_cpus_are_priced() -> None:
    cost = measure_step(
        "fit", wall_seconds=60, worker_seconds=50, num_cpus=2, num_gpus=0, prices=PRICES
    )
    assert cost == StepCost("fit", 60, 0, 100, None, pytest.approx(0.001))


def test_steps_add_up() -> None:
    total = add_up([step("embed"), step("label", 20, 5), step("fit")])
    assert total == StepCost("all", 40, 6, 120, 5, 1.5)
    assert add_up([step("embed")]).num_tokens is None
    assert add_up([]) == StepCost("all", 0, 0, 0, None, 0)


def test_reduction_is_of_the_reference() -> None:
    # The paper's seconds of DELIFT and of NN-CIFT over it.
    assert reduction_percent(215, 67_379) == pytest.approx(99.68, abs=0.005)
    assert reduction_percent(300, 200) == pytest.approx(-50)
    assert reduction_percent(1, 0) is None


def test_each_step_grows_by_its_own_law() -> None:
    costs = [step("embed"), step("label", tokens=100), step("score_pairs"), step("select")]
    grown = extrapolate(costs, SMALL, LARGE)
    # rows (10,100 / 1,100), constant, pairs (10,000 x 10,100 / 1,000 x 1,100), candidates (x 10)
    assert [each.seconds for each in grown] == pytest.approx(
        [10 * 10_100 / 1_100, 10, 10 * 10 * 10_100 / 1_100, 100]
    )
    assert [each.price for each in grown] == pytest.approx(
        [0.5 * each.seconds / 10 for each in grown]
    )
    assert all(each.extrapolated for each in grown)
    assert add_up([step("fit"), grown[0]]).extrapolated


def test_labels_of_all_pairs_grow_with_the_pairs() -> None:
    laws = {**LAWS, "label": "within"}
    grown = extrapolate([step("label", tokens=100)], SMALL, LARGE, laws)[0]  # type: ignore[arg-type]
    assert grown.num_tokens == 10_000
    assert grown.accelerator_seconds == pytest.approx(200)


def test_seconds_that_are_fixed_do_not_grow() -> None:
    grown = extrapolate([step("select")], SMALL, LARGE, fixed_seconds={"select": 8.0})[0]
    assert grown.seconds == pytest.approx(8 + 2 * 10)
    assert grown.price == pytest.approx(5.0)
    # No more can be fixed than was measured.
    whole = extrapolate([step("select")], SMALL, LARGE, fixed_seconds={"select": 80.0})[0]
    assert whole.seconds == 10


def test_what_grows_by_no_known_law_is_refused() -> None:
    with pytest.raises(ValueError, match="'dance'"):
        extrapolate([step("dance")], SMALL, LARGE)
    with pytest.raises(ValueError, match="cross"):
        extrapolate([step("label")], Size(10, 0), LARGE, {"label": "cross"})


@pytest.mark.parametrize(
    ("law", "work"),
    [("constant", 1), ("candidates", 10), ("rows", 13), ("within", 100), ("cross", 30),
     ("pairs", 130)],
)  # fmt: skip
def test_laws_by_hand(law: str, work: int) -> None:
    assert Size(10, 3).work(law) == work  # type: ignore[arg-type]


def test_every_stage_of_a_run_has_a_law() -> None:
    steps = "ingest deduplicate embed warmup gradients label teacher_scores fit project index"
    steps += " score_pairs select_partitions select export"
    assert set(steps.split()) <= set(LAWS)
