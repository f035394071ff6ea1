"""Every record of a corpus file as one stream, whatever its format."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NoReturn, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nncift_ray.corpus.sources import (
    BYTE_ORDER_MARK,
    EXCERPT_CHARS,
    BrokenStreamError,
    OverlongText,
    RawRecord,
    ReadLimits,
    SourceFile,
    bad_record,
    detect_compression,
    iter_lines,
    read_chunks,
)
from nncift_ray.errors import DataError

# A whole string is one match (possessive: no backtracking); a lone quote opens one that the
# chunk does not close.
_OUTSIDE = re.compile(rb'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)
_INSIDE = re.compile(rb'["\\]')
_WINDOW_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*+)"|[\[\]{}:,]', re.DOTALL)
_HEAD_BYTES = 4 * EXCERPT_CHARS


class ArrayCutter:
    """Cuts elements out of the text after an array's opening bracket.

    ``rest`` holds what follows the closing bracket once the iteration has ended.
    """

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        """Read from ``chunks``; an element longer than ``max_bytes`` is skipped, not held."""
        self._chunks = chunks
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.rest: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes | OverlongText]:
        """Yield the text of each element.

        Raises:
            BrokenStreamError: If the text ends before the array does.
        """
        num_elements = 0
        for chunk in self._chunks:
            begin = position = 0
            while (found := self._next_token(chunk, position)) is not None:
                token, position = found
                if token == b"," and self._depth == 0:
                    num_elements += 1
                    yield self._take(chunk[begin : position - 1])
                    begin = position
                elif token in b"]}" and self._depth == 0:
                    self.rest = chain((chunk[position:],), self._chunks)
                    last = self._take(chunk[begin : position - 1])
                    if isinstance(last, OverlongText) or last.strip():
                        yield last
                    return
                else:
                    self._depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token, 0)
            self._keep(chunk[begin:])
        raise BrokenStreamError("truncated_file", "the file ends inside the JSON array")

    def _next_token(self, chunk: bytes, position: int) -> tuple[bytes, int] | None:
        """Return the next structural byte outside strings and the position after it."""
        while True:
            if self._in_string:
                end = self._end_of_string(chunk, position)
                if end is None:
                    return None
                position = end
            match = _OUTSIDE.search(chunk, position)
            if match is None:
                return None
            position = match.end()
            token = match.group()
            if token == b'"':
                self._in_string = True
            elif len(token) == 1:
                return token, position

    def _end_of_string(self, chunk: bytes, position: int) -> int | None:
        """Find where the open string closes in this chunk."""
        if self._escaped and chunk:
            position += 1
            self._escaped = False
        while (match := _INSIDE.search(chunk, position)) is not None:
            if match.group() == b'"':
                self._in_string = False
                return match.end()
            position = match.end() + 1
            self._escaped = position > len(chunk)
        return None

    def _keep(self, piece: bytes) -> None:
        overlong = self._num_bytes > self._max_bytes
        self._num_bytes += len(piece)
        if not overlong:
            self._parts.append(piece)
            if self._num_bytes > self._max_bytes:
                self._parts = [b"".join(self._parts)[:_HEAD_BYTES]]

    def _take(self, piece: bytes) -> bytes | OverlongText:
        self._keep(piece)
        element = b"".join(self._parts)
        overlong = self._num_bytes > self._max_bytes
        self._parts, self._num_bytes = [], 0
        return OverlongText(element[:_HEAD_BYTES]) if overlong else element


def find_array_of_key(window: bytes, key: bytes) -> int | None:
    """Return where the array under ``key`` of the object in ``window`` begins, past its bracket."""
    depth = 0
    last_string, after_colon = b"", False
    for match in _WINDOW_TOKEN.finditer(window):
        token = match.group()
        if token == b"[" and depth == 1 and after_colon and last_string == key:
            return match.end()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif token.startswith(b'"') and not after_colon:
            last_string = match.group(1)
        after_colon = token == b":"
    return None


# JSON files read as a stream of records: JSON Lines, one array, one object, {"data": [...]}.

WRAPPER_KEY = b"data"
#: A first line that opens with a bracket and is longer is an array, no line of JSON Lines.
ARRAY_WINDOW_BYTES = 1 << 16
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
Shape = Literal["lines", "array", "object"]


def read_json_records(
    chunks: Iterator[bytes], limits: ReadLimits, *, prefer_lines: bool
) -> Iterator[RawRecord]:
    """Yield every record of a JSON text; a bad one becomes an error and reading goes on.

    Args:
        chunks: The bytes of the text.
        limits: Bounds on a record.
        prefer_lines: Whether an unclear beginning means JSON Lines (the file is named so).

    Memory: ``limits.max_record_bytes`` and one chunk.
    """
    window, ended, failure = _read_window(chunks, limits.max_record_bytes)
    rest = _broken(failure) if failure else chunks
    body = window.lstrip()
    shape = _sniff_shape(body, ended, prefer_lines)
    if shape == "array":
        yield from _read_array(chain((body[1:],), rest), limits)
    elif shape == "object":
        yield from _read_object(window, ended, rest, limits)
    else:
        yield from _read_lines(chain((window,), rest), limits)


def parse_json_record(text: bytes, line: int, limits: ReadLimits) -> RawRecord:
    """Parse one record; whatever is wrong with it comes back as its error.

    The record's own text is written anew from what was parsed: of a key given twice the last value
    stays, as in every common reader.
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the row is not UTF-8; convert the file to UTF-8"
        return bad_record(line, "invalid_utf8", message, text)
    if _may_be_deep(text, limits.max_depth) and _depth(text) > limits.max_depth:
        message = f"nested more than {limits.max_depth} levels deep"
        return bad_record(line, "too_deep", message, text)
    try:
        value: object = json.loads(decoded, parse_constant=_refuse_constant)
    except ValueError as error:
        return bad_record(line, "not_json", f"not valid JSON: {error}", text)
    return finish_record(value, line, text)


