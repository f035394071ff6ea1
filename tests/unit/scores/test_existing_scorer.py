"""What existing data do for every row, against the plain formula; tiles change no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.network.factored import read_network
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.scores.exact import score_block
from nncift_ray.scores.kernel import ONE
from nncift_ray.selection.tables import ScoreTables
from tests.chain import Sizes, run_chain

SCORE_TOLERANCE = 1e-5  # float32 influence of size 1
NUM_EXISTING = 50
UNLIKE = Sizes(embed_rows=256, label_pairs=64, project_rows=1, score_rows=9999, column_tile=17)


def run(folder: Path, targets: int, sizes: Sizes | None = None) -> dict[str, StageOutput]:
    return run_chain(
        folder,
        num_candidates=300,
        num_targets=targets,
        num_existing=NUM_EXISTING,
        objective="facility_location_conditional_gain",
        sizes=sizes,
    )


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    return run(tmp_path_factory.mktemp("within"), 0)


def plain_scores(outputs: dict[str, StageOutput], block: str) -> np.ndarray:
    network = read_network(outputs["fit"], block)
    rows, existing = (
        column_matrix(outputs["project"].read(f"{block}_{side}")["activation"])
        for side in ("rows", "existing")
    )
    return score_block(rows, existing, network.w_H, network.bias).astype(np.float64)


@pytest.mark.parametrize(("block", "targets"), [("within", 0), ("cross", 20)])
def test_each_row_has_its_largest_and_its_summed_influence(
    within: dict[str, StageOutput], tmp_path: Path, block: str, targets: int
) -> None:
    outputs = run(tmp_path, targets) if targets else within
    plain = plain_scores(outputs, block)
    table = outputs["score_pairs"].read(f"{block}_existing_influence")
    assert table["row_index"].to_pylist() == list(range(len(plain)))
    np.testing.assert_allclose(
        table["max_influence"], plain.max(axis=1), rtol=0, atol=SCORE_TOLERANCE
    )
    mean = table["sum"].to_numpy() / (ONE * NUM_EXISTING)
    np.testing.assert_allclose(mean, plain.mean(axis=1), rtol=0, atol=SCORE_TOLERANCE)


def test_existing_scores_count_in_the_one_scale(within: dict[str, StageOutput]) -> None:
    tables = ScoreTables.open(within["score_pairs"], 300, NUM_EXISTING)
    plain = plain_scores(within, "within")
    assert tables.scale.min <= plain.min() + SCORE_TOLERANCE
    assert tables.scale.max >= plain.max() - SCORE_TOLERANCE
    scaled = tables.existing_sum("within")
    width = tables.scale.max - tables.scale.min
    expected = (plain - tables.scale.min).sum(axis=1) / width
    np.testing.assert_allclose(scaled, expected, rtol=1e-4)


def test_shards_and_tiles_change_no_bit(within: dict[str, StageOutput], tmp_path: Path) -> None:
    other = run(tmp_path, 0, UNLIKE)
    for stage, table in (("score_pairs", "within_existing_influence"), ("select", "ranking")):
        assert other[stage].read(table).equals(within[stage].read(table))


def test_existing_data_are_labelled_by_nobody(within: dict[str, StageOutput]) -> None:
    assert set(within["label"].read("labels")["block"].to_pylist()) == {"within"}
