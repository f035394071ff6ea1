"""``nncift evaluate`` through the command line, Ray and a tiny real model, killed on its way.

That every kind of cell goes on where it was is tests/unit/evaluate's, with models of no
weight. Here one cell is fine-tuned and measured by actors.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from nncift_ray.evaluation.run import evaluate
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import MANIFEST_NAME
from nncift_ray.runtime.progress import SilentReporter
from tests.tiny_models import make_tiny_llama

SECONDS_TO_LIVE = 400
NUM_CANDIDATES, NUM_TESTS = 60, 12
#: The last bits of a trained model may depend on the threads that were free.
NLL_TOLERANCE = 1e-3


def write_recipe(folder: Path) -> Path:
    """Write corpora, a tiny model and a recipe of one cell: a random fifth, fine-tuned on."""
    for name, count in {"pool": NUM_CANDIDATES, "test": NUM_TESTS}.items():
        rows = [
            {"prompt": f"In {name}, add {i} and {i % 9}.", "completion": f"That is {i + i % 9}."}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(folder / "pool.jsonl")]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "cluster": "ray",
        "evaluation": {
            "tests": {"sums": [str(folder / "test.jsonl")]},
            "methods": ["random"],
            "budgets": [0.2],
            "random_seeds": 1,
            "modes": ["tuned"],
            "metrics": ["nll"],
            "model": str(make_tiny_llama(folder / "model")),
            "engine": "transformers",
            "bootstrap_samples": 200,
            "tuning": {"method": "lora", "num_epochs": 1, "max_length": 600, "dtype": "float32"},
        },
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def evaluate_by_command(recipe: Path) -> str:
    command = [sys.executable, "-m", "nncift_ray.cli", "evaluate", str(recipe)]
    done = subprocess.run(command, timeout=SECONDS_TO_LIVE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished_stages(run_dir: Path) -> dict[str, int]:
    """Return when each stage that is finished was."""
    return {str(path.parent): path.stat().st_mtime_ns for path in run_dir.rglob(MANIFEST_NAME)}


def read_scores(run_dir: Path) -> dict[tuple[Any, ...], float | None]:
    rows = pq.read_table(run_dir / "evaluation" / "scores.parquet").to_pylist()
    return {tuple(row.values())[:-1]: row["value"] for row in rows}


@pytest.mark.timeout(1200)
def test_an_evaluation_killed_behind_its_tuning_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "tests.e2e.die_evaluating", str(recipe), "likelihood", "start"]
    died = subprocess.run(command, timeout=SECONDS_TO_LIVE, check=False)
    assert died.returncode == -signal.SIGKILL
    finished = finished_stages(run_dir)
    assert any("/tune/" in stage for stage in finished)
    said = evaluate_by_command(recipe)
    assert finished.items() <= finished_stages(run_dir).items(), "something was done again"
    assert "[tune] started" not in said
    assert "[likelihood] started" in said

    whole = load_config(recipe, [f"run_dir={tmp_path / 'undisturbed'}"])
    reporter = SilentReporter()
    evaluate(whole, reporter=reporter, execute=execute_here)
    scores, others = read_scores(run_dir), read_scores(tmp_path / "undisturbed")
    assert scores.keys() == others.keys()
    assert len(scores) == NUM_TESTS
    for key, value in scores.items():
        assert value == pytest.approx(others[key], abs=NLL_TOLERANCE), key
    assert (run_dir / "evaluation" / "report.html").stat().st_size > 0
