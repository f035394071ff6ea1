"""An object store that bears requests being turned away, as a busy one does now and then.

Arrow's S3 client tries many requests again, but not all: not a read whose refusal comes with a
longer body than the bytes that were asked for (it wants to put that body where they belong, and
fails), nor a part of an upload. One refusal loses the footer of a Parquet file, or a manifest. So
reads and whole uploads are tried again here, and the client's own three attempts become ten.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pyarrow as pa
from pyarrow import fs as pafs

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


def delete_patiently(delete: Callable[[], None]) -> None:
    """Delete, trying again when the store turned it away; a later attempt may find nothing left.

    Arrow deletes and then makes sure that the folder above is still one, by writing an empty
    object: also that may be turned away.

    Raises:
        FileNotFoundError: If nothing was there from the start.
        OSError: As ``try_again``.
    """
    attempts = 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        try:
            delete()
        except FileNotFoundError:
            if attempts == 1:
                raise

    try_again(attempt)


class PatientFile(io.RawIOBase):
    """A file in a store, read by ranges, each tried again."""

    def __init__(self, fs: pafs.FileSystem, path: str) -> None:
        """Open it.

        Raises:
            OSError: If it is not there.
        """
        super().__init__()
        self._file = try_again(lambda: fs.open_input_file(path))
        self._size = self._file.size()
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all that are left."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = try_again(lambda: self._read_at(wanted, self._position))
        self._position += len(data)
        return data

    def _read_at(self, size: int, position: int) -> bytes:
        self._file.seek(position)
        return self._file.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._file.close()
        super().close()


class PatientUpload(io.RawIOBase):
    """A file that is gathered here and sent when it is closed, again if the store turns it away.

    What was sent as a stream cannot be sent again. Memory: ``SPOOLED_BYTES``; beyond that a
    temporary file.
    """

    def __init__(self, store: pafs.FileSystem, path: str, metadata: dict[str, str] | None) -> None:
        """Gather for a path."""
        super().__init__()
        self._store, self._path, self._metadata = store, path, metadata
        self._gathered = tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)  # noqa: SIM115

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any, /) -> int:
        """Gather more."""
        return self._gathered.write(data)

    def tell(self) -> int:
        """Return how much was gathered."""
        return self._gathered.tell()

    def close(self) -> None:
        """Send.

        Raises:
            OSError: If the store will not have it.
        """
        if self.closed:
            return
        super().close()
        try:
            try_again(self._send)
        finally:
            self._gathered.close()

    def _send(self) -> None:
        self._gathered.seek(0)
        with self._store.open_output_stream(self._path, metadata=self._metadata) as stream:
            while chunk := self._gathered.read(SENT_BYTES):
                stream.write(chunk)


class PatientHandler(pafs.FileSystemHandler):
    """A file system that reads with patience; the rest is the store's own."""

    def __init__(self, store: pafs.FileSystem) -> None:
        """Wrap a store."""
        super().__init__()
        self.store = store

    def __eq__(self, other: object) -> bool:
        """Say whether both wrap the same store."""
        return isinstance(other, PatientHandler) and self.store == other.store

    def __ne__(self, other: object) -> bool:
        """Say whether they do not."""
        return not self == other

    def __hash__(self) -> int:
        """Return one number for all, since stores have none."""
        return hash(PatientHandler)

    def get_type_name(self) -> str:
        """Return the store's type."""
        return self.store.type_name

    def normalize_path(self, path: str) -> str:
        """Return the path as the store writes it."""
        return self.store.normalize_path(path)

    def get_file_info(self, paths: Any) -> list[pafs.FileInfo]:
        """Describe files."""

        def ask() -> list[pafs.FileInfo]:
            return cast("list[pafs.FileInfo]", self.store.get_file_info(paths))

        return try_again(ask)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """List a folder."""
        return try_again(lambda: self.store.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        try_again(lambda: self.store.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        """Delete a folder with all below it."""
        delete_patiently(lambda: self.store.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete what is below a folder."""
        delete_patiently(
            lambda: self.store.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)
        )

    def delete_root_dir_contents(self) -> None:
        """Refuse: nobody means to empty a store."""
        raise PermissionError("the root of a store is not emptied")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        delete_patiently(lambda: self.store.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        """Copy and delete, which is what a store can do."""
        self.store.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy within the store."""
        self.store.copy_file(src, dest)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open for reading from the start."""
        return pa.PythonFile(PatientFile(self.store, path), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open for reading anywhere."""
        return pa.PythonFile(PatientFile(self.store, path), mode="r")

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        """Open for writing; the object is there once it is closed."""
        return pa.PythonFile(PatientUpload(self.store, path, metadata or None), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        """Refuse: an object is written whole."""
        raise io.UnsupportedOperation(f"{path}: an object cannot be appended to")
