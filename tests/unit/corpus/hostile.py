"""Rows that real corpora hold and no reader expects, each with a name and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nncift_ray.corpus.ingest import Row, read_examples
from nncift_ray.corpus.sources import expand_sources
from nncift_ray.corpus.streams import ReadLimits

SMALL = ReadLimits(max_record_bytes=20_000, max_chars=2_000)


@dataclass(frozen=True)
class Kind:
    """One kind of row: its bytes, and the reason it is refused for (None: it is good)."""

    name: str
    text: bytes
    reason: str | None


def _pair(prompt: object, response: object, **more: object) -> bytes:
    return json.dumps({"prompt": prompt, "response": response, **more}).encode()


def _chat(*turns: object) -> bytes:
    return json.dumps({"messages": list(turns)}).encode()


_USER = {"role": "user", "content": "hello"}

BAD_JSON = [
    Kind("plain text", b"this is no JSON", "not_json"),
    Kind("cut object", b'{"prompt": "a", "respon', "not_json"),
    Kind("trailing comma", b'{"prompt": "a", "response": "b",}', "not_json"),
    Kind("single quotes", b"{'prompt': 'a', 'response': 'b'}", "not_json"),
    Kind("bare key", b'{prompt: "a", "response": "b"}', "not_json"),
    Kind("comment", b'{"prompt": "a" /* note */}', "not_json"),
    Kind("two objects", b'{"prompt": "a", "response": "b"} {"prompt": "c"}', "not_json"),
    Kind(
        "5,000 digits", b'{"prompt": "a", "response": "b", "n": ' + b"7" * 5_000 + b"}", "not_json"
    ),
    Kind("raw NUL", b'{"prompt": "a\0", "response": "b"}', "not_json"),
    Kind("raw control", b'{"prompt": "a\x07", "response": "b"}', "not_json"),
    Kind("NUL outside", b'\0{"prompt": "a", "response": "b"}', "not_json"),
    Kind("Latin-1", b'{"prompt": "caf\xe9", "response": "b"}', "invalid_utf8"),
    Kind("cut UTF-8", b'{"prompt": "\xe2\x82", "response": "b"}', "invalid_utf8"),
    Kind("UTF-8 surrogate", b'{"prompt": "\xed\xa0\x80", "response": "b"}', "invalid_utf8"),
    Kind("lone surrogate", b'{"prompt": "\\ud800", "response": "b"}', "invalid_unicode"),
    Kind("surrogate key", b'{"prompt": "a", "response": "b", "\\udfff": 1}', "invalid_unicode"),
    Kind("list", b'["prompt", "response"]', "not_an_object"),
    Kind("number", b"42", "not_an_object"),
    Kind("null", b"null", "not_an_object"),
    Kind("true", b"true", "not_an_object"),
    Kind("string", b'"prompt"', "not_an_object"),
    Kind("deep lists", b'{"prompt": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "too_deep"),
    Kind("deep objects", b'{"a":' * 300 + b"1" + b"}" * 300, "too_deep"),
    Kind("overlong record", _pair("a" * 30_000, "b"), "too_long"),
    Kind("overlong prompt", _pair("a" * 2_001, "b"), "too_long"),
    Kind("overlong response", _pair("a", "b" * 2_001), "too_long"),
    Kind("no response key", b'{"prompt": "a"}', "no_response"),
    Kind("null response", _pair("a", None), "no_response"),
    Kind("empty response", _pair("a", ""), "no_response"),
    Kind("blank response", _pair("a", " \t\n\u00a0"), "no_response"),
    Kind("no prompt key", b'{"response": "b"}', "no_prompt"),
    Kind("empty prompt", _pair("", "b"), "no_prompt"),
    Kind("object as response", _pair("a", {"text": "b"}), "wrong_type"),
    Kind("other columns", b'{"title": "a", "body": "b"}', "unknown_layout"),
    Kind("empty object", b"{}", "unknown_layout"),
    Kind("chat without assistant", _chat(_USER), "no_response"),
    Kind("chat without turns", _chat(), "no_response"),
    Kind("chat of strings", _chat("hello", "hi"), "wrong_type"),
    Kind("chat of an unknown role", _chat({"role": "narrator", "content": "x"}), "wrong_type"),
    Kind(
        "chat with an image",
        _chat(
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            {"role": "assistant", "content": "a cat"},
        ),
        "wrong_type",
    ),
    Kind(
        "chat that begins with the answer",
        _chat({"role": "assistant", "content": "hi"}),
        "no_prompt",
    ),
]

ODD_JSON = [
    Kind("duplicate keys", b'{"prompt": "x", "prompt": "odd 1", "response": "r"}', None),
    Kind("surrogate pair", b'{"prompt": "\\ud83d\\ude00 odd 2", "response": "r"}', None),
    Kind("line separator", '{"prompt": "odd\u2028 3", "response": "r"}'.encode(), None),
    Kind("escaped NUL", b'{"prompt": "odd\\u0000 4", "response": "r"}', None),
    Kind("spaces around", b'  \t{"prompt": "odd 5", "response": "r"}  \t', None),
    Kind("big integer", b'{"prompt": "odd 6", "response": "r", "id": 123456789012345678901}', None),
    Kind("Alpaca row", b'{"instruction": "odd 7", "input": "", "output": "r"}', None),
    Kind("question row", b'{"question": "odd 8", "answer": "r"}', None),
    Kind("chat row", _chat(_USER, {"role": "assistant", "content": "odd 9"}), None),
    Kind("null beside", b'{"prompt": "odd 10", "completion": "r", "response": null}', None),
    Kind("brackets in text", _pair('odd 11 ]}{["\\', "r"), None),
    Kind("NaN", b'{"prompt": "odd 13", "response": "r", "score": NaN}', None),
    Kind("Infinity", b'{"prompt": "odd 14", "response": "r", "score": -Infinity}', None),
    Kind("float overflow", b'{"prompt": "odd 15", "response": "r", "score": 1e999}', None),
    Kind("number as prompt", _pair(16, "r"), None),
    Kind("list as response", _pair("odd 17", ["r"]), None),
    Kind("right to left", _pair("odd 12 \u202e\u05d0", "r"), None),
]

ALL_JSON = [*BAD_JSON, *ODD_JSON]


def good_pair(number: int) -> bytes:
    """Return the text of an ordinary good record."""
    return _pair(f"good {number}", "r")


def interleave(kinds: list[Kind]) -> Iterator[Kind]:
    """Put an ordinary good row before every kind of row and one at the end."""
    for number, kind in enumerate(kinds):
        yield Kind(f"good {number}", good_pair(number), None)
        yield kind
    yield Kind("good last", good_pair(len(kinds)), None)


def read_file(path: Path, limits: ReadLimits = SMALL) -> tuple[list[Row], list[Row]]:
    """Read one corpus file to its end; return its examples and its errors."""
    (source,) = expand_sources([str(path)])
    good: list[Row] = []
    bad: list[Row] = []
    for row in read_examples(source, "candidate", limits=limits):
        if "reason" in row:
            bad.append(row)
        else:
            good.append(row)
    return good, bad


def reasons(bad: list[Row]) -> list[tuple[int | None, str]]:
    """Return (line, reason) of errors."""
    return [(row["line"], row["reason"]) for row in bad]


def expected(kinds: list[Kind], first: int = 1) -> tuple[list[int], list[tuple[int, str]]]:
    """Return the lines of the good and (line, reason) of the bad, one kind a line."""
    numbered = list(enumerate(kinds, start=first))
    good = [line for line, kind in numbered if kind.reason is None]
    return good, [(line, kind.reason) for line, kind in numbered if kind.reason is not None]
