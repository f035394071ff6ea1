"""The profile step: one row an example, in order; null and an error row where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.profiles import step as profile_step
from nncift_ray.profiles.blocks import FEATURE_BLOCKS, SCALARS
from nncift_ray.profiles.reader import ProfilingEngine
from nncift_ray.profiles.step import ProfileStage
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ChainedOutput, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Shard, Stage
from tests.tiny_models import make_tiny_llama

HALF = 1e-3  # of numbers stored as float16
TOO_LONG = "word " * 900


class TinyFactory:
    """Loads a tiny model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> ProfilingEngine:
        return ProfilingEngine(self.path, device="cpu")

    def settings(self) -> dict[str, Any]:
        return {"model": "tiny"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    return TinyFactory(make_tiny_llama(tmp_path_factory.mktemp("tiny")))


def run(stage: Stage, folder: Path) -> StageOutput:
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def examples(folder: Path, rows: list[tuple[str, str]]) -> StageOutput:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return run(DeduplicateStage(run(IngestStage(find_sources([str(path)], [])), folder)), folder)


ROWS = [(f"Say {k}.", f"{k} is {'so ' * (k % 5)}{k}") for k in range(11)]


def features(output: Any) -> np.ndarray:
    """Return the unit vectors of every block [N, blocks, W]; nothing may be missing."""
    found = np.array(output.read("candidates")["feature"].to_pylist(), np.float32)
    return found.reshape(len(found), len(FEATURE_BLOCKS), -1)


def test_shard_and_atom_boundaries_leave_the_rows_alone(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = examples(tmp_path, ROWS)
    whole = run(ProfileStage(corpus, tiny), tmp_path)
    monkeypatch.setattr(profile_step, "ATOM_ROWS", 3)
    parts = run(ProfileStage(corpus, tiny, shard_rows=3), tmp_path)
    for name in SCALARS:
        one, other = (each.read("candidates")[name].to_pylist() for each in (parts, whole))
        assert one == pytest.approx(other, abs=1e-4), name
    assert np.linalg.norm(features(whole), axis=2) == pytest.approx(1.0, abs=HALF)
    assert features(parts) == pytest.approx(features(whole), abs=HALF)


def test_a_row_that_is_too_long_keeps_its_place_with_no_number(tiny: Any, tmp_path: Path) -> None:
    corpus = examples(tmp_path, [ROWS[0], ("Say much.", TOO_LONG), ROWS[1]])
    output = run(ProfileStage(corpus, tiny), tmp_path)
    table = output.read("candidates")
    for name in ("nll", "feature"):
        assert table[name].is_null().to_pylist() == [False, True, False]
    assert [row["reason"] for row in output.read("errors").to_pylist()] == ["too_long"]


def test_a_row_that_kills_is_left_out_alone(tiny: Any, tmp_path: Path) -> None:
    corpus = examples(tmp_path, ROWS[:4])
    stage = ProfileStage(corpus, tiny)
    written: list[Any] = []
    errors: list[str] = []

    class Sink:
        facts: dict[str, Any] = {}  # noqa: RUF012

        def write(self, name: str, table: Any) -> None:
            written.extend(table.to_pylist())

        def count(self, name: str, amount: int) -> None: ...

        def error(self, reason: str, message: str, **_: Any) -> None:
            errors.append(reason)

    stage.make_worker()(Shard(0, 1, rows=range(1, 3), skip={2: "it killed its worker"}), Sink())  # pyright: ignore
    assert [row["row_index"] for row in written] == [1, 2]
    assert [row["nll"] is None for row in written] == [False, True]
    assert errors == ["killed_worker"]


def test_new_rows_behind_a_parent_are_those_of_a_run_over_everything(
    tiny: Any, tmp_path: Path
) -> None:
    old, all_rows = examples(tmp_path / "old", ROWS[:6]), examples(tmp_path / "all", ROWS)
    parent = run(ProfileStage(old, tiny), tmp_path / "old")
    own = run(ProfileStage(all_rows, tiny, parent=parent), tmp_path / "all")
    whole = run(ProfileStage(all_rows, tiny), tmp_path / "whole")
    assert own.num_rows("candidates") == len(ROWS) - 6
    chained, expected = (
        output.read("candidates")["nll"].to_pylist()
        for output in (ChainedOutput(parent, own), whole)
    )
    assert chained == pytest.approx(expected, abs=1e-4)
