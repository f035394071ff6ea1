"""What a run directory holds: which stages are finished, begun or missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nncift_ray.pipeline.opening import home_of, read_record
from nncift_ray.stages.driver import finished_shards
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

State = Literal["done", "begun", "missing"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str
    state: State
    num_items: int  # finished so far
    num_shards: int
    seconds: float  # of its workers
    num_failures: int
    folder: str


@dataclass(frozen=True)
class RunStatus:
    """A run directory."""

    run_dir: str
    config: dict[str, Any]
    stages: tuple[StageStatus, ...]


def read_status(run_dir: str) -> RunStatus:
    """Read the state of a run from its directory.

    Raises:
        StorageError: If there is no run.
    """
    location = Location.of(run_dir)
    record = read_record(location)
    stages = tuple(
        _stage_status(home_of(location, record, name), name, record["stages"].get(name))
        for name in record["stage_names"]
    )
    return RunStatus(str(location), record["config"], stages)


def _stage_status(run_dir: Location, name: str, fingerprint: str | None) -> StageStatus:
    if fingerprint is None:
        return StageStatus(name, "missing", 0, 0, 0.0, 0, "")
    folder = run_dir / name / fingerprint
    output = StageOutput.open(folder)
    if output is not None:
        manifest = output.manifest
        return StageStatus(
            name,
            "done",
            manifest.num_items,
            len(manifest.shards),
            manifest.worker_seconds,
            manifest.num_failures,
            str(folder),
        )
    shards = finished_shards(folder)
    return StageStatus(
        name,
        "begun" if shards else "missing",
        sum(shard.stop - shard.start for shard in shards),
        len(shards),
        sum(shard.seconds for shard in shards),
        sum(shard.num_failures for shard in shards),
        str(folder),
    )
