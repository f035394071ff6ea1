"""Faults of single workers, on a stage that does nothing else: what is lost of a hundred of them.

Every shard meets a fault that a seed draws, once: its worker is killed, or killed beside a process
that it had started, its engine dies, one of its rows hangs, or it takes longer than Ray Data waits
for by itself. On one of two nodes loading kills twice, so that the node is left. One row of the
stage hangs each time: it is to be condemned, and no other.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pyarrow as pa

from benchmarks.chaos.cluster import MARKET, SPOT, spot_cluster
from nncift_ray.errors import EngineDiedError
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.step import KILLED_WORKER, Resources, Shard, Stage, Worker

ROWS = pa.schema([pa.field("row", pa.int64())])
KINDS = ("killed", "killed with a grandchild", "engine died", "hung", "longer than Ray waits")
HANGS_ALWAYS = "row that hangs"
LOADS = "loading killed"
NUM_ITEMS, ITEM_ROWS = 36, 4
ROW_SECONDS, RAYS_SECONDS, LONG_SECONDS = 4.0, 2.0, 3.0
END_SECONDS = 30.0


@dataclass(frozen=True)
class FaultRecord:
    """What became of a run."""

    faults: dict[str, int]  # by kind
    rows: int
    rows_lost: int  # neither written nor condemned
    rows_condemned: int
    rows_wrongly_condemned: int
    orphans: int  # grandchildren that outlived their dead parents
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether nothing was lost, wrongly condemned or left behind."""
        return not (self.rows_lost or self.rows_wrongly_condemned or self.orphans)


class FaultyStage(Stage):
    """Writes row numbers; each of its shards meets its fault once."""

    name: ClassVar[str] = "faulty"
    divisible: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def __init__(self, tally: Path, seed: int) -> None:
        """Draw the faults; marks go to a folder."""
        draw = random.Random(seed)
        self.tally, self.seed = tally, seed
        self.fault = [draw.choice(KINDS) for _ in range(NUM_ITEMS)]
        self.poison = draw.randrange(NUM_ITEMS * ITEM_ROWS)
        self.resources = Resources(
            num_cpus=1,
            min_actors=2,
            max_actors=4,
            labels={MARKET: SPOT},
            row_timeout=ROW_SECONDS,
            placement_timeout=600.0,
        )

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """The rows."""
        return {"rows": ROWS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """None."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def num_items(self) -> int:
        """One a fault."""
        return NUM_ITEMS

    def row_numbers(self, start: int, stop: int) -> range:
        """So many an item."""
        return range(start * ITEM_ROWS, stop * ITEM_ROWS)

    def make_worker(self) -> Worker:
        """Die where the first node loads, twice."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        (first, *_) = [*sorted(path.name for path in self.tally.glob("node.*")), f"node.{node}"]
        if first == f"node.{node}" and self._mark(LOADS, node, most=2):
            (self.tally / first).touch()
            os._exit(1)
        return self._work

    def _mark(self, kind: str, where: object, most: int = 1) -> bool:
        """Note a fault, unless it happened so often there."""
        done = len(list(self.tally.glob(f"fault.{kind}.{where}.*")))
        if done < most:
            (self.tally / f"fault.{kind}.{where}.{time.time_ns()}").touch()
        return done < most

    def _work(self, shard: Shard, sink: Sink) -> None:
        kind = self.fault[shard.start]
        if self._mark(kind, shard.start):
            self._suffer(kind)
        for row in shard.wanted(self.row_numbers(shard.start, shard.stop)):
            if row in shard.skip:
                sink.error(KILLED_WORKER, shard.skip[row], example_id=str(row))
                continue
            if row == self.poison:
                self._mark(HANGS_ALWAYS, row, most=99)
                time.sleep(3600)
            sink.write_rows("rows", [{"row": row}], ROWS)

    def _suffer(self, kind: str) -> None:
        if kind == "engine died":
            raise EngineDiedError("CUDA error: an illegal memory access was encountered")
        if kind == "hung":
            time.sleep(3600)
        if kind == "longer than Ray waits":
            time.sleep(LONG_SECONDS)
            return
        if kind == "killed with a grandchild":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])  # noqa: S603
            (self.tally / f"child.{child.pid}").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def faulty_run(seed: int) -> FaultRecord:
    """Run the stage on two nodes; Ray Data is told to wait for less than a shard may take."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, spot_cluster(2, seed) as cluster:
        tally = Path(name) / "tally"
        tally.mkdir()
        stage = FaultyStage(tally, seed)
        with ray_session(ClusterConfig(address=cluster.address)):
            import ray.data

            ray.data.DataContext.get_current().execution_no_progress_timeout_s = RAYS_SECONDS
            output = run_stage(
                stage,
                Location.of(f"{name}/run"),
                execute=execute_on_ray,
                reporter=SilentReporter(),
            )
        rows = set(output.read("rows")["row"].to_pylist())
        condemned = {int(row["example_id"]) for row in output.read("errors").to_pylist()}
        faults = Counter(path.name.split(".")[1] for path in tally.glob("fault.*"))
        orphans = [int(path.name.split(".")[1]) for path in tally.glob("child.*")]
        deadline = time.monotonic() + END_SECONDS
        while (left := [pid for pid in orphans if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.2)
    everything = set(range(NUM_ITEMS * ITEM_ROWS))
    return FaultRecord(
        faults=dict(faults),
        rows=len(everything),
        rows_lost=len(everything - rows - condemned),
        rows_condemned=len(condemned),
        rows_wrongly_condemned=len(condemned - {stage.poison}),
        orphans=len(left),
        seconds=time.monotonic() - start,
    )


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
