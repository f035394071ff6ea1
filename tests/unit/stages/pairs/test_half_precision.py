"""Activations stored in float16: read as float32 everywhere, their error measured and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.errors import StageError
from nncift_ray.explain import score_helped, score_helpers
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import make_config
from nncift_ray.report.data import scoring_table
from nncift_ray.runtime.driver import execute_here, run_stage, stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from nncift_ray.scores.exact import (
    round_to_half,
    rounding_error,
    score_block,
    score_points,
    top_k_rows,
)
from nncift_ray.scores.index_step import IndexOptions, IndexStage
from nncift_ray.scores.project import ProjectStage
from nncift_ray.scores.step import Pruning, ScorePairsStage
from tests.unit.stages.chain import LastDigitTeacher, run_chain
from tests.unit.stages.made import HIDDEN, Made, make_network, make_stages

K = 10
BLOCKS = ("within", "cross")
MEAN_TOLERANCE = 1e-12  # relative, of one float64 mean of the same numbers
PRUNED = IndexOptions(mode="pruned", min_recall=0.5, recall_rows=30)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = Location.of(str(tmp_path_factory.mktemp("made")))
    return make_stages(folder, num_candidates=200, num_targets=30)


@pytest.fixture(scope="module")
def halved(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same stages with activations in float16, and those as float32 for a plain computation."""
    stored = finish(project(made), tmp_path_factory.mktemp("halved"))
    return replace(
        made, activations=stored, a_IH=round_to_half(made.a_IH), b_JH=round_to_half(made.b_JH)
    )


def project(made: Made, **options: Any) -> ProjectStage:
    given = {"dtype": "float16"} | options
    return ProjectStage(made.embeddings, made.networks, BLOCKS, HIDDEN, **given)


def finish(stage: Stage, folder: Path) -> StageOutput:
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def score(halved: Made, folder: Path, pruning: Pruning | None = None) -> StageOutput:
    blocks = BLOCKS if pruning is None else ("within",)
    return finish(
        ScorePairsStage(halved.activations, halved.networks, blocks, K, pruning=pruning), folder
    )


def lists_of(scores: StageOutput) -> tuple[np.ndarray, np.ndarray]:
    lists = scores.read("within_top_helpers")
    index = np.array(lists["helper_index"].to_pylist())
    return index, np.array(lists["influence"].to_pylist(), np.float32)


def test_lists_are_those_of_the_rounded_activations_bit_for_bit(
    halved: Made, tmp_path: Path
) -> None:
    network = halved.network
    true = top_k_rows(halved.a_IH, halved.b_JH, network.w_H, network.bias, K)
    index, influence = lists_of(score(halved, tmp_path))
    np.testing.assert_array_equal(index, true.index_IK)
    np.testing.assert_array_equal(influence, true.score_IK)


def test_the_table_is_in_float16_and_is_read_in_float32(halved: Made) -> None:
    column = halved.activations.read("within_rows")["activation"]
    assert str(column.type.value_type) == "halffloat"
    matrix = column_matrix(column)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, halved.a_IH)


def test_a_pruned_list_holds_exact_scores_of_the_rounded_activations(
    halved: Made, tmp_path: Path
) -> None:
    index = finish(
        IndexStage(
            halved.activations,
            halved.networks,
            halved.embeddings,
            ("within",),
            K,
            PRUNED,
            max_worker_bytes=10**9,
        ),
        tmp_path,
    )
    pruning = Pruning(index, halved.embeddings, PRUNED.recall_rows, PRUNED.seed)
    network = halved.network
    every = top_k_rows(halved.a_IH, halved.b_JH, network.w_H, network.bias, len(halved.b_JH))
    score_IJ = np.empty(every.score_IK.shape, np.float32)
    np.put_along_axis(score_IJ, every.index_IK.astype(np.int64), every.score_IK, axis=1)
    listed, influence = lists_of(score(halved, tmp_path, pruning))
    np.testing.assert_array_equal(influence, np.take_along_axis(score_IJ, listed, axis=1))


def test_a_query_sees_the_scores_of_the_run(halved: Made, tmp_path: Path) -> None:
    index, influence = lists_of(score(halved, tmp_path))
    found = score_helpers(halved.activations, halved.network, "within", 3, K)
    np.testing.assert_array_equal(found[0], index[3])
    np.testing.assert_array_equal(found[1], influence[3])
    row, value = score_helped(halved.activations, halved.network, "within", int(index[3, 0]), 200)
    np.testing.assert_array_equal(value[row == 3], influence[3, :1])


