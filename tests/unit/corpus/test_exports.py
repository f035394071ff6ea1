"""Exports: the original record untouched, and files that training programs read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift_ray.corpus.export import DATASET_PARQUET, SUBSET, sharegpt_record, write_exports
from nncift_ray.runtime import schemas
from tests.unit.corpus.hostile import read_file

RECORDS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "1 2", "output": "3", "id": 7},
    {"prompt": "p\u2028\u00e9", "completion": "c", "nested": {"x": [1, None]}},
    {"prompt": "q", "completion": "d", "_nncift": "mine", "_nncift_1": 0},
    {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
            {"from": "observation", "value": "dry"},
            {"from": "gpt", "value": "No."},
            {"from": "human", "value": "Thanks"},
        ]
    },
]


@pytest.fixture
def subset(tmp_path: Path) -> pa.Table:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS))
    rows, bad = read_file(path)
    assert not bad
    extra = [
        {**row, "row_index": 9 - i, "num_duplicates": 0, "rank": i + 1, "gain": 1 / (i + 1)}
        for i, row in enumerate(rows)
    ]
    fields = [*schemas.EXAMPLES, pa.field("rank", pa.int32()), pa.field("gain", pa.float64())]
    return pa.Table.from_pylist(extra, schema=pa.schema(fields))


def _export(*tables: pa.Table) -> tuple[dict[str, bytes], dict[str, int]]:
    files: dict[str, io.BytesIO] = {}

    def open_output(name: str) -> io.BytesIO:
        return files.setdefault(name, io.BytesIO())

    counts = write_exports(iter(tables), open_output)
    return {name: file.getvalue() for name, file in files.items()}, counts


def _lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.decode().split("\n") if line]


def test_every_file_counts_its_rows(subset: pa.Table) -> None:
    _, counts = _export(subset.slice(0, 1), subset.slice(1))
    assert counts == {
        "subset.jsonl": 4,
        "subset.parquet": 4,
        "alpaca.json": 4,
        "messages.jsonl": 4,
        "sharegpt.json": 4,
        "dataset/data/train.parquet": 4,
        "ids.txt": 4,
        "dataset_info.json": 3,
    }


def test_only_the_formats_asked_for_are_written(subset: pa.Table) -> None:
    files: dict[str, io.BytesIO] = {}
    write_exports([subset], lambda name: files.setdefault(name, io.BytesIO()), ["ids"])
    assert set(files) == {"subset.jsonl", "subset.parquet", "ids.txt"}


def test_ids_stand_one_a_line_by_rank(subset: pa.Table) -> None:
    files, _ = _export(subset.slice(0, 3), subset.slice(3))
    assert files["ids.txt"].decode().splitlines() == subset["example_id"].to_pylist()


def test_sharegpt_keeps_every_role_by_its_own_name(subset: pa.Table) -> None:
    files, _ = _export(subset)
    rows = json.loads(files["sharegpt.json"])
    assert rows[0]["conversations"] == [
        {"from": "human", "value": "Add. 1 2"},
        {"from": "gpt", "value": "3"},
    ]
    assert rows[3]["conversations"] == RECORDS[3]["conversations"][:5]


def test_sharegpt_keeps_the_tools_of_its_source(tmp_path: Path) -> None:
    record = {"conversations": RECORDS[3]["conversations"], "tools": '[{"name": "weather"}]'}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    rows, _ = read_file(tmp_path / "a.jsonl")
    assert sharegpt_record(dict(rows[0]))["tools"] == record["tools"]


def test_datasets_loads_the_folder_with_records_untouched(
    subset: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    files, _ = _export(subset)
    path = tmp_path / DATASET_PARQUET
    path.parent.mkdir(parents=True)
    path.write_bytes(files[DATASET_PARQUET])
    found = load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "c"))
    assert [json.loads(record) for record in found["record"]] == RECORDS
    assert found[3]["messages"][-1] == {"role": "assistant", "content": "No."}
    assert found["rank"][:] == [1, 2, 3, 4]


def test_the_record_is_untouched_but_for_one_key(subset: pa.Table) -> None:
    files, _ = _export(subset)
    keys = ["_nncift", "_nncift", "_nncift_2", "_nncift"]
    for i, (row, key) in enumerate(zip(_lines(files["subset.jsonl"]), keys, strict=True)):
        added = row.pop(key)
        assert row == RECORDS[i]
        assert list(row) == list(RECORDS[i])
        assert (added["rank"], added["line"], added["gain"]) == (i + 1, i + 1, 1 / (i + 1))
        assert added["source"].endswith("corpus.jsonl")
        assert added["example_id"] == subset.column("example_id")[i].as_py()


def test_the_table_holds_the_same_rows(subset: pa.Table) -> None:
    files, _ = _export(subset.slice(0, 3), subset.slice(3))
    table = pq.read_table(io.BytesIO(files["subset.parquet"]))
    assert table.schema.equals(SUBSET)
    assert table.equals(subset.select(SUBSET.names).cast(SUBSET))


def test_alpaca_rows_keep_their_split_and_others_are_one_instruction(subset: pa.Table) -> None:
    files, _ = _export(subset.slice(0, 2), subset.slice(2))
    rows = json.loads(files["alpaca.json"])
    assert rows[0] == {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert rows[1] == {"instruction": "p\u2028\u00e9", "input": "", "output": "c"}
    assert rows[3]["output"] == "No."


def test_messages_keep_the_turns_up_to_the_response(subset: pa.Table) -> None:
    files, _ = _export(subset)
    rows = [row["messages"] for row in _lines(files["messages.jsonl"])]
    assert rows[0] == [
        {"role": "user", "content": "Add. 1 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert [turn["role"] for turn in rows[3]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert rows[3][-1]["content"] == "No."


def test_dataset_info_names_files_and_tags_that_are_there(subset: pa.Table) -> None:
    files, _ = _export(subset)
    info = json.loads(files["dataset_info.json"])
    assert {entry["file_name"] for entry in info.values()} <= set(files)
    tags = info["nncift_messages"]["tags"]
    turns = [turn for row in _lines(files["messages.jsonl"]) for turn in row["messages"]]
    assert {turn[tags["role_tag"]] for turn in turns} <= set(tags.values())
    assert all(isinstance(turn[tags["content_tag"]], str) for turn in turns)


def test_pandas_reads_what_was_written(subset: pa.Table) -> None:
    files, _ = _export(subset)
    frame = pd.read_json(io.BytesIO(files["messages.jsonl"]), lines=True)
    assert len(frame) == len(RECORDS)
    assert list(pd.read_json(io.BytesIO(files["alpaca.json"])).columns) == [
        "instruction",
        "input",
        "output",
    ]


def test_an_empty_subset_gives_valid_files(subset: pa.Table) -> None:
    files, counts = _export(subset.slice(0, 0))
    assert json.loads(files["alpaca.json"]) == []
    assert files["subset.jsonl"] == b""
    assert pq.read_table(io.BytesIO(files["subset.parquet"])).num_rows == 0
    assert counts["subset.jsonl"] == 0


def test_exports_can_be_read_in_again(subset: pa.Table, tmp_path: Path) -> None:
    files, _ = _export(subset)
    texts = subset.select(["prompt", "response"]).to_pylist()
    for name in ("subset.jsonl", "subset.parquet"):
        (tmp_path / name).write_bytes(files[name])
        rows, bad = read_file(tmp_path / name)
        assert [{key: row[key] for key in ("prompt", "response")} for row in rows] == texts
        assert not bad
