"""Death without a process: an exception that stage code may not catch, and what Ray does then."""

from __future__ import annotations

from collections.abc import Iterator

from nncift_ray.stages.shard_runner import ShardOutcome, ShardRunner
from nncift_ray.stages.stage import Shard, Stage
from nncift_ray.storage.filesystem import Location


class KilledError(BaseException):
    """Stands for SIGKILL."""


def replace_the_dead(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    """Make an actor again when it died and hand it the same shard again (an Executor)."""
    runner = ShardRunner(stage, folder, "session")
    for shard in shards:
        outcome: ShardOutcome | None = None
        while outcome is None:
            try:
                outcome = runner.run(shard)
            except KilledError:
                runner = ShardRunner(stage, folder, "session")
        yield outcome
