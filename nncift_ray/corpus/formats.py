"""Readers: every record of a corpus file as one stream, whatever its format.

A reader takes the place of a file and yields a ``RawRecord`` a row, good or bad, in constant
memory: a file is decompressed, cut into lines and parsed chunk by chunk. ``READERS`` at the end
names the reader of each kind of file.
"""

from __future__ import annotations

import base64
import codecs
import csv
import datetime
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nncift_ray.corpus import hub
from nncift_ray.corpus.examples import EXCERPT_CHARS, make_excerpt
from nncift_ray.errors import DataError

# pyarrow leaves many types open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

CHUNK_BYTES = 1 << 18
#: Longer records are skipped without being held in memory.
MAX_RECORD_BYTES = 4 << 20
MAX_DEPTH = 100  # of nested lists and objects
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD_BYTES = 4 * EXCERPT_CHARS
#: Text packs to a third or a tenth, many copies of it to a hundredth. What unpacks to more than
#: this many times its size was made to fill a disk; a file that stays small may do as it likes.
MAX_EXPANSION = 500
FREE_BYTES = 1 << 30

Reason = Literal[
    "bad_csv_row",  # not one value per column of the header, or broken quotes
    "expands_too_far",  # a compressed file that unpacks to absurdly much: not read from this row on
    "invalid_unicode",  # a \ud800-style escape that is half of a character
    "invalid_utf8",  # bytes that are not UTF-8
    "labelled_bad",  # its own label calls the response bad (KTO)
    "no_prompt",
    "no_response",
    "not_an_object",  # JSON, but a list, a number, a string or null
    "not_json",
    "preference",  # a preference pair, and the recipe refuses them
    "too_deep",  # nested beyond MAX_DEPTH
    "too_long",  # beyond MAX_RECORD_BYTES or data.max_chars
    "truncated_file",  # the file stops, or is damaged, from this row on
    "unknown_layout",  # an object without the columns of any layout
    "unreadable_file",  # not what its name says
    "wrong_type",  # a prompt, response or turn that is not text
]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row cannot be used: a short code and a sentence for a person."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One row of a corpus file, before anything is known of its layout.

    Where ``error`` is None, ``value`` holds the parsed object and ``record`` its JSON text;
    otherwise ``excerpt`` shows the head of the row.
    """

    line: int  # 1-based; line of the file where it has lines, else number of the record
    value: object = None
    record: str = ""
    error: BadRow | None = None
    excerpt: str = ""
    nan_fields: tuple[str, ...] = ()  # fields whose NaN or infinity became null


@dataclass(frozen=True, slots=True)
class OverlongText:
    """Stands for a line beyond the limit: only its first bytes were kept."""

    head: bytes


class BrokenStreamError(Exception):
    """Reading cannot go on: what was handed out before is good, the rest is lost."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the reason and message of the error row that stands for the rest."""
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message


def bad_record(line: int, reason: Reason, message: str, text: str | bytes = "") -> RawRecord:
    """Return the record of a row that cannot be used, with an excerpt of ``text``."""
    return RawRecord(line=line, error=BadRow(reason, message), excerpt=make_excerpt(text))


def overlong_record(line: int, head: str | bytes) -> RawRecord:
    """Return the record that stands for one longer than ``MAX_RECORD_BYTES``."""
    message = f"longer than max_record_bytes = {MAX_RECORD_BYTES:,}; split or drop the row"
    return bad_record(line, "too_long", message, head)