def finish_record(
    value: object, line: int, text: str | bytes, default: Callable[[object], object] | None = None
) -> RawRecord:
    """Check that a parsed value is an object that can be written as UTF-8 JSON."""
    if not isinstance(value, dict):
        kind = type(value).__name__ if value is not None else "null"
        message = f"a record must be a JSON object with named fields, this is a {kind}"
        return bad_record(line, "not_an_object", message, text)
    try:
        record = json.dumps(value, ensure_ascii=False, allow_nan=False, default=default)
        record.encode("utf-8")
    except UnicodeEncodeError:
        message = "holds half of a surrogate pair (such as \\ud800), which is no character"
        return bad_record(line, "invalid_unicode", message, text)
    except ValueError as error:
        return bad_record(line, "not_json", f"cannot be written as JSON: {error}", text)
    except RecursionError:
        return bad_record(line, "too_deep", "nested too deep to be written as JSON", text)
    return RawRecord(line, cast("dict[str, object]", value), record)


def overlong_record(line: int, head: bytes, limits: ReadLimits) -> RawRecord:
    """Build the record that stands for one longer than the limit."""
    message = f"longer than max_record_bytes = {limits.max_record_bytes:,}; split or drop the row"
    return bad_record(line, "too_long", message, head)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null")


def _may_be_deep(text: bytes, max_depth: int) -> bool:
    return text.count(b"[") + text.count(b"{") > max_depth


