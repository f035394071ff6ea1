"""A node that cannot load a model is left; an engine that died takes its process along; a row that
hangs is found like one that kills."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nncift_ray.errors import EngineDiedError, ModelError, StageError
from nncift_ray.runtime.driver import NODE_LABEL, Executor, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import LineReporter
from nncift_ray.runtime.shards import MAX_DEATHS, UNFIT_PAUSE_SECONDS, ShardOutcome, ShardRunner
from nncift_ray.runtime.step import Shard, Stage, Worker
from tests.unit.runtime.dying import KilledError
from tests.unit.runtime.test_poison import GroupStage, contains, killers_of, rows_of

ROW_TIMEOUT = 0.5


class Cluster:
    """Nodes with an actor each; a death brings the actor back on its own node, as Ray does."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes
        self.pauses: list[float] = []
        self.used: list[str] = []

    def execute(
        self, stage: Stage, folder: Location, shards: list[Shard]
    ) -> Iterator[ShardOutcome]:
        avoided = stage.resources.labels.get(NODE_LABEL, "!in()")
        usable = [node for node in self.nodes if node not in avoided]
        runners = {node: self.start(stage, folder, node) for node in usable}
        for number, shard in enumerate(shards):
            node = usable[number % len(usable)]
            while True:
                stage.node = node  # pyright: ignore[reportAttributeAccessIssue]
                self.used.append(node)
                try:
                    yield runners[node].run(shard)
                    break
                except KilledError:
                    runners[node] = self.start(stage, folder, node)

    def start(self, stage: Stage, folder: Location, node: str) -> ShardRunner:
        def leave() -> None:
            raise KilledError

        runner = ShardRunner(stage, folder, "session")
        runner.node, runner.replaceable, runner.leave = node, True, leave
        runner.has_other_place = lambda: len(self.nodes) > 1
        runner.pause = self.pauses.append
        return runner


class LoadingStage(GroupStage):
    """Loads nowhere but on some nodes."""

    node = ""

    def __init__(self, error: type[BaseException], bad: tuple[str, ...]) -> None:
        super().__init__(contains())
        self.error, self.bad = error, bad

    def make_worker(self) -> Worker:
        if self.node in self.bad:
            self.num_deaths += 1
            raise self.error("CUDA error: an illegal memory access")
        return self.work


class HangingStage(GroupStage):
    """Waits at one row until the thread that watches would end the process."""

    def __init__(self, row: int) -> None:
        super().__init__(contains())
        self.row, self.left = row, threading.Event()
        self.resources = replace(self.resources, row_timeout=ROW_TIMEOUT)

    def work(self, shard: Shard, sink: Sink) -> None:
        self.deadly = lambda rows: self.row in rows and self.hang()
        super().work(shard, sink)

    def hang(self) -> bool:
        self.left.clear()
        assert self.left.wait(60), "nobody ended the worker"
        raise KilledError


def run(stage: Stage, folder: Path, execute: Executor) -> tuple[StageOutput, list[str]]:
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    where = Location.of(str(folder))
    return run_stage(stage, where, execute=execute, reporter=reporter), lines


@pytest.mark.parametrize("error", [ModelError, EngineDiedError, KilledError, RuntimeError])
def test_a_node_that_cannot_load_is_left_and_no_row_is_lost(
    tmp_path: Path, error: type[BaseException]
) -> None:
    stage, cluster = LoadingStage(error, bad=("b",)), Cluster("a", "b", "c")
    output, lines = run(stage, tmp_path, cluster.execute)
    assert rows_of(output) == list(range(100))
    assert stage.resources.labels == {NODE_LABEL: "!in(b)"}
    assert [line for line in lines if "node b cannot load a worker" in line]
    assert cluster.pauses
    assert set(cluster.pauses) == {UNFIT_PAUSE_SECONDS}


@pytest.mark.parametrize("error", [ModelError, EngineDiedError])
def test_what_two_nodes_cannot_load_is_the_users_error(
    tmp_path: Path, error: type[ModelError]
) -> None:
    stage = LoadingStage(error, bad=("a", "b", "c"))
    with pytest.raises((ModelError, StageError), match="CUDA error"):
        run(stage, tmp_path, Cluster("a", "b", "c").execute)


def test_the_only_node_is_not_left(tmp_path: Path) -> None:
    cluster = Cluster("a")
    with pytest.raises(ModelError, match="CUDA error"):
        run(LoadingStage(ModelError, bad=("a",)), tmp_path, cluster.execute)
    assert cluster.used == ["a"]
    assert cluster.pauses == []


def test_a_node_that_was_unfit_in_an_earlier_run_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        run(LoadingStage(ModelError, bad=("a", "b")), tmp_path, Cluster("a", "b").execute)
    output, _ = run(LoadingStage(ModelError, bad=("b",)), tmp_path, Cluster("a", "b").execute)
    assert rows_of(output) == list(range(100))


def test_an_engine_that_died_ends_its_process_and_is_not_made_beside_the_corpse(
    tmp_path: Path,
) -> None:
    starts: list[str] = []

    class Counted(Cluster):
        def start(self, stage: Stage, folder: Location, node: str) -> ShardRunner:
            starts.append(node)
            return super().start(stage, folder, node)

    stage = GroupStage(contains(57))
    stage.death = lambda: EngineDiedError("CUDA error")
    output, _ = run(stage, tmp_path, Counted("a").execute)
    assert killers_of(output) == [57]
    # One process at first and one for each death; each loads once at most.
    assert len(starts) == stage.num_deaths + 1 == 2 * MAX_DEATHS + 1
    assert stage.num_starts == len(starts)


def test_a_row_that_hangs_is_found_and_said_to_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = HangingStage(57)

    def start(self: Cluster, stage: HangingStage, folder: Location, node: str) -> ShardRunner:
        runner = ShardRunner(stage, folder, "session")
        runner.node, runner.replaceable, runner.leave = node, True, stage.left.set
        return runner

    monkeypatch.setattr(Cluster, "start", start)
    output, _ = run(stage, tmp_path, Cluster("a").execute)
    assert killers_of(output) == [57]
    assert rows_of(output) == [row for row in range(100) if row != 57]
    message = output.read("errors").to_pylist()[0]["message"]
    assert f"finished nothing in {ROW_TIMEOUT:g} s, 2 times" in message


def test_slow_rows_that_finish_in_time_are_left_alone(tmp_path: Path) -> None:
    stage = GroupStage(contains())
    stage.resources = replace(stage.resources, row_timeout=0.2)
    wait = threading.Event().wait
    stage.deadly = lambda rows: bool(wait(0.05))
    output, _ = run(stage, tmp_path, Cluster("a").execute)
    assert rows_of(output) == list(range(100))


def test_a_stage_of_rows_is_given_less_silence_than_a_training() -> None:
    stage = GroupStage(contains())
    stage.resources = replace(stage.resources, placement_timeout=5.0, row_timeout=2.0)
    assert stage.longest_silence() == 5.0 + 24 * 2.0
    stage.divisible = False  # pyright: ignore[reportAttributeAccessIssue]
    assert stage.longest_silence() > 100_000
