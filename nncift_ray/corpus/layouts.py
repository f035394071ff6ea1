"""Layouts: where the parts of an example stand in a record, and how a file's layout is found.

``LAYOUTS`` is the table of the known ones. A layout says which keys a record of it has and reads an
example out of one; to add a layout is to add an entry. Whatever text of a record is not read is
named in ``ParsedExample.unread``.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, cast

from nncift_ray.corpus.examples import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    USER,
    Conversation,
    ToolCall,
    Turn,
    split_system,
)
from nncift_ray.corpus.formats import BadRow, Reason
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import ColumnRole, DataConfig

# What json.loads returns may be anything:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

Record = Mapping[str, object]

_CALL = "tool_call"  # a turn of the assistant whose text is one call or a list of calls
_NAMES_OF_ROLE = {
    SYSTEM: ("system", "developer"),
    USER: ("human", "user", "prompter"),
    ASSISTANT: ("gpt", "assistant", "bot", "chatgpt", "model", "bing", "bard"),
    _CALL: ("function_call", "tool_call"),
    TOOL: ("observation", "tool", "tool_response", "tool_result", "function", "ipython"),
}
_ROLES = {name: role for role, names in _NAMES_OF_ROLE.items() for name in names}
_SHOWN_AS = {SYSTEM: "System", USER: "User", ASSISTANT: "Assistant", TOOL: "Tool"}

COLUMNS = "columns"
INSTRUCTION_KEYS, OUTPUT_KEYS = ("instruction",), ("output", "response")
#: Further text of the prompt, in the order in which it is appended.
INPUT_KEYS = ("input", "query", "context")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
TOOLS_KEYS = ("tools", "functions")
TURNS_KEYS = ("messages", "conversations", "conversation", "data")
CHOSEN, REJECTED_KEYS = "chosen", ("rejected", "rejected_response", "rejected_messages")
#: KTO: whether the response is a good one.
LABEL_KEYS = ("label", "kto_tag")
INSTANCES = "instances"
_OWN_KEY = "_nncift"  # what an export of ours adds to a record
_HISTORY = "history"
_NO_TOOLS = ("[]", "{}", "null")
#: A record without them is no more than prompt and response.
_RARE_KEYS = frozenset(
    (*SYSTEM_KEYS, _HISTORY, *REASONING_KEYS, *TOOLS_KEYS, CHOSEN, *REJECTED_KEYS, *LABEL_KEYS)
)
_ASKED_KEYS = ("question", "query", "problem", "input", "inputs")
_ANSWERS_OF = {"problem": ("solution", "generated_solution", "answer", "response")}
_ANSWER_KEYS = ("answer", "answers", "response", "output", "solution", "targets")
#: What the two sides of a turn are called that is written as one object.
_PAIR_KEYS = {
    SYSTEM: ("system",),
    USER: ("human", "user", "input", "prompt", "query", "instruction", "question"),
    ASSISTANT: ("assistant", "bot", "gpt", "output", "response", "answer"),
}
_CONTENT_KEYS = ("content", "value", "text")
_TURN_KEYS = frozenset(
    ("role", "from", *_CONTENT_KEYS, *REASONING_KEYS)
    + ("tool_calls", "function_call", "tool_call_id", "name")
)
_CALL_KEYS = {"name", "arguments", "id", "type", "function", "index"}
_IMAGE_TYPES = {"image", "image_url", "input_image"}
#: How HH-RLHF writes a conversation as one text.
_SPOKEN = re.compile(r"\n\n(Human|Assistant): ?")
#: How a text begins that may be a list of turns.
_LISTS = ("[{", "[[", '{"', "{'", "[]", "[ ", "[\n")
_PATH_STEP = re.compile(r"([^.\[\]]+)|\[(-?\d+)\]")
_SHOWN_COLUMNS = 12
#: A row refused for one of these is what its layout says, so that no other is tried.
_FINAL: tuple[Reason, ...] = ("labelled_bad", "preference")

NOTE_REFERENCES = "'{}' lists several references: the first is the response"
NOTE_PREFERENCE = (
    "preference pairs: what is chosen is the response, '{}' is not learnt from "
    "(data.preference: refuse leaves such rows out)"
)
NOTE_LABELLED_BAD = "'{}' calls the response bad, read all the same (data.preference: all)"
NOTE_REASONING = "the reasoning is left out, as data.reasoning says"
NOTE_TAIL = "turns after the last answer are left out of '{}'"
NOTE_INSTANCES = "'instances' holds several examples: each is a row of its own"


@dataclass(frozen=True, slots=True)
class ParsedExample:
    """An example as it stands in a record.

    Attributes:
        prompt: All before the response, as one text.
        response: The last turn of the assistant, as one text.
        layout: The layout it was found by.
        conversation: What it is in full; None for one user turn and one assistant turn.
        unread: Fields that hold text which is no part of the example.
        notes: What else a person should know of how the record was read.
    """

    prompt: str
    response: str
    layout: str
    conversation: Conversation | None = None
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _UnfitError(Exception):
    """A record is not what its layout promises."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.row = BadRow(reason, message)