def _depth(text: bytes) -> int:
    """Return how deep lists and objects nest in ``text``."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        token = match.group()
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


def _read_window(
    chunks: Iterator[bytes], max_bytes: int
) -> tuple[bytes, bool, BrokenStreamError | None]:
    """Read until the second line has begun; return the text, whether it ended, and any damage."""
    window = b""
    try:
        for chunk in chunks:
            window += chunk
            body = window.lstrip()
            _, newline, rest = body.partition(b"\n")
            enough = ARRAY_WINDOW_BYTES if body.startswith(b"[") else max_bytes
            if (newline and rest.strip()) or len(window) > enough:
                return window, False, None
    except BrokenStreamError as error:
        return window, False, error
    return window, True, None


def _broken(failure: BrokenStreamError) -> Iterator[bytes]:
    """Stand for the rest of a damaged stream."""
    raise failure
    yield b""


def _sniff_shape(body: bytes, ended: bool, prefer_lines: bool) -> Shape:
    """Tell JSON Lines from one array or object by the first two lines."""
    first, newline, rest = body.partition(b"\n")
    first, second = first.strip(), rest.lstrip()
    alone = ended and not second
    complete = (bool(newline) or ended) and _is_complete(first)
    if body.startswith(b"["):
        if complete:
            is_first_of_lines = not alone and (prefer_lines or second.startswith(b"{"))
            return "lines" if is_first_of_lines else "array"
        opens = first == b"[" or not newline or (first.startswith(b"[{") and first.endswith(b","))
        return "array" if opens or not prefer_lines else "lines"
    if body.startswith(b"{") and not prefer_lines:
        if complete:
            return "object" if alone else "lines"
        # A line that an object goes on from ends with one of these; a cut record hardly does.
        goes_on = first.endswith((b"{", b"[", b",", b":"))
        return "lines" if second.startswith(b"{") and not goes_on else "object"
    return "lines"


def _is_complete(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(chunks: Iterator[bytes], limits: ReadLimits) -> Iterator[RawRecord]:
    number = 0
    try:
        for number, line in enumerate(iter_lines(chunks, limits.max_record_bytes), start=1):
            if isinstance(line, OverlongText):
                yield overlong_record(number, line.head, limits)
                continue
            text = line.removeprefix(BYTE_ORDER_MARK).strip(b" \t\r\n")
            if text:
                yield parse_json_record(text, number, limits)
    except BrokenStreamError as error:
        yield bad_record(number + 1, error.reason, error.message)


def _read_array(chunks: Iterator[bytes], limits: ReadLimits) -> Iterator[RawRecord]:
    cutter = ArrayCutter(chunks, limits.max_record_bytes)
    number = 0
    for record in _read_elements(cutter, limits):
        number = record.line
        yield record
    extra = next((piece.strip() for piece in cutter.rest if piece.strip()), b"")
    if extra:
        message = "text follows the end of the JSON array; everything from here on is ignored"
        yield bad_record(number + 1, "not_json", message, extra)


def _read_elements(cutter: ArrayCutter, limits: ReadLimits) -> Iterator[RawRecord]:
    number = 0
    try:
        for number, element in enumerate(cutter, start=1):
            if isinstance(element, OverlongText):
                yield overlong_record(number, element.head, limits)
            else:
                yield parse_json_record(element.strip(), number, limits)
    except BrokenStreamError as error:
        yield bad_record(number + 1, error.reason, error.message)


def _read_object(
    window: bytes, ended: bool, rest: Iterator[bytes], limits: ReadLimits
) -> Iterator[RawRecord]:
    """Read {"data": [...]} as its array, any other object as one record."""
    start = find_array_of_key(window, WRAPPER_KEY)
    if start is None and not ended:
        # The window ended at its second line: look into as much as one record may be.
        try:
            for chunk in rest:
                window += chunk
                if len(window) > limits.max_record_bytes:
                    break
            else:
                ended = True
        except BrokenStreamError as error:
            yield bad_record(1, error.reason, error.message, window)
            return
        start = find_array_of_key(window, WRAPPER_KEY)
    if start is not None:
        array = ArrayCutter(chain((window[start:],), rest), limits.max_record_bytes)
        yield from _read_elements(array, limits)
    elif ended:
        yield parse_json_record(window.strip(), 1, limits)
    else:
        yield overlong_record(1, window, limits)


# CSV and TSV files read as a stream of records, one broken row at a time.

DELIMITERS = ",;\t|"


class _RecordTooLongError(Exception):
    """The lines of one record exceed the limit: its quote is never closed."""


class _LineFeed:
    """Hands lines to ``csv.reader``, remembers those of the present record, takes them back."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._lines = iter_lines(chunks, max_bytes)
        self._max_bytes = max_bytes
        self._returned: deque[str | OverlongText] = deque()
        self._taken: list[str | OverlongText] = []
        self._num_chars = 0
        self.next_line = 1  # line number of the next record

    def __iter__(self) -> _LineFeed:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        self._taken.append(line)
        if isinstance(line, OverlongText):
            raise _RecordTooLongError
        self._num_chars += len(line)
        if self._num_chars > self._max_bytes:
            raise _RecordTooLongError
        return line

    def _read(self) -> str | OverlongText:
        line = next(self._lines)
        if isinstance(line, OverlongText):
            return line
        # A byte that is not UTF-8 stays visible as half a surrogate pair until the row is known.
        return line.decode("utf-8", errors="surrogateescape") + "\n"

    def accept(self) -> int:
        """Count the record's lines as read; return the number of its first line."""
        line = self.next_line
        self.next_line += len(self._taken)
        self._taken, self._num_chars = [], 0
        return line

    def give_back(self) -> tuple[int, str | OverlongText]:
        """Take the record's first line as bad, return the others to be read again."""
        first = self._taken.pop(0)
        self._returned.extendleft(reversed(self._taken))
        line = self.next_line
        self.next_line += 1
        self._taken, self._num_chars = [], 0
        return line, first


