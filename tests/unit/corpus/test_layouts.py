"""Layouts: prompt and response come out of every known shape, and a file's shape is found."""

from __future__ import annotations

from typing import Any

import pytest

from nncift_ray.corpus.formats import BadRow
from nncift_ray.corpus.layouts import (
    LAYOUTS,
    ParsedExample,
    columns_layout,
    detect_layout,
    resolve_layout,
    to_example,
)
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import DataConfig

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}

RECORDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, "Add. 1 2", "3"),
    ("alpaca", {"instruction": "Add.", "input": " ", "output": "3"}, "Add.", "3"),
    ("alpaca", {"instruction": "Add.", "output": "3"}, "Add.", "3"),
    ("alpaca", {"instruction": "Add.", "context": "1", "response": "1"}, "Add. 1", "1"),
    ("prompt_completion", {"prompt": "p", "completion": "c"}, "p", "c"),
    ("prompt_completion", {"prompt": " p\n", "response": "c "}, " p\n", "c "),
    ("question_answer", {"question": "q", "answer": "a"}, "q", "a"),
    ("messages", {"messages": [USER, REPLY]}, "Hi", "Hello"),
    ("messages", {"messages": [SYSTEM, USER, REPLY]}, "Be brief.\nHi", "Hello"),
    (
        "messages",
        {"messages": [SYSTEM, USER, REPLY, USER, {"role": "assistant", "content": "Again"}, USER]},
        "Be brief.\nUser: Hi\nAssistant: Hello\nUser: Hi",
        "Again",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, REPLY]},
        "Hi",
        "Hello",
    ),
    (
        "messages",
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "Hi",
        '[{"id": "1"}]',
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        "Hi",
        "Yo",
    ),
    (
        "sharegpt",
        {
            "system": "Be kind.",
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": "weather()"},
                {"from": "observation", "value": "dry"},
                {"from": "gpt", "value": "No."},
            ],
        },
        "Be kind.\nUser: Rain?\nAssistant: weather()\nTool: dry",
        "No.",
    ),
    ("messages", {"prompt": "x", "response": "y", "messages": [USER, REPLY]}, "Hi", "Hello"),
]


@pytest.mark.parametrize(("layout", "record", "prompt", "response"), RECORDS)
def test_each_layout_is_found_and_read(
    layout: str, record: dict[str, Any], prompt: str, response: str
) -> None:
    found = detect_layout([record])
    assert found is LAYOUTS[layout]
    example = to_example(record, found)
    assert isinstance(example, ParsedExample)
    assert (example.prompt, example.response, example.layout) == (prompt, response, layout)


def test_the_majority_decides_and_earlier_layouts_win_a_tie() -> None:
    pair, question = {"prompt": "p", "response": "r"}, {"question": "q", "answer": "a"}
    assert detect_layout([question, pair, question]) is LAYOUTS["question_answer"]
    assert detect_layout([question, pair]) is LAYOUTS["prompt_completion"]


def test_a_row_of_another_layout_is_read_by_its_own() -> None:
    example = to_example({"question": "q", "answer": "a"}, LAYOUTS["alpaca"])
    assert example == ParsedExample("q", "a", "question_answer")


def test_a_row_that_is_broken_in_one_layout_may_be_whole_in_another() -> None:
    record = {"messages": [], "prompt": "p", "response": "r"}
    assert to_example(record, LAYOUTS["messages"]) == ParsedExample("p", "r", "prompt_completion")


def test_mapped_columns_are_read_and_nothing_else_is_tried() -> None:
    layout = columns_layout({"prompt": "q", "response": "a", "input": "text", "system": "sys"})
    record = {"q": "Count.", "a": "2", "text": "x y", "sys": "You count.", "prompt": "no"}
    example = to_example(record, layout)
    assert isinstance(example, ParsedExample)
    assert (example.prompt, example.response) == ("You count.\nCount. x y", "2")
    assert example.unread == ("prompt",)
    other = to_example({"prompt": "p", "response": "r"}, layout)
    assert isinstance(other, BadRow)
    assert other.reason == "no_prompt"


def test_an_unknown_layout_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="alpaca"):
        resolve_layout("alpacca", None)
    assert resolve_layout("auto", None) is None
    assert resolve_layout("sharegpt", None) is LAYOUTS["sharegpt"]


def test_no_layout_names_the_columns_and_how_to_map_them() -> None:
    with pytest.raises(DataError, match=r"'title', 'body'.*data\.columns: \{prompt"):
        detect_layout([{"title": "a", "body": "b"}])
    assert detect_layout([]) is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "a"}, "no_response"),
        ({"instruction": "", "output": "b"}, "no_prompt"),
        ({"instruction": "a", "input": {"b": "c"}, "output": "b"}, "wrong_type"),
        ({"instruction": "a", "output": "b" * 11}, "too_long"),
        ({"messages": "text"}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": {"a": 5}}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "no_response"),
        ({"messages": [SYSTEM, USER]}, "no_response"),
        ({"messages": [{"content": "x"}, REPLY]}, "wrong_type"),
    ],
)
def test_what_cannot_be_read_has_a_reason(record: dict[str, Any], reason: str) -> None:
    example = to_example(record, LAYOUTS["alpaca"], DataConfig.model_construct(max_chars=10))
    assert isinstance(example, BadRow)
    assert example.reason == reason
