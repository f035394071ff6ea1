"""The demo runs the recipe on its own corpus and says what got through."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import demo
from jobs.demo_metrics import read_planted, usable_rows
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import Config


def _select_first(config: Config) -> None:
    """Stand in for the pipeline: pick the first usable hundred."""
    run_dir = Path(config.run_dir)
    picks = usable_rows(read_planted(run_dir / "corpus" / "planted.jsonl"))[:100]
    (run_dir / "export").mkdir()
    table = pa.table({"example_id": [row.example_id for row in picks]})
    pq.write_table(table, run_dir / "export" / "subset.parquet")


def test_demo_prints_paths_and_the_shares_of_planted_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.pipeline, "run", _select_first)
    assert demo.main(["--run-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "wrong answers" in line]
    assert "15.0%" in rows[0]
    assert "report.html" in printed.replace("\n", "")


def test_demo_gives_the_recipe_its_own_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(demo.pipeline, "run", lambda c: (seen.append(c), _select_first(c)))
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
