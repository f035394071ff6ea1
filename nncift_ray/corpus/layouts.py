"""Layouts: where prompt and response stand in a record, and how a file's layout is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

import pyarrow as pa

from nncift_ray.corpus.examples import make_example_id
from nncift_ray.corpus.formats import read_raw_records
from nncift_ray.corpus.sources import (
    BadRow,
    ErrorRow,
    ExampleRow,
    RawRecord,
    ReadLimits,
    SourceFile,
    make_excerpt,
)
from nncift_ray.errors import DataError
from nncift_ray.runtime import schemas

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


# Layouts: where prompt and response stand in a record, and how a file's layout is found.

Record = Mapping[str, object]
COLUMNS = "columns"
PROMPT_KEYS, RESPONSE_KEYS = ("prompt",), ("completion", "response")
INSTRUCTION_KEYS, INPUT_KEYS, OUTPUT_KEYS = (
    ("instruction",),
    ("input", "context"),
    ("output", "response"),
)
MESSAGES_KEYS, CONVERSATION_KEYS = ("messages",), ("conversations", "conversation")
COLUMN_ROLES = ("prompt", "response", "input", "system")
_SHOWN_COLUMNS = 12


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
        fits: Whether a record has all the fields the layout needs.
        touches: Whether it has any of them, so that saying what is missing makes sense.
        parse: Takes prompt and response out of a record, or says what is wrong.
    """

    name: str
    fits: Callable[[Record], bool]
    touches: Callable[[Record], bool]
    parse: Callable[[Record], tuple[str, str] | BadRow]
    columns: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_explicit(self) -> bool:
        """Whether the user named the columns, so that nothing else is tried."""
        return self.name == COLUMNS


def parse_alpaca(record: Record) -> tuple[str, str] | BadRow:
    """Read instruction, optional input and output; x = instruction + " " + input (DELIFT)."""
    return _parse_fields(
        record,
        _first_key(record, INSTRUCTION_KEYS),
        _first_key(record, OUTPUT_KEYS),
        extra_key=_first_key(record, INPUT_KEYS),
    )


def split_alpaca(record: Record) -> tuple[str, str, str]:
    """Return instruction, input and output of a record that ``parse_alpaca`` accepts."""
    keys = (INSTRUCTION_KEYS, INPUT_KEYS, OUTPUT_KEYS)
    instruction, extra, output = (record.get(_first_key(record, names)) for names in keys)
    return str(instruction or ""), str(extra or ""), str(output or "")


def conversation_turns(record: Record) -> list[Turn] | BadRow:
    """Return the turns of a record of the layouts messages and sharegpt, response included."""
    key = _first_key(record, (*MESSAGES_KEYS, *CONVERSATION_KEYS))
    return parse_turns(record.get(key), record.get("system"))


def parse_conversation(record: Record, keys: Iterable[str]) -> tuple[str, str] | BadRow:
    """Read a conversation: earlier turns are the prompt, the last assistant turn the response."""
    turns = parse_turns(record.get(_first_key(record, keys)), record.get("system"))
    if isinstance(turns, BadRow):
        return turns
    return render_prompt(turns[:-1]), turns[-1].text


