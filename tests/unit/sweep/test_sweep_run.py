"""A whole sweep of a recipe: labels made once, networks kept; no Ray is started."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from ray import cloudpickle

from nncift_ray import pipeline as runner
from nncift_ray import sweep as sweeping
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import StageBegun
from nncift_ray.runtime.progress import Reporter
from nncift_ray.runtime.step import Stage
from nncift_ray.sweep import SweepGrid, SweepResult, plan_sweep

NUM_ROWS = 60


class Heard(Reporter):
    """A reporter that remembers what was started and told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.notices: list[str] = []

    def stage_started(self, begun: StageBegun, done: int) -> None:
        self.started.append(begun.stage)

    def notice(self, message: str) -> None:
        self.notices.append(message)


def recipe(folder: Path) -> Config:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i % 9}"} for i in range(NUM_ROWS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(folder / "corpus.jsonl")]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "labels": {"fraction": 0.4},
        "network": {"num_epochs": 2, "min_steps": 0},
    }
    return make_config(tree)


def run(config: Config, grid: SweepGrid) -> tuple[SweepResult, Heard]:
    heard = Heard()
    return sweeping.sweep(plan_sweep(config, grid), reporter=heard, execute=execute_pickled), heard


def execute_pickled(stage: Stage, *rest: Any) -> Any:
    """Run a stage as an actor would get it."""
    return execute_here(pickle.loads(cloudpickle.dumps(stage)), *rest)  # noqa: S301


def test_second_sweep_asks_no_teacher_and_trains_only_what_is_new(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    first, heard = run(config, SweepGrid((0.2, 0.4), (8,), 2))
    assert {"label", "sweep"} <= set(heard.started)
    second, again = run(config, SweepGrid((0.2, 0.4), (8, 16), 2))
    assert again.started == ["sweep"]
    assert "4 of 8 networks were trained by an earlier sweep" in again.notices
    assert second.cells.num_rows == 2 * first.cells.num_rows
    assert {path.name for path in (tmp_path / "run" / "sweep").glob("sweep.*")} == {
        "sweep.csv", "sweep.parquet", "sweep.png"
    }  # fmt: skip


def test_sweep_leaves_the_record_of_the_run_alone(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    Path(config.run_dir).mkdir()
    record = Path(config.run_dir) / runner.RUN_RECORD
    record.write_text("a finished run")
    run(config, SweepGrid((0.4,), (8,)))
    assert record.read_text() == "a finished run"
