"""Whole recipes that select by the teacher's own labels; no Ray is started, nothing is faked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nncift_ray import pipeline as runner
from nncift_ray.pipeline import RunResult
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import column_matrix
from nncift_ray.runtime.progress import SilentReporter

NUM_CANDIDATES, NUM_TARGETS, BUDGET, TOP_K = 60, 9, 12, 10
COSINE_TOLERANCE = 1e-6  # float32


def recipe(folder: Path, *, targets: bool = True, **sections: dict[str, Any]) -> Config:
    files = {"candidates": NUM_CANDIDATES, "targets": NUM_TARGETS if targets else 0}
    data: dict[str, Any] = {}
    for name, count in files.items():
        rows = [
            {"prompt": f"{name} question {i}", "completion": f"answer {i % 9}", "task": i % 2}
            for i in range(count)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data[name] = [str(path)] if count else []
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": data | sections.pop("data", {}),
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": BUDGET},
        "pair_scores": {"by": "teacher", "top_k": TOP_K},
    }
    return make_config(tree | sections)


def run(config: Config) -> RunResult:
    return runner.run(config, reporter=SilentReporter(), execute=execute_here)


def cosines(result: RunResult, role: str) -> np.ndarray:
    """Return what DELIFT (SE) says of all pairs: [I, J]."""
    helped, helpers = (
        column_matrix(result.outputs["embed"].read(name)["embedding"]).astype(np.float64)
        for name in (role, "candidates")
    )
    return helped @ helpers.T


def test_lists_of_a_run_are_the_teachers_own_cosines(tmp_path: Path) -> None:
    result = run(recipe(tmp_path))
    assert not {"fit", "project", "score_pairs"} & set(result.outputs)
    truth = cosines(result, "targets")
    for row in result.outputs["teacher_scores"].read("cross_top_helpers").to_pylist():
        of_row = truth[row["row_index"]]
        best = np.sort(of_row)[::-1][:TOP_K]
        np.testing.assert_allclose(row["influence"], best, atol=COSINE_TOLERANCE)
        np.testing.assert_allclose(of_row[row["helper_index"]], best, atol=COSINE_TOLERANCE)
    assert result.report is not None
    page = result.report.read_bytes().decode()
    assert "no network was trained" in page
