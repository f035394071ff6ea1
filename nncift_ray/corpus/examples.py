"""Instruction examples: what one is, its identity, and the step that numbers the distinct ones.

Exact copies collapse on the first. Left out are near-duplicates, by MinHash, and candidates that
hold the words of a test. Shape suffixes: N rows, G runs of words of the tests, H hashes of a
sketch.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, FirstErrors, Sink, StageOutput
from nncift_ray.runtime.schemas import BENCHMARK, CANDIDATE, EXISTING, TABLE_OF_ROLE
from nncift_ray.runtime.step import Shard, Stage, Worker, present

# rensa and pandas ship no types:
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

ID_HEX_LENGTH = 32
EXCERPT_CHARS = 200
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


def split_system(turns: Iterable[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Return the system turns, and the others."""
    systems, others = list[Turn](), list[Turn]()
    for turn in turns:
        (systems if turn.role == SYSTEM else others).append(turn)
    return systems, others


def normalise_text(text: str) -> str:
    """Return the text in NFC with one kind of newline and no outer white space.

    Inner white space stays: it carries meaning in code and tables.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def make_excerpt(text: str | bytes) -> str:
    """Return the head of ``text`` in at most 200 printable characters, controls escaped."""
    head = text[:EXCERPT_CHARS]
    if isinstance(head, bytes):
        head = head.decode("utf-8", errors="backslashreplace")
    if not head.isprintable():
        head = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in head
        )
    return head if len(head) <= EXCERPT_CHARS else head[: EXCERPT_CHARS - 3] + "..."


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


# The distinct examples of each role, numbered.

RECORDS, COPIES = "records", "copies"
NEAR_DUPLICATES, CONTAMINATED = "near_duplicates", "contaminated"
BATCH_ROWS = 4_096
_TEXTS = ["prompt", "response"]
_NAMES = ["example_id", "source", "line"]


class DeduplicateStage(Stage):
    """Numbers the examples of each role; of exact copies only the first stays.

    Copies are found within a role by ``example_id``. A target that is also a candidate stays both
    (and is counted): whether to learn from the benchmark is not ours to decide. So does a candidate
    that the model already has: a conditional gain sees that it adds nothing.

    Of the candidates those are left out, and listed, that hold words of a benchmark
    (``contaminated``), and those that are near-duplicates of an earlier one (``near_duplicates``).

    Where a run goes on from a parent, its examples are the earlier rows: only what is new is
    written, with the numbers that follow, and ``copies`` counts what is not.

    Memory: 16 bytes an id, three times over while copies are counted, and one batch of rows; while
    near-duplicates are sought 900 bytes a candidate.
    """

    version: ClassVar[int] = 3
    name: ClassVar[str] = "deduplicate"
    title: ClassVar[str] = "number the distinct examples"

    def __init__(
        self,
        ingest: StageOutput,
        parent: StageOutput | None = None,
        data: DataConfig | None = None,
    ) -> None:
        """Read the finished ingest, and the examples of a parent that this goes on from."""
        self.ingest, self.parent = ingest, parent
        self.data = data or DataConfig.model_construct()
        self.inputs = present(ingest=ingest, parent=parent)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """``candidates``, ``targets`` and ``existing``; what is left out; a parent's ``copies``."""
        tables = dict.fromkeys(TABLE_OF_ROLE.values(), schemas.EXAMPLES)
        tables |= {NEAR_DUPLICATES: schemas.NEAR_DUPLICATES, CONTAMINATED: schemas.CONTAMINATED}
        return tables | ({COPIES: schemas.COPIES} if self.parent else {})

    def settings(self) -> dict[str, Any]:
        """What counts as a near-duplicate and as an overlap."""
        return {
            "near_duplicates": self.data.near_duplicates,
            "overlap_words": self.data.overlap_words,
        }

    def item_weight(self, start: int, stop: int) -> int:
        """All records."""
        return self.ingest.num_rows(RECORDS) if stop > start else 0

    def notices(self, output: StageOutput) -> list[str]:
        """What was left out."""
        return describe_left_out(output)

    def make_worker(self) -> Worker:
        """Return what numbers the examples."""
        return self._deduplicate

    def _deduplicate(self, shard: Shard, sink: Sink) -> None:
        new = {role: self._ids_of_records(role) for role in TABLE_OF_ROLE}
        self._check_roles(new | {BENCHMARK: self._ids_of_records(BENCHMARK)})
        earlier = {role: self._ids_of_parent(table) for role, table in TABLE_OF_ROLE.items()}
        ids = {role: pa.concat_arrays([earlier[role], new[role]]) for role in TABLE_OF_ROLE}
        num_copies = {role: find_first_copies(of_role) for role, of_role in ids.items()}
        num_distinct = {role: int((copies >= 0).sum()) for role, copies in num_copies.items()}
        seen = {role: len(of_role) for role, of_role in earlier.items()}
        left_out = self._find_left_out(num_copies[CANDIDATE], seen[CANDIDATE])
        num_copies[CANDIDATE][[*left_out.twins, *left_out.overlaps]] = -1
        written = dict(seen)
        for role, count in seen.items():
            if (copies := _copies_table(role, num_copies[role][:count])).num_rows:
                sink.write(COPIES, copies)
        for batch in self.ingest.iter_batches(RECORDS, batch_rows=BATCH_ROWS):
            for role, table in TABLE_OF_ROLE.items():
                records = pa.Table.from_batches([_of_role(batch, role)])
                if role == CANDIDATE:
                    left_out.write(records, seen[role], sink)
                copies_N = num_copies[role][seen[role] : seen[role] + records.num_rows]
                examples = _number(records, copies_N, written[role])
                seen[role] += records.num_rows
                written[role] += examples.num_rows
                if examples.num_rows:
                    sink.write(table, examples)
        if not written[CANDIDATE] and num_distinct[CANDIDATE]:
            raise DataError(
                "no candidate is left: each holds the prompt of a row of data.benchmarks or "
                f"evaluation.tests, or {self.data.overlap_words} words of one in a row "
                "(data.overlap_words)"
            )
        sink.facts.update(_describe(ids, num_distinct, written), **left_out.facts())

    def _find_left_out(self, num_copies: np.ndarray, num_earlier: int) -> LeftOut:
        """Look through all candidates whose copies are not below 0; ``num_earlier`` ones stay."""
        batches = self.ingest.iter_batches(RECORDS, [*_TEXTS, "role", "source", "line"])
        tests = [row for batch in batches for row in _of_role(batch, BENCHMARK).to_pylist()]
        left_out = LeftOut(tests, self.data)
        if self.data.near_duplicates is None and not tests:
            return left_out
        first = 0
        for batch in self._iter_candidates():
            rows = np.flatnonzero(num_copies[first : first + batch.num_rows] >= 0)
            texts = batch.take(rows)
            prompts, responses = (
                cast("list[str]", texts.column(name).to_pylist()) for name in _TEXTS
            )
            left_out.look(first + rows, prompts, responses)
            first += batch.num_rows
        left_out.finish(num_earlier)
        twins = {twin for twin, _ in left_out.twins.values() if twin < num_earlier}
        if self.parent and twins:
            names = self.parent.take_rows("candidates", np.array(sorted(twins)), _NAMES)
            left_out.names |= zip(sorted(twins), names.to_pylist(), strict=True)
        return left_out

    def _iter_candidates(self) -> Iterator[pa.RecordBatch]:
        if self.parent:
            yield from self.parent.iter_batches("candidates", _TEXTS, batch_rows=BATCH_ROWS)
        columns = ["role", *_TEXTS]
        for batch in self.ingest.iter_batches(RECORDS, columns, batch_rows=BATCH_ROWS):
            yield _of_role(batch, CANDIDATE)

    def _ids_of_records(self, role: str) -> pa.Array:
        batches = self.ingest.iter_batches(RECORDS, ["role", "example_id"])
        return _parse_ids(_of_role(batch, role).column("example_id") for batch in batches)

    def _ids_of_parent(self, table: str) -> pa.Array:
        batches = self.parent.iter_batches(table, ["example_id"]) if self.parent else ()
        return _parse_ids(batch.column("example_id") for batch in batches)

    def _check_roles(self, ids: Mapping[str, pa.Array]) -> None:
        """Refuse a role that was asked for and has no usable row."""
        sources = self.ingest.manifest.settings["sources"]
        for role in {source["role"] for source in sources}:
            if not len(ids[role]):
                files = {source["source"] for source in sources if source["role"] == role}
                batches = self.ingest.iter_batches(ERRORS_TABLE)
                rows = (row for batch in batches for row in batch.to_pylist())
                errors = FirstErrors(row for row in rows if row["source"] in files)
                raise no_usable_row(role, files, errors)


