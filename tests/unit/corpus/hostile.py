"""Rows that real corpora hold and no reader expects, each with a name and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nncift_ray.corpus import formats
from nncift_ray.corpus.ingest import Row, expand_sources, read_examples
from nncift_ray.recipe.sections import DataConfig

SMALL_RECORD = 110_000  # bytes of the longest record


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


def _row(**fields: object) -> bytes:
    return json.dumps(fields).encode()


_USER = {"role": "user", "content": "hello"}
_REPLY = {"role": "assistant", "content": "hi"}

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
    Kind("overlong record", _pair("a" * 120_000, "b"), "too_long"),
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
        _chat(_REPLY),
        "no_prompt",
    ),
    Kind("chat with a null turn", _chat(_USER, None, _REPLY), "wrong_type"),
    Kind("chat with an empty turn", _chat(_USER, {}, _REPLY), "wrong_type"),
    Kind("chat with a null answer", _chat(_USER, {**_REPLY, "content": None}), "no_response"),
    Kind("chat as an object", _row(messages=_USER), "wrong_type"),
    Kind("chat as cut JSON text", _row(messages='[{"role": "user", "con'), "wrong_type"),
    Kind(
        "lists of turns of unlike length",
        _row(conversations={"from": ["human"], "value": []}),
        "wrong_type",
    ),
    Kind(
        "sound in a turn",
        _chat({"role": "user", "content": [{"type": "audio"}]}, _REPLY),
        "wrong_type",
    ),
    Kind("labelled bad", _row(prompt=[_USER], completion=[_REPLY], label=False), "labelled_bad"),
    Kind("labelled bad as text", _row(prompt="a", response="b", kto_tag="False"), "labelled_bad"),
    Kind("nothing chosen", _row(prompt="a", chosen=None, rejected="b"), "no_response"),
    Kind("no reference", _row(question="a", answers=[]), "no_response"),
    Kind("history of half a pair", _row(prompt="a", response="b", history=[["c"]]), "wrong_type"),
    Kind(
        "instances without an output",
        _row(instruction="a", instances=[{"input": "b"}]),
        "unknown_layout",
    ),
    Kind("true as response", _pair("a", True), "wrong_type"),
    Kind("NaN as response", b'{"prompt": "a", "response": NaN}', "no_response"),
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
    Kind(
        "history and system",
        _row(instruction="odd 18", output="r", system="s", history=[["a", "b"]]),
        None,
    ),
    Kind("query", _row(instruction="odd 19", query="q", response="r", history=[]), None),
    Kind("context", _row(question="odd 20", context="c", answer="r"), None),
    Kind("a number as answer", _row(question="odd 21", answer=7), None),
    Kind("references", _row(question="odd 22", answers=["r", "s"]), None),
    Kind("an empty instruction", _row(instruction="", input="odd 23", output="r"), None),
    Kind(
        "a trace alone",
        _chat(_USER, {"role": "assistant", "content": "", "thinking": "odd 24"}),
        None,
    ),
    Kind(
        "a call of broken arguments",
        _chat(
            {**_USER, "content": "odd 25"},
            {"role": "tool_call", "content": '{"name": "f", "arguments": {'},
        ),
        None,
    ),
    Kind(
        "roles of any case",
        _chat({"role": " User ", "content": "odd 26"}, {**_REPLY, "role": "MODEL"}),
        None,
    ),
    Kind("a result first", _chat({"role": "tool_response", "content": "odd 27"}, _REPLY), None),
    Kind("pairs", _row(conversation=[{"human": "odd 28", "assistant": "r"}]), None),
    Kind(
        "system, input and output",
        _row(conversation=[{"system": "s", "input": "odd 29", "output": "r"}]),
        None,
    ),
    Kind("an instance", _row(instruction="odd 30", instances=[{"input": "", "output": "r"}]), None),
    Kind(
        "messages on both sides",
        _row(prompt=[{**_USER, "content": "odd 31"}], completion=[_REPLY]),
        None,
    ),
    Kind(
        "chosen and rejected",
        _row(chosen=[{**_USER, "content": "odd 32"}, _REPLY], rejected=[_USER]),
        None,
    ),
    Kind(
        "messages as JSON text",
        _row(messages=json.dumps([{**_USER, "content": "odd 33"}, _REPLY])),
        None,
    ),
    Kind(
        "lists of turns",
        _row(conversations={"from": ["human", "gpt"], "value": ["odd 34", "r"]}),
        None,
    ),
    Kind(
        "tools, and none in them",
        _row(messages=[{**_USER, "content": "odd 35"}, _REPLY], tools="[]"),
        None,
    ),
    Kind("no messages but a prompt", _row(messages=None, prompt="odd 36", response="r"), None),
    Kind("labelled good", _row(prompt="odd 37", completion="r", label=True), None),
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


def read_file(
    path: Path, max_record_bytes: int = SMALL_RECORD, max_chars: int = 2_000
) -> tuple[list[Row], list[Row]]:
    """Read one corpus file to its end; return its examples and its errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "MAX_RECORD_BYTES", max_record_bytes)
        return _read_file(path, DataConfig.model_construct(max_chars=max_chars))


def _read_file(path: Path, data: DataConfig) -> tuple[list[Row], list[Row]]:
    (source,) = expand_sources([str(path)])
    good: list[Row] = []
    bad: list[Row] = []
    for row in read_examples(source, "candidate", data):
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
