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
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from nncift_ray.errors import StorageError

TEMPORARY_MARK = ".tmp-"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR),
    errno.ENOENT,  # file systems that make no folders, such as /proc
)
# What may stand in the query of an s3:// address; Arrow itself refuses other names.
_S3_TEXTS = ("scheme", "endpoint_override")
_S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing")
PRIVATE_MODE = 0o700

# Requests that a store turns away. Arrow's client retries most, but neither reads nor the parts of
# an upload.

ATTEMPTS = 10
FIRST_PAUSE_SECONDS = 0.1  # before the second attempt; doubled each time
LONGEST_PAUSE_SECONDS = 20.0
SPOOLED_BYTES = 32 << 20  # of an upload, in memory
SENT_BYTES = 4 << 20  # at once
#: What trying again does not mend, in the words of Arrow's messages.
_FINAL = (
    "ACCESS_DENIED",
    "NO_SUCH",
    "NOT_FOUND",
    "INVALID_ACCESS_KEY",
    "SIGNATURE",
    "HTTP status 403",
    "HTTP status 404",
)

Result = TypeVar("Result")


def try_again(
    action: Callable[[], Result],
    *,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Return what an action returns, trying again when the store turned it away.

    Raises:
        OSError: The last one, or at once one that trying again would not mend.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError as error:
            if attempt == attempts or any(word in str(error) for word in _FINAL):
                raise
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError("unreachable")


class _RetryingFile(io.RawIOBase):
    """A file in a store, read by ranges, each tried again."""

    def __init__(self, store: pafs.FileSystem, path: str) -> None:
        self._file = try_again(lambda: store.open_input_file(path))
        self._size, self._position = self._file.size(), 0

    def readable(self) -> bool:
        return True

    seekable = readable

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)

        def read_there() -> bytes:
            self._file.seek(self._position)
            return self._file.read(wanted)

        data = try_again(read_there) if wanted else b""
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _RetryingUpload(tempfile.SpooledTemporaryFile[bytes]):
    """A file that is gathered here and sent when it is closed, again if the store turns it away.

    What was sent as a stream cannot be sent again. Memory: ``SPOOLED_BYTES``; beyond that a
    temporary file.
    """

    def __init__(self, store: pafs.FileSystem, path: str, metadata: dict[str, str] | None) -> None:
        super().__init__(max_size=SPOOLED_BYTES)
        self._store, self._path, self._metadata = store, path, metadata

    def close(self) -> None:
        if self.closed:
            return
        try:
            try_again(self._send)
        finally:
            super().close()

    def _send(self) -> None:
        self.seek(0)
        with self._store.open_output_stream(self._path, metadata=self._metadata) as stream:
            while chunk := self.read(SENT_BYTES):
                stream.write(chunk)


def _retried(name: str) -> Callable[..., Any]:
    """Return the method of that name, tried again."""

    def method(self: _RetryingFileSystem, *arguments: Any, **options: Any) -> Any:
        return try_again(lambda: getattr(self.store, name)(*arguments, **options))

    return method


def _deleting(name: str) -> Callable[..., None]:
    """Return a method that deletes, tried again; a later attempt may find nothing left.

    Arrow deletes and then makes sure that the folder above is still one, by writing an empty
    object: also that may be turned away.
    """

    def method(self: _RetryingFileSystem, *arguments: Any, **options: Any) -> None:
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                getattr(self.store, name)(*arguments, **options)
            except FileNotFoundError:
                if attempts == 1:
                    raise

        try_again(attempt)

    return method


