"""``nncift query``: what helps an example and what it helps, against the run's own lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nncift_ray import explain as pair_lookup
from nncift_ray.cli import app
from nncift_ray.errors import DataError, StageError
from nncift_ray.explain import InfluenceList, QueryAnswer, query
from nncift_ray.runs import Run
from nncift_ray.runtime.output import StageOutput
from tests.chain import LastDigitTeacher, run_chain
from tests.s3 import s3_server
from tests.unit.explain.recorded import record_run

NUM_CANDIDATES, NUM_TARGETS, TOP = 90, 12, 10
Chain = tuple[str, dict[str, StageOutput]]


@pytest.fixture(scope="module")
def both_blocks(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("both")
    outputs = run_chain(folder, num_candidates=NUM_CANDIDATES, num_targets=NUM_TARGETS, budget=9)
    return record_run(folder, outputs), outputs


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("points")
    outputs = run_chain(
        folder,
        num_candidates=NUM_CANDIDATES,
        num_targets=0,
        budget=9,
        objective="top_k",
        make_teacher=LastDigitTeacher,
    )
    return record_run(folder, outputs), outputs


def ask(run: Run, role: str, row: int, top: int = TOP) -> QueryAnswer:
    example_id = run[1]["deduplicate"].read(f"{role}s", ["example_id"])["example_id"][row].as_py()
    return query(Run.open(run[0]), example_id, top)


def the_list(answer: QueryAnswer, direction: str, block: str) -> InfluenceList:
    return next(m for m in answer.lists if (m.direction, m.block) == (direction, block))


def pairs_of(made: InfluenceList) -> list[tuple[int, float]]:
    return [(row.example.row_index, row.influence) for row in made.neighbours]


def stored(run: Run, block: str) -> list[dict[int, float]]:
    rows = run[1]["score_pairs"].read(f"{block}_top_helpers").to_pylist()
    return [dict(zip(row["helper_index"], row["influence"], strict=True)) for row in rows]


def test_helpers_are_the_list_that_the_run_keeps_without_the_example_itself(
    both_blocks: Run,
) -> None:
    kept = stored(both_blocks, "within")
    for row in (0, 41, NUM_CANDIDATES - 1):
        wanted = [pair for pair in kept[row].items() if pair[0] != row]
        found = pairs_of(the_list(ask(both_blocks, "candidate", row), "helpers", "within"))
        assert found[: len(wanted)] == wanted


def test_helpers_of_a_target_are_its_list(both_blocks: Chain) -> None:
    answer = ask(both_blocks, "target", 5)
    assert [(made.direction, made.block) for made in answer.lists] == [("helpers", "cross")]
    assert pairs_of(answer.lists[0]) == list(stored(both_blocks, "cross")[5].items())


def test_whom_a_candidate_helps_is_its_column_over_all_rows(both_blocks: Chain) -> None:
    everything = {
        row: dict(pairs_of(the_list(ask(both_blocks, "target", row, 1000), "helpers", "cross")))
        for row in range(NUM_TARGETS)
    }
    column = {row: scores[17] for row, scores in everything.items()}
    wanted = sorted(column.items(), key=lambda pair: (-pair[1], pair[0]))
    answer = ask(both_blocks, "candidate", 17, 1000)
    assert pairs_of(the_list(answer, "helped", "cross")) == wanted
    assert len(the_list(answer, "helped", "within").neighbours) == NUM_CANDIDATES - 1


def test_tiles_change_nothing(both_blocks: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(both_blocks, "candidate", 3)
    monkeypatch.setattr(pair_lookup, "TILE_ROWS", 7)
    assert ask(both_blocks, "candidate", 3) == whole


def test_the_subset_is_marked_by_rank(both_blocks: Chain) -> None:
    ranking = both_blocks[1]["select"].read("ranking").to_pylist()
    answer = ask(both_blocks, "candidate", ranking[2]["row_index"])
    assert answer.found_as[0].subset_rank == 3
    picked = {row["row_index"] for row in ranking}
    listed = the_list(answer, "helped", "within").neighbours
    assert all(
        (n.example.subset_rank is not None) == (n.example.row_index in picked) for n in listed
    )


def test_a_pointwise_run_tells_score_and_rank_instead(points: Chain) -> None:
    sums = points[1]["score_pairs"].read("column_sums")["sum"].to_numpy()
    best = ask(points, "candidate", int(np.argmax(sums)))
    assert best.score is not None
    assert (best.score.rank, best.lists) == (1, ())
    assert best.score.value == sums.max() / 2.0**32
    assert "scores examples, not pairs" in best.notes[0]


def test_an_id_may_be_shortened_and_a_wrong_one_names_what_is_near(both_blocks: Chain) -> None:
    ids = both_blocks[1]["deduplicate"].read("candidates", ["example_id"])["example_id"].to_pylist()
    assert query(Run.open(both_blocks[0]), ids[4][:12]).found_as[0].row_index == 4
    with pytest.raises(DataError, match=f"near it are.*{ids[4]}"):
        query(Run.open(both_blocks[0]), ids[4][:12] + "zz")
    with pytest.raises(DataError, match="begins several ids"):
        query(Run.open(both_blocks[0]), "")


def test_a_run_that_is_not_scored_says_what_to_run(both_blocks: Chain) -> None:
    run = Run.open(both_blocks[0])
    run.outputs.pop("score_pairs")
    with pytest.raises(StageError, match="score_pairs' of this run is not finished"):
        query(run, "a")


def test_a_run_that_is_not_selected_yet_is_answered_all_the_same(both_blocks: Chain) -> None:
    run = Run.open(both_blocks[0])
    run.outputs.pop("select")
    example_id = both_blocks[1]["deduplicate"].read("targets")["example_id"][0].as_py()
    assert "nothing is selected yet" in query(run, example_id).notes[-1]


def test_a_run_in_a_bucket_answers_as_one_on_disk(
    both_blocks: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch, "runs") as mark:
        bucket = f"s3://runs/mine{mark}"
        outputs = run_chain(
            tmp_path, num_candidates=NUM_CANDIDATES, num_targets=NUM_TARGETS, budget=9,
            run_dir=bucket,
        )  # fmt: skip
        record_run(tmp_path, outputs, run_dir=bucket)
        remote = ask((bucket, outputs), "candidate", 8)
    local = ask(both_blocks, "candidate", 8)
    assert [pairs_of(made) for made in remote.lists] == [pairs_of(made) for made in local.lists]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_lists_or_json(both_blocks: Run, as_json: bool) -> None:
    example_id = both_blocks[1]["deduplicate"].read("candidates")["example_id"][0].as_py()
    arguments = ["query", both_blocks[0], "--id", example_id[:14], "--top", "3"]
    result = CliRunner().invoke(
        app, [*arguments, *(["--json"] if as_json else [])], env={"COLUMNS": "160", "TERM": "dumb"}
    )
    assert result.exit_code == 0
    if as_json:
        answer = json.loads(result.output)
        assert [len(made["neighbours"]) for made in answer["lists"]] == [3, 3, 3]
    else:
        assert f"candidate {example_id}" in result.output
        assert "What helps this candidate most (within, best of 89)" in result.output
        assert "candidates.jsonl:1, " in result.output
