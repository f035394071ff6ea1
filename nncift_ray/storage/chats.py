"""Conversations: their turns in one form, whatever the source calls roles and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from nncift_ray.storage.rows import BadRow

SYSTEM, USER, ASSISTANT, FUNCTION_CALL, TOOL = (
    "system",
    "user",
    "assistant",
    "function_call",
    "tool",
)
_ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "human": USER,
    "user": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "bot": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "function_call": FUNCTION_CALL,
    "observation": TOOL,
    "tool": TOOL,
    "function": TOOL,
}
_SHOWN_AS = {
    SYSTEM: "System",
    USER: "User",
    ASSISTANT: "Assistant",
    FUNCTION_CALL: "Function call",
    TOOL: "Tool",
}
#: Turns that the model writes: the last of them is the response.
MODEL_ROLES = frozenset({ASSISTANT, FUNCTION_CALL})


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is one of the constants of this module."""

    role: str
    text: str


def parse_turns(turns: object, system: object = None) -> list[Turn] | BadRow:
    """Read turns written as {from, value} or {role, content}.

    Args:
        turns: The list of turns as it stands in the record.
        system: A system text kept outside the list, if any; ignored when the list has its own.

    Returns:
        The turns up to the last one written by the model (the rest teaches nothing), or what is
        wrong with them.
    """
    if not isinstance(turns, list):
        return BadRow("wrong_type", f"the turns are a {type(turns).__name__}, not a list")
    parsed: list[Turn] = []
    for number, turn in enumerate(cast("list[object]", turns), start=1):
        one = _parse_turn(turn, number)
        if isinstance(one, BadRow):
            return one
        parsed.append(one)
    if isinstance(system, str) and system.strip() and not any(t.role == SYSTEM for t in parsed):
        parsed.insert(0, Turn(SYSTEM, system))
    while parsed and parsed[-1].role not in MODEL_ROLES:
        parsed.pop()
    if not parsed:
        return BadRow("no_response", "the conversation has no turn of the assistant")
    return parsed


def render_prompt(turns: Sequence[Turn]) -> str:
    """Write the turns before the response as one text.

    System texts come first and unnamed. A single user turn is just its text; several turns each
    begin with the name of their role.
    """
    systems = [turn.text for turn in turns if turn.role == SYSTEM]
    others = [turn for turn in turns if turn.role != SYSTEM]
    if len(others) == 1 and others[0].role == USER:
        return "\n".join([*systems, others[0].text])
    return "\n".join([*systems, *(f"{_SHOWN_AS[turn.role]}: {turn.text}" for turn in others)])


def _parse_turn(turn: object, number: int) -> Turn | BadRow:
    if not isinstance(turn, Mapping):
        return BadRow("wrong_type", f"turn {number} is a {type(turn).__name__}, not an object")
    fields = cast("Mapping[str, object]", turn)
    name = fields.get("role", fields.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        return BadRow("wrong_type", f"turn {number} has the unknown role {name!r}")
    content = fields.get("content", fields.get("value"))
    calls = fields.get("tool_calls")
    if calls and role == ASSISTANT and not content:
        return Turn(FUNCTION_CALL, json.dumps(calls, ensure_ascii=False))
    text = _text_of(content)
    if text is None:
        kind = type(content).__name__
        return BadRow("wrong_type", f"turn {number} is not text: {kind} (images are not supported)")
    return Turn(role, text)


def _text_of(content: object) -> str | None:
    """Return a turn's text: a string, or the text parts of a list; None for anything else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in cast("list[object]", content):
        if not isinstance(part, Mapping):
            return None
        fields = cast("Mapping[str, object]", part)
        text = fields.get("text")
        if fields.get("type", "text") != "text" or not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)
