"""Files that users had: each kind of layout, encoding and dialect with the right value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift_ray.corpus.examples import ASSISTANT, SYSTEM, TOOL, USER, Conversation, ToolCall, Turn
from nncift_ray.corpus.ingest import (
    Row,
    Tally,
    describe_sources,
    expand_sources,
    read_examples,
)
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime.output import FirstErrors

ASK, REPLY = {"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "Old."}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
OTHER = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": {"y": "é"}}}
CALLS = (ToolCall("f", '{"x": 1}', "c1"), ToolCall("g", '{"y": "é"}', "c2"))
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def _read(path: Path, **data: Any) -> tuple[list[Row], Tally]:
    tally, config = Tally(), DataConfig(candidates=(str(path),), **data)
    (source,) = expand_sources(config.candidates)
    return list(tally.watch(read_examples(source, "candidate", config))), tally


def _read_one(folder: Path, record: dict[str, Any], **data: Any) -> tuple[Row, Tally]:
    (folder / "one.jsonl").write_text(json.dumps(record))
    (row,), tally = _read(folder / "one.jsonl", **data)
    return row, tally


def _turns(row: Row) -> list[Turn]:
    if row["conversation"] is None:
        return [Turn(USER, row["prompt"]), Turn(ASSISTANT, row["response"])]
    return list(Conversation.from_json(row["conversation"]).turns)


U, A = Turn(USER, "Bread?"), Turn(ASSISTANT, "Old.")
S, EARLIER = Turn(SYSTEM, "Be kind."), [Turn(USER, "Why?"), Turn(ASSISTANT, "So.")]
LAYOUTS: list[tuple[str, dict[str, Any], list[Turn]]] = [
    (
        "Alpaca with system and history",
        {
            "instruction": "Bread?",
            "input": "",
            "output": "Old.",
            "system": "Be kind.",
            "history": [["Why?", "So."]],
        },
        [S, *EARLIER, U, A],
    ),
    (
        "query and response with history of messages",
        {
            "query": "Bread?",
            "response": "Old.",
            "system": "Be kind.",
            "history": [{"role": "user", "content": "Why?"}, {"from": "gpt", "value": "So."}],
        },
        [S, *EARLIER, U, A],
    ),
    (
        "instruction and query",
        {"instruction": "Say:", "query": "Bread?", "response": "Old.", "history": []},
        [Turn(USER, "Say: Bread?"), A],
    ),
    (
        "question and context",
        {"question": "Bread?", "context": "Bread is old.", "answer": "Old."},
        [Turn(USER, "Bread? Bread is old."), A],
    ),
    ("Dolly", {"instruction": "Bread?", "context": "", "response": "Old."}, [U, A]),
    ("input and output alone", {"input": "Bread?", "output": "Old."}, [U, A]),
    (
        "an empty instruction",
        {"instruction": "", "input": "Bread?", "output": "Old."},
        [U, A],
    ),
    (
        "OpenOrca",
        {"system_prompt": "Be kind.", "question": "Bread?", "response": "Old."},
        [S, U, A],
    ),
    ("MetaMath", {"query": "Bread?", "response": "Old."}, [U, A]),
    ("NuminaMath", {"problem": "Bread?", "solution": "Old.", "answer": "Old"}, [U, A]),
    ("UltraChat", {"data": ["Why?", "So.", "Bread?", "Old."]}, [*EARLIER, U, A]),
    ("a number as answer", {"question": "Bread?", "answer": 0}, [U, Turn(ASSISTANT, "0")]),
    ("references", {"question": "Bread?", "answers": ["Old.", "Ancient."]}, [U, A]),
    ("SQuAD", {"question": "Bread?", "answers": {"text": ["Old."], "answer_start": [3]}}, [U, A]),
    ("messages", {"messages": [ASK, REPLY]}, [U, A]),
    ("messages as JSON text", {"messages": json.dumps([ASK, REPLY])}, [U, A]),
    ("messages as pandas writes them", {"messages": str([ASK, REPLY])}, [U, A]),
    (
        "turns as an object of lists",
        {"conversations": {"from": ["human", "gpt"], "value": ["Bread?", "Old."]}},
        [U, A],
    ),
    (
        "content as parts",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Bread?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm."},
                        {"type": "text", "text": "Old."},
                    ],
                },
            ]
        },
        [U, Turn(ASSISTANT, "Old.", "Hm.")],
    ),
    *(
        (
            f"a trace in {key}",
            {"messages": [ASK, {**REPLY, key: "Hm."}]},
            [U, Turn(ASSISTANT, "Old.", "Hm.")],
        )
        for key in ("reasoning_content", "reasoning", "thinking")
    ),
    (
        "a trace in a column",
        {"question": "Bread?", "answer": "Old.", "reasoning": "Hm."},
        [U, Turn(ASSISTANT, "Old.", "Hm.")],
    ),
    (
        "calls beside content, parallel",
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": "I look.", "tool_calls": [CALL, OTHER]},
                {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
                {"role": "tool", "content": {"z": 2}, "tool_call_id": "c2"},
                REPLY,
            ]
        },
        [
            U,
            Turn(ASSISTANT, "I look.", tool_calls=CALLS),
            Turn(TOOL, "1", tool_call_id="c1", name="f"),
            Turn(TOOL, '{"z": 2}', tool_call_id="c2"),
            A,
        ],
    ),
    (
        "a call as the response",
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        [U, Turn(ASSISTANT, tool_calls=CALLS[:1])],
    ),
    *(
        (
            f"ShareGPT with {call} and {result}",
            {
                "conversations": [
                    {"from": "human", "value": "Bread?"},
                    {"from": call, "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": call, "value": '{"name": "g", "arguments": {}}'},
                    {"from": result, "value": "1"},
                    {"from": model, "value": "Old."},
                ]
            },
            [
                U,
                Turn(ASSISTANT, tool_calls=(ToolCall("f", '{"x": 1}'), ToolCall("g", "{}"))),
                Turn(TOOL, "1"),
                A,
            ],
        )
        for call, result, model in [
            ("function_call", "observation", "gpt"),
            ("tool_call", "tool_response", "bot"),
            ("tool_call", "tool", "model"),
            ("tool_call", "function", "assistant"),
        ]
    ),
    (
        "pairs of human and assistant",
        {
            "system": "",
            "conversation": [
                {"human": "Why?", "assistant": "So."},
                {"human": "Bread?", "assistant": "Old."},
            ],
        },
        [*EARLIER, U, A],
    ),
    (
        "system, input and output",
        {"conversation": [{"system": "Be kind.", "input": "Bread?", "output": "Old."}]},
        [S, U, A],
    ),
    ("TRL prompt and completion", {"prompt": [ASK], "completion": [REPLY]}, [U, A]),
    (
        "nested instances",
        {"instruction": "Bread?", "instances": [{"input": "", "output": "Old."}]},
        [U, A],
    ),
]


@pytest.mark.parametrize(
    ("record", "turns"), [case[1:] for case in LAYOUTS], ids=[c[0] for c in LAYOUTS]
)
def test_a_layout_is_read_whole(tmp_path: Path, record: dict[str, Any], turns: list[Turn]) -> None:
    row, tally = _read_one(tmp_path, record)
    assert _turns(row) == turns
    assert not tally.unread


def test_views_show_reasoning_calls_and_tools(tmp_path: Path) -> None:
    reply = {
        "role": "assistant",
        "reasoning_content": "Hm.",
        "content": "Old.",
        "tool_calls": [CALL],
    }
    row, _ = _read_one(tmp_path, {"messages": [ASK, reply], "tools": TOOLS})
    assert row["prompt"] == f"Bread?\nTools: {json.dumps(TOOLS)}"
    call = '{"name": "f", "arguments": {"x": 1}}'
    assert row["response"] == f"<think>\nHm.\n</think>\n\nOld.\n{call}"
    assert Conversation.from_json(row["conversation"]).tools == json.dumps(TOOLS)


def test_reasoning_is_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    record = {"messages": [ASK, {**REPLY, "reasoning": "Hm."}]}
    row, tally = _read_one(tmp_path, record, reasoning="drop")
    assert (row["response"], row["conversation"]) == ("Old.", None)
    assert list(tally.notes) == ["the reasoning is left out, as data.reasoning says"]


NO = {"role": "assistant", "content": "No."}
PREFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"chosen": [ASK, REPLY], "rejected": [ASK, NO]}, "rejected"),
    ({"prompt": [ASK], "chosen": [REPLY], "rejected": [NO]}, "rejected"),
    ({"prompt": "Bread?", "chosen": "Old.", "rejected": "No."}, "rejected"),
    ({"prompt": "Bread?", "chosen": [ASK, REPLY], "rejected": [ASK, NO]}, "rejected"),
    ({"instruction": "Bread?", "input": "", "chosen": "Old.", "rejected": "No."}, "rejected"),
    (
        {
            "conversations": [{"from": "human", "value": "Bread?"}],
            "chosen": {"from": "gpt", "value": "Old."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        "rejected",
    ),
    (
        {
            "chosen": "\n\nHuman: Bread?\n\nAssistant: Old.",
            "rejected": "\n\nHuman: Bread?\n\nAssistant: No.",
        },
        "rejected",
    ),
    ({"messages": [ASK, REPLY], "rejected_response": "No."}, "rejected_response"),
]


@pytest.mark.parametrize(("record", "key"), PREFERENCES)
def test_of_a_preference_pair_the_chosen_is_the_response(
    tmp_path: Path, record: dict[str, Any], key: str
) -> None:
    row, tally = _read_one(tmp_path, record)
    assert _turns(row) == [U, A]
    assert Conversation.from_json(row["conversation"]).rejected == (Turn(ASSISTANT, "No."),)
    (note,) = tally.notes
    assert f"'{key}' is not learnt from" in note
    refused, _ = _read_one(tmp_path, record, preference="refuse")
    assert refused["reason"] == "preference"
    assert "data.preference" in refused["message"]


def test_what_is_labelled_bad_is_refused_unless_asked_for(tmp_path: Path) -> None:
    record = {"prompt": [ASK], "completion": [REPLY], "label": False}
    refused, _ = _read_one(tmp_path, record)
    assert (refused["reason"], "data.preference: all" in refused["message"]) == (
        "labelled_bad",
        True,
    )
    row, tally = _read_one(tmp_path, record, preference="all")
    assert (_turns(row), tally.notes.total()) == ([U, A], 1)
    good, tally = _read_one(tmp_path, {**record, "label": True})
    assert (_turns(good), tally.notes.total()) == ([U, A], 0)


def test_columns_reach_into_a_record(tmp_path: Path) -> None:
    record = {"req": {"q": "Bread?"}, "choices": [{"message": {"content": "Old.", "why": "Hm."}}]}
    row, tally = _read_one(
        tmp_path,
        record,
        columns={
            "prompt": "req.q",
            "response": "choices[0].message.content",
            "reasoning": "choices[0].message.why",
        },
    )
    assert _turns(row) == [U, Turn(ASSISTANT, "Old.", "Hm.")]
    assert not tally.unread
    row, _ = _read_one(tmp_path, {"body": {"log": [ASK, REPLY]}}, columns={"messages": "body.log"})
    assert _turns(row) == [U, A]


def test_two_instances_are_two_rows_of_their_own(tmp_path: Path) -> None:
    instances = [{"input": "Rye.", "output": "Old."}, {"input": "Oat.", "output": "New."}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "Bread?", "instances": instances}))
    rows, tally = _read(path)
    assert [(row["prompt"], row["response"]) for row in rows] == [
        ("Bread? Rye.", "Old."),
        ("Bread? Oat.", "New."),
    ]
    assert json.loads(rows[1]["record"]) == {"instruction": "Bread?", **instances[1]}
    assert tally.notes.total() == 2


def test_what_is_not_understood_is_named_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"prompt": "p", "response": "r", "topic": "Bakery", "score": 3, "none": None},
        {"prompt": "p2", "response": "r", "topic": "Grain", "meta": {"notes": ["Sour dough"]}},
        {"messages": [{**ASK, "mood": "glad"}, REPLY, {"role": "user", "content": "Thanks."}]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    _, tally = _read(path)
    assert tally.unread == {"topic": 2, "meta": 1, "messages[].mood": 1}
    assert tally.notes == {"turns after the last answer are left out of 'messages'": 1}
    told = "\n".join(describe_sources({"candidate a": tally.facts()}, FirstErrors()))
    assert "topic (2 rows), meta (1 rows), messages[].mood (1 rows)" in told


def test_only_an_image_is_called_an_image(tmp_path: Path) -> None:
    for part, has_image in [
        ({"type": "image_url", "image_url": "x"}, True),
        ({"type": "audio"}, False),
    ]:
        row, _ = _read_one(tmp_path, {"messages": [{"role": "user", "content": [part]}, REPLY]})
        assert ("images are not supported" in row["message"]) == has_image
    row, _ = _read_one(tmp_path, {"messages": [{"role": "user", "content": {"a": 1}}, REPLY]})
    assert "image" not in row["message"]


# Encodings, line ends, dialects.

LINES = '{"prompt": "Brot é?", "response": "Alt."}\n{"prompt": "b", "response": "c"}\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_read_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode(encoding))
    rows, _ = _read(tmp_path / "a.jsonl")
    assert [row["prompt"] for row in rows] == ["Brot é?", "b"]


def test_line_ends_of_the_old_mac_are_read(tmp_path: Path) -> None:
    for name, text in [("a.jsonl", LINES), ("b.csv", "prompt,response\nBrot é?,r\nb,c\n")]:
        (tmp_path / name).write_bytes(text.replace("\n", "\r").encode())
        rows, _ = _read(tmp_path / name)
        assert [row["prompt"] for row in rows] == ["Brot é?", "b"]


def test_another_encoding_is_told_with_the_command_that_converts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,response\ncafé,r\n".encode("cp1252"))
    (tmp_path / "b.jsonl").write_bytes(LINES.encode("cp1252"))
    for name in ("a.csv", "b.jsonl"):
        rows, _ = _read(tmp_path / name)
        assert rows[0]["reason"] == "invalid_utf8"
        assert "iconv -f WINDOWS-1252 -t UTF-8" in rows[0]["message"]


@pytest.mark.parametrize(
    "text",
    [
        'prompt;response;tags, comma separated\n"a; b\nc";r;"x,y"\n',
        'sep=;\nprompt;response\n"a; b\nc";r\n',
        '"sep=\t"\nprompt\tresponse\n"a; b\nc"\tr\n',
        'response|prompt\nr|"a; b\nc"\n',
    ],
)
def test_dialects_of_csv_are_found_by_the_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    (row,), _ = _read(tmp_path / "a.csv")
    assert (row["prompt"], row["response"]) == ("a; b\nc", "r")


def test_nan_becomes_null_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "r", "x": NaN, "y": [1e999, 2]}')
    pq.write_table(
        pa.table({"prompt": ["p"], "response": ["r"], "x": [float("nan")], "y": [[1.0, 2.0]]}),
        tmp_path / "b.parquet",
    )
    for name, fields in [("a.jsonl", "xy"), ("b.parquet", "x")]:
        (row,), tally = _read(tmp_path / name)
        assert json.loads(row["record"])["x"] is None
        assert [note[1] for note in tally.notes] == list(fields)