def read_csv_records(
    chunks: Iterator[bytes], limits: ReadLimits, delimiter: str
) -> Iterator[RawRecord]:
    """Yield every row of a CSV text with a header as an object of strings.

    The delimiter is ``delimiter`` unless the header holds none of it but another of ``DELIMITERS``.
    Memory: ``limits.max_record_bytes`` and one chunk.
    """
    # A limit of the whole process; ours is wider than the default and checked by line anyway.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_record_bytes))
    feed = _LineFeed(chunks, limits.max_record_bytes)
    try:
        header, delimiter = _read_header(feed, delimiter)
        if header:
            yield from _read_rows(feed, header, delimiter, limits)
    except BrokenStreamError as error:
        yield bad_record(feed.next_line, error.reason, error.message)
    except (csv.Error, _RecordTooLongError) as error:
        message = f"the header line cannot be read ({error or 'too long'}); no row was read"
        yield bad_record(feed.next_line, "unreadable_file", message)


def _read_header(feed: _LineFeed, delimiter: str) -> tuple[list[str], str]:
    first = next(feed, "")
    while first and not first.strip():
        feed.accept()
        first = next(feed, "")
    if first.count(delimiter) == 0:
        delimiter = max(DELIMITERS, key=lambda one: (first.count(one), one == delimiter))
    rows = list(csv.reader([first], delimiter=delimiter, strict=True))
    names = rows[0] if rows else []
    feed.accept()
    unique: list[str] = []
    for position, name in enumerate(names, start=1):
        name = name.strip() or f"column_{position}"
        unique.append(name if name not in unique else f"{name}_{position}")
    return unique, delimiter


def _read_rows(
    feed: _LineFeed, header: list[str], delimiter: str, limits: ReadLimits
) -> Iterator[RawRecord]:
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _reject(feed, f"broken quotes: {error}", limits)
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        except _RecordTooLongError:
            yield _reject(feed, "an opened quote is never closed", limits)
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            continue
        if any(cell.strip() for cell in cells[len(header) :]) or 0 < len(cells) < len(header):
            message = f"{len(cells)} values, but the header names {len(header)} columns"
            yield _reject(feed, message, limits)
            continue
        line = feed.accept()
        if cells:
            yield _finish_row(dict(zip(header, cells, strict=False)), line)


def _finish_row(row: dict[str, str], line: int) -> RawRecord:
    text = "".join(row.values())
    if "\0" in text:
        return bad_record(line, "bad_csv_row", "the row holds NUL bytes", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = "the row holds bytes that are not UTF-8; convert the file to UTF-8"
        raw = text.encode("utf-8", errors="surrogateescape")
        return bad_record(line, "invalid_utf8", message, raw)
    return finish_record(row, line, text)


def _reject(feed: _LineFeed, message: str, limits: ReadLimits) -> RawRecord:
    line, first = feed.give_back()
    if isinstance(first, OverlongText):
        return overlong_record(line, first.head, limits)
    return bad_record(line, "bad_csv_row", message, first.rstrip("\r\n").encode("utf-8", "replace"))


# Parquet and Arrow files read as a stream of records, batch by batch.

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false


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


# Every record of a corpus file as one stream, whatever its format.


def read_raw_records(source: SourceFile, limits: ReadLimits | None = None) -> Iterator[RawRecord]:
    """Yield the records of a file, good and bad, in constant memory.

    Raises:
        DataError: If the file cannot be opened.
    """
    limits = limits or ReadLimits()
    try:
        if source.kind == "parquet":
            yield from read_parquet_records(source.fs, source.path, limits)
        elif source.kind == "arrow":
            compression = detect_compression(source.fs, source.path)
            yield from read_ipc_records(source.fs, source.path, limits, compression)
        else:
            yield from _read_text(source, limits)
    except BrokenStreamError as error:
        yield bad_record(1, error.reason, error.message)
    except FileNotFoundError as error:
        raise DataError(f"{source.uri}: the file is gone ({error})") from error


def _read_text(source: SourceFile, limits: ReadLimits) -> Iterator[RawRecord]:
    chunks = read_chunks(source.fs, source.path)
    if source.kind in ("csv", "tsv"):
        delimiter = "\t" if source.kind == "tsv" else ","
        return read_csv_records(chunks, limits, delimiter)
    return read_json_records(chunks, limits, prefer_lines=source.kind == "jsonl")
