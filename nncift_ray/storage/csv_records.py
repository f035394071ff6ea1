"""CSV and TSV files read as a stream of records, one broken row at a time.

An unclosed quote makes a plain CSV reader swallow the rows that follow. Here the lines of a record
that turns out broken are given back: its first line is the bad row, and reading goes on with its
second.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from nncift_ray.storage.byte_streams import BrokenStreamError, OverlongText, iter_lines
from nncift_ray.storage.json_records import finish_record, overlong_record
from nncift_ray.storage.rows import RawRecord, ReadLimits, bad_record

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