class _Found:
    """What has been found in a record while it is read; ``used`` are its keys that were read."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.turns: list[Turn] = []
        self.tools = ""
        self.rejected: list[Turn] = []
        self.used: set[str] = set()
        self.unread: list[str] = []
        self.notes: list[str] = []

    def take(self, key: str) -> str:
        """Return the text of a field: a number is written out, null is nothing."""
        self.used.add(key)
        value = _reach(self.record, key)
        if _are_texts(value):
            return "\n".join(cast("list[str]", value))
        return _text(key, value)

    def take_answer(self, key: str) -> str:
        """Return the text of a response: of several references the first."""
        self.used.add(key)
        value = _reach(self.record, key)
        if isinstance(value, dict) and isinstance(cast("Record", value).get("text"), list):
            value = cast("Record", value)["text"]  # as SQuAD writes answers and their places
        if isinstance(value, list):
            references = cast("list[object]", value)
            if len(references) > 1:
                self.notes.append(NOTE_REFERENCES.format(key))
            value = references[0] if references else None
        return _text(key, value)

    def take_optional(self, keys: Sequence[str]) -> str:
        """Return the first of some fields that holds text."""
        for key in keys:
            value = _reach(self.record, key)
            if isinstance(value, str) and value.strip():
                self.used.add(key)
                return value
        return ""

    def take_turns(self, key: str) -> list[Turn]:
        """Return the turns that a field lists."""
        self.used.add(key)
        return _parse_turns(_reach(self.record, key), key, self)

    def listed(self, key: str) -> bool:
        """Whether a field holds turns instead of a text or references."""
        value = _reach(self.record, key)
        if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
            return False
        turns = _as_list(value) or [None]
        return all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)

    def before(self, system: Sequence[str] = SYSTEM_KEYS, history: str = _HISTORY) -> list[Turn]:
        """Return system and earlier turns that are kept in fields of their own."""
        text = self.take_optional(system)
        turns = [Turn(SYSTEM, text)] if text else []
        value = _reach(self.record, history)
        if value and isinstance(value, str | list | dict) and _as_list(value) is not None:
            turns += self.take_turns(history)
        return turns

    def take_tools(self, keys: Sequence[str] = TOOLS_KEYS) -> None:
        """Take the list of tools, as JSON text."""
        for key in keys:
            value = _reach(self.record, key)
            if value and isinstance(value, str | list):
                self.used.add(key)
                text = value if isinstance(value, str) else _to_json(value)
                self.tools = "" if text.strip() in _NO_TOOLS else text
                return

    def take_around(self) -> None:
        """Take what may stand in other fields: system, history, tools."""
        if not _RARE_KEYS.isdisjoint(self.record):
            self.turns = _with_system(self.before(), self.turns)
            self.take_tools()


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write an example.

    Attributes:
        name: What it is called in tables and recipes.
        needed: A record fits if it has one key of each group.
        parse: Reads a record's turns, tools and rejected turns, or raises ``_UnfitError``.
        has_turns: Whether the first needed key holds a list of turns.
    """

    name: str
    needed: tuple[tuple[str, ...], ...]
    parse: Callable[[_Found], None]
    has_turns: bool = False

    def fits(self, record: Record) -> bool:
        """Whether a record has all the fields that the layout needs."""
        if self.has_turns:
            return _turns_key(record, self.needed[0]) is not None
        return not any(record.keys().isdisjoint(keys) for keys in self.needed)

    def touches(self, record: Record) -> bool:
        """Whether a record has any of them, so that saying what is missing makes sense."""
        return any(key in record and key != "data" for keys in self.needed for key in keys)


