"""Instruction examples: their identity, their texts, and the group or subtask they belong to."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import DataError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import StageOutput

ID_HEX_LENGTH = 32
ANSWER_SEPARATOR = "\n##Answer: "
NO_GROUP = "(none)"  # the group of a record that lacks the field
MAX_SUBTASKS = 1000  # each costs a sum per candidate and shard; an id as field would have all rows
FIELDS_NAMED = 10  # fields of a record named in a message

ExampleKey = tuple[str, int]  # role and row index
#: The columns of ``schemas.EXAMPLES`` that make an ``Example``.
EXAMPLE_COLUMNS = ("example_id", "prompt", "response", "conversation")


_ENCODER = json.JSONEncoder(ensure_ascii=False)

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
_PAIR_ROLES = ([USER, ASSISTANT], [SYSTEM, USER, ASSISTANT])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its name, its arguments as JSON text, and the id that its result names."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is SYSTEM, USER, ASSISTANT or TOOL (a tool's result)."""

    role: str
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """An example without loss.

    Attributes:
        turns: They begin with the system turn, if there is one, and end with the response.
        tools: The list of tools that may be called, as JSON text.
        rejected: What a preference pair holds against the response.
    """

    turns: tuple[Turn, ...]
    tools: str = ""
    rejected: tuple[Turn, ...] = ()

    def to_json(self) -> str:
        """Return the JSON text that ``from_json`` reads; empty fields are left out."""
        parts = [f'{{"turns": [{", ".join(map(_turn_json, self.turns))}]']
        if self.tools:
            parts.append(f'"tools": {_ENCODER.encode(self.tools)}')
        if self.rejected:
            parts.append(f'"rejected": [{", ".join(map(_turn_json, self.rejected))}]')
        return ", ".join(parts) + "}"

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Return the conversation of which ``to_json`` returned the text."""
        value: dict[str, Any] = json.loads(text)
        turns, rejected = (
            tuple(
                Turn(**{**turn, "tool_calls": tuple(ToolCall(**c) for c in turn["tool_calls"])})
                if "tool_calls" in turn
                else Turn(**turn)
                for turn in value.get(key, ())
            )
            for key in ("turns", "rejected")
        )
        return cls(turns, value.get("tools", ""), rejected)

    @property
    def is_pair(self) -> bool:
        """Whether system, prompt and response are all there is, so that two texts say it."""
        if self.tools or len(self.turns) > 3:  # noqa: PLR2004
            return False
        roles = [turn.role for turn in self.turns]
        return roles in _PAIR_ROLES and not any(map(_is_rich, self.turns))

    def identity(self) -> list[str]:
        """Return what conversations of one content share: all but the calls' ids and rejected."""
        parts = [normalise_text(self.tools)]
        for turn in self.turns:
            parts += (turn.role, normalise_text(turn.text))
            if _is_rich(turn):
                parts += ("+", turn.name or "", normalise_text(turn.reasoning))
                parts.append(str(len(turn.tool_calls)))
                for call in turn.tool_calls:
                    parts += (call.name, normalise_text(call.arguments))
        return parts


def _is_rich(turn: Turn) -> bool:
    return bool(turn.reasoning or turn.tool_calls or turn.name)


def _turn_json(turn: Turn) -> str:
    """Return a turn as JSON without its empty fields."""
    if turn.text and not _is_rich(turn) and not turn.tool_call_id:
        return f'{{"role": "{turn.role}", "text": {_ENCODER.encode(turn.text)}}}'
    value: dict[str, Any] = {
        "role": turn.role,
        "text": turn.text,
        "reasoning": turn.reasoning,
        "tool_calls": [
            {"name": call.name, "arguments": call.arguments} | ({"id": call.id} if call.id else {})
            for call in turn.tool_calls
        ],
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
    }
    return _ENCODER.encode({name: field for name, field in value.items() if field})


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction example: what is asked and the answer it teaches.

    ``prompt`` and ``response`` are views of ``conversation``, the JSON text of a ``Conversation``;
    None stands for one turn of the user and one of the assistant.
    """

    example_id: str
    prompt: str
    response: str
    conversation: str | None = None

    def full(self) -> Conversation:
        """Return the example as a conversation."""
        if self.conversation is not None:
            return Conversation.from_json(self.conversation)
        return Conversation((Turn(USER, self.prompt), Turn(ASSISTANT, self.response)))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns, system first and the response last."""
        return self.full().turns