def detect_compression(fs: pafs.FileSystem, path: str) -> str | None:
    """Return gzip, zstd or None, by the first bytes of the file: its name may be wrong.

    Raises:
        DataError: If the file cannot be opened.
    """
    try:
        with fs.open_input_stream(path, compression=None) as stream:
            head = stream.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error})") from error
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def read_chunks(fs: pafs.FileSystem, path: str) -> Iterator[bytes]:
    """Yield the bytes of a text file as UTF-8, decompressed, without a leading byte order mark.

    UTF-16 and UTF-32 are converted. Where the first chunk has line ends of the old Mac only (a
    carriage return alone), they become new lines.

    Raises:
        DataError: If the file cannot be opened.
        BrokenStreamError: After the last good byte of a damaged file.
    """
    compression, size = detect_compression(fs, path), fs.get_file_info(path).size or 0
    if not size and path.lower().endswith((".gz", ".zst")):
        message = "the compressed file is empty; was it copied completely?"
        raise BrokenStreamError("truncated_file", message)
    chunks = _decompress(fs, path, compression, max(FREE_BYTES, MAX_EXPANSION * size))
    first = next(chunks, b"")
    chunks = chain((first,), chunks)
    if encoding := _wide_encoding(first):
        chunks = _to_utf8(chunks, encoding)
        first = next(chunks, b"")
        chunks = chain((first,), chunks)
    if b"\r" in first and b"\n" not in first:
        chunks = (chunk.replace(b"\r", b"\n") for chunk in chunks)
    yield next(chunks, b"").removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def _wide_encoding(head: bytes) -> str | None:
    """Return the encoding of text in units of two or four bytes, by its mark or its NUL bytes."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    head = head[: _HEAD_BYTES // 2 * 2]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 5 <= len(head) or min(even, odd) * 50 > len(head):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _to_utf8(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        message = f"the {encoding.upper()} text is damaged ({error}); write the file again as UTF-8"
        raise BrokenStreamError("invalid_utf8", message) from error


def not_utf8(text: bytes) -> str:
    """Return a sentence about bytes that are not UTF-8: what they may be, and how to convert."""
    try:
        text.decode("cp1252")
        found, name = " but looks like Windows-1252", "WINDOWS-1252"
    except UnicodeDecodeError:
        found, name = "", "ITS-ENCODING"
    return f"the row is not UTF-8{found}; convert the file: iconv -f {name} -t UTF-8 OLD > NEW"


def _decompress(
    fs: pafs.FileSystem, path: str, compression: str | None, max_bytes: int
) -> Iterator[bytes]:
    """Yield the bytes of a file; of damaged data every byte before the damage."""
    num_bytes = 0
    try:
        with fs.open_input_stream(path, compression=compression) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
                num_bytes += len(chunk)
                if compression and num_bytes > max_bytes:
                    message = (
                        f"the {compression} data unpacks to more than {MAX_EXPANSION} times its "
                        "size; the rest is not read. Unpack the file yourself if it is meant so"
                    )
                    raise BrokenStreamError("expands_too_far", message)
    except (OSError, pa.ArrowInvalid) as error:
        if compression is None:
            raise
        yield _last_good_bytes(fs, path, compression, num_bytes)
        message = f"the {compression} data ends early or is damaged ({error}); copy it again"
        raise BrokenStreamError("truncated_file", message) from error


def _last_good_bytes(fs: pafs.FileSystem, path: str, compression: str, num_bytes: int) -> bytes:
    """Return what the failing read lost: the bytes from ``num_bytes`` up to the damage."""
    kept = bytearray()
    with fs.open_input_stream(path, compression=compression) as stream:
        try:
            while num_bytes > 0:
                num_bytes -= len(stream.read(min(CHUNK_BYTES, num_bytes)))
            while byte := stream.read(1):
                kept += byte
        except (OSError, pa.ArrowInvalid):
            return bytes(kept)
    return bytes(kept)


def iter_lines(chunks: Iterator[bytes]) -> Iterator[bytes | OverlongText]:
    r"""Yield lines without their \n; one longer than MAX_RECORD_BYTES is skipped, not held.

    Memory: MAX_RECORD_BYTES and one chunk.
    """
    parts: list[bytes] = []
    num_bytes = 0
    for chunk in chunks:
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            yield _join_line([*parts, end], num_bytes + len(end) > MAX_RECORD_BYTES)
            parts, num_bytes = [], 0
        if num_bytes <= MAX_RECORD_BYTES and tail:
            parts.append(tail)
            if num_bytes + len(tail) > MAX_RECORD_BYTES:
                parts = [b"".join(parts)[:_HEAD_BYTES]]
        num_bytes += len(tail)
    if num_bytes:
        yield _join_line(parts, num_bytes > MAX_RECORD_BYTES)


def _join_line(parts: list[bytes], is_overlong: bool) -> bytes | OverlongText:
    line = parts[0] if len(parts) == 1 else b"".join(parts)
    return OverlongText(line[:_HEAD_BYTES]) if is_overlong else line


# Parsed records.

#: A first line that opens with a bracket and is longer is an array, no line of JSON Lines.
ARRAY_WINDOW_BYTES = 1 << 16
#: The key of {"data": [...]}, whose elements are the records.
WRAPPER_KEY = "data"
DELIMITERS = ",;\t|"
#: A first line that Excel reads as the delimiter.
_SEP_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_USUAL_NAMES = frozenset(
    "instruction input output prompt response completion question answer answers query context "
    "system history messages conversations problem solution chosen rejected text id".split()
)
BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_ARROW_FILE_MAGIC = b"ARROW1"
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class _NotFiniteError(Exception):
    """A JSON text holds NaN or infinity, or a number that is too large for a float."""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotFiniteError
    return value


_FINITE_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_JSON_TYPES = {"string", "large_string", "string_view", "bool", "null", "float", "double"}
_MAX_TOKEN_CHARS = len("-Infinity")
#: Bytes that are not UTF-8, as the error handler "surrogateescape" carries them through a parser.
_RAW_BYTES = re.compile("[\udc80-\udcff]")
#: What Arrow raises for damaged files; a decoding error when column names are damaged.
_ARROW_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)

Shape = Literal["lines", "array", "object"]


def finish_record(value: object, line: int, text: str | bytes = "") -> RawRecord:
    """Return the record of a parsed row: an object that can be written as UTF-8 JSON, or its error.

    The record's text is written from what was parsed; ``_as_written`` puts its own in place.

    Args:
        value: What was parsed.
        line: Where it stands in its file.
        text: The row as the file has it, already within the limits; "" where it has no text.
    """
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        message = f"a record must be a JSON object with named fields, this is a {kind}"
        return bad_record(line, "not_an_object", message, text or str(value))
    try:
        record = _ENCODER.encode(value)
        record.encode("utf-8")
    except UnicodeEncodeError as error:
        if _RAW_BYTES.match(error.object, error.start):
            held = error.object.encode("utf-8", "surrogateescape")
            return bad_record(line, "invalid_utf8", not_utf8(held), text or held)
        message = "holds half of a surrogate pair (such as \\ud800), which is no character"
        return bad_record(line, "invalid_unicode", message, text or error.object)
    except RecursionError:
        return _too_deep(line, text)
    except ValueError:  # NaN or infinity, which JSON does not have
        fields = cast("dict[str, object]", value)
        finite = {name: _without_nan(one) for name, one in fields.items()}
        # NaN is unlike itself.
        names = tuple(name for name, one in fields.items() if repr(one) != repr(finite[name]))
        return replace(finish_record(finite, line, text), nan_fields=names)
    if not text and len(record) > MAX_RECORD_BYTES:
        return overlong_record(line, record[:EXCERPT_CHARS])
    if record.count("[") + record.count("{") > MAX_DEPTH < _depth(record):
        return _too_deep(line, text or record)
    return RawRecord(line, cast("dict[str, object]", value), record)


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_without_nan(one) for one in cast("list[object]", value)]
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in cast("dict[str, object]", value).items()}
    return value


def _too_deep(line: int, text: str | bytes) -> RawRecord:
    return bad_record(line, "too_deep", f"nested more than {MAX_DEPTH} levels deep", text)


def _depth(text: str) -> int:
    """Return how deep lists and objects nest in a JSON text."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        bracket = match.group()
        depth += (bracket in "[{") - (bracket in "]}")
        deepest = max(deepest, depth)
    return deepest


