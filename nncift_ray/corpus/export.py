"""Export: the ranked subset as files that other tools read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nncift_ray.corpus.examples import ASSISTANT, SYSTEM, TOOL, USER, Example
from nncift_ray.corpus.layouts import render_turn, split_alpaca
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false


SUBSET_JSONL, SUBSET_PARQUET = "subset.jsonl", "subset.parquet"
ALPACA_JSON, MESSAGES_JSONL, SHAREGPT_JSON = "alpaca.json", "messages.jsonl", "sharegpt.json"
IDS_TXT, DATASET_INFO_JSON = "ids.txt", "dataset_info.json"
#: A folder that ``datasets.load_dataset`` reads; the run writes its card beside the table.
DATASET_FOLDER = "dataset"
DATASET_PARQUET = f"{DATASET_FOLDER}/data/train.parquet"
ALPACA, MESSAGES, SHAREGPT, DATASET, IDS = "alpaca", "messages", "sharegpt", "dataset", "ids"
ADDED_KEY = "_nncift"
BATCH_ROWS = 20_000
FUNCTION_CALL = "function_call"
_SHAREGPT_ROLES = {
    SYSTEM: "system",
    USER: "human",
    ASSISTANT: "gpt",
    FUNCTION_CALL: "function_call",
    TOOL: "observation",
}

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

_TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
#: The dataset folder: the subset's columns, and each example as a conversation.
DATASET_SCHEMA = SUBSET.append(pa.field("messages", pa.list_(_TURN), nullable=False))

Row = Mapping[str, Any]


class _LinesWriter:
    """Writes one line for each row."""

    opening, separator, closing, nothing = "", "\n", "\n", ""

    def __init__(self, out: BinaryIO, make_line: Callable[[Row], str]) -> None:
        self._out, self._make_line = out, make_line
        self.num_rows = 0

    def add(self, table: pa.Table, rows: list[Row]) -> None:
        if rows:
            before = self.separator if self.num_rows else self.opening
            text = before + self.separator.join(self._make_line(row) for row in rows)
            self._out.write(text.encode())
            self.num_rows += table.num_rows

    def finish(self) -> None:
        self._out.write((self.closing if self.num_rows else self.nothing).encode())


class _ArrayWriter(_LinesWriter):
    """Writes one JSON array, an element a line."""

    opening, separator, closing, nothing = "[\n", ",\n", "\n]\n", "[]\n"


class _ParquetWriter:
    """Writes a Parquet file of ``SUBSET``, or of ``DATASET_SCHEMA``."""

    def __init__(self, out: BinaryIO, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(out, schema, compression="zstd")
        self._schema = schema
        self.num_rows = 0

    def add(self, table: pa.Table, rows: list[Row]) -> None:
        columns = {name: table.column(name) for name in SUBSET.names}
        if "messages" in self._schema.names:
            turns = [messages_record(row)["messages"] for row in rows]
            columns["messages"] = pa.chunked_array([pa.array(turns, pa.list_(_TURN))])
        made = pa.Table.from_pydict(columns)
        self._writer.write_table(made.cast(self._schema))
        self.num_rows += table.num_rows

    def finish(self) -> None:
        self._writer.close()


def _json(make: Callable[[Row], object]) -> Callable[[Row], str]:
    return lambda row: json.dumps(make(row), ensure_ascii=False, allow_nan=False)


Open = Callable[[str], BinaryIO]
#: The file of each format that may be chosen, and its writer.
_WRITERS: Mapping[str, tuple[str, Callable[[BinaryIO], _LinesWriter | _ParquetWriter]]] = {
    ALPACA: (ALPACA_JSON, lambda out: _ArrayWriter(out, _json(alpaca_record))),
    MESSAGES: (MESSAGES_JSONL, lambda out: _LinesWriter(out, _json(messages_record))),
    SHAREGPT: (SHAREGPT_JSON, lambda out: _ArrayWriter(out, _json(sharegpt_record))),
    DATASET: (DATASET_PARQUET, lambda out: _ParquetWriter(out, DATASET_SCHEMA)),
    IDS: (IDS_TXT, lambda out: _LinesWriter(out, lambda row: row["example_id"])),
}
EXPORT_FORMATS = tuple(_WRITERS)


def write_exports(
    tables: Iterable[pa.Table], open_output: Open, formats: Iterable[str] = EXPORT_FORMATS
) -> dict[str, int]:
    """Write all export files in one pass.

    Args:
        tables: The subset by rank: the columns of ``schemas.EXAMPLES``, ``rank`` and ``gain``.
        open_output: Opens a file of the export folder by name. The caller closes what it opened,
            after this function has returned.
        formats: Which of ``EXPORT_FORMATS`` to write beside the subset itself.

    Returns:
        The rows written by file name; for ``dataset_info.json`` its number of entries.

    Memory: one table.
    """
    writers: dict[str, _LinesWriter | _ParquetWriter] = {
        SUBSET_JSONL: _LinesWriter(open_output(SUBSET_JSONL), _json(subset_record)),
        SUBSET_PARQUET: _ParquetWriter(open_output(SUBSET_PARQUET), SUBSET),
    }
    for form in formats:
        name, make = _WRITERS[form]
        writers[name] = make(open_output(name))
    for table in tables:
        rows = cast("list[Row]", table.to_pylist())
        for writer in writers.values():
            writer.add(table, rows)
    for writer in writers.values():
        writer.finish()
    counts = {name: writer.num_rows for name, writer in writers.items()}
    info = {name: entry for name, entry in DATASET_INFO.items() if entry["file_name"] in writers}
    if info:
        open_output(DATASET_INFO_JSON).write((json.dumps(info, indent=2) + "\n").encode())
        counts[DATASET_INFO_JSON] = len(info)
    return counts


def subset_record(row: Row) -> dict[str, Any]:
    """Return the original record with one more key: rank, gain, id, source and line."""
    record: dict[str, Any] = json.loads(row["record"])
    key, number = ADDED_KEY, 0
    while key in record:
        number += 1
        key = f"{ADDED_KEY}_{number}"
    record[key] = {name: row[name] for name in ("rank", "gain", "example_id", "source", "line")}
    return record


def alpaca_record(row: Row) -> dict[str, str]:
    """Return instruction, input and output; split as in the source where that was Alpaca's."""
    instruction, extra, output = row["prompt"], "", row["response"]
    if row["layout"] == "alpaca":
        instruction, extra, output = split_alpaca(json.loads(row["record"]))
    return {"instruction": instruction, "input": extra, "output": output}


