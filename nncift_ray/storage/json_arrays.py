"""Cut a JSON array into its elements without parsing it, in bounded memory.

Parsing is left to whoever reads an element, so one bad element costs itself and not its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from nncift_ray.storage.byte_streams import BrokenStreamError, OverlongText
from nncift_ray.storage.rows import EXCERPT_CHARS

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
