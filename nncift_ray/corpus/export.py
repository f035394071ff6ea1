"""Export: the ranked subset as files that other tools read.

``FORMS`` is the table of the JSON forms. A record that came in a form's own layout leaves as it
came, byte for byte; others are written from the conversation. What a form lacks is counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nncift_ray.corpus.examples import (
    ASSISTANT,
    EXAMPLE_COLUMNS,
    TOOL,
    USER,
    Conversation,
    Example,
    Turn,
    split_system,
)
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false


SUBSET_JSONL, SUBSET_PARQUET = "subset.jsonl", "subset.parquet"
IDS_TXT, DATASET_INFO_JSON, AXOLOTL_YAML = "ids.txt", "dataset_info.json", "axolotl.yaml"
#: A folder that ``datasets.load_dataset`` reads; the run writes its card beside the table.
DATASET_FOLDER = "dataset"
DATASET_PARQUET = f"{DATASET_FOLDER}/data/train.parquet"
ALPACA, MESSAGES, SHAREGPT, PREFERENCE = "alpaca", "messages", "sharegpt", "preference"
DATASET, IDS = "dataset", "ids"
EXPORT_FORMATS = (ALPACA, MESSAGES, SHAREGPT, PREFERENCE, DATASET, IDS)
ADDED_KEY = "_nncift"
BATCH_ROWS = 20_000
_ADDED = ("rank", "gain", "example_id", "source", "line")

SUBSET = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("gain", pa.float64(), nullable=False),
        *(
            schemas.EXAMPLES.field(name)
            for name in ("example_id", "prompt", "response", "record", "source", "line")
        ),
    ]
)
#: What the dataset folder holds of ours, in one column so that trainers find only their own names.
OWN_COLUMN = "nncift"
_OWN = pa.struct([SUBSET.field(name) for name in (*_ADDED, "record")])
_PLAIN_TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])

Record = dict[str, Any]
Lost = Counter[str]  # what a form has no place for -> rows


@dataclass(frozen=True, slots=True)
class Pick:
    """A selected example: its row, the record that it came as, and all of its turns."""

    row: Mapping[str, Any]
    record: Record
    full: Conversation

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Pick:
        """Read a row of ``schemas.EXAMPLES`` with rank and gain."""
        example = Example(**{name: row[name] for name in EXAMPLE_COLUMNS})
        return cls(row, json.loads(row["record"]), example.full())

    @property
    def text(self) -> str:
        """The record's own JSON text, on one line."""
        return self.row["record"].replace("\r", " ").replace("\n", " ").strip()


# The conversations as each form writes them.

_PAIR_LOST = "the rejected response has no place (preference.json and dataset/ have it)"
_ALPACA_LOST = "turns that are no plain question and answer are written as text of 'instruction'"
_IDS_LOST = "ids of tool calls and names of speakers have no place"
_JOINED = "turns of one side in a row are joined to one"
_SYSTEMS_JOINED = "system turns are joined to one at the beginning"
_REJECTED_LEFT_OUT = "left out: the rejected response has several turns (dataset/ has it)"
#: How LLaMA-Factory's own reader of OpenAI messages joins results of parallel calls.
_BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"
_SIDES = (("human", "observation"), ("gpt", "function_call"))


def _dumps(value: object, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)


def _loads(text: str) -> Any:
    """Return what a JSON text says; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _thought(turn: Turn) -> str:
    """Return a turn's reasoning as models with thoughts write it before the answer."""
    return f"<think>\n{turn.reasoning}\n</think>\n\n" if turn.reasoning else ""


