"""Which files the patterns of a recipe mean: paths, globs, folders, saved data sets."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fsspec.utils import glob_translate
from pyarrow import fs as pafs

from nncift_ray.corpus import hub
from nncift_ray.errors import DataError
from nncift_ray.runtime.files import resolve

# fsspec ships no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "arrow", "hub"]
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
    if info.type == pafs.FileType.Directory:
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
    splits = [info.path for info in children if _is_dataset(folder.fs, info)]
    if DATASET_SPLITS in names or splits:
        return _expand_splits(folder, splits)
    infos = [info for info in folder.infos(recursive=True) if _is_corpus(folder, info)]
    if not infos:
        known = ", ".join(KINDS)
        raise DataError(f"the folder '{folder.uri}' holds no corpus file (known are {known})")
    _check_splits(folder, [info.path for info in infos])
    return folder.files(infos)


def _is_dataset(fs: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    state = posixpath.join(info.path, DATASET_STATE)
    is_folder = info.type == pafs.FileType.Directory
    return is_folder and fs.get_file_info(state).type == pafs.FileType.File


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


def _expand_splits(folder: _Folder, splits: list[str]) -> list[SourceFile]:
    if len(splits) != 1:
        names = ", ".join(posixpath.basename(split) for split in splits) or "none on disk"
        raise DataError(
            f"'{folder.uri}' is a data set with several splits ({names}): name one, e.g. "
            f"'{posixpath.join(folder.uri, posixpath.basename(splits[0]) if splits else 'train')}'"
        )
    return _expand_folder(folder.at(splits[0]))


def _expand_dataset(folder: _Folder, names: set[str]) -> list[SourceFile]:
    """Return the Arrow files of a data set saved with ``save_to_disk``, in its own order."""
    state = _read_state(folder) if DATASET_STATE in names else {}
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


def _read_state(folder: _Folder) -> dict[str, Any]:
    path = posixpath.join(folder.path, DATASET_STATE)
    try:
        with folder.fs.open_input_stream(path) as stream:
            return json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise DataError(f"'{folder.uri}': {DATASET_STATE} cannot be read ({error})") from error


def _expand_glob(whole: _Folder, pattern: str) -> list[SourceFile]:
    """Match a glob: ``*`` within a name, ``**`` across folders; folders only if no file matches."""
    parts = whole.path.split("/")
    depth = next(at for at, part in enumerate(parts) if _WILDCARD.search(part))
    while depth < len(parts) - 1 and _is_folder(whole.fs, "/".join(parts[: depth + 1])):
        depth += 1  # brackets that are part of a folder's name
    base_path, rest = "/".join(parts[:depth]), "/".join(parts[depth:])
    root = "/" if whole.uri.startswith("/") else ""
    base_uri = whole.uri[: -len(rest)].rstrip("/") or root
    base = _Folder(whole.fs, base_path or "/", base_uri, whole.query)
    if base.fs.get_file_info(base.path).type != pafs.FileType.Directory:
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
    folders = [info.path for info in infos if info.type == pafs.FileType.Directory]
    if not files and not folders:
        raise _nothing_matches(pattern, whole.fs, base.path)
    found_files = base.files(files) or [
        source for path in folders for source in _expand_folder(base.at(path))
    ]
    _check_splits(base, [source.path for source in found_files])
    return found_files


def _is_folder(fs: pafs.FileSystem, path: str) -> bool:
    return fs.get_file_info(path).type == pafs.FileType.Directory


def _nothing_matches(pattern: str, fs: pafs.FileSystem, path: str) -> DataError:
    """Say where the path leaves what exists."""
    nearest = path
    while nearest not in ("", "/", "."):
        if fs.get_file_info(nearest).type == pafs.FileType.Directory:
            break
        nearest = posixpath.dirname(nearest)
    return DataError(
        f"'{pattern}' matches no file; the nearest folder that exists is '{nearest or '/'}'"
    )
