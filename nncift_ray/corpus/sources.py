"""Which files the patterns of a recipe mean: paths, globs, folders, saved data sets."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pyarrow as pa
from pyarrow import fs as pafs

from nncift_ray.errors import DataError
from nncift_ray.runtime.files import resolve

#: Folders of Hugging Face's cache: datasets--owner--name/snapshots/REVISION, with links to blobs.
HUB_SNAPSHOTS, HUB_BLOBS = "snapshots", "blobs"
_HUB_REPO = re.compile(r"/(datasets|models|spaces)--[^/]+$")


def check_link(folder: str, path: str) -> None:
    """Refuse what was found in a local folder, by listing it or by a glob, and lies elsewhere.

    Hugging Face's cache keeps the files of a snapshot in ``blobs`` beside it: that is no elsewhere.

    Raises:
        DataError: Naming the link and where it leads.
    """
    base, target = os.path.realpath(folder), os.path.realpath(path)
    homes = [base, *_blobs_of_snapshot(base)]
    if not any(os.path.commonpath([home, target]) == home for home in homes):
        raise DataError(
            f"'{path}' is a link that leads out of its folder, to '{target}'. Name that file or "
            "folder itself in the recipe if it is meant."
        )


def _blobs_of_snapshot(folder: str) -> list[str]:
    """Return where the files of a snapshot in Hugging Face's cache lie."""
    head, snapshots, _ = folder.rpartition(f"/{HUB_SNAPSHOTS}/")
    return [posixpath.join(head, HUB_BLOBS)] if snapshots and _HUB_REPO.search(head) else []


# What the readers of corpus files hand on: records, rows that could not be used, and why.

EXCERPT_CHARS = 200

Reason = Literal[
    "bad_csv_row",  # not one value per column of the header, or broken quotes
    "expands_too_far",  # a compressed file that unpacks to absurdly much: not read from this row on
    "invalid_unicode",  # a \ud800-style escape that is half of a character
    "invalid_utf8",  # bytes that are not UTF-8
    "no_prompt",
    "no_response",
    "not_an_object",  # JSON, but a list, a number, a string or null
    "not_json",
    "too_deep",  # nested beyond ReadLimits.max_depth
    "too_long",  # beyond ReadLimits.max_record_bytes or max_chars
    "truncated_file",  # the file stops, or is damaged, from this row on
    "unknown_layout",  # an object without the columns of any layout
    "unreadable_file",  # not what its name says
    "wrong_type",  # a prompt, response or turn that is not text
]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds that keep one absurd row from costing memory or time."""

    max_record_bytes: int = 4 << 20  # longer records are skipped without being held in memory
    max_chars: int = 200_000  # of prompt and response together
    max_depth: int = 100  # of nested lists and objects
    sample_rows: int = 1_000  # good rows on which a file's layout is decided


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row cannot be used: a short code and a sentence for a person."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One row of a corpus file, before anything is known of its layout.

    Exactly one of ``error`` (with its ``excerpt``) and ``record`` (with its ``value``) speaks:
    ``error is None`` means that ``value`` holds the parsed object and ``record`` its JSON text.
    """

    line: int  # 1-based; line of the file where it has lines, else number of the record
    value: object = None
    record: str = ""
    error: BadRow | None = None
    excerpt: str = ""


class ExampleRow(TypedDict):
    """A usable row, in the columns of ``schemas.RECORDS``."""

    role: str
    example_id: str
    prompt: str
    response: str
    record: str
    source: str
    line: int
    layout: str


class ErrorRow(TypedDict):
    """A row that could not be used, in the columns of ``schemas.ERRORS``."""

    stage: str
    source: str | None
    line: int | None
    example_id: NotRequired[str | None]
    reason: str
    message: str
    excerpt: str | None


def make_excerpt(text: str | bytes) -> str:
    """Return the head of ``text`` in at most 200 printable characters, controls escaped."""
    head = text[:EXCERPT_CHARS]
    if isinstance(head, bytes):
        head = head.decode("utf-8", errors="backslashreplace")
    if not head.isprintable():
        head = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in head
        )
    return head if len(head) <= EXCERPT_CHARS else head[: EXCERPT_CHARS - 3] + "..."


def bad_record(line: int, reason: Reason, message: str, text: str | bytes = "") -> RawRecord:
    """Build the record of a row that cannot be used, with an excerpt of ``text``."""
    return RawRecord(line=line, error=BadRow(reason, message), excerpt=make_excerpt(text))


# Bytes and lines of a file, decompressed and bounded: a file is never held whole.

CHUNK_BYTES = 1 << 18
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD_BYTES = 4 * EXCERPT_CHARS
#: Text packs to a third or a tenth, many copies of it to a hundredth. What unpacks to more than
#: this many times its size was made to fill a disk; a file that stays small may do as it likes.
MAX_EXPANSION = 500
FREE_BYTES = 1 << 30


