"""Files by URI, on a disk or in an object store, written whole or not at all.

A path without a scheme is local. ``s3://`` and ``gs://`` are Arrow's own file systems (credentials
come from the environment only); any other scheme is asked of fsspec.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import posixpath
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO, Any, cast
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from nncift_ray.errors import StorageError
from nncift_ray.storage.patient_store import ATTEMPTS, PatientHandler

TEMPORARY_MARK = ".tmp-"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What may stand in the query of an s3:// address; Arrow itself refuses other names.
_S3_TEXTS = ("scheme", "endpoint_override")
_S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing")
PRIVATE_MODE = 0o700


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI or local path and the path inside it.

    Raises:
        StorageError: If no file system is known for the scheme, or the URI holds credentials, which
            would end up in manifests and logs.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    if "@" in urlsplit(uri).netloc:
        raise StorageError(
            f"a {uri.split('://', 1)[0]}:// address holds credentials: take them out and set them "
            "in the environment"
        )
    if uri.startswith("s3://"):
        return _resolve_s3(uri)
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, ValueError):
        return _resolve_with_fsspec(uri)


def _resolve_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    parts = urlsplit(uri)
    try:
        fs = _open_s3(parts.netloc, parts.query)
    except (pa.ArrowInvalid, ValueError) as error:
        raise StorageError(f"{uri}: {error}") from error
    return fs, f"{parts.netloc}{parts.path}"


@functools.lru_cache(maxsize=64)
def _open_s3(bucket: str, query: str) -> pafs.FileSystem:
    """Return the file system of a bucket, patient with a store that turns requests away."""
    options = dict(parse_qsl(query))
    # Arrow reads the address, finds the region and refuses what it does not know.
    plain, _ = pafs.FileSystem.from_uri(f"s3://{bucket}" + (f"?{query}" if query else ""))
    given: dict[str, Any] = {name: options[name] for name in _S3_TEXTS if name in options}
    given |= {name: options[name].lower() == "true" for name in _S3_FLAGS if name in options}
    store = pafs.S3FileSystem(
        region=cast("pafs.S3FileSystem", plain).region,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **given,
    )
    return pafs.PyFileSystem(PatientHandler(store))


def _resolve_with_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    # Heavy and rarely needed.
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    try:
        fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    except (ImportError, ValueError) as error:
        scheme = uri.split("://", 1)[0]
        raise StorageError(
            f"{uri}: no file system for '{scheme}://' ({error}). "
            "Use a local path, s3:// or gs://, or install the fsspec package of that scheme."
        ) from error
    handler = pafs.FSSpecHandler(fs)  # pyright: ignore[reportAbstractUsage]
    return pafs.PyFileSystem(handler), path


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder: where it is and how to reach it."""

    fs: pafs.FileSystem
    path: str
    uri: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """Resolve a URI or a local path."""
        fs, path = resolve(uri)
        shown = path if isinstance(fs, pafs.LocalFileSystem) else uri.rstrip("/")
        return cls(fs, path.rstrip("/") or "/", shown)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker as an address: a pickled file system forgets how patient it was."""
        return Location.of, (self.uri,)

    def __truediv__(self, name: str) -> Location:
        """Return the location ``name`` below this one."""
        base, mark, query = self.uri.partition("?")
        uri = posixpath.join(base, name) + mark + query
        return Location(self.fs, posixpath.join(self.path, name), uri)

    def __str__(self) -> str:
        """Return the URI; a plain path when local."""
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def is_local(self) -> bool:
        """Whether this is on a disk of this machine (or one mounted here)."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        info = self.fs.get_file_info(self.path)
        return info.type != pafs.FileType.NotFound

    def size(self) -> int | None:
        """Bytes of the file, or None if there is no such file."""
        info = self.fs.get_file_info(self.path)
        return info.size if info.type == pafs.FileType.File else None

    def make_folder(self) -> None:
        """Create the folder and its parents; private to the user on a local disk."""
        if self.is_local:
            os.makedirs(self.path, mode=PRIVATE_MODE, exist_ok=True)
        else:
            self.fs.create_dir(self.path, recursive=True)

    def _make_parent(self) -> None:
        # Object stores have no folders to make.
        if self.is_local:
            os.makedirs(posixpath.dirname(self.path), mode=PRIVATE_MODE, exist_ok=True)

    def list_files(self, *, recursive: bool = False) -> list[Location]:
        """Return the files below this folder by name; an absent folder holds none."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        infos = self.fs.get_file_info(selector)
        names = [info.path for info in infos if info.type == pafs.FileType.File]
        return [self / posixpath.relpath(name, self.path) for name in sorted(names)]

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            StorageError: If it cannot be read.
        """
        try:
            with self.fs.open_input_stream(self.path) as stream:
                return stream.readall()
        except OSError as error:
            raise StorageError(f"{self}: cannot be read ({error})") from error

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, or leave what was there."""
        with self.open_whole() as out:
            out.write(data)

    def delete(self) -> None:
        """Delete the file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path)

    @contextlib.contextmanager
    def open_whole(self) -> Generator[HashingWriter]:
        """Open for writing so that the file appears complete or not at all.

        On a local disk the bytes go to a temporary name beside it, reach the disk, and are renamed
        at the end, so that not even a machine that loses power leaves half a file under the name;
        object stores make an object visible only once its upload is finished, and have no rename.

        Raises:
            StorageError: If there is no space for it.
        """
        target = self.path
        if self.is_local:
            target = f"{self.path}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}"
        with _space_for(self):
            self._make_parent()
            stream = self.fs.open_output_stream(target)
        try:
            yield HashingWriter(stream, self)
        except BaseException:
            # On an object store closing publishes what was written so far, so it goes at once.
            with contextlib.suppress(OSError):  # of a full disk; the first error tells more
                stream.close()
            self.fs.delete_file(target)
            raise
        try:
            with _space_for(self):
                stream.close()
                if self.is_local:
                    _flush_to_disk(target)
                    os.replace(target, self.path)
        except BaseException:
            if self.is_local:
                self.fs.delete_file(target)
            raise


@contextlib.contextmanager
def _space_for(location: Location) -> Generator[None]:
    """Explain a full disk.

    Raises:
        StorageError: If there is no space.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StorageError(
            f"{location}: cannot be written, no space is left ({os.strerror(error.errno)}). "
            "Nothing half-written is kept. Make room there, or move the run directory to a larger "
            "disk; finished shards are kept, the same command goes on from there."
        ) from error


def _flush_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HashingWriter(io.RawIOBase):
    """A binary output that knows the SHA-256 and the size of what went through it."""

    def __init__(self, stream: IO[bytes] | pa.NativeFile, location: Location) -> None:
        """Wrap an open binary output that will be at ``location``."""
        super().__init__()
        self._stream, self._location = stream, location
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any, /) -> int:
        """Pass the bytes on and count them."""
        view = memoryview(data)
        with _space_for(self._location):
            self._stream.write(view)
        self._digest.update(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.num_bytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes so far, in hex."""
        return self._digest.hexdigest()


def delete_temporaries(folder: Location) -> int:
    """Delete what an interrupted writer left below a local folder; return how many files."""
    if not folder.is_local:
        return 0
    leftovers = [f for f in folder.list_files(recursive=True) if TEMPORARY_MARK in f.name]
    for leftover in leftovers:
        leftover.delete()
    return len(leftovers)
