"""Ingest: which files a recipe means, and their records as rows of ``records`` or ``errors``.

A pattern is a path, a glob, a folder, a saved data set or one of the hub; each file has a format
(``formats``), each record a layout (``layouts``).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, cast

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs as pafs

from nncift_ray.corpus import hub
from nncift_ray.corpus.examples import BATCH_ROWS, RECORDS, make_example_id, make_excerpt
from nncift_ray.corpus.formats import (
    READERS,
    BadRow,
    BrokenStreamError,
    Kind,
    RawRecord,
    bad_record,
)
from nncift_ray.corpus.layouts import (
    NOTE_INSTANCES,
    Layout,
    Record,
    detect_layout,
    flatten,
    resolve_layout,
    to_example,
)
from nncift_ray.errors import DataError, NnciftError
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import resolve
from nncift_ray.runtime.output import ERRORS_TABLE, FirstErrors, Sink, StageOutput
from nncift_ray.runtime.schemas import BENCHMARK, CANDIDATE, EXISTING, TARGET
from nncift_ray.runtime.step import Shard, Stage, Worker

# fsspec ships no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

#: The format of a file by its suffix; ``formats.READERS`` reads each.
KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".zst")
COMPRESSION_RATIO = 3.0  # of text by gzip or zstd, and in Parquet
ARCHIVES = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar")
DATASET_STATE, DATASET_INFO, DATASET_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_NOT_CORPORA = {DATASET_STATE, DATASET_INFO, DATASET_SPLITS, "dataset_infos.json"}
FOLDER = pafs.FileType.Directory
DIGEST_BYTES = 1 << 28
_DIGEST_CHUNK_BYTES = 1 << 18
_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")
_WILDCARD = re.compile(r"[*?\[]")
#: What ``datasets`` keeps of a ``map`` beside the data.
_MAPPED = re.compile(r"(cache|tmp)-?\w*\.arrow")
#: Words in the name of a file that say of which split it is.
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
#: A snapshot in Hugging Face's cache, whose files link to ``blobs`` beside ``snapshots``.
_HUB_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/.+")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus: its name in records, where it lies, how it is read.

    A file of this machine is named as the recipe has it: a relative path stays one, so that a
    corpus that goes along with a job, to another folder each time, stays the same corpus.
    """

    uri: str
    path: str
    fs: pafs.FileSystem
    size: int
    kind: Kind
    modified_ns: int = 0

    @property
    def size_unpacked(self) -> float:
        """Bytes of its text; about, where it is compressed."""
        packed = self.path.endswith((*COMPRESSED, ".parquet"))
        return self.size * (COMPRESSION_RATIO if packed else 1.0)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder (or file) of a file system, and the URI it was reached by."""

    fs: pafs.FileSystem
    path: str
    uri: str  # without the query
    query: str = ""  # options of the file system, e.g. "?region=eu-west-1"

    def at(self, path: str) -> _Folder:
        """Return a place at or below this one.

        Raises:
            DataError: If it is a link that leads out of this one.
        """
        if _is_local(self.fs):
            check_link(self.path, path)
        if path == self.path:
            return self
        uri = posixpath.join(self.uri, posixpath.relpath(path, self.path))
        return _Folder(self.fs, path, uri, self.query)

    def infos(self, *, recursive: bool) -> list[pafs.FileInfo]:
        """Return what lies below, sorted by path."""
        selector = pafs.FileSelector(self.path, recursive=recursive)
        return sorted(self.fs.get_file_info(selector), key=lambda info: info.path)

    def files(self, infos: Iterable[pafs.FileInfo]) -> list[SourceFile]:
        """Return some files at or below this one as files of the corpus."""
        return [
            SourceFile(
                self.at(info.path).uri + self.query,
                info.path,
                self.fs,
                info.size or 0,
                kind_of(info.path),
                info.mtime_ns or 0,
            )
            for info in infos
        ]


def expand_sources(patterns: Sequence[str]) -> list[SourceFile]:
    """Return the files that paths, globs and folders stand for, each once.

    The order is that of the patterns, and by path within one. A folder is a saved Hugging Face data
    set, or all corpus files below it.

    Raises:
        DataError: If a pattern matches nothing, a file's format is not known, or a folder holds
            several splits.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        try:
            sources = _expand(pattern)
        except OSError as error:
            raise DataError(
                f"'{pattern}': cannot be listed ({error}). Look at the address, the network and "
                "the credentials in the environment."
            ) from error
        for source in sources:
            found.setdefault(source.path if _is_local(source.fs) else source.uri, source)
    return list(found.values())