# The layouts.


def _texts_layout(name: str, asked: tuple[str, ...], answers: tuple[str, ...]) -> Layout:
    """Return a layout of fields: what is asked, further text of the prompt, and the answer.

    Either side may be a list of messages instead (the conversational form of TRL).
    """

    def parse(found: _Found) -> None:
        record = found.record
        ask = _first_key(record, asked)
        answer = _first_key(record, _ANSWERS_OF.get(ask, answers))
        extra = [key for key in INPUT_KEYS if key != ask and record.get(key) is not None]
        _read_sides(found, ask, answer, extra)
        found.take_around()

    return Layout(name, (asked, answers), parse)


def _read_sides(
    found: _Found,
    ask: str,
    answer: str,
    extra: Sequence[str],
    reasoning: Sequence[str] = REASONING_KEYS,
) -> None:
    if found.listed(ask):
        asked = found.take_turns(ask)
    else:
        further = dict.fromkeys(found.take(key) for key in extra)
        # As DELIFT joins instruction and input.
        texts = [text for text in (found.take(ask), *further) if text.strip()]
        asked = [Turn(USER, " ".join(texts) if len(texts) > 1 else "".join(texts))]
    if found.listed(answer):
        replies = found.take_turns(answer)
        if any(turn.role != ASSISTANT and turn.role != TOOL for turn in replies):
            asked = [] if _starts_with(replies, asked) else asked
    else:
        text = found.take_answer(answer)
        replies = [Turn(ASSISTANT, text, found.take_optional(reasoning))]
    found.turns = asked + replies


def _parse_turns_of(keys: tuple[str, ...]) -> Callable[[_Found], None]:
    def parse(found: _Found) -> None:
        found.turns = found.take_turns(_turns_key(found.record, keys) or keys[0])
        found.take_around()

    return parse


def _parse_preference(found: _Found) -> None:
    """Read chosen and rejected, with the prompt beside them or inside both."""
    record = found.record
    key = _turns_key(record, TURNS_KEYS)
    ask = next((key for key in ("prompt", *INSTRUCTION_KEYS, *_ASKED_KEYS) if key in record), None)
    if key:
        asked = found.take_turns(key)
    elif ask and found.listed(ask):
        asked = found.take_turns(ask)
    else:
        texts = [found.take(key) for key in (ask, *INPUT_KEYS) if key and record.get(key)]
        asked = [Turn(USER, text) for text in [" ".join(dict.fromkeys(texts))] if text.strip()]
    asked = _with_system(found.before(), asked)
    chosen = _replies(found, CHOSEN)
    systems, spoken = split_system(asked)
    repeats = _starts_with(split_system(chosen)[1], spoken)
    found.turns = _with_system(systems, chosen) if repeats else asked + chosen
    found.take_tools()


def _read_rejected(found: _Found, keys: Sequence[str]) -> None:
    """Take what a preference pair holds against the response, without the prompt that both have."""
    systems, spoken = split_system(found.turns)
    known = {turn.text for turn in systems}
    for key in keys:
        replies = [t for t in _replies(found, key) if t.role != SYSTEM or t.text not in known]
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(replies[:-1], spoken, strict=False))
        found.rejected += replies[sum(1 for _ in shared) :]


