"""Compressed corpora: whole, joined, cut and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.corpus.hostile import good_pair, read_file, reasons

NUM_ROWS = 20_000


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def _pack(suffix: str, data: bytes) -> bytes:
    return gzip.compress(data) if suffix == ".gz" else _zstd(data)


def _text(first: int = 0, stop: int = NUM_ROWS) -> bytes:
    # Numbers that follow no simple pattern, so that the packed text has some length.
    rows = (
        good_pair(number).replace(b'"r"', b'"%d"' % (number**3 % 99_991))
        for number in range(first, stop)
    )
    return b"".join(row + b"\n" for row in rows)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("stem", ["rows.jsonl", "rows.JSON", "rows.ndjson"])
def test_compressed_rows_are_the_plain_rows(tmp_path: Path, stem: str, suffix: str) -> None:
    path = tmp_path / f"{stem}{suffix}"
    path.write_bytes(_pack(suffix, _text(stop=50)))
    good, bad = read_file(path)
    assert [row["prompt"] for row in good] == [f"good {number}" for number in range(50)]
    assert not bad


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(_pack(suffix, _text(0, 30)) + _pack(suffix, _text(30, 60)))
    good, bad = read_file(path)
    assert [row["line"] for row in good] == list(range(1, 61))
    assert not bad


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_rows_before_a_cut_are_kept_and_the_rest_is_one_error(
    tmp_path: Path, suffix: str, cut: float
) -> None:
    packed = _pack(suffix, _text())
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(packed[: int(len(packed) * cut)])
    good, bad = read_file(path)
    assert len(good) > cut * NUM_ROWS / 2
    assert [row["line"] for row in good] == list(range(1, len(good) + 1))
    assert reasons(bad) == [(len(good) + 1, "truncated_file")]


def test_every_whole_row_before_the_cut_of_a_gzip_file_is_kept(tmp_path: Path) -> None:
    packed = gzip.compress(_text())
    head = packed[: len(packed) // 2]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(head)
    unpacked = _gunzip_what_is_there(head)
    good, _ = read_file(path)
    assert len(good) == unpacked.count(b"\n")


def _gunzip_what_is_there(data: bytes) -> bytes:
    import zlib

    return zlib.decompressobj(wbits=31).decompress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_garbage_after_the_data_costs_no_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(_pack(suffix, _text(stop=40)) + b"garbage")
    good, bad = read_file(path)
    assert len(good) == 40
    assert reasons(bad) == [(41, "truncated_file")]


def test_names_that_lie_about_compression_are_read_by_content(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl.gz").write_bytes(_text(stop=3))
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(_text(stop=3)))
    for name in ("plain.jsonl.gz", "packed.jsonl"):
        good, bad = read_file(tmp_path / name)
        assert (len(good), bad) == (3, [])


def test_an_empty_compressed_file_is_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"")
    good, bad = read_file(path)
    assert (good, reasons(bad)) == ([], [(1, "truncated_file")])


def test_a_cut_array_in_a_cut_archive_keeps_its_rows(tmp_path: Path) -> None:
    packed = gzip.compress(b"[" + _text().strip().replace(b"\n", b",\n") + b"]")
    path = tmp_path / "rows.json.gz"
    path.write_bytes(packed[: len(packed) // 2])
    good, bad = read_file(path)
    assert len(good) > NUM_ROWS / 4
    assert reasons(bad) == [(len(good) + 1, "truncated_file")]


def test_a_cut_object_in_a_cut_archive_is_one_error(tmp_path: Path) -> None:
    packed = gzip.compress(b'{\n"prompt": "%s"}' % bytes(range(32, 127)).replace(b'"', b"") * 99)
    path = tmp_path / "one.json.gz"
    path.write_bytes(packed[:-30])
    good, bad = read_file(path)
    assert (good, reasons(bad)) == ([], [(1, "truncated_file")])