def openai_messages(turns: Iterable[Turn], *, parsed: bool = False) -> list[Record]:
    """Return turns as OpenAI messages; calls and results without an id get one.

    ``parsed``: arguments as objects, which chat templates take, in place of JSON text.
    """
    messages, open_ids, num_calls = list[Record](), list[str](), 0
    for turn in turns:
        message: Record = {"role": turn.role, "content": turn.text}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        for call in turn.tool_calls:
            num_calls += 1
            open_ids.append(call.id or f"call{num_calls:05d}")
            arguments = _loads(call.arguments) if parsed else call.arguments
            function = {"name": call.name, "arguments": arguments}
            made = {"id": open_ids[-1], "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(made)
        if turn.role == TOOL and (turn.tool_call_id or open_ids):
            message["tool_call_id"] = turn.tool_call_id or open_ids[0]
            open_ids = [one for one in open_ids if one != message["tool_call_id"]]
        messages.append(message | ({"name": turn.name} if turn.name else {}))
    return messages


def messages_record(pick: Pick, _lost: Lost) -> Record:
    """Return OpenAI messages, with the tools where there are any."""
    record: Record = {"messages": openai_messages(pick.full.turns)}
    return record | ({"tools": _loads(pick.full.tools)} if pick.full.tools else {})


def alpaca_record(pick: Pick, lost: Lost) -> Record:
    """Return instruction, input and output, with system, history and tools where there are any."""
    full = pick.full
    tools = {"tools": full.tools} if full.tools else {}
    systems, others = split_system(full.turns)
    roles = [turn.role for turn in others]
    is_plain = roles == [USER, ASSISTANT] * (len(roles) // 2) and len(systems) < 2  # noqa: PLR2004
    if not is_plain or any(turn.tool_calls for turn in full.turns):
        lost[_ALPACA_LOST] += 1
        prompt, response = pick.row["prompt"], pick.row["response"]
        return {"instruction": prompt, "input": "", "output": response} | tools
    texts = [_thought(turn) + turn.text for turn in others]
    instruction, extra, head = texts[-2], "", pick.record.get("instruction")
    if isinstance(head, str) and head.strip() and instruction.startswith(head):
        # As its record told them apart.
        instruction, extra = head, instruction[len(head) :].lstrip()
    record: Record = {"instruction": instruction, "input": extra, "output": texts[-1]}
    if systems:
        record["system"] = systems[0].text
    if len(texts) > 2:  # noqa: PLR2004
        record["history"] = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    return record | tools


def preference_record(pick: Pick, lost: Lost) -> Record | None:
    """Return a preference pair as LLaMA-Factory reads it; None where the pick is none."""
    if not pick.full.rejected:
        return None
    rejected = _alternate(pick.full.rejected, Counter())
    if [turn.role for turn in rejected] != [USER, ASSISTANT]:  # with an empty question before it
        lost[_REJECTED_LEFT_OUT] += 1
        return None
    record = sharegpt_record(pick, lost)
    chosen = record["conversations"].pop()
    return record | {"chosen": chosen, "rejected": _sharegpt_turn(rejected[-1])}


def sharegpt_record(pick: Pick, lost: Lost) -> Record:
    """Return ShareGPT turns in the order that LLaMA-Factory asks for: the two sides alternate."""
    full = pick.full
    systems, others = split_system(full.turns)
    if len(systems) > 1:
        lost[_SYSTEMS_JOINED] += 1
    called = [call for turn in others for call in turn.tool_calls]
    if any(call.id for call in called) or any(t.name or t.tool_call_id for t in others):
        lost[_IDS_LOST] += 1
    turns = [_sharegpt_turn(turn) for turn in _alternate(others, lost)]
    if systems:
        text = "\n\n".join(turn.text for turn in systems)
        turns.insert(0, {"from": "system", "value": text})
    return {"conversations": turns} | ({"tools": full.tools} if full.tools else {})


def _sharegpt_turn(turn: Turn) -> Record:
    if turn.role != ASSISTANT:
        return {"from": _SIDES[0][turn.role == TOOL], "value": turn.text}
    text = _thought(turn) + turn.text
    if not turn.tool_calls:
        return {"from": "gpt", "value": text}
    calls = [{"name": one.name, "arguments": _loads(one.arguments)} for one in turn.tool_calls]
    made = _dumps(calls[0] if len(calls) == 1 else calls)
    return {
        "from": "function_call",
        "value": f"{text}<tool_call>{made}</tool_call>" if text else made,
    }


def _alternate(turns: Iterable[Turn], lost: Lost) -> list[Turn]:
    """Return turns that alternate between users or tools and the assistant, the former first."""
    merged: list[Turn] = []
    joined = False
    for turn in turns:
        last = merged[-1] if merged else Turn(ASSISTANT)
        if not merged and turn.role == ASSISTANT:
            merged.append(Turn(USER))
        elif merged and (last.role == ASSISTANT) == (turn.role == ASSISTANT):
            results = last.role == turn.role == TOOL
            joined |= not results
            merged[-1] = replace(
                last,
                text=_join(last.text, turn.text, _BETWEEN_RESULTS if results else "\n\n"),
                reasoning=_join(last.reasoning, turn.reasoning, "\n\n"),
                tool_calls=last.tool_calls + turn.tool_calls,
            )
            continue
        merged.append(turn)
    lost[_JOINED] += joined
    return merged


def _join(first: str, second: str, between: str) -> str:
    if between == _BETWEEN_RESULTS or (first and second):
        return f"{first}{between}{second}"
    return first or second


# Whether a record can leave as it came: its form's readers find in it all that we found.


def _same_words(texts: Iterable[object], turns: Iterable[Turn]) -> bool:
    """Whether texts of a record say what turns say, white space and marks of thoughts aside."""
    found = " ".join(text if isinstance(text, str) else "" for text in texts)
    known = " ".join(f"{turn.reasoning} {turn.text}" for turn in turns)
    return re.sub("</?think>", " ", found).split() == known.split()


def _has_tools(pick: Pick, kind: type) -> bool:
    """Whether the record's tools are written as its form wants them, or there are none."""
    found = pick.record.get("tools")
    return isinstance(found, kind) if pick.full.tools else not found


def _is_alpaca(pick: Pick) -> bool:
    record, history = pick.record, pick.record.get("history") or []
    try:
        texts = [record.get("system"), *(text for asked, said in history for text in (asked, said))]
    except (TypeError, ValueError):
        return False
    texts += [record.get(key) for key in ("instruction", "input", "output")]
    is_text = all(text is None or isinstance(text, str) for text in texts)
    return is_text and _has_tools(pick, str) and _same_words(texts, pick.full.turns)


def _is_messages(pick: Pick) -> bool:
    found = pick.record.get("messages")
    if not isinstance(found, list) or not _has_tools(pick, list):
        return False
    found = cast("list[Any]", found)
    return len(found) == len(pick.full.turns) and all(map(_is_message, found, pick.full.turns))


def _is_message(message: object, turn: Turn) -> bool:
    if not isinstance(message, dict):
        return False
    made = cast("Record", message)
    content, calls = made.get("content"), made.get("tool_calls") or []
    texts = [part.get("text") for part in content] if isinstance(content, list) else [content]
    return (
        made.get("role") == turn.role
        and _same_words([made.get("reasoning_content"), *texts], [turn])
        and len(calls) == len(turn.tool_calls)
        and all("function" in call for call in calls)
    )


def _is_sharegpt(pick: Pick, *, answers: tuple[str, ...] = ()) -> bool:
    found = [pick.record.get("conversations"), *([pick.record.get(key)] for key in answers[:1])]
    turns = [turn for part in found if isinstance(part, list) for turn in cast("list[Any]", part)]
    if not turns or not _has_tools(pick, str):
        return False
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        return False
    spoken = turns[turns[0].get("from") == "system" :]
    called = [turn["value"] for turn in spoken if turn.get("from") == "function_call"]
    texts = [turn["value"] for turn in turns if turn.get("from") != "function_call"]
    return (
        len(spoken) % 2 == 0
        and all(turn.get("from") in _SIDES[at % 2] for at, turn in enumerate(spoken))
        and all(_is_call(value) for value in called)
        and len(called) == sum(bool(turn.tool_calls) for turn in pick.full.turns)
        and _same_words([pick.record.get("system"), *texts], pick.full.turns)
    )


def _is_call(text: str) -> bool:
    made = _loads(text)
    calls = cast("list[Any]", made if isinstance(made, list) else [made])
    return all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)


def _is_preference(pick: Pick) -> bool:
    rejected = pick.record.get("rejected")
    return (
        bool(pick.full.rejected)
        and isinstance(rejected, dict)
        and cast("Record", rejected).get("from") in _SIDES[1]
        and _is_sharegpt(pick, answers=("chosen", "rejected"))
        and (_is_call(rejected["value"]) or _same_words([rejected["value"]], pick.full.rejected))
    )


# The table of forms.


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write the subset as JSON.

    Attributes:
        file: Its name; JSON Lines, or an array where it ends in ".json".
        columns: The keys that its readers look at; what LLaMA-Factory calls each.
        make: The record of a pick, None to leave it out; counts what has no place.
        fits: Whether the pick's own record is of this form.
        info: What else ``dataset_info.json`` says of it; None where LLaMA-Factory reads it not.
    """

    file: str
    columns: Mapping[str, str]
    make: Callable[[Pick, Lost], Record | None]
    fits: Callable[[Pick], bool]
    info: Mapping[str, Any] | None = None


_TURN_COLUMNS = {"conversations": "messages", "system": "system", "tools": "tools"}
FORMS: Mapping[str, Form] = {
    ALPACA: Form(
        "alpaca.json",
        {"instruction": "prompt", "input": "query", "output": "response"}
        | {name: name for name in ("system", "history", "tools")},
        alpaca_record,
        _is_alpaca,
        {"formatting": "alpaca"},
    ),
    # LLaMA-Factory reads OpenAI messages without their calls, or rewrites the system text.
    MESSAGES: Form(
        "messages.jsonl",
        {"messages": "messages", "tools": "tools"},
        messages_record,
        _is_messages,
    ),
    SHAREGPT: Form(
        "sharegpt.json",
        _TURN_COLUMNS,
        sharegpt_record,
        _is_sharegpt,
        {"formatting": "sharegpt"},
    ),
    PREFERENCE: Form(
        "preference.json",
        _TURN_COLUMNS | {"chosen": "chosen", "rejected": "rejected"},
        preference_record,
        _is_preference,
        {"formatting": "sharegpt", "ranking": True},
    ),
}


@dataclass(slots=True)
class Survey:
    """What has to be known of all picks before the first is written.

    Attributes:
        num_rows: Picks.
        num_pairs: Of them preference pairs.
        is_rich: Whether any turn has more than a role and a text.
        has_tools: Whether any pick has tools.
        sources: Picks by source.
        shapes: Types by key that the records of a form share; None where they differ, so that a
            reader who wants one type a column could not take their other keys.
    """

    num_rows: int = 0
    num_pairs: int = 0
    is_rich: bool = False
    has_tools: bool = False
    sources: Counter[str] = field(default_factory=Counter[str])
    shapes: dict[str, dict[str, type] | None] = field(default_factory=dict[str, Any])

    def add(self, pick: Pick, forms: Iterable[str]) -> None:
        """Take account of one pick."""
        full = pick.full
        self.num_rows += 1
        self.num_pairs += bool(full.rejected)
        self.has_tools |= bool(full.tools)
        self.sources[pick.row["source"]] += 1
        plain = {Turn(turn.role, turn.text) == turn for turn in (*full.turns, *full.rejected)}
        self.is_rich |= False in plain
        for form in forms:
            fits = FORMS[form].fits(pick)
            shape = {key: type(value) for key, value in pick.record.items()} if fits else None
            seen = self.shapes.setdefault(form, shape)
            self.shapes[form] = shape and seen and _common_shape(seen, shape)


def _common_shape(first: dict[str, type], second: dict[str, type]) -> dict[str, type] | None:
    """Return the types by key that two records share, null being of any; None if they differ."""
    shape: dict[str, type] = {}
    for key, one in first.items():
        other = second.get(key)
        if other is None or (one is not other and type(None) not in (one, other)):
            return None
        shape[key] = other if one is type(None) else one
    return shape if len(shape) == len(second) else None


# Writing.


class _TextWriter:
    """Writes a text of each pick: one a line, or in a file named ".json" all in an array."""

    def __init__(self, out: BinaryIO, name: str, text: Callable[[Pick], str | None]) -> None:
        self._out, self._text, self._is_array = out, text, name.endswith(".json")
        self.num_rows = 0

    def add(self, _table: pa.Table, picks: list[Pick]) -> None:
        for text in map(self._text, picks):
            if text is not None:
                before = (",\n" if self.num_rows else "[\n") if self._is_array else ""
                self._out.write(f"{before}{text}".encode() + (b"" if self._is_array else b"\n"))
                self.num_rows += 1

    def finish(self) -> None:
        if self._is_array:
            self._out.write(b"\n]\n" if self.num_rows else b"[]\n")


class _FormText:
    """Returns the text of a pick in a form; counts what has no place, gathers the keys."""

    def __init__(self, form: Form, *, whole: bool) -> None:
        self._form, self._whole = form, whole
        self.lost, self.keys = Lost(), set[str]()

    def __call__(self, pick: Pick) -> str | None:
        form, columns = self._form, self._form.columns.keys()
        if pick.full.rejected and form is not FORMS[PREFERENCE]:
            self.lost[_PAIR_LOST] += 1
        if not form.fits(pick):
            record = form.make(pick, self.lost)
            text = _dumps(record)
        else:
            record, text = pick.record, pick.text
            if not self._whole and not record.keys() <= columns:
                kept = (
                    f"{_dumps(key)}: {value}" for key, value in _members(text) if key in columns
                )
                text = f"{{{', '.join(kept)}}}"
        self.keys |= (record or {}).keys() & columns
        return text if record is not None else None


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a JSON object, each with the text of its value as it stands."""
    decoder, between, at = json.JSONDecoder(), re.compile(r"[\s,:]*"), text.index("{") + 1
    while True:
        at = cast("re.Match[str]", between.match(text, at)).end()
        if text[at] == "}":
            return
        key, at = decoder.raw_decode(text, at)
        start = cast("re.Match[str]", between.match(text, at)).end()
        _, at = decoder.raw_decode(text, start)
        yield key, text[start:at]


def subset_line(pick: Pick) -> str:
    """Return the record as it came with one more key: rank, gain, id, source and line."""
    key, number = ADDED_KEY, 0
    while key in pick.record:
        number += 1
        key = f"{ADDED_KEY}_{number}"
    added = {name: pick.row[name] for name in _ADDED}
    begun = pick.text.removesuffix("}").rstrip() + (", " if pick.record else "")
    return f"{begun}{_dumps(key)}: {_dumps(added)}}}"


class _ParquetWriter:
    """Writes columns of the picks as a Parquet file."""

    def __init__(
        self, out: BinaryIO, columns: Callable[[pa.Table, list[Pick]], pa.Table], schema: pa.Schema
    ) -> None:
        self._writer = pq.ParquetWriter(out, schema, compression="zstd")
        self._columns, self._schema = columns, schema
        self.num_rows = 0

    def add(self, table: pa.Table, picks: list[Pick]) -> None:
        self._writer.write_table(self._columns(table, picks).cast(self._schema))
        self.num_rows += len(picks)

    def finish(self) -> None:
        self._writer.close()


def dataset_schema(survey: Survey) -> pa.Schema:
    """Return the columns of the dataset folder: those that trainers know, and one of our own.

    Where a turn has calls or reasoning, turns are of Arrow's type for JSON, which ``datasets``
    hands out as objects: a struct would give every turn every key, and templates ask which it has.
    """
    turns = pa.list_(pa.json_() if survey.is_rich else _PLAIN_TURN)
    fields: list[Any] = [pa.field("messages", turns, nullable=False)]
    if survey.num_pairs:
        fields += [pa.field("chosen", turns), pa.field("rejected", turns)]
    if survey.has_tools:
        fields.append(pa.field("tools", pa.json_()))
    return pa.schema([*fields, pa.field(OWN_COLUMN, _OWN, nullable=False)])


def _dataset_columns(schema: pa.Schema) -> Callable[[pa.Table, list[Pick]], pa.Table]:
    is_rich = not pa.types.is_struct(schema.field("messages").type.value_type)
    stored = pa.list_(pa.string() if is_rich else _PLAIN_TURN)

    def column(turns: Iterable[tuple[Turn, ...] | None]) -> pa.Array:
        made = [one and openai_messages(one, parsed=True) for one in turns]
        if is_rich:
            made = [one and [_dumps(message) for message in one] for one in made]
        return pa.array(made, stored)

    def columns(table: pa.Table, picks: list[Pick]) -> pa.Table:
        full = [pick.full for pick in picks]
        pairs = [one if one.rejected else None for one in full]
        names = [each.name for each in _OWN]
        own = pa.StructArray.from_arrays(
            [pa.array(table[name].to_pylist(), _OWN.field(name).type) for name in names],
            fields=list(_OWN),
        )
        made = {
            "messages": column(one.turns for one in full),
            "chosen": column(pair and pair.turns for pair in pairs),
            "rejected": column(pair and pair.turns[:-1] + pair.rejected for pair in pairs),
            "tools": pa.array([one.tools or None for one in full], pa.string()),
            OWN_COLUMN: own,
        }
        return pa.table({name: made[name] for name in schema.names})

    return columns


def write_exports(
    read_tables: Callable[[], Iterable[pa.Table]],
    open_output: Callable[[str], BinaryIO],
    formats: Iterable[str] = EXPORT_FORMATS,
    candidates: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], list[str]]:
    """Write all export files.

    Args:
        read_tables: Yields the subset by rank, the columns of ``schemas.EXAMPLES``, ``rank`` and
            ``gain``; called twice.
        open_output: Opens a file of the export folder by name. The caller closes what it opened,
            after this function has returned.
        formats: Which of ``EXPORT_FORMATS`` to write beside the subset itself.
        candidates: Number of candidates by source; for how often a source is to be repeated.

    Returns:
        The rows written by file name (for ``dataset_info.json`` its number of entries), and what
        had no place in a form, a sentence each.

    Memory: one table.
    """
    wanted, survey = set(formats), Survey()
    for table in read_tables():
        for row in table.to_pylist():
            survey.add(Pick.of(row), wanted & FORMS.keys())
    if not survey.num_pairs:
        wanted.discard(PREFERENCE)
    forms = {
        name: _FormText(form, whole=bool(survey.shapes.get(name)))
        for name, form in FORMS.items()
        if name in wanted
    }
    texts: dict[str, Callable[[Pick], str | None]] = {SUBSET_JSONL: subset_line}
    texts |= {FORMS[name].file: form for name, form in forms.items()}
    if IDS in wanted:
        texts[IDS_TXT] = lambda pick: pick.row["example_id"]
    tables: dict[str, tuple[Callable[[pa.Table, list[Pick]], pa.Table], pa.Schema]] = {
        SUBSET_PARQUET: (lambda table, _: table.select(SUBSET.names), SUBSET)
    }
    if DATASET in wanted:
        schema = dataset_schema(survey)
        tables[DATASET_PARQUET] = (_dataset_columns(schema), schema)
    writers: dict[str, _TextWriter | _ParquetWriter] = {
        name: _TextWriter(open_output(name), name, text) for name, text in texts.items()
    }
    writers |= {name: _ParquetWriter(open_output(name), *made) for name, made in tables.items()}
    for table in read_tables():
        picks = [Pick.of(row) for row in table.to_pylist()]
        for writer in writers.values():
            writer.add(table, picks)
    for writer in writers.values():
        writer.finish()
    counts = {name: writer.num_rows for name, writer in writers.items()}
    lost = [
        f"{FORMS[name].file}: {what} ({count:,} of {survey.num_rows:,} rows)"
        for name, form in forms.items()
        for what, count in form.lost.items()
        if count
    ]
    weights = _weights(survey.sources, candidates or survey.sources)
    info = {
        f"nncift_{name}": _describe(FORMS[name], form.keys)
        for name, form in forms.items()
        if FORMS[name].info
    }
    if info:
        info["nncift_sources"] = weights
        open_output(DATASET_INFO_JSON).write((_dumps(info, indent=2) + "\n").encode())
        counts[DATASET_INFO_JSON] = len(info)
    if DATASET in wanted:
        open_output(AXOLOTL_YAML).write(_axolotl(weights).encode())
        counts[AXOLOTL_YAML] = 1
    return counts, lost


