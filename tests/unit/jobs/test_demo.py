"""The demo runs the recipe on its own corpus and says what got through."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from nncift_ray.demo import run as demo
from nncift_ray.demo.corpus import (
    CLEAN,
    WRONG_RESPONSE,
    WRONG_SAME_FAMILY,
    PlantedRow,
    read_planted,
    usable_rows,
)
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime.output import vectors_to_arrow


class Table:
    """A step's output with one table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def read(self, name: str, columns: list[str]) -> pa.Table:
        return self.table.select(columns)


def _select_first(config: Config) -> SimpleNamespace:
    """Stand in for the pipeline: pick the first usable hundred."""
    run_dir = Path(config.run_dir)
    planted = run_dir / "corpus" / "planted.jsonl"
    picks = usable_rows(read_planted(planted))[:100]
    (run_dir / "export").mkdir()
    table = pa.table({"example_id": [row.example_id for row in picks]})
    pq.write_table(table, run_dir / "export" / "subset.parquet")
    ids = [row.example_id for row in usable_rows(read_planted(planted))]
    vectors = np.eye(len(ids), 8, dtype=np.float32)
    rows = {"example_id": ids, "embedding": vectors_to_arrow(vectors, "float32")}
    decided = ["objective"] * 75 + ["quality"] * 25
    losses = {"nll": np.linspace(0.1, 2, len(ids)), "nll_alone": np.ones(len(ids))}
    return SimpleNamespace(
        outputs={
            "embed": Table(pa.table(rows)),
            "profiles": Table(pa.table(losses)),
            "select": Table(pa.table({"decided_by": decided})),
        }
    )


def test_demo_prints_paths_and_the_shares_of_planted_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.pipeline, "run", _select_first)
    assert demo.main(["--run-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "wrong answers" in line]
    assert "15.0%" in rows[0]
    assert "report.html" in printed.replace("\n", "")


def test_demo_ends_with_its_figures_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.pipeline, "run", _select_first)
    assert demo.main(["--run-dir", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["pool_wrong"] == pytest.approx(150 / 930)
    assert figures["decided_share"] == 0.75
    assert figures["families"] == 24
    assert {"picks_wrong", "pool_reworded", "picks_reworded", "seconds"} <= set(figures)


def test_ifd_takes_the_hardest_rows_that_the_prompt_helps() -> None:
    losses = pa.table({"nll": [0.2, 0.9, 1.5, 0.6], "nll_alone": [1.0, 1.0, 1.0, 1.0]})
    rows = {
        "example_id": list("abcd"),
        "embedding": vectors_to_arrow(np.eye(4, dtype=np.float32), "float32"),
    }
    outputs = {"embed": Table(pa.table(rows)), "profiles": Table(losses)}
    assert demo.rival_picks(outputs, 2)["IFD"] == ["b", "d"]  # type: ignore[arg-type]


def test_a_cosine_covers_every_group_before_it_repeats_one() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    assert {int(vectors[j].argmax()) for j in demo.cover_by_cosine(vectors, 3)} == {0, 1, 2}


def test_demo_gives_the_recipe_its_own_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(demo.pipeline, "run", lambda c: seen.append(c) or _select_first(c))
    demo.main(["--run-dir", str(tmp_path / "a: odd [name]"), "--targets"])
    assert seen[0].data.candidates == (str(tmp_path / "a: odd [name]/corpus/candidates.jsonl"),)
    assert seen[0].objective == "facility_location_query_mutual_information"


def test_demo_ends_with_the_exit_code_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Config) -> None:
        raise DataError(f"{config.run_dir}: nothing there")

    monkeypatch.setattr(demo.pipeline, "run", fail)
    assert demo.main(["--run-dir", str(tmp_path)]) == DataError.exit_code
    assert "nothing there" in capsys.readouterr().err.replace("\n", "")


def test_what_lies_in_the_range_of_random_draws_is_called_chance() -> None:
    planted = [
        PlantedRow(k, str(k), WRONG_RESPONSE if k < 30 else CLEAN, "units", k) for k in range(100)
    ]
    assert "within what chance" in demo.describe_gain(planted, planted[21:51])[0]  # 9 of 30
    assert "fewer than chance" in demo.describe_gain(planted, planted[30:60])[0]
    assert "MORE than chance" in demo.describe_gain(planted, planted[:30])[0]


def test_the_table_of_faults_is_whole_in_eighty_columns() -> None:
    kinds = [WRONG_RESPONSE, WRONG_SAME_FAMILY, CLEAN, CLEAN]  # shares of two digits
    rows = [PlantedRow(k, str(k), kinds[k % 4], "units", k // 2) for k in range(100)]
    table = demo.make_junk_table(rows, rows[:9], {"cosine": rows[:9], "IFD": rows[9:18]})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    assert "\u2026" not in console.export_text()
