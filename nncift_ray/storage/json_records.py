"""JSON files read as a stream of records: JSON Lines, one array, one object, {"data": [...]}.

A ``.json`` file that holds JSON Lines and a ``.jsonl`` file that holds one array are common; the
first lines decide, not the name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Literal, NoReturn, cast

from nncift_ray.storage.byte_streams import (
    BYTE_ORDER_MARK,
    BrokenStreamError,
    OverlongText,
    iter_lines,
)
from nncift_ray.storage.json_arrays import ArrayCutter, find_array_of_key
from nncift_ray.storage.rows import RawRecord, ReadLimits, bad_record

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