class PoolStage(DeduplicateStage):
    """Number the candidates alone; their numbers are those of the whole corpus."""

    name: ClassVar[str] = "pool"


def no_usable_row(role: str, files: Iterable[str], errors: FirstErrors) -> DataError:
    """Return the error of a role whose files hold no usable row, with the first reasons."""
    what = f"no usable row for data.{TABLE_OF_ROLE.get(role, 'benchmarks')}"
    if not len(errors):
        return DataError(f"{what}: no rows in {', '.join(sorted(files))}")
    return DataError(
        "\n  ".join([f"{what}, {len(errors):,} that cannot be used:", *errors.lines()])
    )


def find_first_copies(ids: pa.Array) -> np.ndarray:
    """Return of each id how many further copies it has [N], -1 where an earlier row has it."""
    rows = pa.Table.from_arrays([ids, pa.array(np.arange(len(ids)))], ["id", "row"])
    groups = rows.group_by("id").aggregate([("row", "min"), ("row", "count")])
    num_copies = np.full(len(ids), -1, dtype=np.int32)
    num_copies[groups["row_min"].to_numpy()] = groups["row_count"].to_numpy() - 1
    return num_copies


def _of_role(records: pa.RecordBatch, role: str) -> pa.RecordBatch:
    return records.filter(pc.equal(records.column("role"), pa.scalar(role)))