# JSON: JSON Lines, one array, one object, or {"data": [...]}.


def read_json_records(chunks: Iterator[bytes], *, prefer_lines: bool) -> Iterator[RawRecord]:
    """Yield every record of a JSON text; the content decides whether it has lines or one array.

    Args:
        chunks: The bytes of the text.
        prefer_lines: Whether an unclear beginning means JSON Lines (the file is named so).

    Memory: ``MAX_RECORD_BYTES`` and one chunk.
    """
    window, ended, rest = _read_window(chunks)
    whole = chain((window,), rest)
    shape = _sniff_shape(window.lstrip(), ended, prefer_lines)
    if shape == "array":
        yield from _read_array(_JsonText(whole))
    else:
        yield from (_read_object if shape == "object" else _read_lines)(whole)


def _read_window(chunks: Iterator[bytes]) -> tuple[bytes, bool, Iterator[bytes]]:
    """Read until the second line has begun; return the text, whether it ended, and the rest."""
    window = b""
    try:
        for chunk in chunks:
            window += chunk
            body = window.lstrip()
            _, newline, second = body.partition(b"\n")
            enough = ARRAY_WINDOW_BYTES if body.startswith(b"[") else MAX_RECORD_BYTES
            if (newline and second.strip()) or len(window) > enough:
                return window, False, chunks
    except BrokenStreamError as error:
        return window, False, _raising(error)
    return window, True, iter(())


