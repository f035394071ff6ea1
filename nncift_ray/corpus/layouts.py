"""Layouts: where prompt and response stand in a record, and how a file's layout is found.

``LAYOUTS`` is the table of the known ones. A layout says which keys a record of it has and reads
prompt and response out of one; to add a layout is to add an entry.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from nncift_ray.corpus.streams import BadRow
from nncift_ray.errors import DataError

Record = Mapping[str, object]
Pair = tuple[str, str]  # prompt and response

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
FUNCTION_CALL, TOOL = "function_call", "tool"
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

COLUMNS = "columns"
COLUMN_ROLES = ("prompt", "response", "input", "system")
INSTRUCTION_KEYS, INPUT_KEYS = ("instruction",), ("input", "context")
OUTPUT_KEYS = ("output", "response")
TURNS_KEYS = ("messages", "conversations", "conversation")
_SHOWN_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is one of the constants of this module."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ParsedExample:
    """Prompt and response as they stand in the record, and the layout they were found by."""

    prompt: str
    response: str
    layout: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write an example.

    Attributes:
        name: What it is called in tables and recipes.
        needed: A record fits if it has one key of each group.
        parse: Takes prompt and response out of a record, or says what is wrong.
        has_turns: Whether the first needed key holds a list of turns.
    """

    name: str
    needed: tuple[tuple[str, ...], ...]
    parse: Callable[[Record], Pair | BadRow]
    has_turns: bool = False

    @property
    def is_explicit(self) -> bool:
        """Whether the user named the columns, so that nothing else is tried."""
        return self.name == COLUMNS

    def fits(self, record: Record) -> bool:
        """Whether a record has all the fields that the layout needs."""
        if self.has_turns:
            return isinstance(record.get(_first_key(record, self.needed[0])), list)
        return all(any(key in record for key in keys) for keys in self.needed)

    def touches(self, record: Record) -> bool:
        """Whether a record has any of them, so that saying what is missing makes sense."""
        return any(key in record for keys in self.needed for key in keys)


def _texts_layout(
    name: str,
    prompt: tuple[str, ...],
    response: tuple[str, ...],
    extra: tuple[str, ...] = (),
    system: tuple[str, ...] = (),
) -> Layout:
    """Return a layout of text fields, each with its keys: system, prompt and extra are joined."""

    def parse(record: Record) -> Pair | BadRow:
        texts: list[str] = []
        for keys in (system, prompt, extra, response):
            key = _first_key(record, keys) if keys else ""
            value = record.get(key) if keys else None
            if value is not None and not isinstance(value, str):
                return BadRow("wrong_type", f"'{key}' is a {type(value).__name__}, not text")
            texts.append(value or "")
        before, asked, after, answer = texts
        if after.strip():
            asked = f"{asked} {after}"  # as DELIFT joins instruction and input
        return (f"{before}\n{asked}" if before.strip() else asked), answer

    return Layout(name, (prompt, response), parse)


def _turns_layout(name: str, keys: tuple[str, ...]) -> Layout:
    """Return a layout of turns: the earlier ones are the prompt, the last reply the response."""

    def parse(record: Record) -> Pair | BadRow:
        turns = parse_turns(record.get(_first_key(record, keys)), record.get("system"))
        if isinstance(turns, BadRow):
            return turns
        return render_prompt(turns[:-1]), turns[-1].text

    return Layout(name, (keys,), parse, has_turns=True)


#: In the order in which a record that fits several is read.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _turns_layout("messages", TURNS_KEYS[:1]),
        _turns_layout("sharegpt", TURNS_KEYS[1:]),
        _texts_layout("alpaca", INSTRUCTION_KEYS, OUTPUT_KEYS, extra=INPUT_KEYS),
        _texts_layout("prompt_completion", ("prompt",), ("completion", "response")),
        _texts_layout("question_answer", ("question",), ("answer",)),
    )
}


def columns_layout(columns: Mapping[str, str]) -> Layout:
    """Return the layout of an explicit mapping, e.g. {"prompt": "q", "response": "a"}.

    ``input`` names a column that is appended to the prompt, ``system`` one that precedes it.

    Raises:
        DataError: If a key is unknown, or prompt or response is not mapped.
    """
    unknown = sorted(set(columns) - set(COLUMN_ROLES))
    if unknown or not {"prompt", "response"} <= set(columns):
        raise DataError(
            f"data.columns maps {', '.join(COLUMN_ROLES)} to column names; prompt and response are "
            f"needed, unknown here: {unknown or 'nothing'}"
        )
    keys = ((columns[role],) if role in columns else () for role in COLUMN_ROLES)
    return _texts_layout(COLUMNS, *keys)


def resolve_layout(layout: str | None, columns: Mapping[str, str] | None) -> Layout | None:
    """Return the layout a recipe names, or None where it is to be found.

    Raises:
        DataError: If the name or the mapping is not known.
    """
    if columns:
        return columns_layout(columns)
    if layout in (None, "auto"):
        return None
    if layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise DataError(f"data.layout '{layout}' is not known: use {known}, or data.columns")
    return LAYOUTS[layout]