def _weights(sources: Mapping[str, int], candidates: Mapping[str, int]) -> Record:
    """Return each source's weights in a mixture, by its address.

    ``share`` is its part of the picks, ``repeat`` that against its part of the candidates: the
    factor by which to repeat the whole source to get the mixture of the picks.
    """
    num_picks, num_rows = sum(sources.values()), sum(candidates.values())
    weights: Record = {}
    for source, rows in sorted(candidates.items()):
        picks = sources.get(source, 0)
        share = picks / max(num_picks, 1)
        repeat = round(share * num_rows / rows, 4)
        weights[source] = {"candidates": rows, "picks": picks, "share": round(share, 6)}
        weights[source]["repeat"] = repeat
    return weights


def _describe(form: Form, keys: set[str]) -> Record:
    """Return what LLaMA-Factory has to know of a file; of its columns those that it has."""
    columns = {name: key for key, name in form.columns.items() if key in keys}
    return {"file_name": form.file, **(form.info or {}), "columns": columns}


def _axolotl(weights: Record) -> str:
    """Return the part of an Axolotl config that reads the dataset folder, and the weights."""
    entry = {"path": DATASET_FOLDER, "type": "chat_template", "split": "train"}
    head = "# For an Axolotl config: paths are relative to this folder.\n"
    lines = (f"  {_dumps(source)}: {_dumps(weight)}\n" for source, weight in weights.items())
    listed = "".join(lines) or "  {}\n"
    return f"{head}{yaml.safe_dump({'datasets': [entry]})}nncift_sources:\n{listed}"


