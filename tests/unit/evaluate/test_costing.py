from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nncift_ray.evaluation.costs import (
    collect_costs,
    partial_notices,
    possible_labels,
    wall_seconds,
)
from nncift_ray.evaluation.methods import Subset
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.output import ShardRecord, StageManifest, StageOutput
from nncift_ray.runtime.schemas import COSTS
from tests.unit.evaluate.selections import (
    NETWORK,
    NUM_CANDIDATES,
    NUM_TARGETS,
    TEACHER,
    select_all,
)

PRICES = ClusterConfig(price_per_gpu_hour=3.6, price_per_cpu_hour=0.36)
ALL_PAIRS = NUM_CANDIDATES * NUM_TARGETS
PART = 5 * NUM_CANDIDATES  # five whole rows
WALL, WORKED, TOKENS, CACHED = 100.0, 80.0, 5_000, 1_000


def timed(subset: Subset) -> Subset:
    """Give every stage of a subset the same figures, known by hand."""
    outputs: dict[str, StageOutput] = {}
    for name, output in subset.outputs.items():
        counts = {"tokens": TOKENS, "cached_tokens": CACHED} if name == "label" else {}
        shard = output.manifest.shards[0].model_copy(
            update={"seconds": WORKED, "counts": counts, "finished_at": "",
                    "facts": output.manifest.facts()}
        )  # fmt: skip
        manifest = output.manifest.model_copy(
            update={"wall_seconds": WALL, "worker_seconds": WORKED, "num_cpus": 2.0,
                    "num_gpus": 0.0, "shards": (shard,)}
        )  # fmt: skip
        outputs[name] = StageOutput(output.folder, manifest)
    return replace(subset, outputs=outputs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Subset]:
    return [timed(subset) for subset in select_all(tmp_path_factory.mktemp("whole"))]


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> list[Subset]:
    return [timed(subset) for subset in select_all(tmp_path_factory.mktemp("part"), PART)]


