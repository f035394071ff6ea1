"""Ingest: source files become records, records become the numbered examples of each role.

A row's way: a record of a file -> ``records`` (or ``errors``) of ``ingest`` -> ``candidates``,
``targets`` or ``existing`` of ``deduplicate``, where it has the number that every later table calls
it by.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import make_example_id
from nncift_ray.corpus.formats import read_raw_records
from nncift_ray.corpus.layouts import (
    NOTE_INSTANCES,
    Layout,
    Record,
    detect_layout,
    flatten,
    resolve_layout,
    to_example,
)
from nncift_ray.corpus.sources import SourceFile, content_digest, expand_sources
from nncift_ray.corpus.streams import BadRow, RawRecord, ReadLimits, make_excerpt
from nncift_ray.errors import DataError, NnciftError
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, FirstErrors, Sink, StageOutput
from nncift_ray.runtime.schemas import BENCHMARK, CANDIDATE, EXISTING, TABLE_OF_ROLE, TARGET
from nncift_ray.runtime.step import Shard, Stage, Worker, present

RECORDS, COPIES = "records", "copies"
NEAR_DUPLICATES, CONTAMINATED = "near_duplicates", "contaminated"
KIBIBYTE = 1024
NOTE_NAN = "'{}' holds NaN or infinity, which JSON does not have: read as null"
BATCH_ROWS = 4_096
#: A batch is also full at this many characters, so that long rows do not add up.
MAX_BATCH_CHARS = 16 << 20


#: A usable row in the columns of ``schemas.RECORDS`` and, beside them, "unread" and "notes" of its
#: ``ParsedExample``; or an error ("reason" is among its keys) in those of ``schemas.ERRORS``.
Row = dict[str, Any]


def read_examples(
    source: SourceFile,
    role: str,
    layout: Layout | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[Row]:
    """Yield every record of a file as an example or as an error, in the order of the file.

    Where no layout is given, the file's first records are read twice: once to find it.

    Args:
        source: The file.
        role: ``schemas.CANDIDATE``, ``TARGET`` or ``EXISTING``.
        layout: See ``layouts.resolve_layout``; None to find it.
        limits: Bounds on a record.

    Raises:
        DataError: If the file cannot be opened, or its records fit no known layout.
    """
    limits = limits or ReadLimits()
    layout = layout or _find_layout(source, limits)
    for raw in read_raw_records(source, limits):
        yield from _to_rows(raw, source.uri, role, layout, limits)


def _find_layout(source: SourceFile, limits: ReadLimits) -> Layout | None:
    """Decide on the first good records; None if there is none."""
    good = (cast(Record, raw.value) for raw in read_raw_records(source, limits) if not raw.error)
    sample = (example for record in good for example in flatten(record) or [record])
    try:
        return detect_layout(islice(sample, limits.sample_rows))
    except DataError as error:
        raise DataError(f"{source.uri}: {error}") from error


def _to_rows(
    raw: RawRecord, uri: str, role: str, layout: Layout | None, limits: ReadLimits
) -> Iterator[Row]:
    nested = None if raw.error else flatten(cast(Record, raw.value))
    if nested is None:
        yield _to_row(raw, uri, role, layout, limits)
        return
    for example in nested:
        text = json.dumps(example, ensure_ascii=False)
        row = _to_row(replace(raw, value=example, record=text), uri, role, layout, limits)
        if "reason" not in row:
            row["notes"] = (*row["notes"], NOTE_INSTANCES)
        yield row


def _to_row(raw: RawRecord, uri: str, role: str, layout: Layout | None, limits: ReadLimits) -> Row:
    example = raw.error or to_example(cast(Record, raw.value), layout, limits)
    if isinstance(example, BadRow):
        return {
            "stage": IngestStage.name,
            "source": uri,
            "line": raw.line,
            "example_id": None,
            "reason": example.reason,
            "message": example.message,
            "excerpt": raw.excerpt if raw.error else make_excerpt(raw.record),
        }
    full = example.conversation
    return {
        "role": role,
        "example_id": make_example_id(example.prompt, example.response, full),
        "prompt": example.prompt,
        "response": example.response,
        "record": raw.record,
        "source": uri,
        "line": raw.line,
        "layout": example.layout,
        "conversation": full.to_json() if full else None,
        "unread": example.unread,
        "notes": (*example.notes, *(NOTE_NAN.format(name) for name in raw.nan_fields)),
    }


@dataclass(slots=True)
class Tally:
    """What is known of a file once its rows were read; ``plan`` and a run say the same of it."""

    layouts: Counter[str] = field(default_factory=Counter[str])
    unread: Counter[str] = field(default_factory=Counter[str])  # rows by field
    notes: Counter[str] = field(default_factory=Counter[str])  # rows by sentence
    num_errors: int = 0

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on and count them."""
        for row in rows:
            if "reason" in row:
                self.num_errors += 1
            else:
                self.layouts[row["layout"]] += 1
                if row["unread"]:
                    self.unread.update(row["unread"])
                if row["notes"]:
                    self.notes.update(row["notes"])
            yield row

    def facts(self) -> dict[str, Any]:
        """Return what the manifest keeps of the file."""
        counts = {"layouts": self.layouts, "unread": self.unread, "notes": self.notes}
        found: dict[str, Any] = {name: dict(count) for name, count in counts.items() if count}
        return {
            "layouts": {},
            **found,
            "rows": self.layouts.total(),
            ERRORS_TABLE: self.num_errors,
        }