def kind_of(path: str) -> Kind:
    """Return the format that a file's name promises.

    Raises:
        DataError: If the format is not known, or an archive.
    """
    name = posixpath.basename(path).lower()
    if name.endswith((*ARCHIVES, *(f".tar{suffix}" for suffix in COMPRESSED))):
        raise DataError(f"'{path}' is an archive: unpack it, or compress the file inside with gzip")
    stem, suffix = posixpath.splitext(name)
    is_compressed = suffix in COMPRESSED
    if is_compressed:
        suffix = posixpath.splitext(stem)[1]
    kind = KINDS.get(suffix)
    if kind == "parquet" and is_compressed:
        raise DataError(f"'{path}': unpack it first; Parquet is compressed inside already")
    if kind is None:
        raise DataError(
            f"'{path}': the format of '{suffix}' files is not known. Known are "
            f"{', '.join(KINDS)}, each also with {' or '.join(COMPRESSED)} (Parquet without)."
        )
    return kind


def content_digest(source: SourceFile) -> str:
    """Return a text that changes when the content of a file does.

    Up to ``DIGEST_BYTES`` on a local disk it is the SHA-256 of the file, so that a corpus written
    anew with the same content is the same. Beyond that, and in object stores, where reading costs
    time and money, it is made of size and time of change. Of a data set of the hub it is the
    commit.

    Raises:
        DataError: If the file cannot be read.
    """
    if source.kind == "hub":
        return hub.commit_of(source.uri)
    if not _is_local(source.fs) or source.size > DIGEST_BYTES:
        return f"size:{source.size}:modified:{source.modified_ns}"
    digest = hashlib.sha256()
    try:
        with source.fs.open_input_stream(source.path, compression=None) as stream:
            while chunk := stream.read(_DIGEST_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{source.uri}: cannot be read ({error})") from error
    return f"sha256:{digest.hexdigest()}"


def check_link(folder: str, path: str) -> None:
    """Refuse what was found in a local folder, by listing it or by a glob, and lies elsewhere.

    Hugging Face's cache keeps the files of a snapshot in ``blobs`` beside it: that is no elsewhere.

    Raises:
        DataError: Naming the link and where it leads.
    """
    base, target = os.path.realpath(folder), os.path.realpath(path)
    snapshot = _HUB_SNAPSHOT.fullmatch(base)
    homes = [base, posixpath.join(snapshot[1], "blobs")] if snapshot else [base]
    if not any(os.path.commonpath([home, target]) == home for home in homes):
        raise DataError(
            f"'{path}' is a link that leads out of its folder, to '{target}'. Name that file or "
            "folder itself in the recipe if it is meant."
        )


def _is_local(fs: pafs.FileSystem) -> bool:
    return isinstance(fs, pafs.LocalFileSystem)


def _expand(pattern: str) -> list[SourceFile]:
    if _CREDENTIALS.search(pattern):
        # The address of a file is written beside every row that came of it.
        shown = _CREDENTIALS.sub("://***@", pattern)
        raise DataError(f"'{shown}' holds credentials; give them by the environment instead")
    if pattern.startswith(hub.PREFIX):
        uri, size = hub.resolve_source(pattern)
        return [SourceFile(uri, uri, pafs.LocalFileSystem(), size, "hub")]
    fs, path = resolve(pattern)
    info = fs.get_file_info(path)
    path = path.rstrip("/") or "/"
    uri, mark, query = pattern.partition("?")
    here = _Folder(fs, path, uri.rstrip("/"), mark + query)
    if _is_local(fs):
        is_relative = "://" not in pattern and not pattern.startswith(("/", "~"))
        here = _Folder(fs, path, posixpath.normpath(pattern) if is_relative else path)
    if info.type == pafs.FileType.File:
        return here.files([info])
    if info.type == FOLDER:
        return _expand_folder(here)
    if _WILDCARD.search(path):
        return _expand_glob(here, pattern)
    raise _nothing_matches(pattern, fs, path)


def _expand_folder(folder: _Folder) -> list[SourceFile]:
    """Read a folder as a saved data set, or as all corpus files below it."""
    children = folder.infos(recursive=False)
    names = {posixpath.basename(info.path) for info in children}
    has_arrow = any(name.endswith(".arrow") for name in names)
    if DATASET_STATE in names or (DATASET_INFO in names and has_arrow):
        return _expand_dataset(folder, names)
    splits = [
        info.path
        for info in children
        if info.type == FOLDER
        and _is(folder.fs, posixpath.join(info.path, DATASET_STATE), pafs.FileType.File)
    ]
    if DATASET_SPLITS in names or splits:
        if len(splits) == 1:
            return _expand_folder(folder.at(splits[0]))
        found = ", ".join(posixpath.basename(split) for split in splits) or "none on disk"
        first = posixpath.basename(splits[0]) if splits else "train"
        raise DataError(
            f"'{folder.uri}' is a data set with several splits ({found}): name one, e.g. "
            f"'{posixpath.join(folder.uri, first)}'"
        )
    infos = [info for info in folder.infos(recursive=True) if _is_corpus(folder, info)]
    if not infos:
        known = ", ".join(KINDS)
        raise DataError(f"the folder '{folder.uri}' holds no corpus file (known are {known})")
    _check_splits(folder, [info.path for info in infos])
    return folder.files(infos)


def _is_corpus(folder: _Folder, info: pafs.FileInfo) -> bool:
    """Whether a file of a plain folder is meant: known format, not hidden, not metadata."""
    parts = posixpath.relpath(info.path, folder.path).split("/")
    if info.type != pafs.FileType.File or any(part.startswith((".", "_")) for part in parts):
        return False
    try:
        kind_of(info.path)
    except DataError:
        return False
    return _is_data(info.path)


def _is_data(path: str) -> bool:
    """Whether a file is none of what ``datasets`` keeps beside its data."""
    name = posixpath.basename(path)
    return name not in _NOT_CORPORA and not _MAPPED.fullmatch(name)


def _check_splits(folder: _Folder, paths: Iterable[str]) -> None:
    """Refuse files below a folder that are of several splits, which are for different uses.

    Raises:
        DataError: With the splits and how to name one.
    """
    splits: dict[str, str] = {}
    for path in paths:
        if split := _split_of(posixpath.relpath(path, folder.path)):
            splits.setdefault(split, path)
    if len(splits) > 1:
        wanted = next((name for name in splits if name.startswith("train")), next(iter(splits)))
        first = posixpath.relpath(splits[wanted], folder.path)
        example = posixpath.join(folder.uri, _SHARD.sub("-*.", first))
        raise DataError(
            f"'{folder.uri}' has files of several splits ({', '.join(sorted(splits))}): name one, "
            f"e.g. '{example}'; list them one by one to take several on purpose"
        )


def _split_of(path: str) -> str | None:
    """Return the split that a file's name or folder says it is of, as the hub names them."""
    *folders, name = path.split("/")
    stem = name.split(".")[0]
    if shard := _SHARD.search(name):
        stem = name[: shard.start()]
        if any(_split_word(part) for part in re.split(r"[^a-zA-Z]+", stem)) or not folders:
            return stem
    for part in (stem, *reversed(folders)):
        for word in re.split(r"[^a-zA-Z]+", part):
            if split := _split_word(word):
                return split
    return None


def _split_word(word: str) -> str | None:
    return next((split for split, words in _SPLITS.items() if word.lower() in words), None)


def _expand_dataset(folder: _Folder, names: set[str]) -> list[SourceFile]:
    """Return the Arrow files of a data set saved with ``save_to_disk``, in its own order."""
    state: dict[str, Any] = {}
    if DATASET_STATE in names:
        path = posixpath.join(folder.path, DATASET_STATE)
        try:
            with folder.fs.open_input_stream(path) as stream:
                state = json.loads(stream.read())
        except (OSError, ValueError) as error:
            message = f"'{folder.uri}': {DATASET_STATE} cannot be read ({error})"
            raise DataError(message) from error
    if state.get("_indices_data_files"):
        raise DataError(
            f"'{folder.uri}' keeps its rows behind an index: call flatten_indices() and save again"
        )
    listed = [str(entry["filename"]) for entry in state.get("_data_files") or ()]
    arrows = sorted(name for name in names if name.endswith(".arrow"))
    files = listed or [name for name in arrows if not _MAPPED.fullmatch(name)]
    missing = [name for name in files if name not in names]
    if missing or not files:
        absent = ", ".join(missing) or "*.arrow"
        raise DataError(f"'{folder.uri}' is a saved data set without its file {absent}")
    paths = [posixpath.join(folder.path, name) for name in files]
    if not listed:
        _check_splits(folder, paths)
    return folder.files(folder.fs.get_file_info(paths))


def _expand_glob(whole: _Folder, pattern: str) -> list[SourceFile]:
    """Match a glob: ``*`` within a name, ``**`` across folders; folders only if no file matches."""
    parts = whole.path.split("/")
    depth = next(at for at, part in enumerate(parts) if _WILDCARD.search(part))
    while depth < len(parts) - 1 and _is(whole.fs, "/".join(parts[: depth + 1]), FOLDER):
        depth += 1  # brackets that are part of a folder's name
    base_path, rest = "/".join(parts[:depth]), "/".join(parts[depth:])
    root = "/" if whole.uri.startswith("/") else ""
    base_uri = whole.uri[: -len(rest)].rstrip("/") or root
    base = _Folder(whole.fs, base_path or "/", base_uri, whole.query)
    if not _is(base.fs, base.path, FOLDER):
        raise _nothing_matches(pattern, whole.fs, base.path)
    try:
        matchers = [re.compile(glob_translate(rest.replace("[", one))) for one in ("[", "[[]")]
    except ValueError as error:
        raise DataError(f"'{pattern}': {error}") from error
    below = base.infos(recursive="/" in rest or "**" in rest)
    names = [posixpath.relpath(info.path, base.path) for info in below]
    found = ([bool(matcher.match(name)) for name in names] for matcher in matchers)
    # Where brackets as a set match nothing, they are part of the names.
    is_meant = next((matches for matches in found if any(matches)), [False] * len(names))
    infos = [info for info, meant in zip(below, is_meant, strict=True) if meant]
    files = [info for info in infos if info.type == pafs.FileType.File and _is_data(info.path)]
    folders = [info.path for info in infos if info.type == FOLDER]
    if not files and not folders:
        raise _nothing_matches(pattern, whole.fs, base.path)
    found_files = base.files(files) or [
        source for path in folders for source in _expand_folder(base.at(path))
    ]
    _check_splits(base, [source.path for source in found_files])
    return found_files


def _is(fs: pafs.FileSystem, path: str, kind: pafs.FileType) -> bool:
    return fs.get_file_info(path).type == kind


def _nothing_matches(pattern: str, fs: pafs.FileSystem, path: str) -> DataError:
    """Say where the path leaves what exists."""
    nearest = path
    while nearest not in ("", "/", ".") and not _is(fs, nearest, FOLDER):
        nearest = posixpath.dirname(nearest)
    return DataError(
        f"'{pattern}' matches no file; the nearest folder that exists is '{nearest or '/'}'"
    )


# From a file to rows.

KIBIBYTE = 1024
SAMPLE_ROWS = 1_000  # good rows on which a file's layout is decided
NOTE_NAN = "'{}' holds NaN or infinity, which JSON does not have: read as null"
#: A batch is also full at this many characters, so that long rows do not add up.
MAX_BATCH_CHARS = 16 << 20
MAX_FILES_TOLD = 10

#: A usable row in the columns of ``schemas.RECORDS`` and, beside them, "unread" and "notes" of its
#: ``ParsedExample``; or an error ("reason" is among its keys) in those of ``schemas.ERRORS``.
Row = dict[str, Any]


def read_examples(source: SourceFile, role: str, data: DataConfig | None = None) -> Iterator[Row]:
    """Yield every record of a file as an example or as an error, in the order of the file.

    Where the recipe names no layout, the file's first records are read twice: once to find it.

    Args:
        source: The file.
        role: ``schemas.CANDIDATE``, ``TARGET`` or ``EXISTING``.
        data: How it is read; None: as a recipe does that says nothing.

    Raises:
        DataError: If the file cannot be opened, or its records fit no known layout.
    """
    data = data or DataConfig.model_construct()
    layout = resolve_layout(data.layout, data.columns) or _find_layout(source)
    for raw in _read_records(source):
        nested = None if raw.error else flatten(cast(Record, raw.value))
        if nested is None:
            yield _to_row(raw, source.uri, role, layout, data)
        for example in nested or ():
            text = json.dumps(example, ensure_ascii=False)
            row = _to_row(replace(raw, value=example, record=text), source.uri, role, layout, data)
            if "reason" not in row:
                row["notes"] = (*row["notes"], NOTE_INSTANCES)
            yield row


def _read_records(source: SourceFile) -> Iterator[RawRecord]:
    """Yield the records of a file, good and bad, in constant memory."""
    try:
        yield from READERS[source.kind](source.fs, source.path)
    except BrokenStreamError as error:
        yield bad_record(1, error.reason, error.message)
    except FileNotFoundError as error:
        raise DataError(f"{source.uri}: the file is gone ({error})") from error


def _find_layout(source: SourceFile) -> Layout | None:
    """Decide on the first good records; None if there is none."""
    good = (cast(Record, raw.value) for raw in _read_records(source) if not raw.error)
    sample = (example for record in good for example in flatten(record) or [record])
    try:
        return detect_layout(islice(sample, SAMPLE_ROWS))
    except DataError as error:
        raise DataError(f"{source.uri}: {error}") from error


def _to_row(raw: RawRecord, uri: str, role: str, layout: Layout | None, data: DataConfig) -> Row:
    example = raw.error or to_example(cast(Record, raw.value), layout, data)
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
            tally, rows = Tally(), read_examples(source.file, source.role, self.data)
            for records, errors in batch_tables(tally.watch(rows)):
                if records.num_rows:
                    sink.write(RECORDS, records)
                if errors.num_rows:
                    sink.write_errors(errors)
            sink.facts[f"{source.role} {source.file.uri}"] = tally.facts()


class PoolIngestStage(IngestStage):
    """Read the candidates alone: what is made of them does not change with the targets."""

    name: ClassVar[str] = "pool_ingest"


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
