"""A disk that is full after so many bytes, or whose machine dies in the middle of a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from nncift_ray.runtime.files import Location

FULL_DEVICE = "/dev/full"


class _Stream:
    """A file that hands what is written to a hook first."""

    def __init__(self, path: str, before_write: Callable[[int], None]) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  (closed by its user)
        self._before_write = before_write

    def write(self, data: memoryview) -> int:
        # In two halves, as a disk may take them.
        middle = len(data) // 2
        for piece in (data[:middle], data[middle:]):
            self._before_write(len(piece))
            self._file.write(piece)
        return len(data)

    def close(self) -> None:
        self._file.close()


class FullDisk(pafs.LocalFileSystem):
    """A local disk with room for so many more bytes."""

    room: int = 0

    def open_output_stream(self, path: str, *arguments: Any, **options: Any) -> Any:
        return _Stream(path, self._take)

    def _take(self, num_bytes: int) -> None:
        self.room -= num_bytes
        if self.room < 0:
            with open(FULL_DEVICE, "wb", buffering=0) as device:
                device.write(b"x")  # the kernel's own error


class DeadlyDisk(pafs.LocalFileSystem):
    """A local disk that kills who writes the second half of a file of some name."""

    victim: str = ""

    def open_output_stream(self, path: str, *arguments: Any, **options: Any) -> Any:
        num_writes = 0

        def count(num_bytes: int) -> None:
            nonlocal num_writes
            num_writes += 1
            if num_writes == 2 and self.victim in path:
                os.kill(os.getpid(), signal.SIGKILL)

        return _Stream(path, count)


def on_full_disk(folder: Path, room: int) -> Location:
    """Return a folder on a disk that has room for so many bytes."""
    disk = FullDisk()
    disk.room = room
    return Location(disk, str(folder), str(folder))


def on_deadly_disk(folder: Path, victim: str) -> Location:
    """Return a folder on a disk that kills who writes a file with ``victim`` in its path."""
    disk = DeadlyDisk()
    disk.victim = victim
    return Location(disk, str(folder), str(folder))
