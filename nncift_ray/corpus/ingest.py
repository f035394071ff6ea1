"""Ingest: source files become records, records become the numbered examples of each role.

One row's way: a record of a file -> ``records`` (or ``errors``) of ``ingest`` -> ``candidates``,
``targets`` or ``existing`` of ``deduplicate``, where it has the number that every later table calls
it by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.layouts import batch_tables, count_layouts, read_examples
from nncift_ray.corpus.sources import ReadLimits, SourceFile, content_digest, expand_sources
from nncift_ray.errors import DataError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, Sink, StageOutput
from nncift_ray.runtime.schemas import CANDIDATE, EXISTING, TABLE_OF_ROLE, TARGET
from nncift_ray.runtime.step import Shard, Stage, Worker

RECORDS, CANDIDATES, TARGETS, COPIES = "records", "candidates", "targets", "copies"
KIBIBYTE = 1024
BATCH_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class RoleSource:
    """A file in the role it is read for; a file may be read for both."""

    role: str
    file: SourceFile
    digest: str

    def settings(self) -> dict[str, str]:
        """What identifies the rows that come of it."""
        return {"role": self.role, "source": self.file.uri, "content": self.digest}


class IngestStage(Stage):
    """Reads each source file into ``records`` and ``errors``; an item is one file."""

    name: ClassVar[str] = "ingest"
    unit: ClassVar[str] = "KiB"
    max_failed_key: ClassVar[str] = "data.max_failed_fraction"

    def __init__(
        self,
        sources: Sequence[RoleSource],
        *,
        layout: str | None = None,
        columns: Mapping[str, str] | None = None,
        limits: ReadLimits | None = None,
        max_failed_fraction: float = 1.0,
    ) -> None:
        """Read ``sources`` in the given order; see ``storage.example_rows.read_examples``."""
        self.sources = tuple(sources)
        self.layout = layout
        self.columns = None if columns is None else dict(columns)
        self.limits = limits or ReadLimits()
        self.max_failed_fraction = max_failed_fraction

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """``records``: every usable row, duplicates still inside."""
        return {RECORDS: schemas.RECORDS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """None: this is where data comes in."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The files by name and content, and how they are read."""
        return {
            "sources": [source.settings() for source in self.sources],
            "layout": self.layout,
            "columns": self.columns,
            "limits": asdict(self.limits),
        }

    def num_items(self) -> int:
        """The number of files."""
        return len(self.sources)

    def item_weight(self, start: int, stop: int) -> int:
        """KiB of the files on disk."""
        return sum(-(-source.file.size // KIBIBYTE) for source in self.sources[start:stop])

    def make_worker(self) -> Worker:
        """Return what reads files."""
        return self._read

    def _read(self, shard: Shard, sink: Sink) -> None:
        for source in self.sources[shard.start : shard.stop]:
            sink.facts[f"{source.role} {source.file.uri}"] = self._read_one(source, sink)

    def _read_one(self, source: RoleSource, sink: Sink) -> dict[str, Any]:
        """Stream one file into the tables; return the layouts found and the rows of each kind."""
        layouts: dict[str, int] = {}
        num_rows = num_errors = 0
        rows = read_examples(
            source.file,
            source.role,
            layout_override=self.layout,
            columns=self.columns,
            limits=self.limits,
        )
        for records, errors in batch_tables(rows):
            if records.num_rows:
                sink.write(RECORDS, records)
            if errors.num_rows:
                sink.write_errors(errors)
            for name, count in count_layouts([records]).items():
                layouts[name] = layouts.get(name, 0) + count
            num_rows += records.num_rows
            num_errors += errors.num_rows
        return {"layouts": layouts, "rows": num_rows, ERRORS_TABLE: num_errors}


def find_sources(
    candidates: Sequence[str], targets: Sequence[str], existing: Sequence[str] = ()
) -> list[RoleSource]:
    """Expand the patterns of all roles, candidates first.

    Raises:
        DataError: If a pattern matches nothing or a file cannot be read.
    """
    patterns = {CANDIDATE: candidates, TARGET: targets, EXISTING: existing}
    digests: dict[str, str] = {}
    sources: list[RoleSource] = []
    for role, of_role in patterns.items():
        for file in expand_sources(of_role):
            if file.uri not in digests:
                digests[file.uri] = content_digest(file)
            sources.append(RoleSource(role, file, digests[file.uri]))
    return sources


class DeduplicateStage(Stage):
    """Numbers the examples of each role; of exact copies only the first stays.

    Copies are found within a role by ``example_id``. A target that is also a candidate stays both
    (and is counted): whether to learn from the benchmark is not ours to decide. So does a candidate
    that the model already has: a conditional gain sees that it adds nothing.

    Where a run goes on from a parent, its examples are the earlier rows: only what is new is
    written, with the numbers that follow, and ``copies`` counts what is not.

    Memory: 16 bytes an id, three times over while sorting, and one batch of rows.
    """

    name: ClassVar[str] = "deduplicate"

    def __init__(self, ingest: StageOutput, parent: StageOutput | None = None) -> None:
        """Read the finished ingest, and the examples of a parent that this goes on from."""
        self.ingest, self.parent = ingest, parent

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """``candidates``, ``targets`` and ``existing``; ``copies`` of a parent's."""
        tables = dict.fromkeys(TABLE_OF_ROLE.values(), schemas.EXAMPLES)
        return tables | ({COPIES: schemas.COPIES} if self.parent else {})

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The ingest, and the parent's examples."""
        return {"ingest": self.ingest} | ({"parent": self.parent} if self.parent else {})

    def settings(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {}

    def num_items(self) -> int:
        """One: numbering is sequential."""
        return 1

    def item_weight(self, start: int, stop: int) -> int:
        """All records."""
        return self.ingest.num_rows(RECORDS) if stop > start else 0

    def make_worker(self) -> Worker:
        """Return what numbers the examples."""
        return self._deduplicate

    def _deduplicate(self, shard: Shard, sink: Sink) -> None:
        del shard
        ids = _read_ids(self.ingest.iter_batches(RECORDS, columns=["role", "example_id"]))
        self._check_roles(ids)
        earlier = _ids_of_examples(self.parent)
        ids = {role: np.concatenate([earlier[role], ids[role]]) for role in ids}
        kept = {role: find_first_copies(of_role) for role, of_role in ids.items()}
        seen = {role: len(of_role) for role, of_role in earlier.items()}
        written = dict(seen)
        for role, count in seen.items():
            if (copies := _copies_table(role, kept[role][:count])).num_rows:
                sink.write(COPIES, copies)
        for batch in self.ingest.iter_batches(RECORDS, batch_rows=BATCH_ROWS):
            for role in ids:
                records = pa.Table.from_batches([batch]).filter(pc.field("role") == role)
                num_copies = kept[role][seen[role] : seen[role] + records.num_rows]
                table = _number(records, num_copies, written[role])
                seen[role] += records.num_rows
                written[role] += table.num_rows
                if table.num_rows:
                    sink.write(TABLE_OF_ROLE[role], table)
        sink.facts.update(_describe(ids, written))

    def _check_roles(self, ids: Mapping[str, np.ndarray]) -> None:
        """Refuse a role that was asked for and has no usable row."""
        manifest = self.ingest.manifest
        for role in {source["role"] for source in manifest.settings["sources"]}:
            if not len(ids[role]):
                raise DataError(
                    f"no usable row for data.{TABLE_OF_ROLE[role]}; ingest rejected "
                    f"{manifest.num_failures:,} rows, with reasons in "
                    f"{self.ingest.folder / ERRORS_TABLE}"
                )


def find_first_copies(ids: np.ndarray) -> np.ndarray:
    """Return for each id how many further copies it has, or -1 if an earlier row has it already.

    Args:
        ids: [N, 2] unsigned 64-bit halves of the ids.

    Returns:
        [N] int32.
    """
    num_copies = np.full(len(ids), -1, dtype=np.int32)
    if not len(ids):
        return num_copies
    order, starts = _group(ids)
    num_copies[order[starts]] = np.diff(starts, append=len(ids)) - 1
    return num_copies


def _group(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort ids (stably, so a group keeps the order of the rows); return where groups start."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    ordered = ids[order]
    is_new = np.ones(len(ids), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, np.flatnonzero(is_new)


def _parse_ids(column: pa.Array) -> np.ndarray:
    """Return ids as [N, 2] unsigned 64-bit halves."""
    text = "".join(cast("list[str]", column.to_pylist()))
    return np.frombuffer(bytes.fromhex(text), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _ids_of_examples(examples: StageOutput | None) -> dict[str, np.ndarray]:
    """Read the ids of a parent's examples, by role; none where there is no parent."""
    empty = np.empty((0, 2), dtype=np.uint64)
    found = dict.fromkeys(TABLE_OF_ROLE, empty)
    if examples is not None:
        for role, table in TABLE_OF_ROLE.items():
            batches = examples.iter_batches(table, ["example_id"])
            parts = [_parse_ids(batch.column("example_id")) for batch in batches]
            found[role] = np.concatenate([empty, *parts])
    return found


def _copies_table(role: str, num_copies: np.ndarray) -> pa.Table:
    """Count the further copies of a parent's examples, of those that have any."""
    rows = np.flatnonzero(num_copies > 0)
    return pa.table(
        {
            "role": pa.array([role] * len(rows), pa.string()),
            "row_index": pa.array(rows, pa.int64()),
            "num_duplicates": pa.array(num_copies[rows], pa.int32()),
        },
        schema=schemas.COPIES,
    )


def _read_ids(records: Iterable[pa.RecordBatch]) -> dict[str, np.ndarray]:
    """Read the ids of each role as [N, 2] unsigned 64-bit halves."""
    parts: dict[str, list[np.ndarray]] = {role: [] for role in TABLE_OF_ROLE}
    for batch in records:
        ids = _parse_ids(batch.column("example_id"))
        for role, of_role in parts.items():
            mask = pc.equal(batch.column("role"), pa.scalar(role)).to_numpy(zero_copy_only=False)
            of_role.append(ids[mask])
    empty = np.empty((0, 2), dtype=np.uint64)
    return {role: np.concatenate([empty, *of_role]) for role, of_role in parts.items()}


def _number(records: pa.Table, num_copies: np.ndarray, first_index: int) -> pa.Table:
    """Keep the first copies and give them numbers from ``first_index``."""
    is_first = num_copies >= 0
    kept = records.filter(pa.array(is_first))
    row_index = np.arange(first_index, first_index + kept.num_rows, dtype=np.int64)
    columns = {
        "row_index": pa.array(row_index),
        "num_duplicates": pa.array(num_copies[is_first]),
    }
    arrays = [
        columns[name] if name in columns else kept.column(name) for name in schemas.EXAMPLES.names
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.EXAMPLES)


def _describe(ids: Mapping[str, np.ndarray], written: Mapping[str, int]) -> dict[str, int]:
    facts: dict[str, int] = {}
    roles = [role for role in TABLE_OF_ROLE if role != EXISTING or len(ids[role])]
    for role in roles:
        facts[f"num_{TABLE_OF_ROLE[role]}"] = written[role]
        facts[f"num_duplicate_{TABLE_OF_ROLE[role]}"] = len(ids[role]) - written[role]
    for role in roles[1:]:
        facts[f"num_{TABLE_OF_ROLE[role]}_among_candidates"] = _num_shared(ids, written, role)
    return facts


def _num_shared(ids: Mapping[str, np.ndarray], written: Mapping[str, int], role: str) -> int:
    """Count the distinct examples of a role that are candidates, too."""
    both = np.concatenate([ids[CANDIDATE], ids[role]])
    return written[CANDIDATE] + written[role] - len(_group(both)[1])