class _RetryingFileSystem(pafs.FileSystemHandler):
    """A file system whose every request is tried again when the store turns it away."""

    def __init__(self, store: pafs.FileSystem) -> None:
        super().__init__()
        self.store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RetryingFileSystem) and self.store == other.store

    def __hash__(self) -> int:  # stores have none
        return hash(_RetryingFileSystem)

    def get_type_name(self) -> str:
        return self.store.type_name

    def normalize_path(self, path: str) -> str:
        return self.store.normalize_path(path)

    get_file_info = get_file_info_selector = _retried("get_file_info")
    move, copy_file = _retried("move"), _retried("copy_file")
    delete_dir, delete_file = _deleting("delete_dir"), _deleting("delete_file")

    def create_dir(self, path: str, recursive: bool) -> None:
        try_again(lambda: self.store.create_dir(path, recursive=recursive))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        _deleting("delete_dir_contents")(self, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("the root of a store is not emptied")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_RetryingFile(self.store, path), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        return pa.PythonFile(_RetryingUpload(self.store, path, metadata or None), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        raise io.UnsupportedOperation(f"{path}: an object cannot be appended to")


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
        parts = urlsplit(uri)
        try:
            return _open_s3(parts.netloc, parts.query), f"{parts.netloc}{parts.path}"
        except (pa.ArrowInvalid, ValueError) as error:
            raise StorageError(f"{uri}: {error}") from error
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, ValueError):
        return _resolve_with_fsspec(uri)


@functools.lru_cache(maxsize=64)
def _open_s3(bucket: str, query: str) -> pafs.FileSystem:
    """Return the file system of a bucket."""
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
    return pafs.PyFileSystem(_RetryingFileSystem(store))


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
        """Pickle by URI: pickling a file system drops its retry settings."""
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
        with _writing(self):
            if self.is_local:
                os.makedirs(self.path, mode=PRIVATE_MODE, exist_ok=True)
            else:
                self.fs.create_dir(self.path, recursive=True)

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

    def delete_folder(self) -> None:
        """Delete the folder with all below it, if it is there."""
        if self.exists():
            self.fs.delete_dir(self.path)

    @contextlib.contextmanager
    def open_whole(self) -> Generator[HashingWriter]:
        """Open for writing so that the file appears complete or not at all.

        On a local disk the bytes go to a temporary name beside it, reach the disk, and are renamed
        at the end, so that not even a machine that loses power leaves half a file under the name;
        object stores make an object visible only once its upload is finished, and have no rename.

        Raises:
            StorageError: If there is no space for it, or no access.
        """
        target = self.path
        if self.is_local:
            target = f"{self.path}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}"
        with _writing(self):
            if self.is_local:  # object stores have no folders to make
                os.makedirs(posixpath.dirname(self.path), mode=PRIVATE_MODE, exist_ok=True)
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
            with _writing(self):
                stream.close()
                if self.is_local:
                    _flush_to_disk(target)
                    os.replace(target, self.path)
        except BaseException:
            if self.is_local:
                self.fs.delete_file(target)
            raise


@contextlib.contextmanager
def _writing(location: Location) -> Generator[None]:
    """Explain a full disk and a place that may not be written.

    Raises:
        StorageError: If there is no space, or no access.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ACCESS:
            raise StorageError(
                f"{location}: cannot be written ({os.strerror(error.errno)}). Give run_dir a "
                "folder that you may write to."
            ) from error
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
        with _writing(self._location):
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


# Two runs never work in one local run directory, and anybody can see whether one does.

LOCK_NAME = ".lock"
LOCK_ATTEMPTS, LOCK_PAUSE_SECONDS = 5, 0.1


@contextlib.contextmanager
def locked(run_dir: Location) -> Generator[None]:
    """Keep two runs out of one local run directory; the lock dies with its process.

    Raises:
        StorageError: If another process holds it.
    """
    if not run_dir.is_local:
        yield
        return
    import fcntl  # not on every platform; needed on local disks only

    with open(f"{run_dir.path}/{LOCK_NAME}", "ab") as file:
        for _ in range(LOCK_ATTEMPTS):  # who only looks (``is_locked``) is gone at the next
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)
        else:
            raise StorageError(
                f"{run_dir}: another run is working in this run directory. Wait for it, or give "
                "this one another run_dir."
            )
        yield


def is_locked(run_dir: Location) -> bool | None:
    """Whether a run is working in a directory now; None where that cannot be seen.

    Object stores have no locks, and a lock of another machine shows only on a shared disk that
    passes locks on.
    """
    if not run_dir.is_local:
        return None
    import fcntl

    try:
        file = open(f"{run_dir.path}/{LOCK_NAME}", "rb")
    except FileNotFoundError:
        return False
    except PermissionError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