def _raising(error: BrokenStreamError) -> Iterator[bytes]:
    """Stand for the rest of a damaged stream."""
    raise error
    yield b""


def _sniff_shape(body: bytes, ended: bool, prefer_lines: bool) -> Shape:
    """Tell JSON Lines from one array or object by the first two lines."""
    first, newline, rest = body.partition(b"\n")
    first, second = first.strip(), rest.lstrip()
    is_alone = ended and not second
    is_array = body.startswith(b"[")
    if not is_array and (prefer_lines or not body.startswith(b"{")):
        return "lines"
    shape: Shape = "array" if is_array else "object"
    try:
        is_json = bool(newline or ended) and json.loads(first) is not ...
    except (ValueError, RecursionError):
        is_json = False
    if is_json:
        is_line = not is_alone and (not is_array or prefer_lines or second.startswith(b"{"))
        return "lines" if is_line else shape
    # A line that a value goes on from ends with one of these; a cut record hardly does.
    goes_on = not newline or first.endswith((b"{", b"[", b",", b":"))
    is_line = not goes_on and (prefer_lines if is_array else second.startswith(b"{"))
    return "lines" if is_line else shape


def _read_lines(chunks: Iterator[bytes]) -> Iterator[RawRecord]:
    number = 0
    try:
        for number, line in enumerate(iter_lines(chunks), start=1):
            if isinstance(line, OverlongText):
                yield overlong_record(number, line.head)
            elif text := line.removeprefix(BYTE_ORDER_MARK).strip(b" \t\r\n"):
                yield _parse_record(text, number)
    except BrokenStreamError as error:
        yield bad_record(number + 1, error.reason, error.message)


def _parse_record(text: bytes, line: int, decoder: json.JSONDecoder = _FINITE_DECODER) -> RawRecord:
    """Parse one record; whatever is wrong with it comes back as its error."""
    try:
        written = text.decode("utf-8")
        value: object = decoder.decode(written)
    except UnicodeDecodeError:
        return bad_record(line, "invalid_utf8", not_utf8(text), text)
    except RecursionError:
        return _too_deep(line, text)
    except _NotFiniteError:
        return _parse_record(text, line, _DECODER)
    except ValueError as error:
        return bad_record(line, "not_json", f"not valid JSON: {error}", text)
    if (
        decoder is _FINITE_DECODER
        and isinstance(value, dict)
        and "\\u" not in written  # no half of a surrogate pair
        and written.count("[") + written.count("{") <= MAX_DEPTH
    ):
        return RawRecord(line, cast("dict[str, object]", value), written)
    return _as_written(finish_record(value, line, text), written)


def _as_written(raw: RawRecord, text: str) -> RawRecord:
    """Return a record with its own text: its white space, its escapes, its digits."""
    return raw if raw.error or raw.nan_fields else replace(raw, record=text)