def detect_layout(sample: Iterable[Record]) -> Layout | None:
    """Return the layout that most records of a sample fit; None if the sample is empty.

    Raises:
        DataError: If no record fits any layout; names the columns found.
    """
    votes: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for record in sample:
        columns.update(record.keys())
        votes.update([layout.name for layout in LAYOUTS.values() if layout.fits(record)][:1])
    if votes:
        return LAYOUTS[max(LAYOUTS, key=lambda name: votes[name])]
    if not columns:
        return None
    found = ", ".join(f"'{name}'" for name, _ in columns.most_common(_SHOWN_COLUMNS))
    raise DataError(
        f"no known layout has the columns {found}. Say which to read, e.g. "
        f"data.columns: {{prompt: COLUMN, response: COLUMN}} (also: input, system). "
        f"Known layouts: {', '.join(LAYOUTS)}."
    )


def to_example(
    record: Record, layout: Layout | None, max_chars: int = 200_000
) -> ParsedExample | BadRow:
    """Return prompt and response of a record, or what is wrong with it.

    A record that does not fit the file's layout, but another known one, is read by that one; with
    explicitly mapped columns nothing else is tried.

    Args:
        record: The parsed record.
        layout: The layout of its file.
        max_chars: A longer prompt or response makes the row an error.
    """
    tried = [layout] if layout is not None and (layout.is_explicit or layout.fits(record)) else []
    if layout is None or not layout.is_explicit:
        tried += [one for one in LAYOUTS.values() if one is not layout and one.fits(record)]
    if not tried and layout is not None and layout.touches(record):
        tried = [layout]
    first_problem: BadRow | None = None
    for one in tried:
        example = _check(one.parse(record), one.name, max_chars)
        if isinstance(example, ParsedExample):
            return example
        first_problem = first_problem or example
    names = ", ".join(f"'{name}'" for name in list(record)[:_SHOWN_COLUMNS]) or "none"
    return first_problem or BadRow("unknown_layout", f"no known layout has the columns {names}")


def _check(parsed: Pair | BadRow, layout: str, max_chars: int) -> ParsedExample | BadRow:
    if isinstance(parsed, BadRow):
        return parsed
    prompt, response = parsed
    if not prompt.strip():
        return BadRow("no_prompt", f"the prompt is empty (layout {layout})")
    if not response.strip():
        return BadRow("no_response", f"the response is empty (layout {layout})")
    longest = max(len(prompt), len(response))
    if longest > max_chars:
        return BadRow("too_long", f"{longest:,} characters, more than max_chars = {max_chars:,}")
    return ParsedExample(prompt, response, layout)


def _first_key(record: Record, keys: Sequence[str]) -> str:
    """Return the first of the keys that the record has, else the first of all."""
    return next((key for key in keys if record.get(key) is not None), keys[0])


def split_alpaca(record: Record) -> tuple[str, str, str]:
    """Return instruction, input and output of a record of the layout alpaca."""
    keys = (INSTRUCTION_KEYS, INPUT_KEYS, OUTPUT_KEYS)
    instruction, extra, output = (record.get(_first_key(record, names)) for names in keys)
    return str(instruction or ""), str(extra or ""), str(output or "")


def conversation_turns(record: Record) -> list[Turn] | BadRow:
    """Return the turns of a record of the layouts messages and sharegpt, response included."""
    return parse_turns(record.get(_first_key(record, TURNS_KEYS)), record.get("system"))


def parse_turns(turns: object, system: object = None) -> list[Turn] | BadRow:
    """Return turns written as {from, value} or {role, content}, or what is wrong with them.

    They end with the last one written by the model: the rest teaches nothing.

    Args:
        turns: The list of turns as it stands in the record.
        system: A system text kept outside the list, if any; ignored when the list has its own.
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
    return parsed or BadRow("no_response", "the conversation has no turn of the assistant")


def render_prompt(turns: Sequence[Turn]) -> str:
    """Return the turns before the response as one text.

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
    fields = cast("Record", turn)
    name = fields.get("role", fields.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        return BadRow("wrong_type", f"turn {number} has the unknown role {name!r}")
    content, calls = fields.get("content", fields.get("value")), fields.get("tool_calls")
    if calls and role == ASSISTANT and not content:
        return Turn(FUNCTION_CALL, json.dumps(calls, ensure_ascii=False))
    text = _text_of(content)
    if text is None:
        kind = type(content).__name__
        return BadRow("wrong_type", f"turn {number} is not text: {kind} (images are not supported)")
    return Turn(role, text)


def _text_of(content: object) -> str | None:
    """Return a turn's text: a string, or the text parts of a list; None for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in cast("list[object]", content):
        if not isinstance(part, Mapping):
            return None
        fields = cast("Record", part)
        text = fields.get("text")
        if fields.get("type", "text") != "text" or not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)
