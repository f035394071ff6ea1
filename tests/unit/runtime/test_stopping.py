"""SIGTERM ends a run at a shard's edge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import cast

import pytest

from nncift_ray.errors import StopRequested
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.session import seconds_to_end, stopping

# What they hold is not looked at.
SHARD, BEGUN = cast("ShardRecord", None), cast("StageBegun", None)
LONG = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def work_on(environment: dict[str, str], *, num_signals: int) -> None:
    """Work on one shard that takes half a minute, and be asked to stop."""
    with stopping(environment):
        for _ in range(num_signals):
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)


def test_without_a_signal_nothing_ends() -> None:
    with stopping(LONG) as stop:
        stop.stage_started(BEGUN, 0)
        stop.shard_finished("label", SHARD)


def test_the_shard_at_hand_is_finished_first(capfd: pytest.CaptureFixture[str]) -> None:
    with stopping(LONG) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # the shard's work goes on
        with pytest.raises(StopRequested):
            stop.shard_finished("label", SHARD)
    assert "ends with the next finished shard, in 55 s" in capfd.readouterr().err


def test_a_shard_that_takes_too_long_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(StopRequested):
        work_on({"RAY_JOB_STOP_WAIT_TIME_S": "0.2"}, num_signals=1)
    assert time.monotonic() - started < 10


def test_a_second_signal_ends_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(StopRequested):
        work_on(LONG, num_signals=2)
    assert time.monotonic() - started < 10


def test_afterwards_the_handler_is_the_earlier_one_and_no_signal_follows() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping(LONG) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop.stage_started(BEGUN, 0)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_another_thread_changes_no_handler() -> None:
    seen: list[object] = []

    def look() -> None:
        with stopping(LONG):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 25.0),  # Slurm, Kubernetes: 30
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 1.5),  # Ray's own 3
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", **LONG}, 55.0),
        ({"RAY_JOB_STOP_WAIT_TIME_S": "8"}, 4.0),
        ({"RAY_JOB_STOP_WAIT_TIME_S": "soon"}, 25.0),
    ],
)
def test_there_is_time_left_to_leave_ray_in_order(
    environment: dict[str, str], seconds: float
) -> None:
    assert seconds_to_end(environment) == seconds


def test_the_command_line_says_what_is_kept_and_exits_as_a_stopped_process() -> None:
    program = (
        "from nncift_ray.cli import explained\n"
        "from nncift_ray.errors import StopRequested\n"
        "import typer\n"
        "def main():\n"
        "    with explained():\n"
        "        raise StopRequested\n"
        "typer.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 143
    assert "finished shards are kept" in done.stderr