class _JsonText:
    """A JSON text that is read value by value and never held whole.

    Bytes that are not UTF-8 stay visible as halves of surrogate pairs until their record is known.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at = "", 0
        self.taken = ""  # the text of the value taken last

    @property
    def excerpt(self) -> str:
        """What comes next."""
        return self._text[self._at : self._at + EXCERPT_CHARS]

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            self._at = cast("re.Match[str]", _JSON_SPACE.match(self._text, self._at)).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def take(self, expected: str) -> str:
        """Take one of the expected characters.

        Raises:
            BrokenStreamError: If another comes next.
        """
        found = self.peek()
        if not found:
            raise BrokenStreamError("truncated_file", "the file ends inside the JSON array")
        if found not in expected:
            raise _not_json(f"one of {expected} should stand here")
        self._at += 1
        return found

    def take_value(self) -> object:
        """Take the next value.

        Raises:
            BrokenStreamError: If it is not valid JSON, or too long or too deep to be read.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number or a name may go on in the next chunk.
                if end < len(self._text) or isinstance(value, dict | list | str):
                    self.taken, self._at = self._text[self._at : end], end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - _MAX_TOKEN_CHARS
                if not is_cut and not error.msg.startswith("Unterminated string"):
                    raise _not_json(error.msg) from error
            except RecursionError as error:
                raise BrokenStreamError("too_deep", "nested too deep to be read") from error
            except ValueError as error:
                raise _not_json(error) from error
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                message = f"not ended after max_record_bytes = {MAX_RECORD_BYTES:,}"
                raise BrokenStreamError("too_long", message)
            if not self._read_on():
                raise BrokenStreamError("truncated_file", "the file ends inside the JSON array")

    def _read_on(self) -> bool:
        """Drop what was taken and read a chunk; return whether there was one."""
        for chunk in self._chunks:
            if more := self._decode(chunk):
                self._text, self._at = self._text[self._at :] + more, 0
                return True
        return False


def _not_json(problem: object) -> BrokenStreamError:
    return BrokenStreamError("not_json", f"not valid JSON: {problem}")


def _read_array(text: _JsonText, *, is_whole: bool = True) -> Iterator[RawRecord]:
    """Yield the elements of an array; the first that is not JSON ends it with one error.

    Args:
        text: The array comes next.
        is_whole: Whether the array is the whole file, so that nothing may follow it.
    """
    number = 0
    try:
        text.take("[")
        separator = text.take("]") if text.peek() == "]" else ","
        while separator == ",":
            value = text.take_value()
            number += 1
            yield _as_written(finish_record(value, number), text.taken)
            separator = text.take(",]")
        if is_whole and text.peek():
            raise _not_json("text follows the end of the array")
    except BrokenStreamError as error:
        message = f"{error.message}; nothing more of the file is read"
        yield bad_record(number + 1, error.reason, message, text.excerpt)


def _read_object(chunks: Iterator[bytes]) -> Iterator[RawRecord]:
    """Read {"data": [...]} as its array, any other object as one record."""
    window, damage = b"", None
    try:
        for chunk in chunks:
            window += chunk
            if len(window) > MAX_RECORD_BYTES:
                break
    except BrokenStreamError as error:
        damage = error
    text = _JsonText(chain((window,), _raising(damage) if damage else chunks))
    if _find_data(text):
        yield from _read_array(text, is_whole=False)
    elif damage:
        yield bad_record(1, damage.reason, damage.message, window)
    elif len(window) > MAX_RECORD_BYTES:
        yield overlong_record(1, window)
    else:
        yield _parse_record(window.strip(), 1)


def _find_data(text: _JsonText) -> bool:
    """Read on to the array under "data" of an object; return whether there is one."""
    try:
        text.take("{")
        while True:
            key = text.take_value()
            text.take(":")
            if key == WRAPPER_KEY and text.peek() == "[":
                return True
            text.take_value()
            text.take(",")
    except BrokenStreamError:
        return False


# CSV and TSV: one broken row costs itself.


