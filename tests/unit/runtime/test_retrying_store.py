"""Requests that are turned away are made again; what is wrong for good is told at once."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from nncift_ray.runtime.files import (
    ATTEMPTS,
    _RetryingFile,  # pyright: ignore[reportPrivateUsage]
    _RetryingFileSystem,  # pyright: ignore[reportPrivateUsage]
    _RetryingUpload,  # pyright: ignore[reportPrivateUsage]
    try_again,
)

BUSY = "AWS Error SLOW_DOWN during GetObject operation"


class Busy:
    """Fails so many times, then does what it is asked."""

    def __init__(self, failures: int, error: Callable[[], Exception]) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error()
        return "done"


def test_pauses_double_up_to_a_limit() -> None:
    pauses: list[float] = []
    assert try_again(Busy(9, lambda: OSError(BUSY)), sleep=pauses.append) == "done"
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0]


def test_at_last_the_stores_own_error_is_raised() -> None:
    busy = Busy(99, lambda: OSError(BUSY))
    with pytest.raises(OSError, match="SLOW_DOWN"):
        try_again(busy, sleep=lambda _: None)
    assert busy.calls == ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no such key"),
        PermissionError("denied"),
        OSError("AWS Error ACCESS_DENIED during GetObject operation"),
    ],
)
def test_what_is_wrong_for_good_is_not_tried_again(error: OSError) -> None:
    busy = Busy(1, lambda: error)
    with pytest.raises(type(error)):
        try_again(busy, sleep=lambda _: None)
    assert busy.calls == 1


@pytest.mark.parametrize("method", ["delete_file", "delete_dir"])
def test_what_was_deleted_before_the_refusal_counts_as_deleted(tmp_path: Path, method: str) -> None:
    class HalfDone:
        """Deletes, and is then turned away once, as Arrow's client is by the folder above."""

        def __init__(self) -> None:
            self.local, self.is_busy = pafs.LocalFileSystem(), True

        def __getattr__(self, name: str) -> Callable[[str], None]:
            def delete(path: str) -> None:
                getattr(self.local, name)(path)
                if self.is_busy:
                    self.is_busy = False
                    raise OSError(BUSY)

            return delete

    there = tmp_path / "there"
    there.mkdir() if method == "delete_dir" else there.touch()
    handler = _RetryingFileSystem(cast("pafs.FileSystem", HalfDone()))
    getattr(handler, method)(str(there))
    assert not there.exists()
    with pytest.raises(FileNotFoundError):
        getattr(handler, method)(str(there))


class BusyFile(io.RawIOBase):
    """A file of which every second read fails, after having moved."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb")
        self._reads = 0

    def size(self) -> int:
        return Path(self._file.name).stat().st_size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        data = self._file.read(size)
        if self._reads % 2:
            raise OSError(BUSY)
        return data


class BusyStore:
    """Hands out busy files."""

    def open_input_file(self, path: str) -> BusyFile:
        return BusyFile(path)


def test_reads_of_a_busy_store_lose_and_repeat_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift_ray.runtime.files.FIRST_PAUSE_SECONDS", 0.0)
    (tmp_path / "x").write_bytes(bytes(range(100)))
    file = _RetryingFile(BusyStore(), str(tmp_path / "x"))  # pyright: ignore[reportArgumentType]
    assert file.read(3) + file.read(4) == bytes(range(7))
    assert file.seek(-2, io.SEEK_END) == 98
    assert file.read() == bytes([98, 99])
    assert file.read() == b""
    file.seek(50)
    assert file.read(5) == bytes(range(50, 55))
    assert file.tell() == 55


class BusyUploads(pafs.LocalFileSystem):
    """Fails to finish the first two uploads."""

    failures = 0

    def open_output_stream(self, path: str, **options: object) -> io.RawIOBase:  # pyright: ignore
        file = Path(path).open("wb", buffering=0)
        if self.failures < 2:
            self.failures += 1
            file.write(b"half of")
            raise OSError("AWS Error SLOW_DOWN during UploadPart operation")
        return file


def test_an_upload_that_was_turned_away_is_sent_again_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift_ray.runtime.files.FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("nncift_ray.runtime.files.SENT_BYTES", 3)
    upload = _RetryingUpload(BusyUploads(), str(tmp_path / "x"), None)
    upload.write(b"all ")
    upload.write(b"of it")
    assert upload.tell() == 9
    assert not (tmp_path / "x").exists()
    upload.close()
    upload.close()
    assert (tmp_path / "x").read_bytes() == b"all of it"


def test_parquet_is_read_through_it(tmp_path: Path) -> None:
    table = pa.table({"x": list(range(1000))})
    pq.write_table(table, tmp_path / "x.parquet")
    fs = pafs.PyFileSystem(_RetryingFileSystem(pafs.LocalFileSystem()))
    assert pq.read_table(f"{tmp_path}/x.parquet", filesystem=fs).equals(table)
    assert fs.get_file_info(f"{tmp_path}/none").type == pafs.FileType.NotFound
    assert fs == pafs.PyFileSystem(_RetryingFileSystem(pafs.LocalFileSystem()))
    with pytest.raises(FileNotFoundError):
        fs.open_input_file(f"{tmp_path}/none")
