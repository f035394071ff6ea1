"""Parquet and Arrow: values that JSON lacks, damaged text, cut and mislabelled files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.corpus.hostile import read_file, reasons

NUM_ROWS = 1_000
FORMATS = ["parquet", "stream", "file"]


def _write(table: pa.Table, folder: Path, form: str) -> Path:
    path = folder / ("rows.parquet" if form == "parquet" else "rows.arrow")
    if form == "parquet":
        pq.write_table(table, path, row_group_size=100)
        return path
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path


def _pairs(num_rows: int = NUM_ROWS) -> pa.Table:
    prompts = [f"good {number} {number**3 % 99_991}" for number in range(num_rows)]
    return pa.table({"prompt": prompts, "response": ["r"] * num_rows})


def _broken_text() -> pa.Array:
    """Return three texts, the middle one with a byte that is not UTF-8."""
    return pa.StringArray.from_buffers(
        3,
        pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00\x04\x00\x00\x00"),
        pa.py_buffer(b"a\xffbc"),
    )


@pytest.mark.parametrize("form", FORMATS)
def test_all_rows_come_in_order_with_their_numbers(tmp_path: Path, form: str) -> None:
    table = _pairs()
    good, bad = read_file(_write(table, tmp_path, form))
    assert [row["prompt"] for row in good] == table.column("prompt").to_pylist()
    assert [row["line"] for row in good] == list(range(1, NUM_ROWS + 1))
    assert not bad


@pytest.mark.parametrize("form", FORMATS)
def test_null_and_wrong_values_are_errors_of_their_row(tmp_path: Path, form: str) -> None:
    table = pa.table(
        {"prompt": ["a", None, "c", " ", "e"], "response": ["r", "r", None, "r", "r" * 2_500]}
    )
    good, bad = read_file(_write(table, tmp_path, form))
    assert [row["line"] for row in good] == [1]
    assert reasons(bad) == [(2, "no_prompt"), (3, "no_response"), (4, "no_prompt"), (5, "too_long")]


@pytest.mark.parametrize("form", FORMATS)
def test_text_that_is_not_utf8_costs_its_row_only(tmp_path: Path, form: str) -> None:
    table = pa.table({"prompt": _broken_text(), "response": ["r"] * 3})
    good, bad = read_file(_write(table, tmp_path, form))
    assert [row["line"] for row in good] == [1, 3]
    assert reasons(bad) == [(2, "invalid_utf8")]


@pytest.mark.parametrize("form", FORMATS)
def test_values_that_json_lacks_become_text(tmp_path: Path, form: str) -> None:
    table = pa.table(
        {
            "prompt": pa.array([b"in bytes"]),
            "response": pa.array(["r"]).dictionary_encode(),
            "image": pa.array([b"\xff\xd8"]),
            "at": pa.array([datetime(2025, 1, 2, tzinfo=UTC)], pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.50")]),
            "score": pa.array([float("nan")]),
            "nested": pa.array([{"x": [float("inf"), 1.5]}]),
        }
    )
    (row,), bad = read_file(_write(table, tmp_path, form))
    assert not bad
    assert row["prompt"] == "in bytes"
    assert json.loads(row["record"]) == {
        "prompt": "in bytes",
        "response": "r",
        "image": "/9g=",
        "at": "2025-01-02T00:00:00+00:00",
        "price": "1.50",
        "score": None,
        "nested": {"x": [None, 1.5]},
    }


@pytest.mark.parametrize("form", FORMATS)
def test_conversations_are_read_from_nested_columns(tmp_path: Path, form: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    good, bad = read_file(_write(pa.table({"messages": [turns]}), tmp_path, form))
    assert [(row["prompt"], row["response"]) for row in good] == [("hi", "hello")]
    assert not bad


def test_batches_before_a_cut_of_an_arrow_stream_are_kept(tmp_path: Path) -> None:
    path = _write(_pairs(), tmp_path, "stream")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    good, bad = read_file(path)
    assert len(good) in range(300, 600, 100)
    assert reasons(bad) == [(len(good) + 1, "truncated_file")]


def test_row_groups_before_damage_in_a_parquet_file_are_kept(tmp_path: Path) -> None:
    path = _write(_pairs(), tmp_path, "parquet")
    column = pq.ParquetFile(path).metadata.row_group(5).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    good, bad = read_file(path)
    assert [row["line"] for row in good] == list(range(1, len(good) + 1))
    assert len(good) <= 500
    assert reasons(bad) == [(len(good) + 1, "truncated_file" if good else "unreadable_file")]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"ARROW1\0\0", b'{"prompt": "a"}\n' * 99, b"\xff" * 64]
)
def test_a_file_that_is_not_what_its_name_says_is_one_error(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    good, bad = read_file(tmp_path / name)
    assert (good, reasons(bad)) == ([], [(1, "unreadable_file")])


def test_a_parquet_file_cut_at_its_end_is_one_error(tmp_path: Path) -> None:
    path = _write(_pairs(), tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    good, bad = read_file(path)
    assert (good, reasons(bad)) == ([], [(1, "unreadable_file")])