class ExportStage(Stage):
    """Write ``subset.jsonl``, ``subset.parquet`` and training files for other tools."""

    version: ClassVar[int] = 3
    name: ClassVar[str] = "export"
    title: ClassVar[str] = "write the subset"
    produces = {}
    unit: ClassVar[str] = "sets"

    def __init__(
        self,
        ranking: StageOutput,
        examples: StageOutput,
        formats: Sequence[str] = EXPORT_FORMATS,
    ) -> None:
        """Export the picks of a ranking, in these formats beside the subset itself."""
        self._ranking, self._examples, self._formats = ranking, examples, tuple(formats)
        self.inputs = {"ranking": self._ranking, "examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """The formats; the inputs say the rest."""
        return {"formats": list(self._formats)}

    def notices(self, output: StageOutput) -> list[str]:
        """What had no place in a form."""
        return describe_losses(output)

    def make_worker(self) -> Worker:
        """Return the writer."""
        return self._export

    def _export(self, shard: Shard, sink: Sink) -> None:
        candidates: Counter[str] = Counter()
        for batch in self._examples.iter_batches("candidates", ["source"]):
            candidates.update(cast("list[str]", batch.column(0).to_pylist()))
        counts, lost = write_exports(
            self._ranked_rows,
            lambda name: cast(BinaryIO, sink.open_file(name)),
            self._formats,
            candidates,
        )
        sink.facts.update({f"rows_{name}": rows for name, rows in counts.items()})
        sink.facts["lost"] = lost

    def _ranked_rows(self) -> Iterator[pa.Table]:
        """Yield the picks in rank order: EXAMPLES columns, rank and gain."""
        ranking = self._ranking.read("ranking", schema=schemas.RANKING)
        rows = np.asarray(ranking["row_index"].to_numpy())
        for start in range(0, len(rows), BATCH_ROWS):
            part = ranking.slice(start, BATCH_ROWS)
            texts = self._examples.take_rows("candidates", rows[start : start + BATCH_ROWS])
            yield texts.append_column("rank", part["rank"]).append_column("gain", part["gain"])


def describe_losses(export: StageOutput) -> list[str]:
    """Say of each form what had no place in it, and how many rows have it."""
    return export.manifest.facts().get("lost", [])
