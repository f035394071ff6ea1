"""Parquet and Arrow files read as a stream of records, batch by batch."""

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nncift_ray.storage.json_records import finish_record, overlong_record
from nncift_ray.storage.rows import EXCERPT_CHARS, RawRecord, ReadLimits, bad_record

BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_FILE_FORMAT_MAGIC = b"ARROW1"
#: What Arrow raises for damaged files; a decoding error when column names are damaged.
_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)


def read_parquet_records(fs: pafs.FileSystem, path: str, limits: ReadLimits) -> Iterator[RawRecord]:
    """Yield every row of a Parquet file; damage ends it with one error.

    Memory: one row group's pages in flight and ``BATCH_ROWS`` rows.
    """
    number = 0
    try:
        with pq.ParquetFile(
            fs.open_input_file(path), buffer_size=_BUFFER_BYTES, pre_buffer=False
        ) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                yield from _read_batch(batch, number + 1, limits)
                number += batch.num_rows
    except _DAMAGE as error:
        yield _damage(number, "Parquet", error)


def read_ipc_records(
    fs: pafs.FileSystem, path: str, limits: ReadLimits, compression: str | None
) -> Iterator[RawRecord]:
    """Yield every row of an Arrow file, in the stream or the file format.

    Memory: one record batch of the file.
    """
    number = 0
    try:
        for batch in _ipc_batches(fs, path, compression):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield from _read_batch(part, number + 1, limits)
                number += part.num_rows
    except _DAMAGE as error:
        yield _damage(number, "Arrow", error)


def to_json_value(value: object) -> object:
    """Turn a value that JSON lacks into text; NaN, which tables use for absent, into null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): to_json_value(item) for key, item in items}
    if isinstance(value, bytes):
        return _text_of_bytes(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Sequence):
        return [to_json_value(item) for item in cast("Sequence[object]", value)]
    return str(value)


def _text_of_bytes(value: bytes) -> str:
    """Read bytes as text where they are text, else write them as base64."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _damage(number: int, kind: str, error: Exception) -> RawRecord:
    reason = "truncated_file" if number else "unreadable_file"
    message = f"the {kind} data cannot be read from here on ({error}); copy or write it again"
    return bad_record(number + 1, reason, message)


def _ipc_batches(
    fs: pafs.FileSystem, path: str, compression: str | None
) -> Iterator[pa.RecordBatch]:
    with fs.open_input_stream(path, compression=None) as stream:
        is_file_format = stream.read(len(_FILE_FORMAT_MAGIC)) == _FILE_FORMAT_MAGIC
    if is_file_format:
        with fs.open_input_file(path) as handle, pa.ipc.open_file(handle) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
        return
    with (
        fs.open_input_stream(path, compression=compression) as handle,
        pa.ipc.open_stream(handle) as reader,
    ):
        yield from reader


def _read_batch(batch: pa.RecordBatch, first_line: int, limits: ReadLimits) -> Iterator[RawRecord]:
    plain = all(_is_plain(field.type) for field in batch.schema)
    for line, row in enumerate(_rows_of(_with_unique_names(batch)), start=first_line):
        if isinstance(row, Exception):
            yield _unreadable_row(line, row)
            continue
        record = finish_record(row if plain else to_json_value(row), line, "")
        if len(record.record) > limits.max_record_bytes:
            record = overlong_record(line, record.record[:EXCERPT_CHARS].encode(), limits)
        yield record


def _unreadable_row(line: int, error: Exception) -> RawRecord:
    if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
        return bad_record(line, "invalid_utf8", "a text column holds bytes that are not UTF-8")
    return bad_record(line, "wrong_type", f"a value cannot be read: {error}")


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield rows as objects; where the batch as a whole fails, go row by row."""
    try:
        # Full validation: damaged offsets would otherwise be followed out of the buffer.
        batch.validate(full=True)
        rows = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        for offset in range(batch.num_rows):
            yield _row_of(batch.slice(offset, 1))
        return
    yield from rows


def _row_of(batch: pa.RecordBatch) -> dict[str, Any] | Exception:
    try:
        batch.validate(full=True)
        return batch.to_pylist()[0]
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return error


def _with_unique_names(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Number the columns of a name that is used twice: a row holds one value a name."""
    names: list[str] = []
    for position, name in enumerate(batch.schema.names, start=1):
        names.append(name if name not in names else f"{name}_{position}")
    return batch if names == batch.schema.names else batch.rename_columns(names)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of the type are JSON values as Python reads them."""
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)