def _replies(found: _Found, key: str) -> list[Turn]:
    """Return one side of a preference pair: a text, one turn, or a list of turns."""
    value = found.record.get(key)
    if isinstance(value, dict) and not found.listed(key):
        found.used.add(key)
        return _parse_turns([value], key, found)
    if found.listed(key):
        return found.take_turns(key)
    _, *spoken = _SPOKEN.split(text := found.take(key))
    if not spoken:
        return [Turn(ASSISTANT, text)]
    roles = {"Human": USER, "Assistant": ASSISTANT}
    return [Turn(roles[who], said) for who, said in zip(spoken[::2], spoken[1::2], strict=True)]


#: In the order in which a record that fits several is read.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("preference", ((CHOSEN,), REJECTED_KEYS), _parse_preference),
        Layout("messages", (TURNS_KEYS[:1],), _parse_turns_of(TURNS_KEYS[:1]), has_turns=True),
        Layout("sharegpt", (TURNS_KEYS[1:],), _parse_turns_of(TURNS_KEYS[1:]), has_turns=True),
        _texts_layout("alpaca", INSTRUCTION_KEYS, OUTPUT_KEYS),
        _texts_layout("prompt_completion", ("prompt",), ("completion", "response", "output")),
        _texts_layout("question_answer", _ASKED_KEYS, _ANSWER_KEYS),
    )
}


def columns_layout(columns: Mapping[ColumnRole, str]) -> Layout:
    """Return the layout of ``data.columns``, e.g. {"prompt": "q", "response": "choices[0].text"}.

    A column may be a path into a record: names with dots between, and places in a list.
    """

    def named(role: ColumnRole) -> list[str]:
        return [columns[role]] if role in columns else []

    def parse(found: _Found) -> None:
        before = found.before(named("system"), columns.get("history", ""))
        if "messages" in columns:
            found.turns = found.take_turns(columns["messages"])
        else:
            asked, answer = columns["prompt"], columns["response"]
            _read_sides(found, asked, answer, named("input"), named("reasoning"))
        found.turns = _with_system(before, found.turns)
        found.take_tools(named("tools"))

    return Layout(COLUMNS, (tuple(columns.values()),), parse)


def resolve_layout(layout: str | None, columns: Mapping[ColumnRole, str] | None) -> Layout | None:
    """Return the layout a recipe names, or None where it is to be found.

    Raises:
        DataError: If the name is not known.
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
        votes.update(layout.name for layout in islice(_layouts_to_try(record, None), 1))
    if votes:
        return LAYOUTS[max(LAYOUTS, key=lambda name: votes[name])]
    if not columns:
        return None
    found = ", ".join(f"'{name}'" for name, _ in columns.most_common(_SHOWN_COLUMNS))
    raise DataError(
        f"no known layout has the columns {found}. Say which to read, e.g. "
        f"data.columns: {{prompt: COLUMN, response: COLUMN}} (also: input, system, history, "
        f"messages, tools, reasoning). Known layouts: {', '.join(LAYOUTS)}."
    )


def flatten(record: Record) -> list[dict[str, object]] | None:
    """Return the examples of a record that nests them under ``instances``; None if it does not."""
    instances = record.get(INSTANCES)
    if not isinstance(instances, list) or not instances or any(k in record for k in OUTPUT_KEYS):
        return None
    rest = {key: value for key, value in record.items() if key != INSTANCES}
    examples: list[dict[str, object]] = []
    for instance in cast("list[object]", instances):
        if not isinstance(instance, dict) or "output" not in instance:
            return None
        examples.append({**rest, **cast("Record", instance)})
    return examples


# From a record to an example.


def to_example(
    record: Record, layout: Layout | None, data: DataConfig | None = None
) -> ParsedExample | BadRow:
    """Return the example that a record is, or what is wrong with it.

    A record that does not fit the file's layout, but another known one, is read by that one; with
    explicitly mapped columns nothing else is tried.

    Args:
        record: The parsed record.
        layout: The layout of its file.
        data: The longest prompt and response, and what of a record counts.
    """
    data = data or DataConfig.model_construct()
    first_problem: BadRow | None = None
    for one in _layouts_to_try(record, layout):
        example = _read(record, one, data)
        if isinstance(example, ParsedExample) or example.reason in _FINAL:
            return example
        first_problem = first_problem or example
    names = ", ".join(f"'{name}'" for name in list(record)[:_SHOWN_COLUMNS]) or "none"
    return first_problem or BadRow(
        "unknown_layout",
        f"no known layout has the columns {names}; data.columns says which to read",
    )


def _layouts_to_try(record: Record, layout: Layout | None) -> Iterator[Layout]:
    """Yield the layouts that a record fits, the file's first; else one that says what it lacks."""
    if layout is not None and layout.name == COLUMNS:
        yield layout
        return
    tried = layout is not None and layout.fits(record)
    if layout is not None and tried:
        yield layout
    others = [one for one in LAYOUTS.values() if one is not layout]
    for one in others:
        if one.fits(record):
            tried = True
            yield one
    if not tried:
        every = others if layout is None else [layout, *others]
        touched = (one for one in every if one.touches(record))
        yield from islice((one for one in touched if one is layout or one.has_turns), 1)


