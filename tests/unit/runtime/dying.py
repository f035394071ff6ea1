"""Death without a process: an exception that stage code may not catch, and what Ray does then."""

from __future__ import annotations

from collections.abc import Iterator

from nncift_ray.runtime.files import Location
from nncift_ray.runtime.shards import ShardOutcome, ShardRunner
from nncift_ray.runtime.step import Shard, Stage


class KilledError(BaseException):
    """Stands for SIGKILL."""


def replace_the_dead(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    """Make an actor again when it died and hand it the same shard again (an Executor)."""
    yield from _replace(stage, folder, shards, nodes_die=False)


def replace_lost_nodes(
    stage: Stage, folder: Location, shards: list[Shard]
) -> Iterator[ShardOutcome]:
    """The same, but each death took the node along, and each new actor is on a new one."""
    yield from _replace(stage, folder, shards, nodes_die=True)


def _replace(
    stage: Stage, folder: Location, shards: list[Shard], *, nodes_die: bool
) -> Iterator[ShardOutcome]:
    gone: set[str] = set()

    def make_runner() -> ShardRunner:
        runner = ShardRunner(stage, folder, "session")
        runner.node, runner.is_gone = f"node {len(gone)}", gone.__contains__
        return runner

    runner = make_runner()
    for shard in shards:
        outcome: ShardOutcome | None = None
        while outcome is None:
            try:
                outcome = runner.run(shard)
            except KilledError:
                if nodes_die:
                    gone.add(f"node {len(gone)}")
                runner = make_runner()
        yield outcome