def columns_layout(columns: Mapping[str, str]) -> Layout:
    """Build the layout of an explicit mapping, e.g. {"prompt": "q", "response": "a"}.

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
    prompt, response = columns["prompt"], columns["response"]

    def parse(record: Record) -> tuple[str, str] | BadRow:
        return _parse_fields(
            record,
            prompt,
            response,
            extra_key=columns.get("input", ""),
            system_key=columns.get("system", ""),
        )

    return Layout(
        COLUMNS,
        fits=lambda record: prompt in record and response in record,
        touches=lambda record: prompt in record or response in record,
        parse=parse,
        columns=dict(columns),
    )


def _parse_pair(record: Record, prompts: Iterable[str], responses: Iterable[str]) -> ParsedPair:
    return _parse_fields(record, _first_key(record, prompts), _first_key(record, responses))


def _parse_fields(
    record: Record, prompt_key: str, response_key: str, *, extra_key: str = "", system_key: str = ""
) -> tuple[str, str] | BadRow:
    texts: dict[str, str] = {}
    for key in (prompt_key, response_key, extra_key, system_key):
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            return BadRow("wrong_type", f"'{key}' is a {type(value).__name__}, not text")
        texts[key] = value or ""
    prompt = texts[prompt_key]
    if texts[extra_key].strip():
        prompt = f"{prompt} {texts[extra_key]}"
    if texts[system_key].strip():
        prompt = f"{texts[system_key]}\n{prompt}"
    return prompt, texts[response_key]


ParsedPair = tuple[str, str] | BadRow


def _first_key(record: Record, keys: Iterable[str]) -> str:
    """Return the first of the keys that the record has, else the first of all."""
    names = tuple(keys)
    return next((key for key in names if record.get(key) is not None), names[0])


def _has(record: Record, keys: Iterable[str]) -> bool:
    return any(key in record for key in keys)


def _pair_layout(name: str, prompts: tuple[str, ...], responses: tuple[str, ...]) -> Layout:
    return Layout(
        name,
        fits=lambda record: _has(record, prompts) and _has(record, responses),
        touches=lambda record: _has(record, (*prompts, *responses)),
        parse=lambda record: _parse_pair(record, prompts, responses),
    )


def _conversation_layout(name: str, keys: tuple[str, ...]) -> Layout:
    return Layout(
        name,
        fits=lambda record: isinstance(record.get(_first_key(record, keys)), list),
        touches=lambda record: _has(record, keys),
        parse=lambda record: parse_conversation(record, keys),
    )


#: In the order in which a record that fits several is read.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _conversation_layout("messages", MESSAGES_KEYS),
        _conversation_layout("sharegpt", CONVERSATION_KEYS),
        Layout(
            "alpaca",
            fits=lambda record: _has(record, INSTRUCTION_KEYS) and _has(record, OUTPUT_KEYS),
            touches=lambda record: _has(record, (*INSTRUCTION_KEYS, *OUTPUT_KEYS)),
            parse=parse_alpaca,
        ),
        _pair_layout("prompt_completion", PROMPT_KEYS, RESPONSE_KEYS),
        _pair_layout("question_answer", ("question",), ("answer",)),
    )
}


def resolve_layout(override: str | None, columns: Mapping[str, str] | None) -> Layout | None:
    """Return the layout a recipe names, or None where it is to be found.

    Raises:
        DataError: If the name or the mapping is not known.
    """
    if columns:
        return columns_layout(columns)
    if override in (None, "auto"):
        return None
    if override not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise DataError(f"data.layout '{override}' is not known: use {known}, or data.columns")
    return LAYOUTS[override]


def detect_layout(sample: Iterable[Record], override: Layout | None = None) -> Layout | None:
    """Return the layout that most records of a sample fit; None if the sample is empty.

    Raises:
        DataError: If no record fits any layout; names the columns found.
    """
    if override is not None:
        return override
    votes: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for record in sample:
        columns.update(record.keys())
        name = next((name for name, layout in LAYOUTS.items() if layout.fits(record)), None)
        if name is not None:
            votes[name] += 1
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
    """Take prompt and response out of a record.

    A record that does not fit the file's layout, but another known one, is read by that one; with
    explicitly mapped columns nothing else is tried.

    Args:
        record: The parsed record.
        layout: The layout of its file.
        max_chars: A longer prompt or response makes the row an error.
    """
    tried = [layout] if layout is not None and (layout.is_explicit or layout.fits(record)) else []
    if layout is None or not layout.is_explicit:
        others = (one for one in LAYOUTS.values() if one is not layout and one.fits(record))
        tried += list(others)
    if not tried and layout is not None and layout.touches(record):
        tried = [layout]
    first_problem: BadRow | None = None
    for one in tried:
        example = _check(one.parse(record), one.name, max_chars)
        if isinstance(example, ParsedExample):
            return example
        first_problem = first_problem or example
    return first_problem or _unknown(record)


def _check(parsed: ParsedPair, layout: str, max_chars: int) -> ParsedExample | BadRow:
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


def _unknown(record: Record) -> BadRow:
    names = ", ".join(f"'{name}'" for name in list(record)[:_SHOWN_COLUMNS]) or "none"
    return BadRow("unknown_layout", f"no known layout has the columns {names}")


# From a corpus file to rows: every record becomes an example or an error, none is lost.

INGEST_STAGE = "ingest"
DEFAULT_BATCH_ROWS = 4_096
#: A batch is also full at this many characters, so that long rows do not add up.
MAX_BATCH_CHARS = 16 << 20


def find_layout(
    source: SourceFile,
    *,
    layout_override: str | None = None,
    columns: Mapping[str, str] | None = None,
    limits: ReadLimits | None = None,
) -> Layout | None:
    """Return the layout of a file, decided on its first good records; None if it has none.

    Raises:
        DataError: If the records fit no known layout.
    """
    limits = limits or ReadLimits()
    layout = resolve_layout(layout_override, columns)
    if layout is not None:
        return layout
    good = (cast(Record, raw.value) for raw in read_raw_records(source, limits) if not raw.error)
    try:
        return detect_layout(islice(good, limits.sample_rows))
    except DataError as error:
        raise DataError(f"{source.uri}: {error}") from error


def read_examples(
    source: SourceFile,
    role: str,
    *,
    layout_override: str | None = None,
    columns: Mapping[str, str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[ExampleRow | ErrorRow]:
    """Yield every record of a file as an example or as an error, in the order of the file.

    The file's first records are read twice: once to decide the layout, once to be used.

    Args:
        source: The file.
        role: ``schemas.CANDIDATE`` or ``schemas.TARGET``.
        layout_override: A name of ``layouts.LAYOUTS``; None or "auto" to find it.
        columns: An explicit mapping, see ``layouts.columns_layout``.
        limits: Bounds on a record.

    Raises:
        DataError: If the file cannot be opened, or its records fit no known layout.
    """
    limits = limits or ReadLimits()
    layout = find_layout(source, layout_override=layout_override, columns=columns, limits=limits)
    for raw in read_raw_records(source, limits):
        yield _to_row(raw, source, role, layout, limits)


def is_error(row: ExampleRow | ErrorRow) -> bool:
    """Whether a row of ``read_examples`` is an error."""
    return "reason" in row


def batch_tables(
    rows: Iterable[ExampleRow | ErrorRow], batch_size: int = DEFAULT_BATCH_ROWS
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather rows into (records, errors) tables of ``schemas.RECORDS`` and ``schemas.ERRORS``.

    Together the two hold at most ``batch_size`` rows and about ``MAX_BATCH_CHARS`` characters.
    """
    good: list[ExampleRow] = []
    bad: list[ErrorRow] = []
    num_chars = 0
    for row in rows:
        if "reason" in row:
            bad.append(row)
        else:
            good.append(row)
            num_chars += len(row["record"]) + len(row["prompt"]) + len(row["response"])
        if len(good) + len(bad) >= batch_size or num_chars >= MAX_BATCH_CHARS:
            yield _to_tables(good, bad)
            good, bad, num_chars = [], [], 0
    if good or bad:
        yield _to_tables(good, bad)


