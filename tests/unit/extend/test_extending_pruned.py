"""``nncift extend`` of a pruned run: old lists miss what they missed, new pairs are all scored."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.runtime.output import StageOutput
from nncift_ray.scores import index, index_step
from nncift_ray.scores.index import SearchSettings
from nncift_ray.scores.index_step import read_final_recall
from tests.unit.extend.grown import (
    NUM_NEW,
    NUM_OLD,
    Outputs,
    grow,
    make_parent,
    score_whole,
    write_new,
)

LOSSY = {"mode": "pruned", "min_recall": 0.01, "recall_rows": 60}
LISTS = "within_top_helpers"
SIGMAS = 4.0  # of the measured recall


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outputs, Outputs]:
    """Return the outputs of an extended pruned run and of an exact run over everything."""
    folder = tmp_path_factory.mktemp("pruned")
    options = {"objective": "facility_location", "num_targets": 0, "pair_scores": LOSSY}
    with pytest.MonkeyPatch.context() as patch:  # a narrow search misses much of the true lists
        patch.setattr(index, "num_cells", lambda _: 20)
        patch.setattr(index_step, "listing_schedule", lambda *_, **__: [SearchSettings(1, 10)])
        parent = make_parent(folder, **options)
    new = write_new(folder / "new.jsonl", NUM_OLD, NUM_NEW)
    grown = grow(parent, new, str(folder / "grown"))
    return grown, score_whole(folder, parent, [new], with_targets=False)


def lists_of(scores: StageOutput) -> list[dict[int, float]]:
    rows = scores.read(LISTS).to_pylist()
    return [dict(zip(row["helper_index"], row["influence"], strict=True)) for row in rows]


def recall_of(found: dict[int, float], true: dict[int, float]) -> float:
    return len(found.keys() & true.keys()) / len(true)


def test_the_parent_missed_something(pair: tuple[Outputs, Outputs]) -> None:
    found, true = (lists_of(outputs["score_pairs"])[:NUM_OLD] for outputs in pair)
    assert found != true


def test_lists_of_new_rows_are_those_of_an_exact_run(pair: tuple[Outputs, Outputs]) -> None:
    found, true = (lists_of(outputs["score_pairs"])[NUM_OLD:] for outputs in pair)
    assert found == true
    assert len(found) == NUM_NEW


def test_no_new_helper_of_an_old_row_is_missed(pair: tuple[Outputs, Outputs]) -> None:
    found, true = (lists_of(outputs["score_pairs"])[:NUM_OLD] for outputs in pair)
    for joined, exact in zip(found, true, strict=True):
        new = {column: score for column, score in exact.items() if column >= NUM_OLD}
        assert new.items() <= joined.items()


def test_recall_is_measured_again_on_the_rows_it_was_measured_on(
    pair: tuple[Outputs, Outputs],
) -> None:
    grown = pair[0]["score_pairs"]
    found, true = (lists_of(outputs["score_pairs"]) for outputs in pair)
    table = grown.read("recall").to_pylist()
    before = grown.parent.read("recall").to_pylist()  # type: ignore[attr-defined]
    assert [row["row_index"] for row in table] == sorted(row["row_index"] for row in before)
    for row in table:
        at = row["row_index"]
        assert row["recall"] == pytest.approx(recall_of(found[at], true[at]))


def test_all_lists_are_within_the_measured_recall(pair: tuple[Outputs, Outputs]) -> None:
    measured = read_final_recall(pair[0]["score_pairs"])["within"]
    found, true = (lists_of(outputs["score_pairs"])[:NUM_OLD] for outputs in pair)
    recall = np.mean([recall_of(f, t) for f, t in zip(found, true, strict=True)])
    assert abs(recall - measured.recall) <= SIGMAS * measured.standard_error
    parent = read_final_recall(pair[0]["score_pairs"].parent)["within"]  # type: ignore[attr-defined]
    assert measured.recall >= parent.recall