def _read(record: Record, layout: Layout, data: DataConfig) -> ParsedExample | BadRow:
    found, conversation = _Found(record), None
    try:
        layout.parse(found)
        _judge(found, data.preference)
        _trim(found, data.reasoning)
    except _UnfitError as error:
        return error.row
    turns = found.turns
    prompt, response = render_prompt(turns[:-1], found.tools), render_turn(turns[-1])
    if turns != [Turn(USER, prompt), Turn(ASSISTANT, response)] or found.tools or found.rejected:
        conversation = Conversation(tuple(turns), found.tools, tuple(found.rejected))
    if "<image>" in prompt and record.get("images"):
        return BadRow("wrong_type", "the prompt has an image; images are not supported")
    if not prompt.strip():
        return BadRow("no_prompt", f"the prompt is empty (layout {layout.name})")
    if not response.strip():
        return BadRow("no_response", f"the response is empty (layout {layout.name})")
    longest = max(len(prompt), len(response))
    if longest > data.max_chars:
        message = f"{longest:,} characters, more than max_chars = {data.max_chars:,}"
        return BadRow("too_long", message)
    unread = _unread_fields(found, prompt, response)
    notes = tuple(dict.fromkeys(found.notes)) if found.notes else ()
    return ParsedExample(prompt, response, layout.name, conversation, unread, notes)


def _judge(found: _Found, preference: str) -> None:
    """Read what a record says of good and bad responses, as data.preference wants it."""
    record = found.record
    if _RARE_KEYS.isdisjoint(record):
        return
    for key in LABEL_KEYS:
        if key in record and str(record[key]).lower() == "false":
            if preference != "all":
                message = (
                    f"'{key}' calls the response bad; data.preference: all reads it all the same"
                )
                raise _UnfitError("labelled_bad", message)
            found.notes.append(NOTE_LABELLED_BAD.format(key))
    values = ((key, record.get(key)) for key in REJECTED_KEYS)
    rejected = [key for key, value in values if value and isinstance(value, str | list | dict)]
    if not rejected:
        return
    if preference == "refuse":
        message = "a preference pair; data.preference: chosen reads what is chosen as the response"
        raise _UnfitError("preference", message)
    _read_rejected(found, rejected)
    found.notes.append(NOTE_PREFERENCE.format("', '".join(rejected)))


def _trim(found: _Found, reasoning: str) -> None:
    """End the turns with the response; the rest teaches nothing."""
    turns = found.turns
    while turns and turns[-1].role != ASSISTANT:
        if turns.pop().text.strip():
            key = _turns_key(found.record, TURNS_KEYS) or "the conversation"
            found.notes.append(NOTE_TAIL.format(key))
    if not turns:
        raise _UnfitError("no_response", "the conversation has no turn of the assistant")
    if reasoning == "drop" and any(turn.reasoning for turn in turns):
        found.turns = [replace(turn, reasoning="") for turn in turns]
        found.notes.append(NOTE_REASONING)


