"""``nncift extend`` through the command line and Ray, killed in the middle of scoring new pairs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nncift_ray.extend import extend
from nncift_ray.pipeline import (
    RunResult,
)
from nncift_ray.runs import Run
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.progress import SilentReporter
from tests.e2e.recipes import NUM_CANDIDATES, NUM_TARGETS
from tests.e2e.test_kill_and_resume import SECONDS_TO_LIVE, shard_times

NUM_NEW = 40


def write_new(path: Path) -> Path:
    """Write new candidates, one of them a copy of an old one, and a row that cannot be read."""
    numbers = [0, *range(NUM_CANDIDATES, NUM_CANDIDATES + NUM_NEW)]
    rows = [
        json.dumps({"prompt": f"Add {i} and {i % 9}.", "completion": f"That is {i + i % 9}."})
        for i in numbers
    ]
    path.write_text("\n".join([*rows, "{broken"]) + "\n")
    return path


def extend_by_command(parent: Path, new: Path, home: Path) -> str:
    command = [sys.executable, "-m", "nncift_ray.cli", "extend", str(parent)]
    command += ["--data", str(new), "--run-dir", str(home)]
    done = subprocess.run(command, timeout=SECONDS_TO_LIVE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1500)
def test_an_extension_killed_while_it_scores_ends_as_an_undisturbed_one(
    undisturbed: RunResult, tmp_path: Path
) -> None:
    parent = Path(undisturbed.run_dir.path)
    new, home = write_new(tmp_path / "new.jsonl"), tmp_path / "grown"
    command = [sys.executable, "-m", "tests.e2e.die_extending", str(parent), str(new), str(home)]
    died = subprocess.run([*command, "score_pairs", "1"], timeout=SECONDS_TO_LIVE, check=False)
    assert died.returncode == -signal.SIGKILL
    finished = shard_times(home, "score_pairs")
    assert finished
    said = extend_by_command(parent, new, home)
    assert f"{NUM_NEW} new candidates after {NUM_CANDIDATES}; 1 exact copies collapsed" in said
    assert "[embed] already done, skipped" in said
    assert "relabelling is " in said
    assert finished.items() <= shard_times(home, "score_pairs").items()
    whole = extend(
        str(parent),
        [str(new)],
        run_dir=str(tmp_path / "undisturbed"),
        reporter=SilentReporter(),
        execute=execute_here,  # in this process: no actor, and nobody dies
    )
    for name in ("subset.jsonl", "alpaca.json"):
        first, second = (folder / "export" / name for folder in (home, tmp_path / "undisturbed"))
        assert first.read_bytes() == second.read_bytes()
    outputs = Run.open(str(home)).outputs
    assert outputs["select"].read("ranking").equals(whole.outputs["select"].read("ranking"))
    assert outputs["deduplicate"].num_rows("candidates") == NUM_CANDIDATES + NUM_NEW
    helpers = outputs["score_pairs"].read("cross_top_helpers")
    assert helpers.num_rows == NUM_TARGETS
    assert max(max(row["helper_index"]) for row in helpers.to_pylist()) >= NUM_CANDIDATES
    assert "Do the labels still fit the data?" in (home / "report.html").read_text()
