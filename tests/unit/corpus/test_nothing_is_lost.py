"""Whatever the layout: each text of a record stands in its example, or a notice names its field."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.corpus.examples import Conversation
from nncift_ray.corpus.layouts import (
    TURNS_KEYS,
    ParsedExample,
    columns_layout,
    to_example,
)

KNOWN = (
    "context query history thinking reasoning rejected system tools input label answer solution "
    "system_prompt instruction question text images functions chosen data name output response "
    "prompt content"
).split()
NAMES = st.one_of(st.sampled_from(KNOWN), st.text("abcdefgh_.", min_size=1, max_size=6))


class _Texts:
    """Hands out texts that occur once, each with what a notice has to name if it is lost."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.place: dict[str, str] = {}

    def new(self, place: str) -> str:
        text = f"word{next(self._numbers):04d} ünïque"
        self.place[text] = place
        return text

    def value(self, draw: st.DrawFn, place: str) -> Any:
        kind = draw(st.sampled_from(["text", "list", "object", "deep", "number", "null"]))
        new = self.new
        return {
            "text": lambda: new(place),
            "list": lambda: [new(place), new(place)],
            "object": lambda: {"a": new(place), "b": 1},
            "deep": lambda: [{"a": [new(place)]}, None],
            "number": lambda: 7,
            "null": lambda: None,
        }[kind]()


def _turns(draw: st.DrawFn, texts: _Texts, key: str) -> list[dict[str, Any]]:
    role, content = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    roles = ["user", "assistant", *draw(st.lists(st.sampled_from(["user", "assistant", "tool"])))]
    turns: list[dict[str, Any]] = []
    roles = [*draw(st.sampled_from([[], ["system"]])), *roles]
    last = max(at for at, name in enumerate(roles) if name == "assistant")
    for at, name in enumerate(roles):
        tail = "|after the last answer" if at > last else ""
        inner = f"[].{content}{tail}"
        turn: dict[str, Any] = {role: name, content: texts.new(key)}
        if name != "system" and draw(st.booleans()):
            turn[content] = [{"type": "text", "text": texts.new(key), "more": texts.new(inner)}]
        if name == "assistant" and draw(st.booleans()):
            turn["reasoning_content"] = texts.new("reasoning_content")
        if name == "assistant" and draw(st.booleans()):
            call = {"name": texts.new("tool_calls"), "arguments": {"x": texts.new("tool_calls")}}
            extra = {"extra": texts.new("tool_calls")} if draw(st.booleans()) else {}
            turn["tool_calls"] = [{"type": "function", "function": call, **extra}]
        for field in draw(
            st.lists(st.sampled_from(["mood", "value", "content", "text"]), max_size=2)
        ):
            turn.setdefault(field, texts.new(f"[].{field}{tail}"))
        turns.append(turn)
    return turns


def _pairs(texts: _Texts, key: str, names: tuple[str, ...]) -> list[dict[str, str]]:
    return [{name: texts.new(key) for name in names} for _ in range(2)]


@st.composite
def records(draw: st.DrawFn) -> tuple[dict[str, Any], _Texts]:
    texts = _Texts()
    record: dict[str, Any] = {}
    kind = draw(st.sampled_from(["texts", "turns", "pairs", "sides", "preference"]))
    if kind == "texts":
        sides = [("instruction", "output"), ("prompt", "completion"), ("question", "answer")]
        sides += [("query", "response"), ("problem", "solution"), ("input", "output")]
        record = {key: texts.new(key) for key in draw(st.sampled_from(sides))}
        if draw(st.booleans()):
            record["history"] = [[texts.new("history"), texts.new("history")]]
    elif kind == "turns":
        key = draw(st.sampled_from(["messages", "conversations", "conversation"]))
        turns: Any = _turns(draw, texts, key)
        record[key] = json.dumps(turns) if draw(st.booleans()) else turns
        if draw(st.booleans()):
            record["tools"] = [{"name": texts.new("tools")}]
    elif kind == "pairs":
        names = draw(st.sampled_from([("human", "assistant"), ("system", "input", "output")]))
        record["conversation"] = _pairs(texts, "conversation", names)
    elif kind == "sides":
        user, reply = texts.new("prompt"), texts.new("completion")
        record["prompt"] = [{"role": "user", "content": user}]
        record["completion"] = [{"role": "assistant", "content": reply}]
    else:
        record = {key: texts.new(key) for key in ("prompt", "chosen", "rejected")}
        if draw(st.booleans()):
            record["chosen"] = [{"role": "assistant", "content": record["chosen"]}]
    for name in draw(st.lists(NAMES, max_size=4)):
        if name not in record:
            record[name] = texts.value(draw, name)
    return record, texts


@settings(max_examples=600, deadline=None)
@given(records())
def test_each_text_stands_in_the_example_or_its_field_in_a_notice(
    made: tuple[dict[str, Any], _Texts],
) -> None:
    record, texts = made
    _check(record, texts, None)


@settings(max_examples=100, deadline=None)
@given(records(), st.sampled_from(["prompt", "messages"]))
def test_so_it_is_with_mapped_columns(made: tuple[dict[str, Any], _Texts], kind: str) -> None:
    record, texts = made
    body, ask, answer = texts.new("body"), texts.new("body"), texts.new("body")
    if kind == "prompt":
        record["body"] = {"a": ask, "b": [answer, body]}
        _check(record, texts, {"prompt": "body.a", "response": "body.b[0]"})
    else:
        turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        record["body"] = {"log": turns, "note": body}
        _check(record, texts, {"messages": "body.log"})


@settings(max_examples=200, deadline=None)
@given(records())
def test_the_quick_way_of_usual_turns_finds_the_same(made: tuple[dict[str, Any], _Texts]) -> None:
    record, _ = made
    for key in set(TURNS_KEYS) & record.keys():
        turns = record[key]
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            longer = [{**turn, "weight": 1} for turn in turns]  # no longer a plain turn
            assert to_example({**record, key: longer}, None) == to_example(record, None)


def _check(record: dict[str, Any], texts: _Texts, columns: Any) -> None:
    record = json.loads(json.dumps(record))
    example = to_example(record, columns_layout(columns) if columns else None)
    if not isinstance(example, ParsedExample):  # said, with its reason
        assert example.reason in ("wrong_type", "no_response", "no_prompt")
        assert example.message
        return
    full = example.conversation or Conversation(())
    kept = [example.prompt, example.response, full.to_json()]
    said = " ".join([*example.unread, *example.notes])
    for text, place in texts.place.items():
        tops = {key for key, value in record.items() if text in _flat(value)}
        is_kept = not tops or any(text in one for one in kept) or tops <= {*example.unread}
        assert is_kept or any(one in said for one in place.split("|")), (text, place, record)


def _flat(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\\u00fc", "ü").replace("\\u00ef", "ï")