def _unread_fields(found: _Found, prompt: str, response: str) -> tuple[str, ...]:
    """Return the fields of a record that hold text which stands nowhere in the example."""
    unread = found.unread
    for key, value in found.record.items():
        if value and key not in found.used and not key.startswith(_OWN_KEY):
            if isinstance(value, str):
                text = value.strip()
                if text and text not in prompt and text not in response:
                    unread.append(key)
            elif any(text not in prompt and text not in response for text in _texts_in(value)):
                unread.append(key)
    return tuple(dict.fromkeys(unread)) if unread else ()


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, dict):
        for one in cast("Record", value).values():
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in cast("list[object]", value):
            yield from _texts_in(one)


def render_prompt(turns: Sequence[Turn], tools: str = "") -> str:
    """Return the turns before the response as one text.

    System texts come first and unnamed. A single user turn is just its text; several turns each
    begin with the name of their role. The tools come last: an embedder that cuts a long text keeps
    what was asked.
    """
    systems, others = split_system(turns)
    if len(others) == 1 and others[0].role == USER:
        texts = [others[0].text]
    else:
        texts = [f"{_speaker(turn)}: {render_turn(turn)}" for turn in others]
    heads = [turn.text for turn in systems]
    return "\n".join([*heads, *texts, *([f"Tools: {tools}"] if tools else [])])


def _speaker(turn: Turn) -> str:
    is_call = turn.tool_calls and not turn.text and not turn.reasoning
    return "Function call" if is_call else _SHOWN_AS[turn.role]


def render_turn(turn: Turn) -> str:
    """Return a turn as one text: its reasoning in think tags, its text, a line for each call."""
    if not turn.reasoning and not turn.tool_calls:
        return turn.text
    parts = [f"<think>\n{turn.reasoning}\n</think>\n"] if turn.reasoning else []
    parts += [turn.text] if turn.text else []
    calls = (f'{{"name": {_to_json(c.name)}, "arguments": {c.arguments}}}' for c in turn.tool_calls)
    return "\n".join([*parts, *calls])


# Turns.


def _parse_turns(value: object, key: str, found: _Found) -> list[Turn]:
    """Return turns written as {from, value} or {role, content}, as pairs, or as texts in turn."""
    listed = _as_list(value)
    if listed is None:
        raise _UnfitError("wrong_type", f"'{key}' is a {_kind(value)}, not a list of turns")
    if listed and key != TURNS_KEYS[0] and _are_texts(listed):
        roles = (USER, ASSISTANT)
        return [Turn(roles[at % 2], cast(str, one)) for at, one in enumerate(listed)]
    turns: list[Turn] = []
    was_call = False
    for number, item in enumerate(listed, start=1):
        if plain := _plain_turn(item):
            turns.append(plain)
            was_call = False
            continue
        if isinstance(item, list) and len(pair := cast("list[object]", item)) == 2:
            item = dict(zip(("user", "assistant"), pair, strict=True))
        if not isinstance(item, dict):
            raise _UnfitError("wrong_type", f"turn {number} is a {_kind(item)}, not an object")
        fields = cast("Record", item)
        name = fields.get("role") or fields.get("from")
        if name is None and (pair_of := _parse_pair(fields, key, found)):
            turns += pair_of
            continue
        role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            found_role = "no role" if name is None else f"the unknown role {name!r}"
            known = "known are system, user, assistant, tool and other formats' names for them"
            raise _UnfitError("wrong_type", f"turn {number} has {found_role} ({known})")
        turn = _parse_turn(fields, role, number, key, found)
        if role == _CALL and was_call and turn.tool_calls and not turns[-1].text:
            turns[-1] = replace(turns[-1], tool_calls=turns[-1].tool_calls + turn.tool_calls)
        else:
            turns.append(turn)
        was_call = role == _CALL
    return turns


def _plain_turn(item: object) -> Turn | None:
    """Return the usual turn, of a role and a text alone; None for others, which take longer."""
    if not isinstance(item, dict) or len(item) != 2:
        return None
    name, text = (
        (item["role"], item.get("content"))
        if "role" in item
        else (item.get("from"), item.get("value"))
    )
    if not isinstance(text, str) or not isinstance(name, str):
        return None
    role = _ROLES.get(name)
    return None if role is None or role is _CALL else Turn(role, text)


