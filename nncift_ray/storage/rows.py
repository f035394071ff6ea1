"""What the readers of corpus files hand on: records, rows that could not be used, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

EXCERPT_CHARS = 200

Reason = Literal[
    "bad_csv_row",  # not one value per column of the header, or broken quotes
    "expands_too_far",  # a compressed file that unpacks to absurdly much: not read from this row on
    "invalid_unicode",  # a \ud800-style escape that is half of a character
    "invalid_utf8",  # bytes that are not UTF-8
    "no_prompt",
    "no_response",
    "not_an_object",  # JSON, but a list, a number, a string or null
    "not_json",
    "too_deep",  # nested beyond ReadLimits.max_depth
    "too_long",  # beyond ReadLimits.max_record_bytes or max_chars
    "truncated_file",  # the file stops, or is damaged, from this row on
    "unknown_layout",  # an object without the columns of any layout
    "unreadable_file",  # not what its name says
    "wrong_type",  # a prompt, response or turn that is not text
]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds that keep one absurd row from costing memory or time."""

    max_record_bytes: int = 4 << 20  # longer records are skipped without being held in memory
    max_chars: int = 200_000  # of prompt and response together
    max_depth: int = 100  # of nested lists and objects
    sample_rows: int = 1_000  # good rows on which a file's layout is decided


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row cannot be used: a short code and a sentence for a person."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One row of a corpus file, before anything is known of its layout.

    Exactly one of ``error`` (with its ``excerpt``) and ``record`` (with its ``value``) speaks:
    ``error is None`` means that ``value`` holds the parsed object and ``record`` its JSON text.
    """

    line: int  # 1-based; line of the file where it has lines, else number of the record
    value: object = None
    record: str = ""
    error: BadRow | None = None
    excerpt: str = ""


class ExampleRow(TypedDict):
    """A usable row, in the columns of ``schemas.RECORDS``."""

    role: str
    example_id: str
    prompt: str
    response: str
    record: str
    source: str
    line: int
    layout: str


class ErrorRow(TypedDict):
    """A row that could not be used, in the columns of ``schemas.ERRORS``."""

    stage: str
    source: str | None
    line: int | None
    example_id: NotRequired[str | None]
    reason: str
    message: str
    excerpt: str | None


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
    """Build the record of a row that cannot be used, with an excerpt of ``text``."""
    return RawRecord(line=line, error=BadRow(reason, message), excerpt=make_excerpt(text))
