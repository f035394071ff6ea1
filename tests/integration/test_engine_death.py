"""Processes that are killed for real, in a real actor pool: who replaces them, and what is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray

from nncift_ray.errors import EngineDiedError, StageError
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import finished_shards, run_stage, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.shards import ATTEMPTS_FOLDER
from nncift_ray.runtime.step import KILLED_WORKER, Resources, Shard, Stage, Worker

ROWS = pa.schema([pa.field("row", pa.int64())])
NUM_ITEMS, ITEM_ROWS = 4, 4
POISON = 6
ENGINE_POISON = 15


@dataclass(frozen=True)
class Fate:
    """What kills whom: rows always, ``once`` the first worker that meets it, loading every one."""

    rows: tuple[int, ...] = ()
    engine_rows: tuple[int, ...] = ()
    once: int | None = None
    load: bool = False


class FragileStage(Stage):
    """Writes row numbers; its workers are killed by SIGKILL, as the kernel does for memory."""

    name: ClassVar[str] = "fragile"
    divisible: ClassVar[bool] = True

    def __init__(self, fate: Fate, tally: Path) -> None:
        self.fate, self.tally = fate, tally
        self.resources = Resources(num_cpus=1, min_actors=2, max_actors=2)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        return {"rows": ROWS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {}

    def num_items(self) -> int:
        return 1 if self.fate.load else NUM_ITEMS

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


def make_stage(folder: Path, fate: Fate) -> FragileStage:
    (folder / "tally").mkdir()
    return FragileStage(fate, folder / "tally")


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