class _RecordLines:
    """Feeds lines to ``csv.reader``; a record that cannot be read is given back but one line."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._lines = iter_lines(chunks)
        self._returned: deque[str | OverlongText] = deque()
        self._taken: list[str | OverlongText] = []
        self._num_chars = 0
        self.number = 1  # line number of the present record

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        self._taken.append(line)
        if isinstance(line, str):
            self._num_chars += len(line)
            if self._num_chars <= MAX_RECORD_BYTES:
                return line
        raise csv.Error("an opened quote is never closed")

    def _read(self) -> str | OverlongText:
        line = next(self._lines)
        if isinstance(line, OverlongText):
            return line
        return line.decode("utf-8", errors="surrogateescape") + "\n"

    def accept(self) -> int:
        """Take the record as read; return the number of its first line."""
        number, self.number = self.number, self.number + len(self._taken)
        self._taken, self._num_chars = [], 0
        return number

    def reject(self, message: str) -> RawRecord:
        """Take the record's first line as a bad row, and the others to be read again."""
        first, *others = self._taken
        self._returned.extendleft(reversed(others))
        self._taken = [first]
        number = self.accept()
        if isinstance(first, OverlongText):
            return overlong_record(number, first.head)
        text = first.rstrip("\r\n").encode("utf-8", "replace")
        return bad_record(number, "bad_csv_row", message, text)


def read_csv_records(chunks: Iterator[bytes], delimiter: str) -> Iterator[RawRecord]:
    """Yield every row of a CSV text with a header as an object of strings.

    The delimiter is that of a first line "sep=;", or the one of ``DELIMITERS`` that gives most
    columns of a usual name, then most columns; ``delimiter`` wins a tie.
    Memory: ``MAX_RECORD_BYTES`` and one chunk.
    """
    # A limit of the whole process; ours is wider than the default and checked by line anyway.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    lines = _RecordLines(chunks)
    try:
        header, delimiter = _read_header(lines, delimiter)
        if header:
            yield from _read_rows(lines, header, delimiter)
    except BrokenStreamError as error:
        yield bad_record(lines.number, error.reason, error.message)
    except csv.Error as error:
        message = f"the header line cannot be read ({error}); no row was read"
        yield bad_record(lines.number, "unreadable_file", message)


def _read_header(lines: _RecordLines, delimiter: str) -> tuple[list[str], str]:
    first = next(lines, "")
    while first and not first.strip():
        lines.accept()
        first = next(lines, "")
    if told := _SEP_LINE.fullmatch(first.strip()):
        lines.accept()
        first, delimiter = next(lines, ""), told[1]
    else:
        delimiter = max(DELIMITERS, key=lambda one: (*_count_names(first, one), one == delimiter))
    names = next(csv.reader([first], delimiter=delimiter, strict=True), [])
    lines.accept()
    named = [name.strip() or f"column_{at}" for at, name in enumerate(names, start=1)]
    return _unique_names(named), delimiter


def _count_names(header: str, delimiter: str) -> tuple[int, int]:
    """Return how many columns of a known name a delimiter gives, and how many in all."""
    names = next(csv.reader([header], delimiter=delimiter), [])
    return sum(name.strip().lower() in _USUAL_NAMES for name in names), len(names)


def _unique_names(names: Iterable[str]) -> list[str]:
    """Number the columns of a name that is used twice: a row holds one value a name."""
    unique: list[str] = []
    for position, name in enumerate(names, start=1):
        unique.append(name if name not in unique else f"{name}_{position}")
    return unique


def _read_rows(lines: _RecordLines, header: list[str], delimiter: str) -> Iterator[RawRecord]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.reject(f"broken quotes: {error}")
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if any(cell.strip() for cell in cells[len(header) :]) or 0 < len(cells) < len(header):
            message = f"{len(cells)} values, but the header names {len(header)} columns"
            yield lines.reject(message)
            continue
        number, text = lines.accept(), "".join(cells)
        if "\0" in text:
            yield bad_record(number, "bad_csv_row", "the row holds NUL bytes", text)
        elif cells:
            yield finish_record(dict(zip(header, cells, strict=False)), number, text)


