"""The lossless form of an example, and what its id covers."""

from __future__ import annotations

import dataclasses

import pytest

from nncift_ray.corpus.examples import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    USER,
    Conversation,
    Example,
    ToolCall,
    Turn,
    make_example_id,
)

CALL = ToolCall("weather", '{"city": "Köln"}', "call_1")
TURNS = (
    Turn(SYSTEM, "Be kind."),
    Turn(USER, "How is it in Köln?"),
    Turn(ASSISTANT, reasoning="I have to look.", tool_calls=(CALL,)),
    Turn(TOOL, "12 degrees", tool_call_id="call_1", name="weather"),
    Turn(ASSISTANT, "It is cool."),
)
FULL = Conversation(TURNS, '[{"name": "weather"}]', (Turn(ASSISTANT, "No."),))


def test_a_conversation_comes_back_from_its_json() -> None:
    assert Conversation.from_json(FULL.to_json()) == FULL


def test_a_plain_pair_is_two_turns() -> None:
    assert Example("a", "Why?", "So.").turns == (Turn(USER, "Why?"), Turn(ASSISTANT, "So."))
    assert Example("a", "p", "r", FULL.to_json()).full() == FULL


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, {"text": "Be brief."}),
        (2, {"reasoning": ""}),
        (2, {"tool_calls": (dataclasses.replace(CALL, arguments="{}"),)}),
        (2, {"tool_calls": (CALL, CALL)}),
        (3, {"text": "13 degrees"}),
    ],
)
def test_the_id_covers_every_turn(at: int, change: dict[str, object]) -> None:
    turns = list(TURNS)
    turns[at] = dataclasses.replace(turns[at], **change)
    other = dataclasses.replace(FULL, turns=tuple(turns))
    assert make_example_id("p", "r", other) != make_example_id("p", "r", FULL)


def test_the_id_covers_tools_and_neither_call_ids_nor_what_was_rejected() -> None:
    turns = list(TURNS)
    turns[2] = dataclasses.replace(turns[2], tool_calls=(dataclasses.replace(CALL, id="x"),))
    same = Conversation(tuple(turns), FULL.tools)
    assert make_example_id("p", "r", same) == make_example_id("p", "r", FULL)
    other = dataclasses.replace(FULL, tools="")
    assert make_example_id("p", "r", other) != make_example_id("p", "r", FULL)
