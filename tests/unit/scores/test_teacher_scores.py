"""The teacher's labels as scores: what is kept of them, and what becomes of labels that failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.errors import DataError, StageError
from nncift_ray.recipe.sections import SelectionConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix, vectors_to_arrow
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from nncift_ray.scores.teacher_scores import TeacherScoresStage
from nncift_ray.selection.problem import InfluenceScale
from nncift_ray.selection.step import SelectStage
from nncift_ray.selection.tables import ScoreTables
from tests.chain import LastDigitTeacher, run_chain
from tests.made import given_output

COSINE_TOLERANCE = 1e-6  # float32
Label = tuple[str, int, int | None, float | None]  # block, helped, helper, utility; None: it failed

#: Two targets, four candidates. The pair (0, 2) failed, and all pairs of candidate 3.
CROSS_LABELS: list[Label] = [
    ("cross", 0, 0, 0.5), ("cross", 1, 0, -1.0), ("cross", 0, 1, 0.5), ("cross", 1, 1, 0.25),
    ("cross", 0, 2, None), ("cross", 1, 2, 1.0), ("cross", 0, 3, None), ("cross", 1, 3, None),
]  # fmt: skip


def finish(folder: Path, stage: Stage) -> StageOutput:
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def examples_table(names: Sequence[str]) -> pa.Table:
    rows = [
        {"row_index": i, "example_id": name, "prompt": f"text of {name}", "response": "",
         "record": json.dumps({"task": f"task {i % 2}"}), "source": "x.jsonl", "line": i + 1,
         "layout": "alpaca", "num_duplicates": 0}
        for i, name in enumerate(names)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)


def score(
    folder: Path,
    labels: Sequence[Label],
    *,
    num_candidates: int,
    num_targets: int = 0,
    top_k: int | None = 3,
    subtask_by: str | None = None,
) -> dict[str, StageOutput]:
    """Run the stage on given labels; what failed was asked and has no label."""
    location = Location.of(str(folder))
    names = ("block", "helped_index", "helper_index", "utility")
    rows = [dict(zip(names, label, strict=True)) | {"split": "train"} for label in labels]
    labelled = [row for row in rows if row["utility"] is not None]
    tables = {
        "deduplicate": {
            "candidates": examples_table([f"c{i}" for i in range(num_candidates)]),
            "targets": examples_table([f"t{i}" for i in range(num_targets)]),
        },
        "label": {"labels": pa.Table.from_pylist(labelled, schema=schemas.LABELS)},
    }
    blocks = tuple(dict.fromkeys(row["block"] for row in rows))
    helped = {block: [r["helped_index"] for r in rows if r["block"] == block] for block in blocks}
    asked = {b: {"num_rows": len({*of}), "num_pairs": len(of)} for b, of in helped.items()}
    outputs = {
        name: given_output(location, name, given, asked=asked) for name, given in tables.items()
    }
    stage = TeacherScoresStage(
        outputs["label"], outputs["deduplicate"], blocks, top_k,
        subtask_by=subtask_by,
    )  # fmt: skip
    return outputs | {"scores": finish(folder, stage)}


def select(
    folder: Path, outputs: dict[str, StageOutput], objective: str, **selection: Any
) -> StageOutput:
    count = outputs["deduplicate"].num_rows("candidates")
    vectors = {
        "row_index": pa.array(np.arange(count), pa.int64()),
        "example_id": pa.array([f"c{i}" for i in range(count)]),
        "num_tokens": pa.array(np.ones(count), pa.int32()),
        "embedding": vectors_to_arrow(np.eye(count, dtype=np.float32), "float32"),
    }
    table = pa.Table.from_pydict(vectors, schema=schemas.embeddings_schema(count, "float32"))
    embeddings = given_output(Location.of(str(folder)), "embed", {"candidates": table})
    wanted = SelectionConfig(objective=objective, budget=count, **selection)
    stage = SelectStage(outputs["scores"], embeddings, wanted, examples=outputs["deduplicate"])
    return finish(folder, stage)


def lists_of(scores: StageOutput, block: str) -> list[list[tuple[int, float]]]:
    return [
        list(zip(row["helper_index"], row["influence"], strict=True))
        for row in scores.read(f"{block}_top_helpers").to_pylist()
    ]


def test_lists_of_given_labels_worked_by_hand(tmp_path: Path) -> None:
    scores = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2, top_k=2)["scores"]
    # Equal labels stand by smaller index; the failed pair (0, 2) is in no list.
    assert lists_of(scores, "cross") == [[(0, 0.5), (1, 0.5)], [(2, 1.0), (1, 0.25)]]
    assert scores.read("column_max").to_pylist() == [
        {"block": "cross", "helper_index": 0, "max_influence": 0.5},
        {"block": "cross", "helper_index": 1, "max_influence": 0.5},
        {"block": "cross", "helper_index": 2, "max_influence": 1.0},
    ]


def test_statistics_cover_the_labels_and_count_those_that_failed(tmp_path: Path) -> None:
    scores = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2)["scores"]
    assert scores.read("statistics").to_pylist() == [
        {"block": "cross", "num_scored": 5, "num_pairs": 5, "min": -1.0, "max": 1.0, "sum": 1.25,
         "sum_of_squares": 2.5625}
    ]  # fmt: skip
    assert scores.manifest.facts()["labels"]["cross"] == {
        "num_rows": 2, "num_asked_rows": 2, "num_columns": 4, "num_asked": 8, "num_labelled": 5,
        "num_unranked": 1,
    }  # fmt: skip


def test_a_candidate_without_a_label_is_an_error_row_and_is_never_picked(tmp_path: Path) -> None:
    outputs = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2)
    errors = outputs["scores"].read("errors").to_pylist()
    assert [(row["reason"], row["example_id"]) for row in errors] == [("no_label", "c3")]
    made = select(tmp_path, outputs, "facility_location_query_mutual_information")
    assert set(made.read("ranking")["row_index"].to_pylist()) == {0, 1, 2}
    assert made.manifest.facts()["stopped_by"] == "exhausted"


def test_including_a_candidate_without_a_label_is_refused(tmp_path: Path) -> None:
    outputs = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2)
    with pytest.raises(DataError, match=r"selection.include names c3, which the teacher gave no"):
        select(tmp_path, outputs, "facility_location_query_mutual_information",
               include=("c3",))  # fmt: skip


def test_top_k_means_are_over_the_rows_that_have_a_label(tmp_path: Path) -> None:
    outputs = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2, top_k=None)
    # (0.5 - 1) / 2, (0.5 + 0.25) / 2, and 1 / 1: the failed pair is no 0.
    expected = [-0.25, 0.375, 1.0, np.nan]
    tables = ScoreTables.open(outputs["scores"], 4)
    np.testing.assert_array_equal(tables.raw_scores(), expected)
    made = select(tmp_path, outputs, "top_k")
    assert made.read("ranking")["row_index"].to_pylist() == [2, 1, 0]


def test_top_k_takes_the_best_subtask_that_has_a_label(tmp_path: Path) -> None:
    outputs = score(tmp_path, CROSS_LABELS, num_candidates=4, num_targets=2, top_k=None,
                    subtask_by="task")  # fmt: skip
    # Each target is a subtask by itself: the best label of each candidate.
    np.testing.assert_array_equal(
        ScoreTables.open(outputs["scores"], 4).raw_scores(), [0.5, 0.5, 1.0, np.nan]
    )
    assert outputs["scores"].num_rows("column_sums") == 5


def test_rows_that_were_not_asked_about_have_empty_lists(tmp_path: Path) -> None:
    labels: list[Label] = [("within", 2, 0, 0.5), ("within", 2, 1, 0.75), ("within", 2, 3, None)]
    outputs = score(tmp_path, labels, num_candidates=4)
    assert lists_of(outputs["scores"], "within") == [[], [], [(1, 0.75), (0, 0.5)], []]
    counts = outputs["scores"].manifest.facts()["labels"]["within"]
    assert (counts["num_rows"], counts["num_asked_rows"]) == (4, 1)


def test_points_rank_by_their_rating_and_those_without_are_left_out(tmp_path: Path) -> None:
    labels: list[Label] = [("points", 0, None, None), ("points", 1, None, -2.0),
                           ("points", 2, None, 3.0)]  # fmt: skip
    outputs = score(tmp_path, labels, num_candidates=3)
    made = select(tmp_path, outputs, "top_k")
    assert made.read("ranking")["row_index"].to_pylist() == [2, 1]
    assert outputs["scores"].read("errors")["example_id"].to_pylist() == ["c0"]


def test_a_block_without_any_label_is_refused(tmp_path: Path) -> None:
    labels: list[Label] = [("cross", 0, 0, None)]
    with pytest.raises(StageError, match="no label of the block 'cross'"):
        score(tmp_path, labels, num_candidates=1, num_targets=1)


def cosines(outputs: dict[str, StageOutput], role: str) -> np.ndarray:
    helped, helpers = (
        column_matrix(outputs["embed"].read(name)["embedding"]).astype(np.float64)
        for name in (role, "candidates")
    )
    return helped @ helpers.T


def test_delift_se_over_all_pairs_is_every_cosine_sorted(tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path, num_candidates=90, num_targets=7, by_teacher=True, top_helpers=90,
        objective="facility_location_mutual_information", budget=5,
    )  # fmt: skip
    for block, role in (("within", "candidates"), ("cross", "targets")):
        truth = cosines(outputs, role)
        for row, found in zip(truth, lists_of(outputs["teacher_scores"], block), strict=True):
            helper, label = (np.array(column) for column in zip(*found, strict=True))
            assert len(helper) == 90 - (block == "within")
            assert len(set(helper.tolist())) == len(helper)
            assert (np.diff(label) <= 0).all()
            np.testing.assert_allclose(label, row[helper], rtol=0, atol=COSINE_TOLERANCE)


def greedy_oracle(scaled_QJ: np.ndarray, budget: int) -> list[int]:
    """Maximise sum_q max_j s_qj + sum_j max_q s_qj, one pick after another."""
    picks: list[int] = []
    best_Q = np.zeros(len(scaled_QJ))
    for _ in range(budget):
        gain_J = np.maximum(scaled_QJ - best_Q[:, None], 0).sum(axis=0) + scaled_QJ.max(axis=0)
        gain_J[picks] = -np.inf
        picks.append(int(np.argmax(gain_J)))
        best_Q = np.maximum(best_Q, scaled_QJ[:, picks[-1]])
    return picks


def test_a_selection_by_teacher_is_that_of_the_teachers_matrix(tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path, num_candidates=80, num_targets=12, by_teacher=True, top_helpers=80,
        objective="facility_location_query_mutual_information", budget=9,
    )  # fmt: skip
    labels = outputs["label"].read("labels")
    matrix_QJ = np.full((12, 80), np.nan, np.float32)
    matrix_QJ[labels["helped_index"], labels["helper_index"]] = labels["utility"].to_numpy()
    assert not np.isnan(matrix_QJ).any()
    scale = InfluenceScale(float(matrix_QJ.min()), float(matrix_QJ.max()))
    picks = outputs["select"].read("ranking")["row_index"].to_pylist()
    assert picks == greedy_oracle(scale.apply(matrix_QJ).astype(np.float64), 9)


def test_points_by_teacher_rank_by_the_teachers_word(tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path, num_candidates=60, num_targets=0, by_teacher=True, objective="top_k",
        make_teacher=LastDigitTeacher, budget=12,
    )  # fmt: skip
    prompts = outputs["deduplicate"].read("candidates", ["prompt"])["prompt"].to_pylist()
    picked = outputs["select"].read("ranking")["row_index"].to_pylist()
    assert [int(prompts[row][-1]) for row in picked] == [9] * 6 + [8] * 6