def batch_tables(
    rows: Iterable[Row], batch_size: int = BATCH_ROWS
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather rows into (records, errors) tables of ``schemas.RECORDS`` and ``schemas.ERRORS``.

    Together the two hold at most ``batch_size`` rows and about ``MAX_BATCH_CHARS`` characters.
    """
    good: list[Row] = []
    bad: list[Row] = []
    num_chars = 0
    for row in rows:
        if "reason" in row:
            bad.append(row)
        else:
            good.append(row)
            num_chars += len(row["record"]) + len(row["prompt"]) + len(row["response"])
        if len(good) + len(bad) >= batch_size or num_chars >= MAX_BATCH_CHARS:
            yield _to_tables(good, bad)
            good, bad, num_chars = [], [], 0
    if good or bad:
        yield _to_tables(good, bad)


def _to_tables(good: list[Row], bad: list[Row]) -> tuple[pa.Table, pa.Table]:
    records = pa.Table.from_pylist(good, schema=schemas.RECORDS)
    return records, pa.Table.from_pylist(bad, schema=schemas.ERRORS)


@dataclass(frozen=True, slots=True)
class RoleSource:
    """A file in the role it is read for; a file may be read for both."""

    role: str
    file: SourceFile
    digest: str

    def settings(self) -> dict[str, str]:
        """What identifies the rows that come of it."""
        return {"role": self.role, "source": self.file.uri, "content": self.digest}


def find_sources(
    candidates: Sequence[str],
    targets: Sequence[str],
    existing: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
) -> list[RoleSource]:
    """Expand the patterns of all roles, candidates first.

    Raises:
        DataError: If a pattern matches nothing or a file cannot be read.
    """
    roles = (CANDIDATE, TARGET, EXISTING, BENCHMARK)
    digests: dict[str, str] = {}
    sources: list[RoleSource] = []
    for role, patterns in zip(roles, (candidates, targets, existing, benchmarks), strict=True):
        for file in expand_sources(patterns):
            if file.uri not in digests:
                digests[file.uri] = content_digest(file)
            sources.append(RoleSource(role, file, digests[file.uri]))
    return sources


def read_as(data: DataConfig, source: RoleSource) -> Iterator[Row]:
    """Yield the rows of a file as a recipe says: see ``read_examples``."""
    limits = ReadLimits(
        max_chars=data.max_chars, preference=data.preference, reasoning=data.reasoning
    )
    layout = resolve_layout(data.layout, data.columns)
    return read_examples(source.file, source.role, layout, limits)


class IngestStage(Stage):
    """Reads each source file into ``records`` and ``errors``; an item is one file."""

    version: ClassVar[int] = 2
    name: ClassVar[str] = "ingest"
    title: ClassVar[str] = "read the corpus"
    produces = {RECORDS: schemas.RECORDS}
    unit: ClassVar[str] = "KiB"
    max_failed_key: ClassVar[str] = "data.max_failed_fraction"
    failed_rows_error: ClassVar[type[NnciftError]] = DataError

    def __init__(self, sources: Sequence[RoleSource], data: DataConfig | None = None) -> None:
        """Read the sources in the given order, as the recipe says (None: its defaults)."""
        self.sources = tuple(sources)
        self.data = data or DataConfig.model_construct()
        self.max_failed_fraction = self.data.max_failed_fraction
        self.inputs = {}

    def settings(self) -> dict[str, Any]:
        """The files by name and content, and how they are read."""
        return {
            "sources": [source.settings() for source in self.sources],
            "layout": self.data.layout,
            "columns": self.data.columns,
            "max_chars": self.data.max_chars,
            "preference": self.data.preference,
            "reasoning": self.data.reasoning,
        }

    def num_items(self) -> int:
        """The number of files."""
        return len(self.sources)

    def item_weight(self, start: int, stop: int) -> int:
        """KiB of the files on disk."""
        return sum(-(-source.file.size // KIBIBYTE) for source in self.sources[start:stop])

    def input_bytes(self) -> int:
        """Size of the files."""
        return sum(source.file.size for source in self.sources)

    def notices(self, output: StageOutput) -> list[str]:
        """The layouts that were found, and what was left out."""
        return describe_layouts(output)

    def make_worker(self) -> Worker:
        """Return what reads files."""
        return self._read

    def _read(self, shard: Shard, sink: Sink) -> None:
        for source in self.sources[shard.start : shard.stop]:
            sink.facts[f"{source.role} {source.file.uri}"] = self._read_one(source, sink)

    def _read_one(self, source: RoleSource, sink: Sink) -> dict[str, Any]:
        """Stream one file into the tables; return what there is to say of it."""
        tally = Tally()
        for records, errors in batch_tables(tally.watch(read_as(self.data, source))):
            if records.num_rows:
                sink.write(RECORDS, records)
            if errors.num_rows:
                sink.write_errors(errors)
        return tally.facts()


class DeduplicateStage(Stage):
    """Numbers the examples of each role; of exact copies only the first stays.

    Copies are found within a role by ``example_id``. A target that is also a candidate stays both
    (and is counted): whether to learn from the benchmark is not ours to decide. So does a candidate
    that the model already has: a conditional gain sees that it adds nothing.

    Of the candidates those are left out, and listed, that hold words of a benchmark
    (``contaminated``), and those that are near-duplicates of an earlier one (``near_duplicates``).

    Where a run goes on from a parent, its examples are the earlier rows: only what is new is
    written, with the numbers that follow, and ``copies`` counts what is not.

    Memory: 16 bytes an id, three times over while sorting, and one batch of rows; while
    near-duplicates are sought 900 bytes a candidate.
    """

    version: ClassVar[int] = 3
    name: ClassVar[str] = "deduplicate"
    title: ClassVar[str] = "number the distinct examples"

    def __init__(
        self,
        ingest: StageOutput,
        parent: StageOutput | None = None,
        data: DataConfig | None = None,
    ) -> None:
        """Read the finished ingest, and the examples of a parent that this goes on from."""
        self.ingest, self.parent = ingest, parent
        self.data = data or DataConfig.model_construct()
        self.inputs = present(ingest=ingest, parent=parent)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """``candidates``, ``targets`` and ``existing``; what is left out; a parent's ``copies``."""
        tables = dict.fromkeys(TABLE_OF_ROLE.values(), schemas.EXAMPLES)
        tables |= {NEAR_DUPLICATES: schemas.NEAR_DUPLICATES, CONTAMINATED: schemas.CONTAMINATED}
        return tables | ({COPIES: schemas.COPIES} if self.parent else {})

    def settings(self) -> dict[str, Any]:
        """What counts as a near-duplicate and as an overlap."""
        return {
            "near_duplicates": self.data.near_duplicates,
            "overlap_words": self.data.overlap_words,
        }

    def item_weight(self, start: int, stop: int) -> int:
        """All records."""
        return self.ingest.num_rows(RECORDS) if stop > start else 0

    def notices(self, output: StageOutput) -> list[str]:
        """What was left out."""
        return describe_left_out(output)

    def make_worker(self) -> Worker:
        """Return what numbers the examples."""
        return self._deduplicate

    def _deduplicate(self, shard: Shard, sink: Sink) -> None:
        new = {role: self._ids_of_records(role) for role in TABLE_OF_ROLE}
        self._check_roles(new | {BENCHMARK: self._ids_of_records(BENCHMARK)})
        earlier = {role: self._ids_of_parent(table) for role, table in TABLE_OF_ROLE.items()}
        ids = {role: np.concatenate([earlier[role], new[role]]) for role in TABLE_OF_ROLE}
        num_copies = {role: find_first_copies(of_role) for role, of_role in ids.items()}
        num_distinct = {role: int((copies >= 0).sum()) for role, copies in num_copies.items()}
        seen = {role: len(of_role) for role, of_role in earlier.items()}
        left_out = self._find_left_out(num_copies[CANDIDATE], seen[CANDIDATE])
        num_copies[CANDIDATE][left_out.rows] = -1
        written = dict(seen)
        for role, count in seen.items():
            if (copies := _copies_table(role, num_copies[role][:count])).num_rows:
                sink.write(COPIES, copies)
        for batch in self.ingest.iter_batches(RECORDS, batch_rows=BATCH_ROWS):
            for role, table in TABLE_OF_ROLE.items():
                records = pa.Table.from_batches([_of_role(batch, role)])
                if role == CANDIDATE:
                    left_out.write(records, seen[role], sink)
                copies_N = num_copies[role][seen[role] : seen[role] + records.num_rows]
                examples = _number(records, copies_N, written[role])
                seen[role] += records.num_rows
                written[role] += examples.num_rows
                if examples.num_rows:
                    sink.write(table, examples)
        if not written[CANDIDATE] and num_distinct[CANDIDATE]:
            raise DataError(
                "no candidate is left: each holds the prompt of a row of data.benchmarks or "
                f"evaluation.tests, or {self.data.overlap_words} words of one in a row "
                "(data.overlap_words)"
            )
        sink.facts.update(_describe(ids, num_distinct, written), **left_out.facts())

    def _find_left_out(self, num_copies: np.ndarray, num_earlier: int) -> LeftOut:
        """Look for candidates that hold words of a benchmark, and for near-duplicates.

        Args:
            num_copies: Of the parent's candidates and of the new ones; below 0: not looked at.
            num_earlier: The parent's, which stay.
        """
        batches = self.ingest.iter_batches(RECORDS, [*_TEXTS, "role", "source", "line"])
        tests = [row for batch in batches for row in _of_role(batch, BENCHMARK).to_pylist()]
        if self.data.near_duplicates is None and not tests:
            return LeftOut({}, {}, [])
        from nncift_ray.corpus.overlap import Cleaner  # pandas, rensa

        prompts, responses = ([row[name] for row in tests] for name in _TEXTS)
        cleaner = Cleaner(prompts, responses, self.data.overlap_words, self.data.near_duplicates)
        first = 0
        for batch in self._iter_candidates():
            rows = np.flatnonzero(num_copies[first : first + batch.num_rows] >= 0)
            texts = batch.take(rows)
            prompts, responses = (
                cast("list[str]", texts.column(name).to_pylist()) for name in _TEXTS
            )
            cleaner.look(first + rows, prompts, responses)
            first += batch.num_rows
        found = cleaner.finish(num_earlier)
        left_out = LeftOut(found.twins, found.overlaps, tests, found.num_templates)
        earlier = np.unique([twin for twin, _ in found.twins.values() if twin < num_earlier])
        if self.parent and len(earlier):
            names = self.parent.take_rows("candidates", earlier.astype(np.int64), _NAMES)
            left_out.names |= zip(earlier.tolist(), names.to_pylist(), strict=True)
        return left_out

    def _iter_candidates(self) -> Iterator[pa.RecordBatch]:
        if self.parent:
            yield from self.parent.iter_batches("candidates", _TEXTS, batch_rows=BATCH_ROWS)
        columns = ["role", *_TEXTS]
        for batch in self.ingest.iter_batches(RECORDS, columns, batch_rows=BATCH_ROWS):
            yield _of_role(batch, CANDIDATE)

    def _ids_of_records(self, role: str) -> np.ndarray:
        batches = self.ingest.iter_batches(RECORDS, ["role", "example_id"])
        return _parse_ids(_of_role(batch, role).column("example_id") for batch in batches)

    def _ids_of_parent(self, table: str) -> np.ndarray:
        batches = self.parent.iter_batches(table, ["example_id"]) if self.parent else ()
        return _parse_ids(batch.column("example_id") for batch in batches)

    def _check_roles(self, ids: Mapping[str, np.ndarray]) -> None:
        """Refuse a role that was asked for and has no usable row."""
        sources = self.ingest.manifest.settings["sources"]
        for role in {source["role"] for source in sources}:
            if not len(ids[role]):
                files = {source["source"] for source in sources if source["role"] == role}
                batches = self.ingest.iter_batches(ERRORS_TABLE)
                rows = (row for batch in batches for row in batch.to_pylist())
                errors = FirstErrors(row for row in rows if row["source"] in files)
                raise no_usable_row(role, files, errors)


def no_usable_row(role: str, files: Iterable[str], errors: FirstErrors) -> DataError:
    """Return the error of a role whose files hold no usable row, with the first reasons."""
    what = f"no usable row for data.{TABLE_OF_ROLE.get(role, 'benchmarks')}"
    if not len(errors):
        return DataError(f"{what}: no rows in {', '.join(sorted(files))}")
    return DataError(
        "\n  ".join([f"{what}, {len(errors):,} that cannot be used:", *errors.lines()])
    )


_TEXTS = ["prompt", "response"]
_NAMES = ["example_id", "source", "line"]


class LeftOut:
    """Candidates that are left out, and their entries in the tables that say so."""

    def __init__(
        self,
        twins: Mapping[int, tuple[int, float]],
        overlaps: Mapping[int, tuple[int, str]],
        tests: Sequence[Mapping[str, Any]],
        num_templates: int = 0,
    ) -> None:
        """Keep what a ``Cleaner`` found: see ``Found``. ``tests`` are the rows it looked for."""
        self._twins, self._overlaps, self._tests = twins, overlaps, tests
        self._num_templates = num_templates
        #: Places among the parent's and the new candidates.
        self.rows = [*twins, *overlaps]
        self._kept = {twin for twin, _ in twins.values()}
        self._named = self._kept | {*self.rows}
        self.names: dict[int, dict[str, Any]] = {}  # of the twins that stay, by row

    def write(self, records: pa.Table, first: int, sink: Sink) -> None:
        """Write the entries of those among some records; ``first`` is the place of the first."""
        places = [at for at in range(first, first + records.num_rows) if at in self._named]
        rows = records.take(pa.array([place - first for place in places], pa.int64()))
        twins: list[dict[str, Any]] = []
        contaminated: list[dict[str, Any]] = []
        for place, row in zip(places, rows.select([*_NAMES, "prompt"]).to_pylist(), strict=True):
            name = {key: row[key] for key in _NAMES}
            entry = name | {"excerpt": make_excerpt(row["prompt"])}
            if place in self._kept:
                self.names[place] = name
            if place in self._twins:
                twin, similarity = self._twins[place]
                of_twin = {f"twin_{key}": value for key, value in self.names[twin].items()}
                twins.append(entry | of_twin | {"similarity": similarity})
            elif place in self._overlaps:
                test, words = self._overlaps[place]
                of_test = {f"test_{key}": self._tests[test][key] for key in ("source", "line")}
                contaminated.append(entry | of_test | {"words": words or None})
        if twins:
            sink.write_rows(NEAR_DUPLICATES, twins, schemas.NEAR_DUPLICATES)
        if contaminated:
            sink.write_rows(CONTAMINATED, contaminated, schemas.CONTAMINATED)

    def facts(self) -> dict[str, int]:
        """Return how many there are."""
        facts = {
            "num_near_duplicate_candidates": len(self._twins),
            "num_contaminated_candidates": len(self._overlaps),
            "num_benchmark_rows": len(self._tests),
            "num_template_runs": self._num_templates,
        }
        return {name: count for name, count in facts.items() if count}


def describe_left_out(examples: StageOutput) -> list[str]:
    """Say how many candidates were left out for what they repeat or overlap with."""
    facts, settings = examples.manifest.facts(), examples.manifest.settings
    folder, lines = examples.folder, []
    if twins := facts.get("num_near_duplicate_candidates"):
        lines.append(
            f"{twins:,} candidates are near-duplicates of an earlier one (prompt and response "
            f"alike to {settings['near_duplicates']:g}, data.near_duplicates) and left out; "
            f"their twins stay: {folder / NEAR_DUPLICATES}"
        )
    if tests := facts.get("num_benchmark_rows"):
        found = facts.get("num_contaminated_candidates", 0)
        where = f": {folder / CONTAMINATED}" if found else ""
        lines.append(
            f"{found:,} candidates hold the prompt of one of {tests:,} rows of benchmarks and "
            f"tests, or {settings['overlap_words']} words of it in a row, and are left out{where}"
        )
    return lines


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


def _of_role(records: pa.RecordBatch, role: str) -> pa.RecordBatch:
    return records.filter(pc.equal(records.column("role"), pa.scalar(role)))


def _parse_ids(columns: Iterable[pa.Array]) -> np.ndarray:
    """Return ids as [N, 2] unsigned 64-bit halves."""
    parts = [np.empty((0, 2), dtype=np.uint64)]
    for column in columns:
        data = bytes.fromhex("".join(cast("list[str]", column.to_pylist())))
        parts.append(np.frombuffer(data, dtype=">u8").reshape(-1, 2).astype(np.uint64))
    return np.concatenate(parts)


def _copies_table(role: str, num_copies: np.ndarray) -> pa.Table:
    """Count the further copies of a parent's examples, of those that have any."""
    rows = np.flatnonzero(num_copies > 0)
    columns: dict[str, Any] = {
        "role": [role] * len(rows),
        "row_index": rows,
        "num_duplicates": num_copies[rows],
    }
    return pa.table(columns, schema=schemas.COPIES)


def _number(records: pa.Table, num_copies: np.ndarray, first_index: int) -> pa.Table:
    """Keep the first copies and give them numbers from ``first_index``."""
    is_first = num_copies >= 0
    kept = records.filter(pa.array(is_first))
    row_index = pa.array(np.arange(first_index, first_index + kept.num_rows))
    kept = kept.append_column("row_index", row_index)
    kept = kept.append_column("num_duplicates", pa.array(num_copies[is_first]))
    return kept.select(schemas.EXAMPLES.names).cast(schemas.EXAMPLES)


def _describe(
    ids: Mapping[str, np.ndarray], num_distinct: Mapping[str, int], written: Mapping[str, int]
) -> dict[str, int]:
    """Return the numbers of examples and of copies, and of those that are candidates, too."""
    facts: dict[str, int] = {}
    roles = [role for role in TABLE_OF_ROLE if role != EXISTING or len(ids[role])]
    for role in roles:
        facts[f"num_{TABLE_OF_ROLE[role]}"] = written[role]
        facts[f"num_duplicate_{TABLE_OF_ROLE[role]}"] = len(ids[role]) - num_distinct[role]
    for role in roles[1:]:
        _, starts = _group(np.concatenate([ids[CANDIDATE], ids[role]]))
        num_shared = num_distinct[CANDIDATE] + num_distinct[role] - len(starts)
        facts[f"num_{TABLE_OF_ROLE[role]}_among_candidates"] = num_shared
    return facts


MAX_FILES_TOLD = 10


def describe_layouts(ingest: StageOutput) -> list[str]:
    """Say how the files of a finished ingest were read; see ``describe_sources``."""
    batches = ingest.iter_batches(ERRORS_TABLE) if ingest.manifest.num_failures else ()
    rows = (row for batch in batches for row in batch.to_pylist())
    return describe_sources(ingest.manifest.facts(), FirstErrors(rows))


def describe_sources(sources: Mapping[str, Any], errors: FirstErrors) -> list[str]:
    """Say of every file in what layout it was read, and over all of them what was left out.

    Args:
        sources: What ``Tally.facts`` says of each file, by role and name; a few are listed.
        errors: Of the rows that cannot be used.
    """
    lines: list[str] = []
    unread: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for source, found in sources.items():
        layouts = ", ".join(f"{name} ({count:,})" for name, count in found["layouts"].items())
        bad = f", {found[ERRORS_TABLE]:,} bad rows" if found[ERRORS_TABLE] else ""
        lines.append(f"{source}: layout {layouts or 'none'}{bad}")
        unread.update(found.get("unread", {}))
        notes.update(found.get("notes", {}))
    more = len(lines) - MAX_FILES_TOLD
    lines = lines[:MAX_FILES_TOLD] + ([f"and {more:,} more files"] if more > 0 else [])
    if unread:
        fields = ", ".join(f"{name} ({count:,} rows)" for name, count in unread.most_common())
        lines.append(f"fields that are no part of an example: {fields}; data.columns reads others")
    lines += [f"{note} ({count:,} rows)" for note, count in notes.most_common()]
    return [*lines, *(f"bad row {line}" for line in errors.lines())]


# The candidates by themselves: what is made of them alone does not change with the targets.


class PoolIngestStage(IngestStage):
    """Read the candidates alone."""

    name: ClassVar[str] = "pool_ingest"


class PoolStage(DeduplicateStage):
    """Number the candidates alone; their numbers are those of the whole corpus."""

    name: ClassVar[str] = "pool"