def normalise_text(text: str) -> str:
    """Return the text in NFC with one kind of newline and no outer white space.

    Inner white space stays: it carries meaning in code and tables.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def make_example_id(prompt: str, response: str, conversation: Conversation | None = None) -> str:
    """Return the id of an example: 128 bits of the SHA-256 of its normalised content, in hex.

    Two records with the same normalised prompt and response, and the same turns, tools, reasoning
    and calls where they are more than that, have the same id, on any machine.
    """
    if conversation is None or conversation.is_pair:
        parts = (normalise_text(prompt), normalise_text(response))
    else:
        parts = conversation.identity()
    data = [part.encode("utf-8", "surrogatepass") for part in parts]
    hashed = b"".join([piece for part in data for piece in (len(part).to_bytes(8, "big"), part)])
    return hashlib.sha256(hashed).hexdigest()[:ID_HEX_LENGTH]


def embedding_text(prompt: str, response: str) -> str:
    """Return an example as the paper embeds it (NN-CIFT, arXiv 2502.09969, section 3)."""
    return f"{prompt}{ANSWER_SEPARATOR}{response}"


def load_examples(examples: StageOutput, keys: Iterable[ExampleKey]) -> dict[ExampleKey, Example]:
    """Return the texts of some of the deduplicated examples."""
    rows: defaultdict[str, set[int]] = defaultdict(set)
    for role, row_index in keys:
        rows[role].add(row_index)
    found: dict[ExampleKey, Example] = {}
    for role, wanted in rows.items():
        name = schemas.TABLE_OF_ROLE[role]
        table = examples.take_rows(name, np.array(sorted(wanted)), EXAMPLE_COLUMNS)
        for row_index, text in zip(sorted(wanted), table.to_pylist(), strict=True):
            found[role, row_index] = Example(**text)
    return found


def iter_groups(examples: StageOutput, field: str | None) -> Iterator[str]:
    """Yield the group of every candidate in row order.

    Args:
        examples: Of the deduplicate step.
        field: Field of the original record; None: the name of the source file.
    """
    for batch in examples.iter_batches("candidates", ["source" if field is None else "record"]):
        for value in cast("list[str]", batch.column(0).to_pylist()):
            if field is None:
                yield value.rsplit("/", 1)[-1]
            else:
                found = fields_of(value).get(field)
                yield NO_GROUP if found is None else str(found)


@dataclass(frozen=True, slots=True, eq=False)
class Subtasks:
    """Names of the subtasks, sorted, and the subtask of each target [I]."""

    names: tuple[str | None, ...]  # (None,) where all targets are one subtask
    group_I: npt.NDArray[np.int64]

    @classmethod
    def one(cls, num_rows: int) -> Subtasks:
        """Return one subtask without a name, for all rows."""
        return cls((None,), np.zeros(num_rows, np.int64))


def read_subtasks(examples: StageOutput, key: str) -> Subtasks:
    """Return the subtask of every target: the value of the field ``key`` of its record.

    Raises:
        DataError: If a target lacks the field, or it has more than ``MAX_SUBTASKS`` values.
    """
    values = list(_iter_subtasks(examples, key))
    names = sorted(set(values))
    if len(names) > MAX_SUBTASKS:
        raise DataError(
            f"data.subtask_by: the field '{key}' has {len(names):,} values in {len(values):,} "
            f"targets, more than {MAX_SUBTASKS:,}: name a field that says which part of the target "
            "a row belongs to"
        )
    place = {name: at for at, name in enumerate(names)}
    return Subtasks(tuple(names), np.array([place[value] for value in values], np.int64))


def _iter_subtasks(examples: StageOutput, key: str) -> Iterator[str]:
    row = 0
    for batch in examples.iter_batches("targets", ["record", "source", "line"]):
        for target in batch.to_pylist():
            fields = fields_of(target["record"])
            value = fields.get(key)
            if value is None:
                known = ", ".join(list(fields)[:FIELDS_NAMED]) or "none"
                raise DataError(
                    f"data.subtask_by: target {row} ({target['source']}:{target['line']}) has no "
                    f"field '{key}'; its fields are {known}. Name a field that every target has, "
                    "or leave data.subtask_by out."
                )
            yield value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            row += 1


def fields_of(record: str) -> dict[str, Any]:
    """Return the fields of a record as it came; none where it is no object."""
    parsed = json.loads(record)
    return parsed if isinstance(parsed, dict) else {}
