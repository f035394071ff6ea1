"""What a run directory holds, and how fast a run that works in it gets on.

Everything is read from the directory: manifests of finished stages, and of a stage in progress the
records that its workers leave and what its driver said it had to do. No Ray is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from nncift_ray.config import ClusterConfig
from nncift_ray.pipeline.locking import is_locked
from nncift_ray.pipeline.opening import Record, home_of, read_record
from nncift_ray.stages.driving.driver import record_files, without_overlaps
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.manifest import ShardRecord, StageBegun, sum_counts
from nncift_ray.storage.output import BEGUN_NAME, StageOutput

SECONDS_PER_HOUR = 3600.0
#: The rate of a stage is that of its last minutes: workers come and go.
RATE_WINDOW_SECONDS = 300.0
#: Of what another run did and paid for.
NO_PRICES = ClusterConfig(price_per_gpu_hour=0, price_per_cpu_hour=0)

#: "running" where the run's process is seen at work; "begun" where it is not, or cannot be seen.
State = Literal["done", "running", "begun", "missing"]


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str
    state: State
    num_items: int = 0  # finished so far
    num_shards: int = 0
    seconds: float = 0.0  # of its workers
    num_failures: int = 0
    num_rows: int = 0  # of all tables but the errors
    counts: dict[str, int] | None = None  # e.g. tokens, cached_tokens
    cost_usd: float = 0.0  # of the workers' seconds
    folder: str = ""
    unit: str = ""  # of a stage in progress, like all that follows
    units_done: int = 0
    units: int = 0
    units_per_second: float | None = None
    seconds_left: float | None = None
    last_sign: str = ""  # when the stage began, or its latest shard was finished; UTC


@dataclass(frozen=True)
class RunStatus:
    """A run directory."""

    run_dir: str
    config: dict[str, Any]
    running: bool | None  # None: cannot be seen, e.g. on an object store
    cost_usd: float
    stages: tuple[StageStatus, ...]

    @property
    def complete(self) -> bool:
        """Whether every stage is finished."""
        return all(stage.state == "done" for stage in self.stages)


def read_status(run_dir: str) -> RunStatus:
    """Read the state of a run from its directory.

    Raises:
        StorageError: If there is no run.
    """
    return StatusReader(run_dir).read()


class StatusReader:
    """Reads the state of a run again and again; what it has read once it does not read again."""

    def __init__(self, run_dir: str) -> None:
        """Read from a run directory."""
        self._run_dir = Location.of(run_dir)
        self._shards: dict[str, ShardRecord] = {}
        self._outputs: dict[str, StageOutput] = {}

    def read(self, now: datetime | None = None) -> RunStatus:
        """Read the state at a time.

        Raises:
            StorageError: If there is no run.
        """
        now = now or datetime.now(UTC)
        record = read_record(self._run_dir)
        running = is_locked(self._run_dir)
        prices = _prices(record["config"])
        stages = tuple(
            self._read_stage(record, name, bool(running), prices, now)
            for name in record["stage_names"]
        )
        cost = sum(stage.cost_usd for stage in stages)
        return RunStatus(str(self._run_dir), record["config"], running, cost, stages)

    def _read_stage(
        self, record: Record, name: str, running: bool, prices: ClusterConfig, now: datetime
    ) -> StageStatus:
        fingerprint = record["stages"].get(name)
        if fingerprint is None:
            return StageStatus(name, "missing")
        inherited = name in record.get("inherited", ())
        folder = home_of(self._run_dir, record, name) / name / fingerprint
        output = self._outputs.get(str(folder)) or StageOutput.open(folder)
        if output is not None:
            self._outputs[str(folder)] = output
            return _finished(name, output, NO_PRICES if inherited else prices)
        begun = _read_begun(folder)
        shards = without_overlaps(self._read_shards(folder))
        if begun is None and not shards:
            return StageStatus(name, "missing", folder=str(folder))
        return _in_progress(name, folder, begun, shards, running, prices, now)

    def _read_shards(self, folder: Location) -> Iterable[ShardRecord]:
        for file in record_files(folder):
            if str(file) not in self._shards:
                self._shards[str(file)] = ShardRecord.read(file.read_bytes(), str(file))
            yield self._shards[str(file)]


def _prices(config: dict[str, Any]) -> ClusterConfig:
    # Of a recipe that another version may have written, only what is needed.
    wanted = ("price_per_gpu_hour", "price_per_cpu_hour")
    section = config.get("cluster", {})
    return ClusterConfig(**{key: section[key] for key in wanted if key in section})


def _read_begun(folder: Location) -> StageBegun | None:
    file = folder / BEGUN_NAME
    return StageBegun.read(file.read_bytes(), str(file)) if file.exists() else None


def _finished(name: str, output: StageOutput, prices: ClusterConfig) -> StageStatus:
    manifest = output.manifest
    hourly = prices.hourly_price(manifest.num_cpus, manifest.num_gpus)
    return StageStatus(
        name,
        "done",
        num_items=manifest.num_items,
        num_shards=len(manifest.shards),
        seconds=manifest.worker_seconds,
        num_failures=manifest.num_failures,
        num_rows=sum(shard.num_rows for shard in manifest.shards),
        counts=manifest.counts(),
        cost_usd=manifest.worker_seconds / SECONDS_PER_HOUR * hourly,
        folder=str(output.folder),
    )


def _in_progress(
    name: str,
    folder: Location,
    begun: StageBegun | None,
    shards: list[ShardRecord],
    running: bool,
    prices: ClusterConfig,
    now: datetime,
) -> StageStatus:
    seconds = sum(shard.seconds for shard in shards)
    done = sum(shard.units for shard in shards)
    hourly = 0.0 if begun is None else prices.hourly_price(begun.num_cpus, begun.num_gpus)
    units = done if begun is None else begun.units
    rate = None if begun is None else units_per_second(begun, shards, now)
    signs = [shard.finished_at for shard in shards] + ([begun.started_at] if begun else [])
    return StageStatus(
        name,
        "running" if running and begun is not None else "begun",
        num_items=sum(shard.stop - shard.start for shard in shards),
        num_shards=len(shards),
        seconds=seconds,
        num_failures=sum(shard.num_failures for shard in shards),
        num_rows=sum(shard.num_rows for shard in shards),
        counts=sum_counts(shards),
        cost_usd=seconds / SECONDS_PER_HOUR * hourly,
        folder=str(folder),
        unit="" if begun is None else begun.unit,
        units_done=done,
        units=units,
        units_per_second=rate,
        seconds_left=(units - done) / rate if rate else None,
        last_sign=max(signs),
    )


def units_per_second(
    begun: StageBegun, shards: Iterable[ShardRecord], now: datetime
) -> float | None:
    """Return how fast a stage gets on: in its last minutes, or since it began if none ended then.

    None before the first shard of this run is finished. A worker's clock may differ from this one:
    what it dates later than now ended now.
    """
    started = datetime.fromisoformat(begun.started_at)
    ended = [
        (min(datetime.fromisoformat(shard.finished_at), now), shard.units)
        for shard in shards
        if shard.finished_at >= begun.started_at
    ]
    if not ended:
        return None
    window = min(RATE_WINDOW_SECONDS, (now - started).total_seconds())
    recent = sum(units for at, units in ended if (now - at).total_seconds() <= window)
    if not recent:
        window = (now - started).total_seconds()
        recent = sum(units for _, units in ended)
    return recent / window if window > 0 else None