class BrokenStreamError(Exception):
    """Reading cannot go on: what was handed out before is good, the rest is lost."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the code and the sentence that the row standing for the rest gets."""
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class OverlongText:
    """Stands for a line or record beyond the limit: only its first bytes were kept."""

    head: bytes


def read_chunks(fs: pafs.FileSystem, path: str) -> Iterator[bytes]:
    """Yield the bytes of a text file, decompressed, without a leading byte order mark.

    The compression is told by the file's first bytes, so a wrongly named file is read as well.

    Raises:
        DataError: If the file cannot be opened.
        BrokenStreamError: After the last good byte of a damaged file, or for UTF-16 text.
    """
    compression = detect_compression(fs, path)
    if compression is None and path.lower().endswith((".gz", ".zst")):
        compression = _expected_compression(fs, path)
    chunks = _plain_chunks(fs, path) if compression is None else _unpack(fs, path, compression)
    first = next(chunks, b"")
    if first.startswith(_UTF16_MARKS):
        message = "the file is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"
        raise BrokenStreamError("invalid_utf8", message)
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def iter_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | OverlongText]:
    r"""Yield lines without their \n; one longer than ``max_bytes`` is skipped, not held.

    Memory: ``max_bytes`` and one chunk.
    """
    parts: list[bytes] = []
    num_bytes = 0
    overlong = False
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            yield _finish_line(parts, piece, overlong or num_bytes + len(piece) > max_bytes)
            parts, num_bytes, overlong = [], 0, False
        tail = pieces[-1]
        num_bytes += len(tail)
        if tail and not overlong:
            parts.append(tail)
        if num_bytes > max_bytes and not overlong:
            overlong = True
            parts = [b"".join(parts)[:_HEAD_BYTES]]
    if num_bytes:
        yield _finish_line(parts, b"", overlong)


def _finish_line(parts: list[bytes], last: bytes, overlong: bool) -> bytes | OverlongText:
    line = b"".join((*parts, last)) if parts else last
    return OverlongText(line[:_HEAD_BYTES]) if overlong else line


def detect_compression(fs: pafs.FileSystem, path: str) -> str | None:
    """Return gzip, zstd or None by the first bytes of the file."""
    try:
        with fs.open_input_stream(path, compression=None) as stream:
            head = stream.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error})") from error
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _expected_compression(fs: pafs.FileSystem, path: str) -> str | None:
    """Accept plain text under a compressed name, but not an empty file."""
    if fs.get_file_info(path).size == 0:
        message = "the compressed file is empty; was it copied completely?"
        raise BrokenStreamError("truncated_file", message)
    return None


def _plain_chunks(fs: pafs.FileSystem, path: str) -> Iterator[bytes]:
    with fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _unpack(fs: pafs.FileSystem, path: str, compression: str) -> Iterator[bytes]:
    """Decompress; at damage hand out every byte before it, then raise."""
    num_bytes = 0
    most = max(FREE_BYTES, MAX_EXPANSION * (fs.get_file_info(path).size or 0))
    try:
        with fs.open_input_stream(path, compression=compression) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
                num_bytes += len(chunk)
                if num_bytes > most:
                    message = (
                        f"the {compression} data unpacks to more than {MAX_EXPANSION} times its "
                        "size; the rest is not read. Unpack the file yourself if it is meant so"
                    )
                    raise BrokenStreamError("expands_too_far", message)
    except (OSError, pa.ArrowInvalid) as error:
        yield _salvage(fs, path, compression, num_bytes)
        message = f"the {compression} data ends early or is damaged ({error}); copy it again"
        raise BrokenStreamError("truncated_file", message) from error


def _salvage(fs: pafs.FileSystem, path: str, compression: str, num_bytes: int) -> bytes:
    """Read again what the failing read lost: byte by byte, from ``num_bytes`` to the damage."""
    kept = bytearray()
    with fs.open_input_stream(path, compression=compression) as stream:
        try:
            while num_bytes > 0:
                num_bytes -= len(stream.read(min(CHUNK_BYTES, num_bytes)))
            while byte := stream.read(1):
                kept += byte
        except (OSError, pa.ArrowInvalid):
            return bytes(kept)
    return bytes(kept)