def _parse_pair(fields: Record, key: str, found: _Found) -> list[Turn]:
    """Return the turns of an object that holds both sides, e.g. {system, input, output}."""
    turns: list[Turn] = []
    for role, names in _PAIR_KEYS.items():
        name = next((name for name in names if fields.get(name) is not None), None)
        if name is not None:
            text = _text(f"{key}[].{name}", fields[name])
            if text or role != SYSTEM:
                turns.append(Turn(role, text))
            fields = {other: value for other, value in fields.items() if other != name}
    reasoning = _reasoning_of(fields)
    if reasoning and turns and turns[-1].role == ASSISTANT:
        turns[-1] = replace(turns[-1], reasoning=reasoning)
    if turns:
        found.unread += _unread_of(fields, key, {*REASONING_KEYS})
    return turns


def _parse_turn(fields: Record, role: str, number: int, key: str, found: _Found) -> Turn:
    if not fields.keys() <= _TURN_KEYS:
        found.unread += _unread_of(fields, key, _TURN_KEYS)
    filled = [name for name in _CONTENT_KEYS if fields.get(name) is not None]
    content = fields[filled[0]] if filled else None
    found.unread += [f"{key}[].{name}" for name in filled[1:] if fields[name] != content]
    place = f"{key}[].{filled[0]}" if filled else key
    text, thought = _text_of(content, role, number, place, found)
    reasoning = "\n".join(filter(None, (_reasoning_of(fields), thought)))
    calls: tuple[ToolCall, ...] = ()
    for name in ("tool_calls", "function_call"):
        parsed = _parse_calls(fields.get(name))
        if parsed is None:
            text = "\n".join(filter(None, (text, _to_json(fields[name]))))
        calls += tuple(call for call in parsed or () if call not in calls)
    if role == _CALL:
        role = ASSISTANT
        if not calls and (parsed := _parse_calls(text)):
            calls, text = parsed, ""
    call_id, name = fields.get("tool_call_id"), fields.get("name")
    return Turn(
        role,
        text,
        reasoning,
        calls,
        call_id if isinstance(call_id, str) else None,
        name if isinstance(name, str) else None,
    )


def _parse_calls(value: object) -> tuple[ToolCall, ...] | None:
    """Return the calls of a turn; None if they are written in a way that is not known."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not value:
        return ()
    listed = cast("list[object]", value if isinstance(value, list) else [value])
    calls = [_parse_call(one) for one in listed]
    return None if None in calls else cast("tuple[ToolCall, ...]", tuple(calls))


def _parse_call(value: object) -> ToolCall | None:
    """Return a call written as {name, arguments}, or as OpenAI does inside "function"."""
    if not isinstance(value, dict):
        return None
    outer = cast("Record", value)
    inner = outer.get("function") or outer
    if not isinstance(inner, dict):
        return None
    call = cast("Record", inner)
    name, arguments, identity = call.get("name"), call.get("arguments"), outer.get("id")
    is_known = outer.keys() <= _CALL_KEYS and call.keys() <= _CALL_KEYS
    if not is_known or not isinstance(name, str) or not isinstance(identity, str | None):
        return None
    text = arguments if isinstance(arguments, str) else _to_json(arguments or {})
    return ToolCall(name, text, identity)


def _text_of(content: object, role: str, number: int, place: str, found: _Found) -> tuple[str, str]:
    """Return text and reasoning of a turn's content: a text, or a list of parts."""
    text = _scalar(content)
    if text is not None:
        return text, ""
    is_list = isinstance(content, list)
    is_parts = is_list and all(isinstance(part, dict) and "text" in part for part in content)
    if role in (TOOL, _CALL) and not is_parts:
        return _to_json(content), ""
    if not is_list:
        raise _UnfitError("wrong_type", f"turn {number} is a {_kind(content)}, not text")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in cast("list[object]", content):
        if isinstance(part, str):
            texts.append(part)
            continue
        fields = cast("Record", part) if isinstance(part, dict) else {}
        kind = fields.get("type") or "text"
        said = fields.get("text")
        thought = _reasoning_of(fields) or said
        if kind in ("thinking", "reasoning") and isinstance(thought, str):
            thoughts.append(thought)
        elif kind in ("text", "input_text", "output_text") and isinstance(said, str):
            texts.append(said)
        elif kind in _IMAGE_TYPES:
            raise _UnfitError("wrong_type", f"turn {number} has an image; images are not supported")
        else:
            message = f"turn {number} has a part of type '{kind}' that is not text"
            raise _UnfitError("wrong_type", message)
        found.unread += _unread_of(fields, place, {"type", "text", *REASONING_KEYS})
    return "".join(texts), "\n".join(thoughts)


