"""The folder of one stage's result: how a worker fills it and how later stages read it."""

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nncift_ray.config.secrets import redact
from nncift_ray.errors import StorageError
from nncift_ray.storage import schemas
from nncift_ray.storage.filesystem import HashingWriter, Location
from nncift_ray.storage.manifest import PartRecord, ShardRecord, StageManifest, utc_now

MANIFEST_NAME = "manifest.json"
SHARD_FOLDER = "shards"
BEGUN_NAME = "begun.json"
ERRORS_TABLE = "errors"
FILES_TABLE = "files"
EXCERPT_LENGTH = 200
ERRORS_HELD = 1024
ROW_GROUP_ROWS = 65_536
RANGE_DIGITS = 10

SchemaCheck = Callable[[str, pa.Schema], None]


def shard_name(start: int, stop: int) -> str:
    """Name a shard so that names sort as the shards do."""
    return f"{start:0{RANGE_DIGITS}d}-{stop:0{RANGE_DIGITS}d}"


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
        self._writers: dict[str, tuple[pq.ParquetWriter, HashingWriter, str]] = {}
        self._rows: dict[str, int] = {}
        self._files: list[tuple[str, HashingWriter]] = []
        self._errors: list[dict[str, Any]] = []
        self._num_errors = 0
        self._counts: dict[str, int] = {}
        self.facts: dict[str, Any] = {}

    @property
    def folder(self) -> Location:
        """The stage's folder, for what a worker keeps for its own next attempt."""
        return self._folder

    def write(self, table_name: str, table: pa.Table) -> None:
        """Append rows to a table; its schema must be the declared one."""
        if table_name not in self._writers:
            self._check(table_name, table.schema)
            self._open(table_name, table.schema)
        self._writers[table_name][0].write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._rows[table_name] += table.num_rows

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
        part = f"{FILES_TABLE}/{name}"
        stream = self._stack.enter_context((self._folder / part).open_whole())
        self._files.append((part, stream))
        return stream

    def count(self, name: str, amount: int) -> None:
        """Add to what adds up over shards; "tokens" and "cached_tokens" are shown as such."""
        self._counts[name] = self._counts.get(name, 0) + int(amount)

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
        for writer, _, _ in self._writers.values():
            writer.close()
        self._stack.close()
        parts = [
            _part_record(table, name, self._rows[table], stream)
            for table, (_, stream, name) in self._writers.items()
        ]
        parts += [_part_record(FILES_TABLE, name, 0, stream) for name, stream in self._files]
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
        for writer, _, _ in self._writers.values():
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                writer.close()
        with contextlib.suppress(_AbandonedError):
            self._stack.__exit__(_AbandonedError, _AbandonedError(), None)

    def _open(self, table_name: str, schema: pa.Schema) -> None:
        name = f"{table_name}/{shard_name(self._start, self._stop)}.parquet"
        stream = self._stack.enter_context((self._folder / name).open_whole())
        writer = pq.ParquetWriter(pa.PythonFile(stream, mode="w"), schema, compression="zstd")
        self._writers[table_name] = (writer, stream, name)
        self._rows[table_name] = 0


def _part_record(table: str, name: str, rows: int, stream: HashingWriter) -> PartRecord:
    return PartRecord(
        table=table, name=name, rows=rows, bytes=stream.num_bytes, sha256=stream.sha256
    )


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
        pieces: list[pa.Table] = []
        position = 0
        for location, part in self.table_parts(table):
            if position < stop and position + part.rows > start:
                low, high = start - position, stop - position
                pieces.extend(self._part_range(location, low, high, columns))
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

    def _part_range(
        self, location: Location, start: int, stop: int, columns: Sequence[str] | None
    ) -> list[pa.Table]:
        pieces: list[pa.Table] = []
        with self._open_part(location) as file:
            position = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if position < stop and position + rows > start:
                    names = None if columns is None else list(columns)
                    table = file.read_row_group(group, columns=names)
                    low, high = max(0, start - position), min(rows, stop - position)
                    pieces.append(table.slice(low, high - low))
                position += rows
        return pieces

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