def count_layouts(tables: Iterable[pa.Table]) -> Counter[str]:
    """Count the rows of each layout in tables of ``schemas.RECORDS``."""
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(cast("list[str]", table.column("layout").to_pylist()))
    return counts


def _to_tables(good: list[ExampleRow], bad: list[ErrorRow]) -> tuple[pa.Table, pa.Table]:
    return (
        pa.Table.from_pylist(cast("list[dict[str, object]]", good), schema=schemas.RECORDS),
        pa.Table.from_pylist(cast("list[dict[str, object]]", bad), schema=schemas.ERRORS),
    )


def _to_row(
    raw: RawRecord, source: SourceFile, role: str, layout: Layout | None, limits: ReadLimits
) -> ExampleRow | ErrorRow:
    if raw.error is not None:
        return _error_row(raw.error, source, raw.line, raw.excerpt)
    example = to_example(cast(Record, raw.value), layout, limits.max_chars)
    if isinstance(example, BadRow):
        return _error_row(example, source, raw.line, make_excerpt(raw.record))
    return {
        "role": role,
        "example_id": make_example_id(example.prompt, example.response),
        "prompt": example.prompt,
        "response": example.response,
        "record": raw.record,
        "source": source.uri,
        "line": raw.line,
        "layout": example.layout,
    }


def _error_row(problem: BadRow, source: SourceFile, line: int, excerpt: str) -> ErrorRow:
    return {
        "stage": INGEST_STAGE,
        "source": source.uri,
        "line": line,
        "example_id": None,
        "reason": problem.reason,
        "message": problem.message,
        "excerpt": excerpt,
    }
