"""Questions to a run whose scores are its teacher's labels: explain, query, extend, sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.explain import explain, query
from nncift_ray.extend import prepare
from nncift_ray.runs import Run
from nncift_ray.sweep import SweepGrid, plan_sweep
from tests.chain import LastDigitTeacher, run_chain
from tests.unit.explain.recorded import record_run

NUM_CANDIDATES, NUM_TARGETS, BUDGET = 70, 8, 10


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("teacher")
    outputs = run_chain(
        folder, num_candidates=NUM_CANDIDATES, num_targets=NUM_TARGETS, by_teacher=True,
        objective="facility_location_query_mutual_information", budget=BUDGET,
    )  # fmt: skip
    return Run.open(record_run(folder, outputs))


def id_of(run: Run, role: str, row: int) -> str:
    return run.outputs["deduplicate"].read(role, ["example_id"])["example_id"].to_pylist()[row]


def labels_of(run: Run, column: str, index: int) -> dict[int, float]:
    other = {"helped_index": "helper_index", "helper_index": "helped_index"}[column]
    rows = run.outputs["label"].read("labels").to_pylist()
    return {row[other]: row["utility"] for row in rows if row[column] == index}


@pytest.mark.parametrize(
    ("role", "row", "column", "direction"),
    [("targets", 3, "helped_index", "helpers"), ("candidates", 11, "helper_index", "helped")],
)
def test_a_query_lists_the_teachers_own_labels(
    run: Run, role: str, row: int, column: str, direction: str
) -> None:
    answer = query(run, id_of(run, role, row), top=5)
    (found,) = answer.lists
    labels = labels_of(run, column, row)
    assert (found.direction, found.num_scored) == (direction, len(labels))
    best = sorted(labels, key=lambda index: (-labels[index], index))[:5]
    assert [near.example.row_index for near in found.neighbours] == best
    assert [near.influence for near in found.neighbours] == [labels[index] for index in best]
    assert any("teacher's own label" in note for note in answer.notes)


def test_explain_replays_the_picks_of_the_labels(run: Run) -> None:
    ranking = run.outputs["select"].read("ranking").to_pylist()
    found = explain(run, ranking[2]["example_id"])
    assert (found.picked, found.place) == (True, 3)
    assert found.gain == pytest.approx(ranking[2]["gain"])
    left = set(range(NUM_CANDIDATES)) - {row["row_index"] for row in ranking}
    assert not explain(run, id_of(run, "candidates", min(left))).picked


def test_a_rating_is_told_as_the_teachers(tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path, num_candidates=30, num_targets=0, by_teacher=True, objective="top_k",
        make_teacher=LastDigitTeacher, budget=6,
    )  # fmt: skip
    rated = Run.open(record_run(tmp_path, outputs))
    answer = query(rated, id_of(rated, "candidates", 7))
    assert answer.score is not None
    assert answer.score.meaning == "what the teacher says of the example"
    assert np.isclose(answer.score.value, 7 - 4)


def test_new_data_have_no_labels_so_extend_refuses(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"prompt": "new", "completion": "row"}\n')
    with pytest.raises(ConfigError, match="new candidates have none"):
        prepare(str(run.run_dir), [str(tmp_path / "new.jsonl")], None)


def test_a_sweep_needs_a_network(run: Run) -> None:
    with pytest.raises(ConfigError, match="pair_scores.by=network"):
        plan_sweep(run.config, SweepGrid())
