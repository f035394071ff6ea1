"""What readers of corpus files share: records and their errors, and bytes and lines of a file.

A file is never held whole: it is decompressed and cut into lines chunk by chunk.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import pyarrow as pa
from pyarrow import fs as pafs

from nncift_ray.errors import DataError

EXCERPT_CHARS = 200
CHUNK_BYTES = 1 << 18
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
    "too_deep",  # nested beyond ReadLimits.max_depth
    "too_long",  # beyond ReadLimits.max_record_bytes or max_chars
    "truncated_file",  # the file stops, or is damaged, from this row on
    "unknown_layout",  # an object without the columns of any layout
    "unreadable_file",  # not what its name says
    "wrong_type",  # a prompt, response or turn that is not text
]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds that keep one absurd row from costing memory or time, and what of a row counts."""

    max_record_bytes: int = 4 << 20  # longer records are skipped without being held in memory
    max_chars: int = 200_000  # of prompt and of response
    max_depth: int = 100  # of nested lists and objects
    sample_rows: int = 1_000  # good rows on which a file's layout is decided
    preference: str = "chosen"  # as in DataConfig
    reasoning: str = "keep"  # as in DataConfig


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


def make_excerpt(text: str | bytes) -> str:
    """Return the head of ``text`` in at most 200 printable characters, controls escaped."""
    head = text[:EXCERPT_CHARS]
    if isinstance(head, bytes):
        head = head.decode("utf-8", errors="backslashreplace")
    if not head.isprintable():
        head = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in head
        )
    return head if len(head) <= EXCERPT_CHARS else head[: EXCERPT_CHARS - 3] + "..."


def bad_record(line: int, reason: Reason, message: str, text: str | bytes = "") -> RawRecord:
    """Return the record of a row that cannot be used, with an excerpt of ``text``."""
    return RawRecord(line=line, error=BadRow(reason, message), excerpt=make_excerpt(text))


def overlong_record(line: int, head: str | bytes, limits: ReadLimits) -> RawRecord:
    """Return the record that stands for one longer than ``limits.max_record_bytes``."""
    message = f"longer than max_record_bytes = {limits.max_record_bytes:,}; split or drop the row"
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


def iter_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | OverlongText]:
    r"""Yield lines without their \n; one longer than ``max_bytes`` is skipped, not held.

    Memory: ``max_bytes`` and one chunk.
    """
    parts: list[bytes] = []
    num_bytes = 0
    for chunk in chunks:
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            yield _join_line([*parts, end], num_bytes + len(end) > max_bytes)
            parts, num_bytes = [], 0
        if num_bytes <= max_bytes and tail:
            parts.append(tail)
            if num_bytes + len(tail) > max_bytes:
                parts = [b"".join(parts)[:_HEAD_BYTES]]
        num_bytes += len(tail)
    if num_bytes:
        yield _join_line(parts, num_bytes > max_bytes)


def _join_line(parts: list[bytes], is_overlong: bool) -> bytes | OverlongText:
    line = parts[0] if len(parts) == 1 else b"".join(parts)
    return OverlongText(line[:_HEAD_BYTES]) if is_overlong else line
