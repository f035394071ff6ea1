"""What must hold from stage to stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nncift_ray.network.factored import read_network
from nncift_ray.network.network import TrainingConfig
from nncift_ray.network.step import stretch
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.scores.exact import score_block
from tests.chain import Sizes, run_chain

SCORE_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run_chain(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(embed_rows=512, label_pairs=1, project_rows=5000, score_rows=512, column_tile=17),
        Sizes(embed_rows=9999, label_pairs=9999, project_rows=1, score_rows=9999, column_tile=300),
    ],
)
def test_shard_and_tile_sizes_change_no_pick_and_no_gain(
    outputs: dict[str, StageOutput], tmp_path: Path, sizes: Sizes
) -> None:
    other = run_chain(tmp_path, sizes=sizes)["select"].read("ranking")
    assert other.equals(outputs["select"].read("ranking"))


def test_top_helpers_are_those_of_the_dense_matrix(outputs: dict[str, StageOutput]) -> None:
    network = read_network(outputs["fit"], "within")
    a_IH = column_matrix(outputs["project"].read("within_rows")["activation"])
    b_JH = column_matrix(outputs["project"].read("within_columns")["activation"])
    dense = score_block(a_IH, b_JH, network.w_H, network.bias)
    lists = outputs["score_pairs"].read("within_top_helpers")
    best = np.array(lists["influence"].to_pylist())
    expected = -np.sort(-dense, axis=1)[:, : best.shape[1]]
    np.testing.assert_allclose(best, expected, atol=SCORE_TOLERANCE)


def test_rows_of_cross_are_targets_and_columns_candidates(outputs: dict[str, StageOutput]) -> None:
    lists = outputs["score_pairs"].read("cross_top_helpers")
    assert lists.num_rows == 40
    assert max(max(row) for row in lists["helper_index"].to_pylist()) >= 40
    assert outputs["score_pairs"].num_rows("column_max") == 700


def test_statistics_cover_every_pair(outputs: dict[str, StageOutput]) -> None:
    rows = outputs["score_pairs"].read("statistics").to_pylist()
    pairs = {block: sum(r["num_pairs"] for r in rows if r["block"] == block) for block in
             ("within", "cross")}  # fmt: skip
    assert pairs == {"within": 700 * 700, "cross": 40 * 700}


def test_labelled_rows_stay_selectable(outputs: dict[str, StageOutput]) -> None:
    labelled = {row["helper_index"] for row in outputs["label"].read("labels").to_pylist()}
    tables = (outputs["select"].read(name) for name in ("ranking", "skipped"))
    open_to_choice = {row for table in tables for row in table["row_index"].to_pylist()}
    assert labelled & open_to_choice  # excluded rows are in neither


def test_subset_holds_the_original_records_in_rank_order(outputs: dict[str, StageOutput]) -> None:
    lines = outputs["export"].read_file("subset.jsonl").decode().splitlines()
    ranking = outputs["select"].read("ranking").to_pylist()
    records = [json.loads(line) for line in lines]
    assert [record["_nncift"]["rank"] for record in records] == list(range(1, 31))
    assert [record["_nncift"]["example_id"] for record in records] == [
        row["example_id"] for row in ranking
    ]
    assert all(record["prompt"].startswith("candidates question") for record in records)


def test_every_covered_row_names_a_pick(outputs: dict[str, StageOutput]) -> None:
    picked = set(outputs["select"].read("ranking")["row_index"].to_pylist())
    coverage = outputs["select"].read("coverage")
    named = {row for row in coverage["covered_by"].to_pylist() if row is not None}
    assert named <= picked
    assert coverage.num_rows == 700


@pytest.mark.parametrize(
    ("objective", "targets"),
    [("facility_location", 1), ("facility_location_query_mutual_information", 5)],
)
def test_each_objective_selects_its_budget(tmp_path: Path, objective: str, targets: int) -> None:
    outputs = run_chain(
        tmp_path, num_candidates=60, num_targets=targets, objective=objective, budget=12
    )
    gains = outputs["select"].read("ranking")["gain"].to_numpy()
    assert len(gains) == 12
    assert (np.diff(gains) <= 1e-9).all()


def test_a_small_sample_trains_longer_and_a_large_one_as_the_paper() -> None:
    config = TrainingConfig(num_epochs=20, batch_size=64, patience=5)
    assert stretch(config, 640, 10_000) == replace(config, num_epochs=1000, patience=250)
    assert stretch(config, 1_000_000, 10_000) == config
    assert stretch(config, 640, 0) == config
