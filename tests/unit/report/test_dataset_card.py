"""The card of an exported subset: provenance, and no markup from the corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nncift_ray.report.data import MixRow
from nncift_ray.report.page import escape, render_dataset_card
from tests.unit.report.make_data import make_empty_data, make_ranking, make_report_data

HOSTILE = "<script>alert(1)</script> | a\n---\n`x` [y](javascript:z)"


def head_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_where_the_subset_comes_from() -> None:
    data = replace(make_report_data(), upper_bound=4.0, version="1.2", budget="0.1")
    card = render_dataset_card(data)
    for words in ("20 of 100 examples", "DELIFT", "facility location", "nncift\\_ray", "1.2"):
        assert words.replace("nncift\\_ray", "nncift_ray") in card
    assert "at least 89.9%" in card
    assert head_of(card)["size_categories"] == ["n<1K"]


def test_texts_of_the_corpus_bring_no_markup() -> None:
    data = replace(make_report_data(), run_name=HOSTILE, mix=(MixRow(HOSTILE, 5, 3),), config={})
    card = render_dataset_card(data)
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["pretty_name"] == " ".join(HOSTILE.split())
    assert "<script>" not in body
    assert "](javascript" not in body


def test_a_fence_in_the_recipe_is_outgrown() -> None:
    data = replace(make_report_data(), config={"data": {"candidates": ["a```b"]}})
    assert "````yaml" in render_dataset_card(data)


def test_pools_are_no_part_of_the_recipe_shown() -> None:
    data = replace(make_report_data(), config={"labels": {"seed": 1, "pool": {"num_cpus": 9}}})
    card = render_dataset_card(data)
    assert "seed: 1" in card
    assert "num_cpus" not in card


def test_a_run_that_recorded_little_has_a_card() -> None:
    assert "0 of 100 examples" in render_dataset_card(make_empty_data())


def test_escape_keeps_a_cell_in_its_cell() -> None:
    assert "\n" not in escape(HOSTILE)
    assert escape("a|b") == "a\\|b"


def test_datasets_tells_the_folders_of_two_runs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import pyarrow.parquet as pq
    from datasets import load_dataset

    for num_rows in (3, 2):  # one cache for both, as people have
        folder = tmp_path / f"run{num_rows}" / "dataset"
        (folder / "data").mkdir(parents=True)
        pq.write_table(make_ranking(num_rows), folder / "data" / "train.parquet")
        (folder / "README.md").write_text(render_dataset_card(make_report_data(text=HOSTILE)))
        found = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert found["rank"][:] == list(range(1, num_rows + 1))