# Which files the patterns of a recipe mean: paths, globs, folders, saved data sets.

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "arrow"]
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
DIGEST_BYTES = 1 << 28
ARCHIVES = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar")
DATASET_STATE, DATASET_INFO, DATASET_SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_NOT_CORPORA = {DATASET_STATE, DATASET_INFO, DATASET_SPLITS, "dataset_infos.json"}
_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus: what it is called in records, where it lies, how it is read.

    A file of this machine is called as the recipe has it: a relative path stays one, so that a
    corpus that goes along with a job, to another folder each time, stays the same corpus.
    """

    uri: str
    path: str
    fs: pafs.FileSystem
    size: int
    kind: Kind
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder (or file) of a file system, and the URI it was reached by."""

    fs: pafs.FileSystem
    path: str
    uri: str  # without the query
    query: str = ""  # options of the file system, e.g. "?region=eu-west-1"

    def at(self, path: str) -> _Folder:
        """Return a place at or below this one."""
        if path == self.path:
            return self
        uri = posixpath.join(self.uri, posixpath.relpath(path, self.path))
        return _Folder(self.fs, path, uri, self.query)

    def holding(self, path: str) -> _Folder:
        """Return this folder, which was seen to hold a path.

        Raises:
            DataError: If the path is a link that leads out of it.
        """
        if isinstance(self.fs, pafs.LocalFileSystem):
            check_link(self.path, path)
        return self

    def list(self, *, recursive: bool) -> list[pafs.FileInfo]:
        """Return what lies below, sorted by path."""
        selector = pafs.FileSelector(self.path, recursive=recursive)
        return sorted(self.fs.get_file_info(selector), key=lambda info: info.path)


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
            raise DataError(f"'{pattern}': cannot be listed ({error})") from error
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
    time and money, it is made of size and time of change.

    Raises:
        DataError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    if not isinstance(source.fs, pafs.LocalFileSystem) or source.size > DIGEST_BYTES:
        return f"size:{source.size}:modified:{source.modified_ns}"
    try:
        with source.fs.open_input_stream(source.path, compression=None) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{source.uri}: cannot be read ({error})") from error
    return f"sha256:{digest.hexdigest()}"


def _expand(pattern: str) -> list[SourceFile]:
    if _CREDENTIALS.search(pattern):
        # The address of a file is written beside every row that came of it.
        shown = _CREDENTIALS.sub("://***@", pattern)
        raise DataError(f"'{shown}' holds credentials; give them by the environment instead")
    fs, path = resolve(pattern)
    info = _info(fs, path)
    path = path.rstrip("/") or "/"
    if _is_local(fs):
        here = _Folder(fs, path, _local_name(pattern, path))
    else:
        uri, mark, query = pattern.partition("?")
        here = _Folder(fs, path, uri.rstrip("/"), mark + query)
    if info.type == pafs.FileType.File:
        return [_source(here, info)]
    if info.type == pafs.FileType.Directory:
        return _expand_folder(here)
    if _WILDCARD.search(path):
        return _expand_glob(here, pattern)
    raise _nothing_matches(pattern, fs, path)


def _is_local(fs: pafs.FileSystem) -> bool:
    return isinstance(fs, pafs.LocalFileSystem)


def _local_name(pattern: str, path: str) -> str:
    """Return a local path as records have it: relative where the pattern is."""
    is_relative = "://" not in pattern and not pattern.startswith(("/", "~"))
    return posixpath.normpath(pattern) if is_relative else path


def _info(fs: pafs.FileSystem, path: str) -> pafs.FileInfo:
    return fs.get_file_info(path)


def _found(folder: _Folder, info: pafs.FileInfo) -> SourceFile:
    """Take a file that a folder or a glob holds."""
    return _source(folder.holding(info.path), info)


def _source(folder: _Folder, info: pafs.FileInfo) -> SourceFile:
    place = folder.at(info.path)
    kind = kind_of(info.path)
    uri = place.uri + place.query
    return SourceFile(uri, info.path, folder.fs, info.size or 0, kind, info.mtime_ns or 0)


def _expand_folder(folder: _Folder) -> list[SourceFile]:
    """Read a folder as a saved data set, or as all corpus files below it."""
    children = folder.list(recursive=False)
    names = {posixpath.basename(info.path) for info in children}
    has_arrow = any(name.endswith(".arrow") for name in names)
    if DATASET_STATE in names or (DATASET_INFO in names and has_arrow):
        return _expand_dataset(folder, names)
    splits = [info.path for info in children if _is_dataset(folder.fs, info)]
    if DATASET_SPLITS in names or splits:
        return _expand_splits(folder, splits)
    infos = [info for info in folder.list(recursive=True) if _is_corpus(folder, info)]
    if not infos:
        known = ", ".join(KINDS)
        raise DataError(f"the folder '{folder.uri}' holds no corpus file (known are {known})")
    return [_found(folder, info) for info in infos]


