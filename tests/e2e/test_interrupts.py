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

STARTING_SECONDS, WORKING_SECONDS, BETWEEN_SECONDS, ENDING_SECONDS = 240.0, 3.0, 0.7, 15.0
POLL_SECONDS = 0.1
LATER = ("fit", "project", "score_pairs", "select", "export")
SLOW_TEACHER = ["teacher={kind: 'tests.e2e.slow_run:SlowTeacher'}"]
TWO_WORKERS = ["network={num_workers: 2, num_epochs: 1000000, patience: 1000000}"]


def begin(recipe: Path, run_dir: Path, done: Path, stage: str, slow: str, keys: list[str]) -> int:
    """Start a run whose earlier steps are done; return its process once a step is at work."""
    begins = LATER.index(stage) if stage in LATER else -1
    left_out = LATER[begins:] if begins >= 0 else ("label", *LATER)
    shutil.copytree(done, run_dir, ignore=shutil.ignore_patterns(*left_out))
    command = [sys.executable, "-m", "tests.e2e.slow_run", slow, "run", str(recipe)]
    options = [option for key in (f"run_dir={run_dir}", *keys) for option in ("-s", key)]
    with (run_dir / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [*command, *options], stdout=said, stderr=said, start_new_session=True
        )
    deadline = time.monotonic() + STARTING_SECONDS
    while not list(run_dir.glob(f"{stage}/*/begun.json")):
        assert process.poll() is None, (run_dir / "said.txt").read_text()
        assert time.monotonic() < deadline, (run_dir / "said.txt").read_text()
        time.sleep(POLL_SECONDS)
    time.sleep(WORKING_SECONDS)
    return process.pid


def end(pid: int) -> int:
    """Wait for the exit code of a process that was asked to end."""
    deadline = time.monotonic() + ENDING_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"it did not end within {ENDING_SECONDS:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_signals", [1, 2])
@pytest.mark.parametrize(
    ("stage", "slow", "keys"),
    [
        ("label", "", SLOW_TEACHER),  # in an actor
        ("fit", "fit", []),  # in the driver
        ("fit", "", TWO_WORKERS),  # in Ray Train's workers
        ("select", "select", []),
        ("label", "", [*SLOW_TEACHER, "cluster=local"]),  # in the process
    ],
    ids=["label", "fit", "ray_train", "select", "local"],
)
def test_ctrl_c_ends_a_run_at_once_and_without_a_traceback(
    recipe: Path,
    undisturbed: RunResult,
    tmp_path: Path,
    stage: str,
    slow: str,
    keys: list[str],
    num_signals: int,
) -> None:
    run_dir = tmp_path / "run"
    pid = begin(recipe, run_dir, Path(undisturbed.run_dir.path), stage, slow, keys)
    for number in range(num_signals):
        time.sleep(BETWEEN_SECONDS * number)
        os.killpg(pid, signal.SIGINT)  # to all in the foreground, as a terminal does
    assert end(pid) == 130
    said = (run_dir / "said.txt").read_text()
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_ends_a_step_in_the_driver(
    recipe: Path, undisturbed: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "4")
    run_dir = tmp_path / "run"
    pid = begin(recipe, run_dir, Path(undisturbed.run_dir.path), "select", "select", [])
    os.kill(pid, signal.SIGTERM)
    assert end(pid) == 143
    assert "Traceback" not in (run_dir / "said.txt").read_text()
