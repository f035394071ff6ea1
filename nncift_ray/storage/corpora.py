"""Which files the patterns of a recipe mean: paths, globs, folders, saved data sets."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyarrow import fs as pafs

from nncift_ray.errors import DataError
from nncift_ray.storage.byte_streams import CHUNK_BYTES
from nncift_ray.storage.filesystem import resolve
from nncift_ray.storage.links import check_link

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
