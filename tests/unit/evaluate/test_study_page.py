from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.evaluation import junk, page
from nncift_ray.demo.corpus import (
    CLEAN,
    EMPTY,
    EMPTY_RESPONSE,
    NEAR_DUPLICATE,
    REWORDED_REPEAT,
    TARGET_FAMILIES,
    WRONG,
    WRONG_RESPONSE,
    PlantedRow,
)
from nncift_ray.evaluation.results import SUBSETS_NAME
from nncift_ray.runtime.files import Location
from tests.unit.evaluate.test_record import make_record


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_record().write(Location.of(str(tmp_path / "run" / "evaluation")))
    out = tmp_path / "evaluation_cpu.md"
    arguments = [str(tmp_path / "run"), "--out", str(out), "--command", "nncift evaluate r.yaml"]
    monkeypatch.setattr(sys, "argv", ["page", *arguments])
    page.main()
    return out


def test_the_page_has_the_tables_of_the_evaluation(written: Path) -> None:
    text = written.read_text()
    assert text.startswith("# evaluation_cpu\n")
    assert "nncift evaluate r.yaml" in text
    assert "| random (mean of 2) | 10 % | fine-tuned | 0.2" in text
    assert "(1 missing)" in text
    assert "nn_cift+delift takes 90 % less time than delift." in text
    assert "| nn_cift+delift | delift | 10 % | 40 %" in text
    assert "- a note" in text


def test_every_row_of_its_tables_has_the_columns_of_its_head(written: Path) -> None:
    tables = [block.splitlines() for block in written.read_text().split("\n\n")
              if block.startswith("|")]  # fmt: skip
    assert len(tables) >= 5
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


def test_the_figures_are_json_without_nan(written: Path) -> None:
    figures = json.loads(written.with_suffix(".json").read_text())
    random, network = figures["summary"]
    assert (random["method"], network["method"]) == ("random", "nn_cift+delift")
    assert network["mean"] == pytest.approx((0.4 + 0.3 + 0.4) / 3)
    assert math.isclose(network["difference"], (0.2 + 0.1 + 0.2) / 3)
    assert random["difference"] is None
    assert figures["machine"]
    assert {"costs", "agreement", "fidelity", "headline"} <= set(figures)


def planted(number: int, kind: str, item: int) -> PlantedRow:
    return PlantedRow(line=number, example_id=f"id{number}", kind=kind, family="sums", item=item)


def test_faults_are_counted_by_method_and_over_random_draws(tmp_path: Path) -> None:
    rows = [planted(0, CLEAN, 0), planted(1, WRONG_RESPONSE, 1), planted(2, NEAR_DUPLICATE, 0),
            planted(3, EMPTY_RESPONSE, 3)]  # fmt: skip
    picks = [
        {"method": method, "budget": 0.5, "seed": seed, "example_id": f"id{number}"}
        for method, seed, numbers in (
            ("random", 0, (0, 1)),
            ("random", 1, (0, 2)),
            ("less", 0, (0,)),
        )
        for number in numbers
    ]
    faults = {row["picks"]: row for row in page.collect_faults(picks, rows)}
    assert list(faults) == ["the corpus", "after ingest", "random", "less"]
    assert (faults["the corpus"][WRONG], faults["the corpus"][EMPTY]) == (0.25, 0.25)
    assert faults["after ingest"][EMPTY] == 0
    assert (faults["random"][WRONG], faults["random"][REWORDED_REPEAT]) == (0.25, 0.25)
    assert set(faults["less"].values()) == {"less", 0.5, 0.0}


def test_the_page_shows_the_faults_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "evaluation"
    make_record().write(Location.of(str(folder)))
    picks = {"method": ["less"], "budget": [0.1], "seed": [0], "example_id": ["id1"]}
    pq.write_table(pa.table(picks), folder / SUBSETS_NAME)
    row = asdict(planted(1, WRONG_RESPONSE, 1))
    (tmp_path / "planted.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "junk_cpu.md"
    arguments = [str(tmp_path / "run"), "--out", str(out), "--title", "Planted faults"]
    arguments += ["--planted", str(tmp_path / "planted.jsonl")]
    monkeypatch.setattr(sys, "argv", ["page", *arguments])
    page.main()
    assert out.read_text().startswith("# Planted faults\n")
    assert "| less | 10 % | 100 % | 0 % | 0 % | 0 % |" in out.read_text()
    assert json.loads(out.with_suffix(".json").read_text())["planted"][-1][WRONG] == 1


def test_the_junk_corpus_keeps_what_is_planted_and_no_test_row_is_a_target(tmp_path: Path) -> None:
    sizes = {path.name: number for path, number in junk.write(tmp_path).items()}
    assert sizes == {
        "candidates.jsonl": 1000, "planted.jsonl": 1000, "target.jsonl": 100, "test.jsonl": 100
    }  # fmt: skip
    texts = [set((tmp_path / f"{name}.jsonl").read_text().splitlines())
             for name in ("candidates", "target", "test")]  # fmt: skip
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert {json.loads(line)["task"] for line in texts[2]} == set(TARGET_FAMILIES)