def test_the_recorded_error_is_that_of_a_plain_computation(made: Made, halved: Made) -> None:
    w_H, bias = made.network.w_H, made.network.bias
    rounded = score_block(halved.a_IH, halved.b_JH, w_H, bias).astype(np.float64)
    change = np.abs(rounded - score_block(made.a_IH, made.b_JH, w_H, bias))
    error = halved.activations.manifest.facts()["float16_error:within"]
    assert error["max"] == change.max() > 0
    assert error["mean"] == pytest.approx(change.mean(), rel=MEAN_TOLERANCE)
    assert error["num_pairs"] == 200 * 200
    assert halved.activations.manifest.facts()["float16_error:cross"]["num_pairs"] == 30 * 200


def test_error_and_rows_do_not_depend_on_shards(tmp_path: Path) -> None:
    made = make_stages(Location.of(str(tmp_path / "made")), num_candidates=2500)
    one, many = (
        finish(project(made, shard_rows=rows), tmp_path / f"{rows}") for rows in (100_000, 1024)
    )
    assert len(many.manifest.shards) > len(one.manifest.shards)
    assert many.manifest.facts() == one.manifest.facts()
    assert one.manifest.facts()["float16_error:within"]["num_pairs"] == 256 * 256
    assert many.read("within_columns").equals(one.read("within_columns"))


def test_numbers_that_float16_has_leave_scores_as_they_are() -> None:
    network = make_network()
    a_IH = np.float32([[0.5, -2.0, 1024.0] * 3])
    assert rounding_error(network, a_IH, a_IH).max == 0.0


def test_the_error_of_points_is_measured_on_examples() -> None:
    pairs = make_network()
    network = FactoredNetwork(
        pairs.w_row_HD, pairs.b_row_H, np.zeros((HIDDEN, 0), np.float32), pairs.w_H, 0.0
    )
    a_NH = np.random.default_rng(0).standard_normal((40, HIDDEN), np.float32)
    change = score_points(round_to_half(a_NH), pairs.w_H, 0.0) - score_points(a_NH, pairs.w_H, 0.0)
    error = rounding_error(network, a_NH, None)
    assert error.max == pytest.approx(np.abs(change).max(), rel=1e-6)
    assert error.num_pairs == 40


def test_an_activation_beyond_float16_is_refused_with_key_and_row(tmp_path: Path) -> None:
    made = make_stages(Location.of(str(tmp_path / "made")), num_candidates=50, scale=1e5)
    with pytest.raises(StageError, match=r"activation_dtype: float16 ends at 65,504, and row \d+"):
        finish(project(made), tmp_path)
    finish(project(made, dtype="float32"), tmp_path)


def test_the_largest_number_of_float16_fits_and_the_next_does_not() -> None:
    assert round_to_half(np.float32([[65504.0]])) == 65504.0
    with pytest.raises(ValueError, match="row 0 holds an activation beyond 65,504"):
        round_to_half(np.float32([[np.nextafter(np.float32(65504), np.float32(1e6))]]))


def test_the_new_key_leaves_float32_runs_their_fingerprints(made: Made) -> None:
    plain = ProjectStage(made.embeddings, made.networks, BLOCKS, HIDDEN)
    assert plain.settings() == {"blocks": list(BLOCKS), "atom_rows": 1024}
    assert stage_fingerprint(project(made, dtype="float32")) == stage_fingerprint(plain)
    assert stage_fingerprint(project(made)) != stage_fingerprint(plain)


def test_the_recipe_decides_the_dtype(made: Made, tmp_path: Path) -> None:
    tree = {
        "run_dir": str(tmp_path),
        "data": {"candidates": ["none.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "pair_scores": {"activation_dtype": "float16"},
        "selection": {"objective": "facility_location", "budget": 5},
    }
    blueprint = Blueprint(make_config(tree))
    stage = blueprint.build("project", {"embed": made.embeddings, "fit": made.networks})
    assert stage.settings()["dtype"] == "float16"


def test_the_report_tells_the_error_of_each_block(halved: Made, tmp_path: Path) -> None:
    scores = score(halved, tmp_path)
    told = str(scoring_table({"project": halved.activations, "score_pairs": scores}))
    for block in BLOCKS:
        error = halved.activations.manifest.facts()[f"float16_error:{block}"]
        assert f"on a sample of block {block} that changes a score by {error['mean']:.1e}" in told


def test_the_report_of_a_float32_run_says_nothing_of_float16(made: Made, tmp_path: Path) -> None:
    plain = finish(project(made, dtype="float32"), tmp_path)
    scores = finish(ScorePairsStage(plain, made.networks, BLOCKS, K), tmp_path)
    assert "float16" not in str(scoring_table({"project": plain, "score_pairs": scores}))


def test_the_report_tells_the_error_of_points(tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path,
        num_candidates=350,
        num_targets=0,
        objective="top_k",
        make_teacher=LastDigitTeacher,
        dtype="float16",
    )
    error = outputs["project"].manifest.facts()["float16_error:points"]
    assert error["num_pairs"] == 256
    assert error["max"] >= error["mean"] > 0
    assert "float16: on a sample of block points" in str(scoring_table(outputs))
