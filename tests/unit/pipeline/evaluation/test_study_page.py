from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks.evaluation import page
from nncift_ray.pipeline.evaluation.record import publish_record
from nncift_ray.storage.filesystem import Location
from tests.unit.pipeline.evaluation.test_record import make_record


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    publish_record(make_record(), Location.of(str(tmp_path / "run" / "evaluation")))
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