def _unread_of(fields: Record, key: str, known: Iterable[str]) -> list[str]:
    """Return the names of the other fields of a turn that hold text."""
    names = [name for name in fields if name not in known]
    return [f"{key}[].{name}" for name in names if next(_texts_in(fields[name]), "")]


def _with_system(before: list[Turn], turns: list[Turn]) -> list[Turn]:
    """Put earlier turns first; a system text that both have stands once."""
    if not before:
        return turns
    systems, earlier = split_system(before)
    known = {turn.text for turn in turns if turn.role == SYSTEM}
    first = [turn for turn in systems if turn.text not in known]
    own = list(takewhile(lambda turn: turn.role == SYSTEM, turns))
    return [*first, *own, *earlier, *turns[len(own) :]]


def _starts_with(turns: list[Turn], head: list[Turn]) -> bool:
    pairs = zip(turns, head, strict=False)
    return len(turns) >= len(head) and all((a.role, a.text) == (b.role, b.text) for a, b in pairs)


# Values.


def _as_list(value: object) -> list[object] | None:
    """Return a list that is written as such, as an object of lists, or as text of either."""
    if isinstance(value, str):
        value = _parse_text(value)
    if isinstance(value, dict):
        columns = cast("dict[str, Any]", value)
        is_list = columns and all(isinstance(column, list) for column in columns.values())
        if not is_list or len({len(column) for column in columns.values()}) > 1:
            return None
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]
    return cast("list[object]", value) if isinstance(value, list) else None


def _parse_text(text: str) -> object:
    """Return the list of objects that a text is, in JSON or as Python writes it; else None."""
    if not text.lstrip().startswith(_LISTS):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value: object = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        is_turns = isinstance(value, dict) or (
            isinstance(value, list)
            and all(isinstance(one, dict | list) for one in cast("list[object]", value))
        )
        return value if is_turns else None
    return None


def _reach(record: Record, path: str) -> object:
    """Return the value of a column, or at a path such as "choices[0].message.content"."""
    if path in record or ("." not in path and "[" not in path):
        return record.get(path)
    value: Any = record
    for name, place in _PATH_STEP.findall(path):
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        else:
            is_there = isinstance(value, list) and -len(value) <= int(place) < len(value)
            value = value[int(place)] if is_there else None
    return cast(object, value)


def _turns_key(record: Record, keys: Sequence[str]) -> str | None:
    """Return the first of the keys that holds turns; text is taken for them by its beginning."""
    for key in keys:
        value = record.get(key)
        if key == "data":
            is_listed = _are_texts(value) and len(cast("list[str]", value)) > 1
        elif isinstance(value, str):
            is_listed = value.lstrip().startswith(_LISTS)
        else:
            is_listed = isinstance(value, list) or _as_list(value) is not None
        if is_listed:
            return key
    return None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _scalar(value: object) -> str | None:
    """Return the text of a string, a number or null; None for anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _reasoning_of(fields: Record) -> str:
    values = (fields.get(key) for key in REASONING_KEYS)
    return "\n".join(dict.fromkeys(value for value in values if value and isinstance(value, str)))


def _first_key(record: Record, keys: Sequence[str]) -> str:
    """Return the first of the keys that the record has, else the first of all."""
    for key in keys:
        if record.get(key) is not None:
            return key
    return keys[0]


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _text(key: str, value: object) -> str:
    """Return the text of a field, as ``_scalar`` has it."""
    text = _scalar(value)
    if text is None:
        raise _UnfitError("wrong_type", f"'{key}' is a {_kind(value)}, not text")
    return text
