"""The selected subset out: as it came in, as a table, and ready for two training programs."""

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nncift_ray.storage import schemas
from nncift_ray.storage.chats import ASSISTANT, FUNCTION_CALL, SYSTEM, TOOL, USER
from nncift_ray.storage.layouts import conversation_turns, split_alpaca
from nncift_ray.storage.rows import BadRow

SUBSET_JSONL, SUBSET_PARQUET = "subset.jsonl", "subset.parquet"
ALPACA_JSON, MESSAGES_JSONL, DATASET_INFO_JSON = (
    "alpaca.json",
    "messages.jsonl",
    "dataset_info.json",
)
ADDED_KEY = "_nncift"

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

Row = Mapping[str, Any]


class _Writer(Protocol):
    num_rows: int

    def add(self, table: pa.Table, rows: list[Row]) -> None: ...

    def finish(self) -> None: ...


class _JsonLinesWriter:
    """Writes one JSON object a line."""

    def __init__(self, out: BinaryIO, make: Callable[[Row], object]) -> None:
        self._out, self._make = out, make
        self.num_rows = 0

    def add(self, table: pa.Table, rows: list[Row]) -> None:
        self._out.write("".join(_dump(self._make(row)) + "\n" for row in rows).encode())
        self.num_rows += table.num_rows

    def finish(self) -> None:
        pass


class _JsonArrayWriter:
    """Writes one JSON array, an element a line."""

    def __init__(self, out: BinaryIO, make: Callable[[Row], object]) -> None:
        self._out, self._make = out, make
        self.num_rows = 0

    def add(self, table: pa.Table, rows: list[Row]) -> None:
        if not rows:
            return
        opening = ",\n" if self.num_rows else "[\n"
        self._out.write((opening + ",\n".join(_dump(self._make(row)) for row in rows)).encode())
        self.num_rows += table.num_rows

    def finish(self) -> None:
        self._out.write(b"\n]\n" if self.num_rows else b"[]\n")


class _ParquetWriter:
    """Writes a Parquet file of ``SUBSET``."""

    def __init__(self, out: BinaryIO) -> None:
        self._writer = pq.ParquetWriter(out, SUBSET, compression="zstd")
        self.num_rows = 0

    def add(self, table: pa.Table, rows: list[Row]) -> None:
        del rows
        self._writer.write_table(table.select(SUBSET.names).cast(SUBSET))
        self.num_rows += table.num_rows

    def finish(self) -> None:
        self._writer.close()


def write_exports(
    tables: Iterable[pa.Table], open_output: Callable[[str], BinaryIO]
) -> dict[str, int]:
    """Write all export files in one pass.

    Args:
        tables: The subset by rank: the columns of ``schemas.EXAMPLES``, ``rank`` and ``gain``.
        open_output: Opens a file of the export folder by name. The caller closes what it opened,
            after this function has returned.

    Returns:
        The rows written by file name; for ``dataset_info.json`` its number of entries.

    Memory: one table.
    """
    writers: dict[str, _Writer] = {
        SUBSET_JSONL: _JsonLinesWriter(open_output(SUBSET_JSONL), subset_record),
        SUBSET_PARQUET: _ParquetWriter(open_output(SUBSET_PARQUET)),
        ALPACA_JSON: _JsonArrayWriter(open_output(ALPACA_JSON), alpaca_record),
        MESSAGES_JSONL: _JsonLinesWriter(open_output(MESSAGES_JSONL), messages_record),
    }
    for table in tables:
        rows = cast("list[Row]", table.to_pylist())
        for writer in writers.values():
            writer.add(table, rows)
    for writer in writers.values():
        writer.finish()
    info = dataset_info()
    open_output(DATASET_INFO_JSON).write((json.dumps(info, indent=2) + "\n").encode())
    return {name: writer.num_rows for name, writer in writers.items()} | {
        DATASET_INFO_JSON: len(info)
    }


def subset_record(row: Row) -> dict[str, Any]:
    """Return the original record with one more key: rank, gain, id, source and line."""
    original: object = json.loads(row["record"])
    record = (
        dict(cast("dict[str, Any]", original))
        if isinstance(original, dict)
        else {"value": original}
    )
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
    turns = None
    if row["layout"] in ("messages", "sharegpt"):
        turns = conversation_turns(json.loads(row["record"]))
    if turns is None or isinstance(turns, BadRow):
        pairs = [(USER, row["prompt"]), (ASSISTANT, row["response"])]
    else:
        pairs = [(turn.role, turn.text) for turn in turns]
    # OpenAI has no role of its own for calls: the assistant makes them.
    return {
        "messages": [
            {"role": ASSISTANT if role == FUNCTION_CALL else role, "content": text}
            for role, text in pairs
        ]
    }


def dataset_info() -> dict[str, Any]:
    """Return what LLaMA-Factory has to know of the exported files.

    OpenAI messages are its "sharegpt" formatting with other tags; its formatting "openai" rewrites
    the system text.
    """
    return {
        "nncift_alpaca": {
            "file_name": ALPACA_JSON,
            "formatting": "alpaca",
            "columns": {"prompt": "instruction", "query": "input", "response": "output"},
        },
        "nncift_messages": {
            "file_name": MESSAGES_JSONL,
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": USER,
                "assistant_tag": ASSISTANT,
                "observation_tag": TOOL,
                "function_tag": FUNCTION_CALL,
                "system_tag": SYSTEM,
            },
        },
    }


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
