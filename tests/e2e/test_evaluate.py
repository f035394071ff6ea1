"""``nncift evaluate`` through the command line, Ray and tiny real models, killed on its way."""

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

from nncift_ray.storage.output import MANIFEST_NAME
from tests.tiny_models import make_tiny_llama

SECONDS_TO_LIVE = 900
NUM_CANDIDATES, NUM_TESTS, NUM_ANSWERED = 60, 12, 4
#: With models tuned and measured, and not yet asked; each moment costs a start of Ray.
MOMENTS = [("respond", "start")]
#: The last bits of a trained model may depend on the threads that were free.
NLL_TOLERANCE = 1e-3


def write_recipe(folder: Path) -> Path:
    """Write corpora, a tiny model and a recipe with every kind of stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in {"pool": NUM_CANDIDATES, "target": 8, "test": NUM_TESTS}.items():
        rows = [
            {"prompt": f"In {name}, add {i} and {i % 9}.", "completion": f"That is {i + i % 9}."}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(make_tiny_llama(folder / "model"))
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(folder / "pool.jsonl")],
                 "targets": [str(folder / "target.jsonl")]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "evaluation": {
            "tests": {"sums": [str(folder / "test.jsonl")]},
            "methods": ["initial", "random", "delift_se"],
            "budgets": [0.2],
            "random_seeds": 1,
            "metrics": ["nll", "rouge", "bge", "exact_match"],
            "model": model,
            "engine": "transformers",
            "bootstrap_samples": 200,
            "nll_max_rows": NUM_ANSWERED,
            "in_context": {"num_examples": 2, "max_length": 600},
            "generation": {"max_tokens": 8, "max_rows": NUM_ANSWERED},
            "tuning": {"method": "lora", "num_epochs": 1, "max_length": 600, "dtype": "float32"},
        },
    }  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def evaluate(recipe: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "nncift_ray.cli", "evaluate", str(recipe)]
    for override in overrides:
        command += ["-s", override]
    done = subprocess.run(command, timeout=SECONDS_TO_LIVE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished_stages(run_dir: Path) -> dict[str, int]:
    """Return when each stage that is finished was."""
    return {str(path.parent): path.stat().st_mtime_ns for path in run_dir.rglob(MANIFEST_NAME)}


def read_scores(run_dir: Path) -> dict[tuple[Any, ...], float | None]:
    rows = pq.read_table(run_dir / "evaluation" / "scores.parquet").to_pylist()
    return {tuple(row.values())[:-1]: row["value"] for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_evaluation_killed_on_its_way_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    finished: dict[str, int] = {}
    for stage, moment in MOMENTS:
        command = [sys.executable, "-m", "tests.e2e.die_evaluating", str(recipe), stage, moment]
        died = subprocess.run(command, timeout=SECONDS_TO_LIVE, check=False)
        assert died.returncode == -signal.SIGKILL, f"in {stage} at {moment}"
        assert finished.items() <= finished_stages(run_dir).items(), "something was done again"
        finished = finished_stages(run_dir)
    said = evaluate(recipe)
    assert finished.items() <= finished_stages(run_dir).items(), "something was done again"
    assert "[embed] started" not in said
    assert "[evaluate] cell 5 of 5: delift_se 20 % icl sums, answers" in said

    evaluate(recipe, f"run_dir={tmp_path / 'undisturbed'}")
    scores, others = read_scores(run_dir), read_scores(tmp_path / "undisturbed")
    assert scores.keys() == others.keys()
    # Initial and two tuned models on all rows, two shown examples on a few, five graded thrice.
    assert sum(key[6] == "nll" for key in scores) == 3 * NUM_TESTS + 2 * NUM_ANSWERED
    assert sum(key[6] == "rouge1" for key in scores) == 5 * NUM_ANSWERED
    for key, value in scores.items():
        if key[6] == "nll":
            assert value == pytest.approx(others[key], abs=NLL_TOLERANCE), key
    assert (run_dir / "evaluation" / "report.html").stat().st_size > 0
    assert "] started" not in evaluate(recipe)
