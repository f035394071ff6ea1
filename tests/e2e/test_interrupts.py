"""Ctrl-C and SIGTERM end a run at every step: quickly, by their exit codes, without a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nncift_ray.pipeline import RunResult

STARTING_SECONDS, WORKING_SECONDS, BETWEEN_SECONDS, ENDING_SECONDS = 240.0, 2.0, 0.7, 15.0
POLL_SECONDS = 0.1
LATER = ("fit", "project", "score_pairs", "select", "export")
SLOW_TEACHER = ["teacher={kind: 'tests.e2e.slow_run:SlowTeacher'}"]
#: The paper's network: the pair network is solved, not trained for epochs.
ENDLESS = "{kind: paper, num_workers: 2, num_epochs: 1000000, patience: 1000000}"
TWO_WORKERS = [f"network={ENDLESS}"]
LOCAL = ["cluster=local"]


def begin(
    recipe: Path, run_dir: Path, done: Path, stage: str, slow: str, keys: list[str]
) -> subprocess.Popen[bytes]:
    """Start a run whose earlier steps are done; return its process."""
    begins = LATER.index(stage) if stage in LATER else -1
    left_out = LATER[begins:] if begins >= 0 else ("label", *LATER)
    shutil.copytree(done, run_dir, ignore=shutil.ignore_patterns(*left_out))
    command = [sys.executable, "-m", "tests.e2e.slow_run", slow, "run", str(recipe)]
    options = [option for key in (f"run_dir={run_dir}", *keys) for option in ("-s", key)]
    with (run_dir / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [*command, *options], stdout=said, stderr=said, start_new_session=True
        )


def wait_for(stage: str, run_dir: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a step is at work."""
    deadline = time.monotonic() + STARTING_SECONDS
    while not list(run_dir.glob(f"{stage}/*/begun.json")):
        assert process.poll() is None, (run_dir / "said.txt").read_text()
        assert time.monotonic() < deadline, (run_dir / "said.txt").read_text()
        time.sleep(POLL_SECONDS)
    time.sleep(WORKING_SECONDS)


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for the exit code of a process that was asked to end."""
    try:
        return process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "slow", "keys"),
    [
        ("label", "", SLOW_TEACHER),  # in an actor
        ("fit", "", TWO_WORKERS),  # in Ray Train's workers
        ("select", "select", []),  # in the driver
        ("fit", "fit", LOCAL),  # in the process, without Ray
        ("label", "", [*SLOW_TEACHER, *LOCAL]),
    ],
    ids=["label", "ray_train", "select", "local_fit", "local_label"],
)
def test_ctrl_c_once_or_twice_ends_a_run_at_once_and_without_a_traceback(
    recipe: Path, undisturbed: RunResult, tmp_path: Path, stage: str, slow: str, keys: list[str]
) -> None:
    done, run_dirs = Path(undisturbed.run_dir.path), (tmp_path / "once", tmp_path / "twice")
    both = [begin(recipe, run_dir, done, stage, slow, keys) for run_dir in run_dirs]
    for num_signals, (process, run_dir) in enumerate(zip(both, run_dirs, strict=True), start=1):
        wait_for(stage, run_dir, process)
        for number in range(num_signals):
            time.sleep(BETWEEN_SECONDS * number)
            os.killpg(process.pid, signal.SIGINT)  # to all in the foreground, as a terminal does
        assert end(process) == 130
        said = (run_dir / "said.txt").read_text()
        assert "Traceback" not in said
        assert "Exception ignored" not in said


@pytest.mark.timeout(600)
def test_sigterm_ends_a_step_in_the_driver(
    recipe: Path, undisturbed: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "4")
    run_dir = tmp_path / "run"
    process = begin(recipe, run_dir, Path(undisturbed.run_dir.path), "select", "select", [])
    wait_for("select", run_dir, process)
    process.terminate()
    assert end(process) == 143
    assert "Traceback" not in (run_dir / "said.txt").read_text()
