"""Bytes and lines of a file, decompressed and bounded: a file is never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs

from nncift_ray.errors import DataError
from nncift_ray.storage.rows import EXCERPT_CHARS, Reason

CHUNK_BYTES = 1 << 18
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD_BYTES = 4 * EXCERPT_CHARS
#: Text packs to a third or a tenth, many copies of it to a hundredth. What unpacks to more than
#: this many times its size was made to fill a disk; a file that stays small may do as it likes.
MAX_EXPANSION = 500
FREE_BYTES = 1 << 30


class BrokenStreamError(Exception):
    """Reading cannot go on: what was handed out before is good, the rest is lost."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the code and the sentence that the row standing for the rest gets."""
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class OverlongText:
    """Stands for a line or record beyond the limit: only its first bytes were kept."""

    head: bytes


def read_chunks(fs: pafs.FileSystem, path: str) -> Iterator[bytes]:
    """Yield the bytes of a text file, decompressed, without a leading byte order mark.

    The compression is told by the file's first bytes, so a wrongly named file is read as well.

    Raises:
        DataError: If the file cannot be opened.
        BrokenStreamError: After the last good byte of a damaged file, or for UTF-16 text.
    """
    compression = detect_compression(fs, path)
    if compression is None and path.lower().endswith((".gz", ".zst")):
        compression = _expected_compression(fs, path)
    chunks = _plain_chunks(fs, path) if compression is None else _unpack(fs, path, compression)
    first = next(chunks, b"")
    if first.startswith(_UTF16_MARKS):
        message = "the file is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"
        raise BrokenStreamError("invalid_utf8", message)
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def iter_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | OverlongText]:
    r"""Yield lines without their \n; one longer than ``max_bytes`` is skipped, not held.

    Memory: ``max_bytes`` and one chunk.
    """
    parts: list[bytes] = []
    num_bytes = 0
    overlong = False
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            yield _finish_line(parts, piece, overlong or num_bytes + len(piece) > max_bytes)
            parts, num_bytes, overlong = [], 0, False
        tail = pieces[-1]
        num_bytes += len(tail)
        if tail and not overlong:
            parts.append(tail)
        if num_bytes > max_bytes and not overlong:
            overlong = True
            parts = [b"".join(parts)[:_HEAD_BYTES]]
    if num_bytes:
        yield _finish_line(parts, b"", overlong)


def _finish_line(parts: list[bytes], last: bytes, overlong: bool) -> bytes | OverlongText:
    line = b"".join((*parts, last)) if parts else last
    return OverlongText(line[:_HEAD_BYTES]) if overlong else line


def detect_compression(fs: pafs.FileSystem, path: str) -> str | None:
    """Return gzip, zstd or None by the first bytes of the file."""
    try:
        with fs.open_input_stream(path, compression=None) as stream:
            head = stream.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error})") from error
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _expected_compression(fs: pafs.FileSystem, path: str) -> str | None:
    """Accept plain text under a compressed name, but not an empty file."""
    if fs.get_file_info(path).size == 0:
        message = "the compressed file is empty; was it copied completely?"
        raise BrokenStreamError("truncated_file", message)
    return None


def _plain_chunks(fs: pafs.FileSystem, path: str) -> Iterator[bytes]:
    with fs.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _unpack(fs: pafs.FileSystem, path: str, compression: str) -> Iterator[bytes]:
    """Decompress; at damage hand out every byte before it, then raise."""
    num_bytes = 0
    most = max(FREE_BYTES, MAX_EXPANSION * (fs.get_file_info(path).size or 0))
    try:
        with fs.open_input_stream(path, compression=compression) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
                num_bytes += len(chunk)
                if num_bytes > most:
                    message = (
                        f"the {compression} data unpacks to more than {MAX_EXPANSION} times its "
                        "size; the rest is not read. Unpack the file yourself if it is meant so"
                    )
                    raise BrokenStreamError("expands_too_far", message)
    except (OSError, pa.ArrowInvalid) as error:
        yield _salvage(fs, path, compression, num_bytes)
        message = f"the {compression} data ends early or is damaged ({error}); copy it again"
        raise BrokenStreamError("truncated_file", message) from error


def _salvage(fs: pafs.FileSystem, path: str, compression: str, num_bytes: int) -> bytes:
    """Read again what the failing read lost: byte by byte, from ``num_bytes`` to the damage."""
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
