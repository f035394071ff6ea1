"""Selection as a stage: every objective, limits, resuming, and what it says of itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.errors import ConfigError, DataError
from nncift_ray.network.step import ExampleInputs
from nncift_ray.recipe.sections import PairScoresConfig, SelectionConfig
from nncift_ray.runtime.driver import execute_here, run_stage, watching
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from nncift_ray.scores.step import ProjectStage, ScorePairsStage
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import Progress, evaluate, lazy_greedy
from nncift_ray.selection.objectives import (
    facility_location,
    facility_location_query_mutual_information,
    graph_cut,
)
from nncift_ray.selection.partitioned import greedi
from nncift_ray.selection.problem import column_sums
from nncift_ray.selection.step import (
    PICKS_NAME,
    PicksCheckpoint,
    SelectPartitionsStage,
    SelectStage,
    load_picks,
)
from nncift_ray.selection.tables import ScoreTables, read_directions
from nncift_ray.selection.ties import TieBreak
from tests.chain import run_chain
from tests.unit.selection.instances import listed

TARGETS, EXISTING, BUDGET = 20, 30, 12
WITHIN_OBJECTIVES = ("facility_location", "graph_cut", "saturated_coverage", "random")
EXISTING_OBJECTIVES = ("facility_location_conditional_gain", "graph_cut_conditional_gain")
CROSS_OBJECTIVES = (
    "facility_location_query_mutual_information",
    "graph_cut_mutual_information",
    "saturated_coverage",
    "facility_location_conditional_gain",
    "round_robin",
    "random",
)


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_chain(
        tmp_path_factory.mktemp("within"),
        num_candidates=90,
        num_targets=0,
        num_existing=EXISTING,
        objective="facility_location",
        budget=BUDGET,
    )


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_chain(
        tmp_path_factory.mktemp("cross"),
        num_candidates=90,
        num_targets=TARGETS,
        num_existing=EXISTING,
        objective="facility_location_query_mutual_information",
        budget=BUDGET,
    )


def select(
    outputs: dict[str, StageOutput], folder: Path, objective: str, **selection: Any
) -> StageOutput:
    wanted = SelectionConfig(objective=objective, **{"budget": BUDGET} | selection)
    stage = SelectStage(
        outputs["score_pairs"], outputs["embed"], wanted, examples=outputs["deduplicate"]
    )
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def ids(output: StageOutput) -> list[str]:
    return output.read("ranking")["example_id"].to_pylist()


@pytest.mark.parametrize("objective", [*WITHIN_OBJECTIVES, *EXISTING_OBJECTIVES])
def test_every_objective_of_candidates_selects_its_budget(
    within: dict[str, StageOutput], tmp_path: Path, objective: str
) -> None:
    output = select(within, tmp_path, objective)
    assert len(set(ids(output))) == BUDGET
    assert output.manifest.facts()["covers"] == "candidates"
    assert output.num_rows("coverage") == 90


@pytest.mark.parametrize("objective", CROSS_OBJECTIVES)
def test_every_objective_of_targets_selects_its_budget(
    cross: dict[str, StageOutput], tmp_path: Path, objective: str
) -> None:
    output = select(cross, tmp_path, objective)
    assert len(set(ids(output))) == BUDGET
    assert output.manifest.facts()["covers"] == "targets"
    assert output.num_rows("coverage") == TARGETS


def test_the_bound_is_above_the_value_and_said(within: dict[str, StageOutput]) -> None:
    facts = within["select"].manifest.facts()
    value = within["select"].read("ranking")["objective"][-1].as_py()
    assert facts["upper_bound"] >= value
    assert facts["share_of_best"] == pytest.approx(value / facts["upper_bound"])
    assert (facts["stopped_by"], facts["optimizer"]) == ("budget", "lazy")


def test_a_knapsack_run_never_exceeds_its_tokens(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    for optimizer in ("lazy", "cost_benefit"):
        found = select(
            within, tmp_path, "facility_location", budget={"tokens": 60}, optimizer=optimizer
        )
        ranking = found.read("ranking")
        assert 0 < ranking["num_tokens"].to_numpy().sum() <= 60


def test_stop_gain_ends_before_the_budget(within: dict[str, StageOutput], tmp_path: Path) -> None:
    output = select(within, tmp_path, "facility_location", stop_gain=0.2)
    assert output.num_rows("ranking") < BUDGET
    assert output.manifest.facts()["stopped_by"] == "stop_gain"


def test_quotas_hold_by_a_field_of_the_records(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    quotas = {"field": "task", "min": {"task 0": 0.5}, "max": {"task 1": 1}}
    output = select(within, tmp_path, "facility_location", quotas=quotas)
    task = output.read("ranking")["row_index"].to_numpy() % 3
    assert (task == 0).sum() >= BUDGET / 2
    assert (task == 1).sum() <= 1
    assert len(task) == BUDGET


def test_one_most_for_all_groups(within: dict[str, StageOutput], tmp_path: Path) -> None:
    output = select(within, tmp_path, "facility_location", quotas={"field": "task", "max": 4})
    task = output.read("ranking")["row_index"].to_numpy() % 3
    assert np.bincount(task).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        ({"field": "task", "min": {"task 9": 1}}, "no candidate is of the group task 9"),
        (
            {"field": "task", "min": {"task 0": 31}},
            "'task 0' is to have 31 picks, and has 30 candidates",
        ),
        ({"min": {"b.jsonl": 1}}, "source file.*Groups here: candidates.jsonl"),
    ],
)
def test_a_quota_that_cannot_be_met_is_named(
    within: dict[str, StageOutput], tmp_path: Path, quotas: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        select(within, tmp_path, "facility_location", quotas=quotas, budget=60)


def test_must_includes_come_first_and_exclusions_never(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    plain = ids(within["select"])
    last = within["embed"].read("candidates", ["example_id"])["example_id"].to_pylist()
    must = tuple(name for name in last if name not in plain)[:2]
    output = select(
        within, tmp_path, "facility_location", include=must, exclude=(plain[0], plain[3])
    )
    assert ids(output)[:2] == list(must)
    assert not {plain[0], plain[3]} & set(ids(output))
    assert not {plain[0], plain[3]} & set(output.read("skipped")["example_id"].to_pylist())


def test_unknown_ids_are_named(within: dict[str, StageOutput], tmp_path: Path) -> None:
    wrong = tuple(f"{i:032x}" for i in range(5))
    with pytest.raises(DataError, match=rf"selection.include: 5 of 5 ids .*{wrong[2]}, \.\.\."):
        select(within, tmp_path, "facility_location", include=wrong)


def test_existing_data_lower_every_gain(within: dict[str, StageOutput], tmp_path: Path) -> None:
    objective = "facility_location_conditional_gain"
    without = ids(select(within, tmp_path, objective, nu=0.0))
    assert without == ids(within["select"])
    plain = within["select"].read("ranking")["objective"][-1].as_py()
    assert select(within, tmp_path, objective).read("ranking")["objective"][-1].as_py() < plain


def test_a_copy_of_an_existing_example_adds_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    outputs = run_chain(
        tmp_path, num_candidates=40, num_targets=0, num_existing=40,
        objective="facility_location_conditional_gain", budget=5, same_existing=True,
    )  # fmt: skip
    assert corpus.exists()
    assert outputs["select"].read("ranking")["objective"][-1].as_py() == pytest.approx(0, abs=1e-5)
    assert outputs["deduplicate"].manifest.facts()["num_existing_among_candidates"] == 40


def test_a_skipped_candidate_names_the_pick_that_took_its_place(
    within: dict[str, StageOutput],
) -> None:
    picked = within["select"].read("ranking").to_pylist()
    rank = {row["row_index"]: row["rank"] for row in picked}
    skipped = within["select"].read("skipped").to_pylist()
    assert len(skipped) == 90 - BUDGET
    for row in skipped:
        assert row["row_index"] not in rank
        if row["redundant_with"] is None:
            assert row["alone_gain"] == 0  # it is in no row's list
            continue
        assert rank[row["redundant_with"]] == row["redundant_with_rank"]
        assert row["final_gain"] <= picked[-1]["gain"] + 1e-9
        assert row["alone_gain"] >= row["final_gain"]


def select_in_parts(
    outputs: dict[str, StageOutput],
    folder: Path,
    *,
    partitions: int,
    **selection: Any,
) -> StageOutput:
    wanted = SelectionConfig(
        objective="facility_location",
        budget=BUDGET,
        optimizer={"kind": "partitioned", "partitions": partitions},
        **selection,
    )
    location, reporter = Location.of(str(folder)), SilentReporter()
    read = (outputs["score_pairs"], outputs["embed"], wanted, outputs["deduplicate"])
    stage = SelectPartitionsStage(*read)
    parts = run_stage(stage, location, execute=execute_here, reporter=reporter)
    return run_stage(SelectStage(*read, parts), location, execute=execute_here, reporter=reporter)


def test_parts_run_as_shards_pick_what_one_process_does(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    objective = facility_location(ScoreTables.open(within["score_pairs"], 90).lists("within"))
    names = within["embed"].read("candidates", ["example_id"])["example_id"].to_pylist()
    tie_rank = np.argsort(np.argsort(names))
    tie_break = TieBreak(np.ones(90, np.float32), partial(read_directions, within["embed"]))
    expected = greedi(
        objective, Budget(BUDGET), num_parts=5, tie_rank=tie_rank, tie_break=tie_break
    )
    found = select_in_parts(within, tmp_path, partitions=5).read("ranking")
    np.testing.assert_array_equal(found["row_index"], expected.order)
    np.testing.assert_array_equal(found["gain"], expected.gain)


def test_more_parts_than_candidates_fall_empty(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    assert select_in_parts(within, tmp_path, partitions=300).num_rows("ranking") == BUDGET


class Killed(BaseException):
    """Stands for a signal."""


def test_a_killed_selection_goes_on_and_ends_bit_by_bit_the_same(
    within: dict[str, StageOutput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = SelectionConfig(objective="facility_location", budget=BUDGET)
    stage = SelectStage(within["score_pairs"], within["embed"], selection, save_seconds=0.0)
    location = Location.of(str(tmp_path))
    write = Location.write_bytes

    def die_after_seven(self: Location, data: bytes) -> None:
        write(self, data)
        if self.name == PICKS_NAME and len(load_picks(saved_in(tmp_path))[0]["order"]) == 7:
            raise Killed

    monkeypatch.setattr(Location, "write_bytes", die_after_seven)
    with pytest.raises(Killed):
        run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
    monkeypatch.undo()
    assert "7 of at most 12 picks" in stage.progress(saved_in(tmp_path))
    resumed = run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
    assert resumed.read("ranking").equals(within["select"].read("ranking"))
    assert not list(tmp_path.rglob(PICKS_NAME))


@pytest.mark.slow
def test_a_selection_that_dies_by_a_signal_goes_on(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    folders = [str(within[name].folder) for name in ("score_pairs", "embed")]
    child = "tests.unit.selection.die_selecting"
    command = [sys.executable, "-m", child, str(tmp_path), *folders]
    died = subprocess.run(command, timeout=240, check=False)  # noqa: S603
    assert died.returncode == -signal.SIGKILL
    saved = load_picks(saved_in(tmp_path))[0]["order"]
    assert saved == within["select"].read("ranking")["row_index"].to_pylist()[: len(saved)]
    selection = SelectionConfig(objective="facility_location", budget=BUDGET)
    stage = SelectStage(within["score_pairs"], within["embed"], selection)
    location = Location.of(str(tmp_path))
    resumed = run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
    assert resumed.read("ranking").equals(within["select"].read("ranking"))


class Told(SilentReporter):
    """Remembers what long items said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def working(self, name: str, message: str) -> None:
        self.messages.append(f"{name}: {message}")


