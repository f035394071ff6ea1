"""Processes that are killed for real, in a real actor pool: who replaces them, and what is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import psutil
import pyarrow as pa
import pytest
import ray
import ray.data

from nncift_ray.errors import EngineDiedError, StageError
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import finished_shards, run_stage, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.shards import ATTEMPTS_FOLDER
from nncift_ray.runtime.step import KILLED_WORKER, Resources, Shard, Stage, Worker
from tests.stages import ROWS, RowsStage

NUM_ITEMS, ITEM_ROWS = 4, 4
POISON = 6
ENGINE_POISON = 15
WORK_SECONDS, ROW_TIMEOUT, END_SECONDS = 6.0, 2.0, 30.0
SILENT_SECONDS = 20.0  # an actor's start takes some on a busy machine
TIMES = pa.schema([("row", pa.int64()), ("start", pa.float64()), ("stop", pa.float64())])


@dataclass(frozen=True)
class Fate:
    """What kills whom: rows always, ``once`` the first worker that meets it, loading every one."""

    rows: tuple[int, ...] = ()
    engine_rows: tuple[int, ...] = ()
    once: int | None = None
    load: bool = False


class FragileStage(RowsStage):
    """Writes row numbers; its workers are killed by SIGKILL, as the kernel does for memory."""

    name: ClassVar[str] = "fragile"
    divisible: ClassVar[bool] = True

    def __init__(self, fate: Fate, tally: Path) -> None:
        self.fate, self.tally = fate, tally
        self.items = 1 if fate.load else NUM_ITEMS
        self.resources = Resources(num_cpus=1, min_actors=2, max_actors=2)

    def row_numbers(self, start: int, stop: int) -> range:
        return range(start * ITEM_ROWS, stop * ITEM_ROWS)

    def make_worker(self) -> Worker:
        if self.fate.load:
            self.die()
        return self.work

    def work(self, shard: Shard, sink: Sink) -> None:
        rows = shard.rows or self.row_numbers(shard.start, shard.stop)
        for row in rows:
            if row in shard.skip:
                sink.error(KILLED_WORKER, shard.skip[row], example_id=str(row))
                continue
            if row == self.fate.once and not list(self.tally.iterdir()):
                self.die()
            if row in self.fate.rows:
                self.die()
            if row in self.fate.engine_rows:
                raise EngineDiedError("the engine's process is gone")
            sink.write_rows("rows", [{"row": row}], ROWS)

    def die(self) -> None:
        (self.tally / str(time.time_ns())).touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


def run(stage: Stage, folder: Path) -> StageOutput:
    run_dir = Location.of(str(folder / "run"))
    return run_stage(stage, run_dir, execute=execute_on_ray, reporter=SilentReporter())


AnyStage = TypeVar("AnyStage", bound=FragileStage)


def make_stage(folder: Path, fate: Fate, kind: type[AnyStage] = FragileStage) -> AnyStage:
    (folder / "tally").mkdir()
    return kind(fate, folder / "tally")


def test_a_killed_worker_is_replaced_and_no_row_is_lost(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(once=POISON))
    output = run(stage, tmp_path)
    assert output.read("rows")["row"].to_pylist() == list(range(NUM_ITEMS * ITEM_ROWS))
    assert output.manifest.num_failures == 0
    assert len(list(stage.tally.iterdir())) == 1


def test_rows_that_kill_end_in_the_errors_table_and_the_run_finishes(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(rows=(POISON,), engine_rows=(ENGINE_POISON,)))
    output = run(stage, tmp_path)
    errors = output.read("errors").to_pylist()
    assert [row["example_id"] for row in errors] == [str(POISON), str(ENGINE_POISON)]
    assert {row["reason"] for row in errors} == {KILLED_WORKER}
    kept = set(range(NUM_ITEMS * ITEM_ROWS)) - {POISON, ENGINE_POISON}
    assert output.read("rows")["row"].to_pylist() == sorted(kept)
    assert not (output.folder / ATTEMPTS_FOLDER).exists()


def test_workers_killed_while_they_load_stop_the_stage_with_advice(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(load=True))
    with pytest.raises(StageError, match="while it was being made.*memory"):
        run(stage, tmp_path)
    assert finished_shards(stage_folder(stage, Location.of(str(tmp_path / "run")))) == []
    assert ray.is_initialized()


class ParentStage(FragileStage):
    """Starts a process of its own, as vLLM does on several GPUs, and is killed once beside it."""

    name: ClassVar[str] = "parent"

    def work(self, shard: Shard, sink: Sink) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # noqa: S603
        (self.tally / f"child-{child.pid}").touch()
        if len(list(self.tally.glob("child-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        child.kill()
        child.wait()
        sink.write_rows("rows", [{"row": shard.start}], ROWS)


def test_a_killed_actor_takes_the_processes_that_it_started_along(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(), ParentStage)
    output = run(stage, tmp_path)
    assert output.read("rows").num_rows == NUM_ITEMS
    (first, *_) = sorted(stage.tally.iterdir(), key=lambda path: path.stat().st_mtime)
    orphan = int(first.name.removeprefix("child-"))
    deadline = time.monotonic() + END_SECONDS
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the dead actor's process is still there"
        time.sleep(0.1)


class SilentStage(FragileStage):
    """Takes longer than Ray Data is told to wait."""

    name: ClassVar[str] = "silent"
    silence, seconds = 600.0, WORK_SECONDS

    def longest_silence(self) -> float:
        return self.silence

    def work(self, shard: Shard, sink: Sink) -> None:
        time.sleep(self.seconds)
        sink.write_rows("rows", [{"row": shard.start}], ROWS)


def test_a_stage_that_is_silent_for_too_long_says_what_was_waited_for(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(), SilentStage)
    stage.silence, stage.seconds = SILENT_SECONDS, 100 * SILENT_SECONDS
    waited_for = r"nothing was finished for .* Waited for: items \d\.\.\d \(step 'whole' on node"
    with pytest.raises(StageError, match=waited_for):
        run(stage, tmp_path)


def test_a_stage_may_be_silent_for_as_long_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", WORK_SECONDS / 3)
    output = run(make_stage(tmp_path, Fate(), SilentStage), tmp_path)
    assert output.read("rows").num_rows == NUM_ITEMS


class HangingStage(FragileStage):
    """Waits for ever at one row."""

    name: ClassVar[str] = "hanging"

    def die(self) -> None:
        (self.tally / str(time.time_ns())).touch()
        time.sleep(3600)


def test_a_row_that_hangs_ends_in_the_errors_table_and_the_run_finishes(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, Fate(rows=(POISON,)), HangingStage)
    stage.resources = replace(stage.resources, row_timeout=ROW_TIMEOUT)
    output = run(stage, tmp_path)
    errors = output.read("errors").to_pylist()
    assert [(row["example_id"], row["reason"]) for row in errors] == [(str(POISON), KILLED_WORKER)]
    assert "finished nothing" in errors[0]["message"]
    kept = set(range(NUM_ITEMS * ITEM_ROWS)) - {POISON}
    assert output.read("rows")["row"].to_pylist() == sorted(kept)


class UnevenStage(FragileStage):
    """One long shard, and many short ones."""

    name: ClassVar[str] = "uneven"
    produces = {"rows": TIMES}

    def __init__(self, fate: Fate, tally: Path) -> None:
        super().__init__(fate, tally)
        self.items = 8

    def work(self, shard: Shard, sink: Sink) -> None:
        started = time.monotonic()
        time.sleep(WORK_SECONDS if shard.start == 0 else 0.1)
        row = {"row": os.getpid(), "start": started, "stop": time.monotonic()}
        sink.write_rows("rows", [row], TIMES)


def test_no_short_shard_waits_behind_a_long_one(tmp_path: Path) -> None:
    rows = run(make_stage(tmp_path, Fate(), UnevenStage), tmp_path).read("rows").to_pylist()
    long = max(rows, key=lambda row: row["stop"] - row["start"])
    behind = [row for row in rows if row["row"] == long["row"] and row["start"] >= long["stop"]]
    assert not behind