# Parquet and Arrow, batch by batch.


def _parquet_batches(fs: pafs.FileSystem, path: str) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows; memory: one row group's pages in flight and ``BATCH_ROWS`` rows."""
    opened = fs.open_input_file(path)
    with pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)


def _arrow_batches(fs: pafs.FileSystem, path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file in the stream or the file format; memory: one batch."""
    compression = detect_compression(fs, path)
    with fs.open_input_stream(path, compression=None) as stream:
        is_file_format = stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    if is_file_format:
        with fs.open_input_file(path) as handle, pa.ipc.open_file(handle) as reader:
            yield from map(reader.get_batch, range(reader.num_record_batches))
        return
    with (
        fs.open_input_stream(path, compression=compression) as handle,
        pa.ipc.open_stream(handle) as reader,
    ):
        yield from reader


def _read_batches(batches: Iterator[pa.RecordBatch], kind: str) -> Iterator[RawRecord]:
    """Yield every row; damage ends them with one error."""
    number = 0
    try:
        for batch in batches:
            named = batch.rename_columns(_unique_names(batch.schema.names))
            is_json = all(map(_is_json_type, batch.schema.types))
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in _rows_of(named.slice(start, BATCH_ROWS)):
                    number += 1
                    yield _finish_row(row, number, is_json=is_json)
    except FileNotFoundError:
        raise
    except _ARROW_DAMAGE as error:
        reason = "truncated_file" if number else "unreadable_file"
        message = f"the {kind} data cannot be read from here on ({error}); copy or write it again"
        yield bad_record(number + 1, reason, message)


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield rows as objects; where the batch as a whole fails, go row by row."""
    try:
        # Full validation: damaged offsets would otherwise be followed out of the buffer.
        batch.validate(full=True)
        yield from batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if batch.num_rows == 1:
            yield error
            return
        for offset in range(batch.num_rows):
            yield from _rows_of(batch.slice(offset, 1))


def _is_json_type(kind: pa.DataType) -> bool:
    """Whether all values of a type are such as ``json.loads`` returns."""
    if kind.num_fields and not pa.types.is_map(kind):
        return all(_is_json_type(kind.field(at).type) for at in range(kind.num_fields))
    return str(kind) in _JSON_TYPES or pa.types.is_integer(kind)


def _finish_row(row: dict[str, Any] | Exception, line: int, *, is_json: bool) -> RawRecord:
    """Return a row as JSON has it: other values as text."""
    if isinstance(row, UnicodeDecodeError) or (isinstance(row, Exception) and "UTF8" in str(row)):
        return bad_record(line, "invalid_utf8", "a text column holds bytes that are not UTF-8")
    if isinstance(row, Exception):
        return bad_record(line, "wrong_type", f"a value cannot be read: {row}")
    value: object = row if is_json else json.loads(json.dumps(row, default=_to_text))
    return finish_record(value, line)


def _to_text(value: object) -> str:
    """Return a value that JSON lacks as text; bytes that are no text as base64."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


# The table of readers.

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "arrow", "hub"]
Reader = Callable[[pafs.FileSystem, str], Iterator[RawRecord]]


#: The reader of each kind of file; ``ingest.KINDS`` says which names are of which kind.
READERS: dict[Kind, Reader] = {
    "json": lambda fs, path: read_json_records(read_chunks(fs, path), prefer_lines=False),
    "jsonl": lambda fs, path: read_json_records(read_chunks(fs, path), prefer_lines=True),
    "csv": lambda fs, path: read_csv_records(read_chunks(fs, path), ","),
    "tsv": lambda fs, path: read_csv_records(read_chunks(fs, path), "\t"),
    "parquet": lambda fs, path: _read_batches(_parquet_batches(fs, path), "Parquet"),
    "arrow": lambda fs, path: _read_batches(_arrow_batches(fs, path), "Arrow"),
    "hub": lambda _, path: _read_batches(hub.iter_batches(path), "hub's"),
}
