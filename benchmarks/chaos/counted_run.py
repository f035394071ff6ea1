"""Run a recipe on a cluster and count what is begun and finished: the child of the harness.

    python -m benchmarks.chaos.counted_run RECIPE TALLY_FOLDER SECONDS

Every shard leaves an empty file when a worker begins it and another when it is done, so what died
in between is known however it died; the file's name says what was begun, on which node and by which
process. In between it takes so many seconds more, so that a small corpus is on its way as long as a
large one. Stages that need no spot node run in this process, as theirs would outlive what is tried
here and cost a start each.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from nncift_ray.errors import NnciftError
from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink
from nncift_ray.runtime.progress import LineReporter
from nncift_ray.runtime.ray_pool import execute_on_ray
from nncift_ray.runtime.shards import ShardOutcome
from nncift_ray.runtime.step import Shard, Stage, Worker

BEGUN, DONE = "begun", "done"
#: Stages whose actors live on spot nodes.
ON_SPOT = ("embed", "label", "score_pairs")


class CountedStage:
    """A stage whose workers leave a mark; everything else is the stage's own."""

    def __init__(self, stage: Stage, tally: Path, seconds: float) -> None:
        """Wrap a stage; marks go to a folder, a shard takes so much longer."""
        self.stage, self.tally, self.seconds = stage, tally, seconds

    def __getattr__(self, name: str) -> Any:
        """Return what the stage has."""
        if name == "stage":  # asked while it is being unpickled
            raise AttributeError(name)
        return getattr(self.stage, name)

    def make_worker(self) -> Worker:
        """Return the stage's worker, counted."""
        worker = self.stage.make_worker()
        node = ray.get_runtime_context().get_node_id()

        def work(shard: Shard, sink: Sink) -> None:
            what = f"{self.stage.name}.{shard.start}.{shard.stop}"
            name = f"{what}.{node}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            (self.tally / f"{name}.{BEGUN}").touch()
            worker(shard, sink)
            time.sleep(self.seconds)
            (self.tally / f"{name}.{DONE}").touch()

        return work


def main() -> int:
    """Run; the exit code is that of the command line."""
    recipe, tally, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    tally.mkdir(parents=True, exist_ok=True)

    def execute(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
        if stage.name not in ON_SPOT:
            return execute_here(stage, folder, shards)
        counted: Any = CountedStage(stage, tally, seconds)
        return execute_on_ray(counted, folder, shards)

    try:
        run(load_config(recipe), reporter=LineReporter(), execute=execute)
    except NnciftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