def by_step(subsets: list[Subset], **options: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
    table = collect_costs(subsets, PRICES, **options)
    assert table.schema.equals(COSTS)
    rows = table.to_pylist()
    named = {(r["method"], r["step"], r["num_candidates"], r["extrapolated"]): r for r in rows}
    assert len(named) == len(rows)
    return named


def test_a_step_costs_what_its_manifest_says(whole: list[Subset]) -> None:
    label = by_step(whole)[TEACHER, "label", NUM_CANDIDATES, False]
    assert label["seconds"] == WALL
    assert label["cpu_seconds"] == 2 * WORKED
    assert label["accelerator_seconds"] == 0.0
    assert label["num_tokens"] == TOKENS - CACHED
    assert label["price"] == pytest.approx(2 * WORKED * 0.36 / 3600)
    assert label["labelled_fraction"] == 1.0


def test_a_gpu_is_priced_with_its_cpus(whole: list[Subset]) -> None:
    subset = next(subset for subset in whole if subset.key.method == TEACHER)
    label = subset.outputs["label"]
    on_gpu = label.manifest.model_copy(update={"num_gpus": 0.5})
    outputs = {**subset.outputs, "label": StageOutput(label.folder, on_gpu)}
    cost = by_step([replace(subset, outputs=outputs)])[TEACHER, "label", NUM_CANDIDATES, False]
    assert cost["accelerator_seconds"] == 0.5 * WORKED
    assert cost["price"] == pytest.approx(0.5 * WORKED * 3.6 / 3600)


def test_all_adds_up_the_steps_of_a_method_and_nothing_else(whole: list[Subset]) -> None:
    costs = by_step(whole)
    for method in (TEACHER, NETWORK):
        steps = [row for key, row in costs.items() if key[0] == method and key[1] != "all"]
        total = costs[method, "all", NUM_CANDIDATES, False]
        assert total["seconds"] == pytest.approx(WALL * len(steps))
        assert total["num_tokens"] == TOKENS - CACHED
    names = {key[1] for key in costs if key[0] == NETWORK}
    assert {"fit", "project", "score_pairs", "embed"} <= names
    assert "export" not in names


def test_shared_work_is_charged_to_each_and_marked(whole: list[Subset]) -> None:
    costs = by_step(whole)
    for step in ("ingest", "deduplicate", "embed"):
        assert costs[TEACHER, step, NUM_CANDIDATES, False]["shared"]
        assert costs[NETWORK, step, NUM_CANDIDATES, False]["shared"]
    assert not costs[NETWORK, "label", NUM_CANDIDATES, False]["shared"]
    assert not costs[NETWORK, "fit", NUM_CANDIDATES, False]["shared"]


def test_a_teacher_that_reads_no_vectors_pays_for_no_embedding(whole: list[Subset]) -> None:
    teacher = next(subset for subset in whole if subset.key.method == TEACHER)
    assert teacher.config is not None
    section = teacher.config.teacher.model_copy(update={"kind": "delift"})
    other = replace(teacher, config=teacher.config.model_copy(update={"teacher": section}))
    assert "embed" not in {key[1] for key in by_step([other])}


def test_methods_that_ask_no_teacher_cost_nothing(whole: list[Subset]) -> None:
    assert {key[0] for key in by_step(whole)} == {TEACHER, NETWORK}


def test_a_teacher_asked_about_a_part_is_told_and_its_whole_cost_extrapolated(
    partial: list[Subset],
) -> None:
    costs = by_step(partial)
    measured = costs[TEACHER, "label", NUM_CANDIDATES, False]
    assert measured["labelled_fraction"] == pytest.approx(PART / ALL_PAIRS)
    # What took the workers 80 s grows with the labels, the 20 s of starting them do not.
    extrapolated = costs[TEACHER, "label", NUM_CANDIDATES, True]
    assert extrapolated["seconds"] == pytest.approx(20 + 80 * ALL_PAIRS / PART)
    assert extrapolated["num_tokens"] == round((TOKENS - CACHED) * ALL_PAIRS / PART)
    assert costs[TEACHER, "embed", NUM_CANDIDATES, True]["seconds"] == pytest.approx(WALL)
    assert (NETWORK, "label", NUM_CANDIDATES, True) not in costs
    (notice,) = partial_notices(partial)
    assert notice.startswith(f"{TEACHER} was asked about {PART:,} of {ALL_PAIRS:,} pairs")


def test_a_larger_corpus_grows_each_step_by_what_its_work_is(whole: list[Subset]) -> None:
    costs = by_step(whole, wanted_candidates=10 * NUM_CANDIDATES)
    key = (10 * NUM_CANDIDATES, True)
    # Pairs of targets and candidates: ten times as many for the teacher, as many for the network,
    # whose recipe says 300.
    assert costs[TEACHER, "label", *key]["seconds"] == pytest.approx(20 + 80 * 10)
    assert costs[NETWORK, "label", *key]["seconds"] == pytest.approx(WALL)
    assert costs[NETWORK, "score_pairs", *key]["seconds"] == pytest.approx(20 + 80 * 10)
    rows = (10 * NUM_CANDIDATES + NUM_TARGETS) / (NUM_CANDIDATES + NUM_TARGETS)
    assert costs[NETWORK, "embed", *key]["seconds"] == pytest.approx(20 + 80 * rows)
    assert all(row["extrapolated"] for each, row in costs.items() if each[2] != NUM_CANDIDATES)


@pytest.mark.parametrize(("block", "count"), [("cross", 300), ("within", 870), ("points", 30)])
def test_pairs_of_a_block_are_those_of_two_different_examples(block: str, count: int) -> None:
    assert possible_labels(block, 30, 10) == count


def manifest(*shards: tuple[float, str], wall: float) -> StageManifest:
    """Make the manifest of a stage that ended at ten o'clock."""
    records = tuple(
        ShardRecord(start=i, stop=i + 1, parts=(), num_failures=0, seconds=seconds,
                    finished_at=f"2026-11-26T{at}.000+00:00")
        for i, (seconds, at) in enumerate(shards)
    )  # fmt: skip
    return StageManifest(
        stage="label", version=1, fingerprint="f", settings={}, inputs={}, seed=0,
        num_items=len(records), num_failures=0, wall_seconds=wall,
        worker_seconds=sum(each.seconds for each in records), num_cpus=1, num_gpus=0,
        finished_at="2026-11-26T10:00:00+00:00", environment={}, shards=records,
    )  # fmt: skip


def test_seconds_of_a_stage_that_was_never_stopped_are_its_own() -> None:
    assert wall_seconds(manifest((30, "09:59:30"), (20, "09:59:58"), wall=60)) == 60


def test_shards_of_a_run_that_was_killed_count_too() -> None:
    # The last run began at 09:59:00; the first shard was finished an hour before, by one worker.
    assert wall_seconds(manifest((30, "08:59:00"), (20, "09:59:58"), wall=60)) == 60 + 30


def test_earlier_shards_are_taken_to_have_run_side_by_side_as_the_later_ones() -> None:
    shards = [(30, "08:59:00"), (60, "09:59:58"), (60, "09:59:58")]
    assert wall_seconds(manifest(*shards, wall=60)) == 60 + 30 / 2
