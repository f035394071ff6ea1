"""The objective top_k, of pairs and of single examples, from sample to ranking with no Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.errors import DataError
from nncift_ray.network.factored import read_network
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.scores.exact import score_block
from nncift_ray.selection.names import blocks_of
from tests.chain import LastDigitTeacher, Sizes, run_chain

SCORE_TOLERANCE = 1e-6  # float32 influence of size 1
NUM_CANDIDATES, NUM_TARGETS, BUDGET = 600, 40, 30
UNLIKE = Sizes(embed_rows=256, label_pairs=1, project_rows=1, score_rows=9999, column_tile=17)


def run_points(folder: Path, sizes: Sizes | None = None) -> dict[str, StageOutput]:
    return run_chain(
        folder,
        num_candidates=NUM_CANDIDATES,
        num_targets=0,
        objective="top_k",
        make_teacher=LastDigitTeacher,
        sizes=sizes,
    )


def run_pairs(
    folder: Path, subtask_by: str | None = "task", targets: int = NUM_TARGETS, **options: Sizes
) -> dict[str, StageOutput]:
    return run_chain(
        folder,
        num_candidates=NUM_CANDIDATES,
        num_targets=targets,
        objective="top_k",
        subtask_by=subtask_by,
        **options,
    )


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_points(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_pairs(tmp_path_factory.mktemp("pairs"))


def dense_scores(outputs: dict[str, StageOutput], block: str) -> np.ndarray:
    network = read_network(outputs["fit"], block)
    a, b = (
        column_matrix(outputs["project"].read(f"{block}_{side}")["activation"])
        for side in ("rows", "columns")
    )
    return score_block(a, b, network.w_H, network.bias).astype(np.float64)


def assert_ranking_sorts(outputs: dict[str, StageOutput], score_J: np.ndarray) -> None:
    """Check that the picks are the best scores, in order, up to rounding of the scores."""
    ranking = outputs["select"].read("ranking")
    best = score_J[ranking["row_index"].to_numpy()]
    np.testing.assert_allclose(best, -np.sort(-score_J)[:BUDGET], rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(ranking["gain"], best, rtol=0, atol=SCORE_TOLERANCE)


def test_points_rank_by_what_the_network_says_of_each_embedding(
    points: dict[str, StageOutput],
) -> None:
    network = read_network(points["fit"], "points")
    vectors = column_matrix(points["embed"].read("candidates")["embedding"])
    hidden = np.maximum(vectors @ network.w_row_HD.T + network.b_row_H, 0)
    score = hidden @ network.w_H + network.bias
    assert_ranking_sorts(points, score.astype(np.float64))


def test_labels_of_points_are_the_teachers_word_on_each(points: dict[str, StageOutput]) -> None:
    labels = points["label"].read("labels").to_pylist()
    prompts = points["deduplicate"].read("candidates", ["prompt"])["prompt"].to_pylist()
    assert {row["helper_index"] for row in labels} == {None}
    assert all(row["utility"] == int(prompts[row["helped_index"]][-1]) - 4 for row in labels)


def test_points_are_measured_on_held_out_examples_only(points: dict[str, StageOutput]) -> None:
    fidelity = points["fit"].read("fidelity").to_pylist()
    assert {row["split"] for row in fidelity} == {"train", "validation", "Q4"}
    assert {row["model"] for row in fidelity} == {
        "network", "additive_ridge", "zero", "random", "mean",
    }  # fmt: skip
    assert points["fit"].read("predictions")["helper_index"].null_count == 300


def test_points_have_rows_and_no_columns(points: dict[str, StageOutput]) -> None:
    assert set(points["project"].manifest.settings["blocks"]) == {"points"}
    assert points["project"].num_rows("points_rows") == NUM_CANDIDATES
    assert points["project"].num_rows("points_columns") == 0
    assert points["score_pairs"].num_rows("column_sums") == NUM_CANDIDATES


def test_pairs_rank_by_the_best_subtasks_mean(pairs: dict[str, StageOutput]) -> None:
    dense = dense_scores(pairs, "cross")
    task = np.arange(NUM_TARGETS) % 3
    assert_ranking_sorts(pairs, np.max([dense[task == t].mean(axis=0) for t in range(3)], axis=0))


def test_without_subtasks_pairs_rank_by_the_mean(tmp_path: Path) -> None:
    outputs = run_pairs(tmp_path, subtask_by=None)
    assert_ranking_sorts(outputs, dense_scores(outputs, "cross").mean(axis=0))


def test_without_targets_the_mean_is_over_the_candidates(tmp_path: Path) -> None:
    outputs = run_pairs(tmp_path, subtask_by=None, targets=0)
    assert_ranking_sorts(outputs, dense_scores(outputs, "within").mean(axis=0))


def test_top_k_keeps_no_list_and_covers_no_row(pairs: dict[str, StageOutput]) -> None:
    assert pairs["score_pairs"].num_rows("cross_top_helpers") == 0
    assert pairs["score_pairs"].num_rows("column_sums") == 3 * NUM_CANDIDATES
    assert pairs["select"].num_rows("coverage") == 0


@pytest.mark.parametrize("kind", ["points", "pairs"])
def test_shard_and_tile_sizes_change_no_pick_and_no_gain(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = {"points": run_points, "pairs": run_pairs}[kind]
    other = run(tmp_path, sizes=UNLIKE)["select"].read("ranking")
    assert other.equals(request.getfixturevalue(kind)["select"].read("ranking"))


def test_a_target_without_the_subtask_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.subtask_by: target 0 .*no field 'topic'.*task"):
        run_pairs(tmp_path, subtask_by="topic")


@pytest.mark.parametrize(
    ("pointwise", "has_targets", "blocks"),
    [(True, True, ("points",)), (True, False, ("points",)), (False, True, ("cross",)),
     (False, False, ("within",))],
)  # fmt: skip
def test_blocks_of_top_k(pointwise: bool, has_targets: bool, blocks: tuple[str, ...]) -> None:
    assert blocks_of("top_k", pointwise=pointwise, has_targets=has_targets) == blocks


def test_a_pointwise_teacher_covers_nothing() -> None:
    with pytest.raises(ValueError, match="scores examples, not pairs"):
        blocks_of("facility_location", pointwise=True, has_targets=False)