def test_how_far_a_selection_is_reaches_the_reporter(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    selection = SelectionConfig(objective="facility_location", budget=BUDGET)
    stage = SelectStage(within["score_pairs"], within["embed"], selection)
    folder, told = Location.of(str(tmp_path)), Told()
    progress = Progress(7, 12, 3.5, 0.25, np.arange(7), np.zeros(7, np.int8))
    PicksCheckpoint(folder, every_seconds=0.0).save(progress)
    with watching(stage, folder, told, every_seconds=0.01):
        until = time.monotonic() + 5
        while not told.messages and time.monotonic() < until:
            time.sleep(0.01)
    assert told.messages[0] == "select: 7 of at most 12 picks, value 3.5, last gain 0.25"


def saved_in(folder: Path) -> Location:
    return Location.of(str(next(folder.rglob(PICKS_NAME)).parents[1]))


def test_lists_of_ids_enter_the_fingerprint_by_their_digest(
    within: dict[str, StageOutput],
) -> None:
    one, other = (
        SelectStage(
            within["score_pairs"],
            within["embed"],
            SelectionConfig(objective="facility_location", budget=3, include=(letter * 32,)),
        ).settings()
        for letter in "ab"
    )
    assert one["include"]["num_ids"] == 1
    assert one != other


def test_pair_coverage_reads_scores_without_what_an_example_is_by_itself(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    def run(stage: Stage) -> StageOutput:
        reporter = SilentReporter()
        return run_stage(stage, Location.of(str(tmp_path)), execute=execute_here, reporter=reporter)

    inputs = ExampleInputs(within["embed"])
    alone = run(ProjectStage(inputs, within["fit"], ("within",), pairs_only=True))
    for table in ("within_rows", "within_columns"):
        pairs, whole = (
            column_matrix(output.read(table)["activation"]) for output in (alone, within["project"])
        )
        np.testing.assert_array_equal(pairs[:, :-1], whole[:, :-1])
        assert not pairs[:, -1].any()
        assert whole[:, -1].any()
    config = PairScoresConfig(mode="exact")
    scores = run(ScorePairsStage(alone, within["fit"], ("within",), config))
    found = select(within | {"score_pairs": scores}, tmp_path, "pair_coverage")
    assert len(set(ids(found))) == BUDGET
    assert found.manifest.facts()["covers"] == "candidates"


def test_the_pool_form_covers_candidates_and_adds_what_helps_a_target() -> None:
    pool, target = listed(np.array([[1, 0.2], [0.4, 0.3]], np.float32)), np.array([0.0, 1.0])
    objective = facility_location_query_mutual_information(pool, target.astype(np.float32), 2.0)
    assert evaluate(objective, np.array([0, 1])) == pytest.approx([1.4, 3.4])


def test_objectives_that_add_pairs_read_every_pair(
    within: dict[str, StageOutput], tmp_path: Path
) -> None:
    def whole(**limits: Any) -> ScorePairsStage:
        config = PairScoresConfig(mode="exact", top_k=3, **limits)
        return ScorePairsStage(within["project"], within["fit"], ("within",), config, whole=True)

    location, reporter = Location.of(str(tmp_path)), SilentReporter()
    scores = run_stage(whole(), location, execute=execute_here, reporter=reporter)
    lists = scores.read("within_top_helpers")
    listed_IJ, influence_IJ = (
        np.array(lists[name].to_pylist()) for name in ("helper_index", "influence")
    )
    dense = np.empty((90, 90), np.float32)
    np.put_along_axis(dense, listed_IJ, influence_IJ.astype(np.float32), axis=1)
    tables = ScoreTables.open(scores, 90)
    expected = lazy_greedy(graph_cut(listed(tables.scale.apply(dense))), Budget(27)).order
    found = select(within | {"score_pairs": scores}, tmp_path, "graph_cut", budget=27)
    np.testing.assert_array_equal(found.read("ranking")["row_index"], expected)
    sums = column_sums(tables.lists("within"))
    np.testing.assert_allclose(sums, tables.scale.apply(dense).sum(axis=0), rtol=1e-5)
    with pytest.raises(ConfigError, match="adds up every pair of block 'within': 90 x 90"):
        whole(max_dense_bytes=50_000)