def _is_dataset(fs: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    state = posixpath.join(info.path, DATASET_STATE)
    return info.type == pafs.FileType.Directory and _info(fs, state).type == pafs.FileType.File


def _is_corpus(folder: _Folder, info: pafs.FileInfo) -> bool:
    """Whether a file of a plain folder is meant: known format, not hidden, not metadata."""
    parts = posixpath.relpath(info.path, folder.path).split("/")
    if info.type != pafs.FileType.File or any(part.startswith((".", "_")) for part in parts):
        return False
    if parts[-1] in _NOT_CORPORA:
        return False
    try:
        kind_of(info.path)
    except DataError:
        return False
    return True


def _expand_splits(folder: _Folder, splits: list[str]) -> list[SourceFile]:
    if len(splits) != 1:
        names = ", ".join(posixpath.basename(split) for split in splits) or "none on disk"
        raise DataError(
            f"'{folder.uri}' is a data set with several splits ({names}): name one, e.g. "
            f"'{posixpath.join(folder.uri, posixpath.basename(splits[0]) if splits else 'train')}'"
        )
    return _expand_folder(folder.holding(splits[0]).at(splits[0]))


def _expand_dataset(folder: _Folder, names: set[str]) -> list[SourceFile]:
    """Return the Arrow files of a data set saved with ``save_to_disk``, in its own order."""
    state = _read_state(folder) if DATASET_STATE in names else {}
    if state.get("_indices_data_files"):
        raise DataError(
            f"'{folder.uri}' keeps its rows behind an index: call flatten_indices() and save again"
        )
    listed = [str(entry["filename"]) for entry in state.get("_data_files") or ()]
    files = listed or sorted(name for name in names if name.endswith(".arrow"))
    missing = [name for name in files if name not in names]
    if missing or not files:
        absent = ", ".join(missing) or "*.arrow"
        raise DataError(f"'{folder.uri}' is a saved data set without its file {absent}")
    paths = [posixpath.join(folder.path, name) for name in files]
    return [_found(folder, info) for info in folder.fs.get_file_info(paths)]


def _read_state(folder: _Folder) -> dict[str, Any]:
    path = posixpath.join(folder.path, DATASET_STATE)
    try:
        with folder.fs.open_input_stream(path) as stream:
            return json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise DataError(f"'{folder.uri}': {DATASET_STATE} cannot be read ({error})") from error


def _expand_glob(whole: _Folder, pattern: str) -> list[SourceFile]:
    """Match a glob: ``*`` within a name, ``**`` across folders; folders only if no file matches."""
    depth = next(i for i, part in enumerate(whole.path.split("/")) if _WILDCARD.search(part))
    base_path = "/".join(whole.path.split("/")[:depth])
    rest = whole.path[len(base_path) :].strip("/")
    root = "/" if whole.uri.startswith("/") else ""
    base_uri = whole.uri[: -len(rest)].rstrip("/") or root
    base = _Folder(whole.fs, base_path or "/", base_uri, whole.query)
    info = _info(base.fs, base.path)
    if info.type != pafs.FileType.Directory:
        raise _nothing_matches(pattern, whole.fs, base.path)
    matcher = _translate_glob(rest)
    infos = [
        info
        for info in base.list(recursive="/" in rest or "**" in rest)
        if matcher.fullmatch(posixpath.relpath(info.path, base.path))
    ]
    files = [_found(base, info) for info in infos if info.type == pafs.FileType.File]
    if files:
        return files
    folders = [info.path for info in infos if info.type == pafs.FileType.Directory]
    if not folders:
        raise _nothing_matches(pattern, whole.fs, base.path)
    below = [_expand_folder(base.holding(path).at(path)) for path in folders]
    return [source for sources in below for source in sources]


def _translate_glob(pattern: str) -> re.Pattern[str]:
    pieces: list[str] = []
    for token in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern):
        if token == "**/":  # noqa: S105  (a glob, no password)
            pieces.append("(?:.*/)?")
        elif token == "**":  # noqa: S105
            pieces.append(".*")
        elif token == "*":  # noqa: S105
            pieces.append(r"[^/]*")
        elif token == "?":  # noqa: S105
            pieces.append("[^/]")
        elif token.startswith("[") and token.endswith("]"):
            inner = token[1:-1].replace("\\", r"\\")
            pieces.append(f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]")
        else:
            pieces.append(re.escape(token))
    return re.compile("".join(pieces), re.DOTALL)


def _nothing_matches(pattern: str, fs: pafs.FileSystem, path: str) -> DataError:
    """Say where the path leaves what exists."""
    nearest = path
    while nearest not in ("", "/", "."):
        info = _info(fs, nearest)
        if info.type == pafs.FileType.Directory:
            break
        nearest = posixpath.dirname(nearest)
    return DataError(
        f"'{pattern}' matches no file; the nearest folder that exists is '{nearest or '/'}'"
    )