def messages_record(row: Row) -> dict[str, list[dict[str, str]]]:
    """Return OpenAI messages; of a conversation its own turns up to the response."""
    # OpenAI has no role of its own for calls: the assistant makes them.
    return {
        "messages": [
            {"role": ASSISTANT if role == FUNCTION_CALL else role, "content": text}
            for role, text in _turns(row)
        ]
    }


def sharegpt_record(row: Row) -> dict[str, Any]:
    """Return ShareGPT conversations; of one with tools, their description too."""
    turns = [{"from": _SHAREGPT_ROLES[role], "value": text} for role, text in _turns(row)]
    record: dict[str, Any] = {"conversations": turns}
    if row["layout"] == "sharegpt":
        if tools := _example(row).full().tools:
            record["tools"] = tools
    return record


def _example(row: Row) -> Example:
    return Example(row["example_id"], row["prompt"], row["response"], row["conversation"])


def _turns(row: Row) -> list[tuple[str, str]]:
    """Return (role, text) of an example's turns, the response last."""
    return [
        (FUNCTION_CALL if turn.tool_calls and not turn.text else turn.role, render_turn(turn))
        for turn in _example(row).turns
    ]


def _turns_info(file: str, key: str, role: str, content: str, names: Mapping[str, str]) -> Any:
    """Describe a file of conversations to LLaMA-Factory: where turns, roles and texts stand."""
    tags = {
        "role_tag": role,
        "content_tag": content,
        "user_tag": names[USER],
        "assistant_tag": names[ASSISTANT],
        "observation_tag": names[TOOL],
        "function_tag": names[FUNCTION_CALL],
        "system_tag": names[SYSTEM],
    }
    columns = {"messages": key}
    return {"file_name": file, "formatting": "sharegpt", "columns": columns, "tags": tags}


#: What LLaMA-Factory has to know of the exported files. OpenAI messages are its "sharegpt"
#: formatting with other tags; its formatting "openai" rewrites the system text.
DATASET_INFO: dict[str, dict[str, Any]] = {
    "nncift_alpaca": {
        "file_name": ALPACA_JSON,
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    },
    "nncift_sharegpt": _turns_info(
        SHAREGPT_JSON, "conversations", "from", "value", _SHAREGPT_ROLES
    ),
    "nncift_messages": _turns_info(
        MESSAGES_JSONL, "messages", "role", "content", {role: role for role in _SHAREGPT_ROLES}
    ),
}


class ExportStage(Stage):
    """Write ``subset.jsonl``, ``subset.parquet`` and training files for other tools."""

    version: ClassVar[int] = 2
    name: ClassVar[str] = "export"
    title: ClassVar[str] = "write the subset"
    unit: ClassVar[str] = "sets"

    def __init__(
        self,
        ranking: StageOutput,
        examples: StageOutput,
        formats: Sequence[str] = EXPORT_FORMATS,
    ) -> None:
        """Export the picks of a ranking, in these formats beside the subset itself."""
        self._ranking, self._examples, self._formats = ranking, examples, tuple(formats)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Files only."""
        return {}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The ranking and the texts."""
        return {"ranking": self._ranking, "examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """The formats; the inputs say the rest."""
        return {"formats": list(self._formats)}

    def num_items(self) -> int:
        """One set of files."""
        return 1

    def make_worker(self) -> Worker:
        """Return the writer."""
        return self._export

    def _export(self, shard: Shard, sink: Sink) -> None:
        counts = write_exports(
            self._ranked_rows(), lambda name: cast(BinaryIO, sink.open_file(name)), self._formats
        )
        sink.facts.update({f"rows_{name}": rows for name, rows in counts.items()})

    def _ranked_rows(self) -> Iterator[pa.Table]:
        """Yield the picks in rank order: EXAMPLES columns, rank and gain."""
        ranking = self._ranking.read("ranking", schema=schemas.RANKING)
        rows = np.asarray(ranking["row_index"].to_numpy())
        for start in range(0, len(rows), BATCH_ROWS):
            part = ranking.slice(start, BATCH_ROWS)
            texts = self._examples.take_rows("candidates", rows[start : start + BATCH_ROWS])
            yield texts.append_column("rank", part["rank"]).append_column("gain", part["gain"])
