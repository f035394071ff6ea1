"""``nncift extend``: a run gone on with new data is, to the bit, a run over everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.report.data import count_duplicates
from nncift_ray.runs import Run, StatusReader
from tests.chain import LastDigitTeacher
from tests.unit.extend.grown import (
    NUM_NEW,
    NUM_OLD,
    NUM_TARGETS,
    Outputs,
    grow,
    make_parent,
    score_whole,
    write_new,
)

SUM_TOLERANCE = 1e-9  # relative, of float64 sums that are added up in another order
COPIES = (3, 3, 250)  # old candidates that the new file holds again

KINDS: dict[str, dict[str, Any]] = {
    "within": {"objective": "facility_location", "num_targets": 0},
    "cross": {"objective": "facility_location_query_mutual_information"},
    "both": {"objective": "facility_location_mutual_information"},
    "sums": {"objective": "top_k"},
    "sums within": {"objective": "top_k", "num_targets": 0},
    "subtasks": {"objective": "top_k", "subtask_by": "task"},
    "existing": {"objective": "facility_location_conditional_gain", "num_existing": 15}
    | {"num_targets": 0},
    "points": {"objective": "top_k", "num_targets": 0, "make_teacher": LastDigitTeacher},
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outputs, Outputs]:
    """Return the outputs of an extended run and of a run over everything."""
    folder = tmp_path_factory.mktemp("grown")
    options = KINDS[request.param]
    parent = make_parent(folder, **options)
    new = write_new(folder / "new.jsonl", NUM_OLD, NUM_NEW, copies_of=COPIES)
    grown = grow(parent, new, str(folder / "grown"))
    with_targets = options.get("num_targets", NUM_TARGETS) > 0
    return grown, score_whole(folder, parent, [new], with_targets=with_targets)


def tables_of(outputs: Outputs, stage: str) -> list[str]:
    parts = [part for shard in outputs[stage].manifest.shards for part in shard.parts]
    return sorted({part.table for part in parts} - {"files"})


def assert_same_tables(grown: Outputs, whole: Outputs, stage: str, *leave: str) -> None:
    for table in tables_of(whole, stage):
        found, wanted = (outputs[stage].read(table) for outputs in (grown, whole))
        found, wanted = found.drop_columns(list(leave)), wanted.drop_columns(list(leave))
        assert found.equals(wanted), f"{stage}/{table}"


def test_examples_are_numbered_as_in_a_run_over_everything(pair: tuple[Outputs, Outputs]) -> None:
    assert_same_tables(*pair, "deduplicate", "num_duplicates")
    assert count_duplicates(pair[0]["deduplicate"]) == len(COPIES)
    assert count_duplicates(pair[0]["deduplicate"]) == count_duplicates(pair[1]["deduplicate"])


def test_vectors_and_activations_are_those_of_a_run_over_everything(
    pair: tuple[Outputs, Outputs],
) -> None:
    assert_same_tables(*pair, "embed")
    assert_same_tables(*pair, "project")


def test_lists_are_bit_for_bit_those_of_a_run_over_everything(
    pair: tuple[Outputs, Outputs],
) -> None:
    lists = [name for name in tables_of(pair[1], "score_pairs") if name.endswith("_top_helpers")]
    for table in lists:
        found, wanted = (outputs["score_pairs"].read(table) for outputs in pair)
        assert found.equals(wanted)
    assert bool(lists) == (not pair[1]["score_pairs"].num_rows("column_sums"))


def test_column_maxima_and_sums_add_up_to_those_of_a_run_over_everything(
    pair: tuple[Outputs, Outputs],
) -> None:
    maxima, sums = [], []
    for outputs in pair:
        scores, count = outputs["score_pairs"], outputs["deduplicate"].num_rows("candidates")
        largest, total = np.full(count, -np.inf, np.float32), np.zeros(count, np.int64)
        for row in scores.read("column_max").to_pylist():
            column = row["helper_index"]
            largest[column] = max(largest[column], row["max_influence"])
        for row in scores.read("column_sums").to_pylist():
            total[row["helper_index"]] += row["sum"]
        maxima.append(largest)
        sums.append(total)
    np.testing.assert_array_equal(*maxima)
    np.testing.assert_array_equal(*sums)


def test_statistics_are_of_every_pair_once(pair: tuple[Outputs, Outputs]) -> None:
    totals = []
    for outputs in pair:
        by_block: dict[str, list[float]] = {}
        for row in outputs["score_pairs"].read("statistics").to_pylist():
            have = by_block.setdefault(row["block"], [0, np.inf, -np.inf, 0.0, 0.0])
            have[0] += row["num_pairs"]
            have[1], have[2] = min(have[1], row["min"]), max(have[2], row["max"])
            have[3], have[4] = have[3] + row["sum"], have[4] + row["sum_of_squares"]
        totals.append(by_block)
    found, wanted = totals
    assert found.keys() == wanted.keys()
    for block in wanted:
        assert found[block][:3] == wanted[block][:3]
        np.testing.assert_allclose(found[block][3:], wanted[block][3:], rtol=SUM_TOLERANCE)


def test_the_subset_is_that_of_a_run_over_everything(pair: tuple[Outputs, Outputs]) -> None:
    grown, whole = pair
    assert_same_tables(grown, whole, "select")
    for name in ("subset.jsonl", "alpaca.json", "messages.jsonl"):
        assert grown["export"].read_file(name) == whole["export"].read_file(name)
    picked = grown["select"].read("ranking")["row_index"].to_numpy()
    assert (picked >= NUM_OLD).any()  # so the new data had a part in it


def test_only_what_is_new_is_embedded_and_projected(pair: tuple[Outputs, Outputs]) -> None:
    grown = pair[0]
    assert grown["embed"].manifest.num_rows("candidates") == NUM_NEW
    assert grown["embed"].manifest.num_rows("targets") == 0
    assert all(
        grown["project"].manifest.num_rows(table) in (0, NUM_NEW)
        for table in tables_of(grown, "project")
    )


def test_a_run_gone_on_from_twice_is_still_a_run_over_everything(tmp_path: Path) -> None:
    parent = make_parent(tmp_path, objective="facility_location_mutual_information")
    news = [
        write_new(tmp_path / "new1.jsonl", NUM_OLD, 40, copies_of=(5,)),
        write_new(tmp_path / "new2.jsonl", NUM_OLD + 40, 30, copies_of=(5, NUM_OLD + 2)),
    ]
    grow(parent, news[0], str(tmp_path / "once"))
    twice = grow(str(tmp_path / "once"), news[1], str(tmp_path / "twice"))
    whole = score_whole(tmp_path, parent, news)
    for stage in ("embed", "project", "select"):
        assert_same_tables(twice, whole, stage)
    for table in ("within_top_helpers", "cross_top_helpers"):
        assert twice["score_pairs"].read(table).equals(whole["score_pairs"].read(table))
    reopened = Run.open(str(tmp_path / "twice")).outputs
    assert reopened["select"].read("ranking").equals(whole["select"].read("ranking"))
    assert reopened["embed"].read("candidates").equals(whole["embed"].read("candidates"))
    assert twice["drift"].manifest.settings["num_labelled_corpus"] == NUM_OLD
    assert count_duplicates(twice["deduplicate"]) == 3


def test_nothing_new_changes_nothing(tmp_path: Path) -> None:
    parent = make_parent(tmp_path, objective="facility_location_mutual_information")
    new = write_new(tmp_path / "new.jsonl", 0, 0, copies_of=(1, 2, 3))
    grown, old = grow(parent, new, str(tmp_path / "grown")), Run.open(parent).outputs
    assert grown["deduplicate"].manifest.num_rows("candidates") == 0
    assert_same_tables(grown, old, "select")
    assert (
        grown["score_pairs"]
        .read("within_top_helpers")
        .equals(old["score_pairs"].read("within_top_helpers"))
    )
    assert grown["drift"].manifest.facts()["due"] is False


def test_the_parent_is_left_as_it_was(tmp_path: Path) -> None:
    parent = make_parent(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(parent).rglob("*")}
    grow(parent, write_new(tmp_path / "new.jsonl", NUM_OLD, 9), str(tmp_path / "grown"))
    assert {path: path.stat().st_mtime_ns for path in Path(parent).rglob("*")} == before


def test_status_shows_inherited_stages_where_they_lie(tmp_path: Path) -> None:
    parent = make_parent(tmp_path)
    grow(parent, write_new(tmp_path / "new.jsonl", NUM_OLD, 9), str(tmp_path / "grown"))
    stages = {stage.name: stage for stage in StatusReader(str(tmp_path / "grown")).read().stages}
    assert {stage.state for stage in stages.values()} == {"done"}
    assert stages["fit"].folder.startswith(parent)
    assert stages["embed"].folder.startswith(str(tmp_path / "grown"))


def test_the_record_holds_the_recipe_of_the_union(tmp_path: Path) -> None:
    parent = make_parent(tmp_path)
    new = write_new(tmp_path / "new.jsonl", NUM_OLD, 9)
    grow(parent, new, str(tmp_path / "grown"))
    record = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert record["config"]["data"]["candidates"][-1] == new
    assert record["parent"]["run_dir"] == parent