def _parse_ids(columns: Iterable[pa.Array]) -> pa.Array:
    """Return ids as 16 bytes each."""
    hexes = ("".join(cast("list[str]", column.to_pylist())) for column in columns)
    data = pa.py_buffer(b"".join(map(bytes.fromhex, hexes)))
    return pa.Array.from_buffers(pa.binary(16), data.size // 16, [None, data])


def _copies_table(role: str, num_copies: np.ndarray) -> pa.Table:
    """Count the further copies of a parent's examples, of those that have any."""
    rows = np.flatnonzero(num_copies > 0)
    columns: dict[str, Any] = {
        "role": [role] * len(rows),
        "row_index": rows,
        "num_duplicates": num_copies[rows],
    }
    return pa.table(columns, schema=schemas.COPIES)


def _number(records: pa.Table, num_copies: np.ndarray, first_index: int) -> pa.Table:
    """Keep the first copies and give them numbers from ``first_index``."""
    is_first = num_copies >= 0
    kept = records.filter(pa.array(is_first))
    row_index = pa.array(np.arange(first_index, first_index + kept.num_rows))
    kept = kept.append_column("row_index", row_index)
    kept = kept.append_column("num_duplicates", pa.array(num_copies[is_first]))
    return kept.select(schemas.EXAMPLES.names).cast(schemas.EXAMPLES)


def _describe(
    ids: Mapping[str, pa.Array], num_distinct: Mapping[str, int], written: Mapping[str, int]
) -> dict[str, int]:
    """Return the numbers of examples and of copies, and of those that are candidates, too."""
    facts: dict[str, int] = {}
    roles = [role for role in TABLE_OF_ROLE if role != EXISTING or len(ids[role])]
    for role in roles:
        facts[f"num_{TABLE_OF_ROLE[role]}"] = written[role]
        facts[f"num_duplicate_{TABLE_OF_ROLE[role]}"] = len(ids[role]) - num_distinct[role]
    for role in roles[1:]:
        both = pc.unique(pa.concat_arrays([ids[CANDIDATE], ids[role]]))
        num_shared = num_distinct[CANDIDATE] + num_distinct[role] - len(both)
        facts[f"num_{TABLE_OF_ROLE[role]}_among_candidates"] = num_shared
    return facts


class LeftOut:
    """Looks through the candidates once, in order, and says which to leave out, and why.

    Attributes:
        twins: By candidate an earlier one that stays, and how similar the two are.
        overlaps: By candidate a row of the tests, and the words they share ("": the prompt).
        names: Of the twins that stay, by candidate.
    """

    def __init__(self, tests: Sequence[Mapping[str, Any]], data: DataConfig) -> None:
        """Look for the words of some rows of tests, and near-duplicates where data say so."""
        prompts, responses = ([row[name] for row in tests] for name in _TEXTS)
        self._tests = tests
        self._texts = TestTexts(prompts, responses, data.overlap_words)
        self._min_similarity = data.near_duplicates
        self._rows: list[I64] = [np.empty(0, np.int64)]
        self._sketches: list[U32] = []
        self.twins: dict[int, tuple[int, float]] = {}
        self.overlaps: dict[int, tuple[int, str]] = {}
        self.names: dict[int, dict[str, Any]] = {}

    def look(self, rows: I64, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Take the next candidates: their numbers [N] and texts."""
        if not len(rows):
            return
        words, of_prompts, of_responses = hash_sides(prompts, responses)
        self._texts.look(rows, prompts, words)
        if self._min_similarity is not None:
            self._rows.append(rows)
            self._sketches.append(make_sketches(of_prompts, of_responses))

    def finish(self, num_kept: int) -> None:
        """Decide on all that were seen; candidates below ``num_kept`` stay whatever they hold."""
        self.overlaps = {r: found for r, found in self._texts.overlaps().items() if r >= num_kept}
        if self._min_similarity is None or not self._sketches:
            return
        rows = np.concatenate(self._rows)
        stays = ~np.isin(rows, list(self.overlaps))
        sketches, rows = np.concatenate(self._sketches)[stays], rows[stays]
        self._sketches.clear()
        twin_N, similarity_N = find_twins(
            sketches, self._min_similarity, int((rows < num_kept).sum())
        )
        at = np.flatnonzero(twin_N >= 0)
        alike = zip(rows[twin_N[at]].tolist(), similarity_N[at].tolist(), strict=True)
        self.twins = dict(zip(rows[at].tolist(), alike, strict=True))

    def write(self, records: pa.Table, first: int, sink: Sink) -> None:
        """Write the entries of those among some candidates, the first of which is ``first``."""
        kept = {twin for twin, _ in self.twins.values()}
        named = kept | self.twins.keys() | self.overlaps.keys()
        places = [at for at in range(first, first + records.num_rows) if at in named]
        rows = records.take(pa.array([place - first for place in places], pa.int64()))
        twins: list[dict[str, Any]] = []
        contaminated: list[dict[str, Any]] = []
        for place, row in zip(places, rows.select([*_NAMES, "prompt"]).to_pylist(), strict=True):
            name = {key: row[key] for key in _NAMES}
            entry = name | {"excerpt": make_excerpt(row["prompt"])}
            if place in kept:
                self.names[place] = name
            if place in self.twins:
                twin, similarity = self.twins[place]
                of_twin = {f"twin_{key}": value for key, value in self.names[twin].items()}
                twins.append(entry | of_twin | {"similarity": similarity})
            elif place in self.overlaps:
                test, words = self.overlaps[place]
                of_test = {f"test_{key}": self._tests[test][key] for key in ("source", "line")}
                contaminated.append(entry | of_test | {"words": words or None})
        if twins:
            sink.write_rows(NEAR_DUPLICATES, twins, schemas.NEAR_DUPLICATES)
        if contaminated:
            sink.write_rows(CONTAMINATED, contaminated, schemas.CONTAMINATED)

    def facts(self) -> dict[str, int]:
        """Return how many there are."""
        facts = {
            "num_near_duplicate_candidates": len(self.twins),
            "num_contaminated_candidates": len(self.overlaps),
            "num_benchmark_rows": len(self._tests),
            "num_template_runs": self._texts.num_templates,
        }
        return {name: count for name, count in facts.items() if count}


def describe_left_out(examples: StageOutput) -> list[str]:
    """Say how many candidates were left out for what they repeat or overlap with."""
    facts, settings = examples.manifest.facts(), examples.manifest.settings
    folder, lines = examples.folder, []
    if twins := facts.get("num_near_duplicate_candidates"):
        lines.append(
            f"{twins:,} candidates are near-duplicates of an earlier one (prompt and response "
            f"alike to {settings['near_duplicates']:g}, data.near_duplicates) and left out; "
            f"their twins stay: {folder / NEAR_DUPLICATES}"
        )
    if tests := facts.get("num_benchmark_rows"):
        found = facts.get("num_contaminated_candidates", 0)
        where = f": {folder / CONTAMINATED}" if found else ""
        lines.append(
            f"{found:,} candidates hold the prompt of one of {tests:,} rows of benchmarks and "
            f"tests, or {settings['overlap_words']} words of it in a row, and are left out"
            f"{where}"
        )
    return lines


# Texts that overlap: near-duplicates by MinHash, and words of a test.

_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a word each
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
SHINGLE_WORDS = 3
#: Hashes of the prompt and of the response; the standard error of a similarity of 0.95 is 0.02.
PROMPT_HASHES, RESPONSE_HASHES = 128, 64
NUM_BANDS = 16
SKETCH_SEED = 1
#: Kept rows of a bucket that a row is compared with: a bucket of a template holds any number.
MAX_BUCKET = 64
#: A run of words in more candidates than this is a template or a common text (GPT-3 did the same:
#: arXiv 2005.14165, appendix C).
MAX_HOLDERS = 10


@dataclass(frozen=True, slots=True)
class Runs:
    """A flat array of hashes and where each text's begin: text i has ``offsets[i : i + 2]``."""

    hashes: U64
    offsets: I64

    def rows(self) -> I64:
        """Return the text of each hash."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def split_words(text: str) -> list[str]:
    """Return the words of a text, without case and marks."""
    return _WORD.findall(text.casefold())


def hash_runs(words: Runs, size: int, *, short: bool = False) -> Runs:
    """Return a hash of every run of ``size`` words, in the order of the words.

    ``short``: a text of fewer words has one run, of all of them; else it has none.
    """
    at, end = np.arange(len(words.hashes)), words.offsets[1:][words.rows()]
    total = np.zeros(len(at), np.uint64)
    for step in range(size):
        inside = at + step < end
        ahead = words.hashes[np.minimum(at + step, len(at) - 1)]
        total = total * _MULTIPLIER + np.where(inside, ahead, np.uint64(0))
    wanted = at + size <= end
    if short:
        wanted |= at == words.offsets[:-1][words.rows()]
    kept = np.concatenate([[0], np.cumsum(wanted)])
    return Runs(total[wanted], kept[words.offsets])


def hash_sides(prompts: Sequence[str], responses: Sequence[str]) -> tuple[Runs, Runs, Runs]:
    """Return the hashed words of examples: of the whole, of the prompts and of the responses.

    The hashes are the same on any machine.
    """
    import pandas  # takes half a second, and reading a recipe comes by here

    both = zip(prompts, responses, strict=True)
    texts = [split_words(text) for pair in both for text in pair]
    flat = np.array([word for text in texts for word in text], dtype=object)
    hashes = cast("Any", pandas).util.hash_array(flat) if len(flat) else np.empty(0, np.uint64)
    words = Runs(hashes, np.cumsum([0, *map(len, texts)], dtype=np.int64))
    side, lengths = words.rows() % 2, np.diff(words.offsets)
    prompt, response = (
        Runs(words.hashes[side == each], np.cumsum([0, *lengths[each::2]], dtype=np.int64))
        for each in (0, 1)
    )
    return Runs(words.hashes, words.offsets[::2]), prompt, response


def make_sketches(prompts: Runs, responses: Runs) -> U32:
    """Return MinHash sketches [N, H] of the shingles of prompts and, behind them, of responses.

    A side without a word has no sketch but zeros, which ``find_twins`` likens to nothing.
    """
    sides = [(prompts, PROMPT_HASHES), (responses, RESPONSE_HASHES)]
    return np.concatenate([_sketch(words, count) for words, count in sides], axis=1)


def _sketch(words: Runs, num_hashes: int) -> U32:
    runs = hash_runs(words, SHINGLE_WORDS, short=True)
    import rensa  # only where there is text to compare

    matrix = cast("Any", rensa).RMinHash.digest_matrix_from_flat_token_hashes(
        runs.hashes, runs.offsets.astype(np.uint64), num_hashes, SKETCH_SEED
    )
    sketch = np.array(matrix.to_rows(), np.uint32).reshape(-1, num_hashes)
    sketch[np.diff(runs.offsets) == 0] = 0
    return sketch


def find_twins(
    sketch_NH: U32, min_similarity: float, num_kept: int = 0
) -> tuple[I64, npt.NDArray[np.float32]]:
    """Go through the rows in order; each is kept unless an earlier kept row is alike.

    Alike means that prompts and responses both have a Jaccard similarity of ``min_similarity``:
    rows of one template or one passage that differ in their answers are no twins. No chains: every
    row that goes is alike to one that stays.

    Args:
        sketch_NH: Of ``make_sketches``.
        min_similarity: From 0 to 1.
        num_kept: The first rows that stay in any case.

    Returns:
        The earlier row that a row is like, which itself has none (-1: there is none), and the lower
        of the two sides' Jaccard similarities, as estimated (else 0) [N].

    Memory: 8 bytes a row and band, beside the sketches.
    """
    twin_N, similarity_N = np.full(len(sketch_NH), -1), np.zeros(len(sketch_NH), np.float32)
    bucket_NB = _buckets(sketch_NH)
    kept: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero((bucket_NB >= 0).any(axis=1)).tolist():
        buckets = bucket_NB[row][bucket_NB[row] >= 0].tolist()
        if row >= num_kept:
            others = np.array(sorted({other for each in buckets for other in kept[each]}), np.int64)
            similarity = _similarity(sketch_NH[others], sketch_NH[row])
            if len(others) and similarity.max() >= min_similarity:
                twin_N[row] = others[similarity.argmax()]
                similarity_N[row] = similarity.max()
                continue
        for each in buckets:
            if len(kept[each]) < MAX_BUCKET:
                kept[each].append(row)
    return twin_N, similarity_N


def _buckets(sketch_NH: U32) -> I64:
    """Return the bucket of each row and band, numbered over all bands; -1: no other row is in it.

    A band takes hashes of both sides.
    """
    num_rows = len(sketch_NH)
    bucket_NB = np.full((num_rows, NUM_BANDS), -1)
    has_words = sketch_NH[:, :PROMPT_HASHES].any(axis=1) & sketch_NH[:, PROMPT_HASHES:].any(axis=1)
    sides = np.split(np.arange(sketch_NH.shape[1]), [PROMPT_HASHES])
    columns = np.hstack([side.reshape(NUM_BANDS, -1) for side in sides])
    first = 0
    for band in range(NUM_BANDS):
        key_N = np.zeros(num_rows, np.uint64)
        for column in columns[band]:
            key_N = (key_N ^ sketch_NH[:, column]) * _MULTIPLIER
            key_N ^= key_N >> np.uint64(29)
        _, bucket_N, count = np.unique(key_N, return_inverse=True, return_counts=True)
        is_shared = has_words & (count[bucket_N] > 1)
        bucket_NB[is_shared, band] = first + bucket_N[is_shared]
        first += len(count)
    return bucket_NB


def _similarity(sketch_MH: U32, sketch_H: U32) -> Any:
    """Return the estimated Jaccard similarity [M], of the less similar side."""
    equal = sketch_MH == sketch_H
    return np.minimum(equal[:, :PROMPT_HASHES].mean(axis=1), equal[:, PROMPT_HASHES:].mean(axis=1))


def prompt_key(prompt: str) -> bytes:
    """Return what two prompts of the same words have in common: 16 bytes."""
    words = " ".join(normalise_text(prompt).casefold().split())
    return hashlib.sha256(words.encode("utf-8", errors="surrogatepass")).digest()[:16]


class TestTexts:
    """What candidates must not hold: the prompts of tests, and their runs of words."""

    __test__ = False  # pytest collects no class that is named like this

    def __init__(self, prompts: Sequence[str], responses: Sequence[str], run_words: int) -> None:
        """Index the rows of tests; two texts overlap by ``run_words`` words in a row."""
        self.run_words = run_words
        self._prompts = {prompt_key(prompts[n]): n for n in reversed(range(len(prompts)))}
        self._texts = [f"{p}\n{r}" for p, r in zip(prompts, responses, strict=True)]
        runs = hash_runs(hash_sides(prompts, responses)[0], run_words)
        self._run_G, first_G = np.unique(runs.hashes, return_index=True)
        self._test_G = runs.rows()[first_G]
        self._start_G = first_G - runs.offsets[self._test_G]
        self._holders_G = np.zeros(len(first_G), np.int64)
        self._hits: list[tuple[I64, I64]] = []  # rows and their runs
        self._same_prompt: dict[int, int] = {}

    def look(self, rows: I64, prompts: Sequence[str], words: Runs) -> None:
        """Look through some candidates: their numbers, prompts and words."""
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            test = self._prompts.get(prompt_key(prompt))
            if test is not None:
                self._same_prompt[row] = test
        if not len(self._run_G):
            return
        runs = hash_runs(words, self.run_words)
        place = np.minimum(np.searchsorted(self._run_G, runs.hashes), len(self._run_G) - 1)
        is_hit = self._run_G[place] == runs.hashes
        pairs = np.unique(np.stack([runs.rows()[is_hit], place[is_hit]]), axis=1)
        wanted = self._holders_G[pairs[1]] <= MAX_HOLDERS  # else it is known for a template
        self._holders_G += np.bincount(pairs[1], minlength=len(self._holders_G))
        if wanted.any():
            self._hits.append((rows[pairs[0][wanted]], pairs[1][wanted]))

    def overlaps(self) -> dict[int, tuple[int, str]]:
        """Return by candidate the test and the words they share, "" for the whole prompt."""
        found: dict[int, tuple[int, str]] = {}
        for rows, runs in self._hits:
            for row, run in zip(rows.tolist(), runs.tolist(), strict=True):
                if self._holders_G[run] <= MAX_HOLDERS and row not in found:
                    test, start = int(self._test_G[run]), int(self._start_G[run])
                    words = split_words(self._texts[test])[start : start + self.run_words]
                    found[row] = (test, " ".join(words))
        return found | {row: (test, "") for row, test in self._same_prompt.items()}

    @property
    def num_templates(self) -> int:
        """Runs of words of tests that are in too many candidates to tell anything."""
        return int((self._holders_G > MAX_HOLDERS).sum())
