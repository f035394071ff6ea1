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
import yaml

from nncift_ray.corpus.export import DATASET_PARQUET, SUBSET, write_exports
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
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"at": "Rome"}}'},
            {"from": "observation", "value": "dry"},
            {"from": "gpt", "value": "No."},
            {"from": "human", "value": "Thanks"},
        ]
    },
]


@pytest.fixture
def subset(tmp_path: Path) -> pa.Table:
    return _picked(tmp_path, RECORDS)


def _picked(folder: Path, records: list[dict[str, Any]]) -> pa.Table:
    """Read records as a corpus file and return them as a ranking in their order."""
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    rows, bad = read_file(path)
    assert not bad
    extra = [
        {
            **_columns(row),
            "row_index": 9 - i,
            "num_duplicates": 0,
            "rank": i + 1,
            "gain": 1 / (i + 1),
        }
        for i, row in enumerate(rows)
    ]
    fields = [*schemas.EXAMPLES, pa.field("rank", pa.int32()), pa.field("gain", pa.float64())]
    return pa.Table.from_pylist(extra, schema=pa.schema(fields))


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in schemas.EXAMPLES.names}


def _export(*tables: pa.Table) -> tuple[dict[str, bytes], dict[str, int]]:
    files: dict[str, io.BytesIO] = {}

    def open_output(name: str) -> io.BytesIO:
        return files.setdefault(name, io.BytesIO())

    counts, _ = write_exports(lambda: tables, open_output)
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
        "axolotl.yaml": 1,
    }


def test_only_the_formats_asked_for_are_written(subset: pa.Table) -> None:
    files: dict[str, io.BytesIO] = {}
    write_exports(lambda: [subset], lambda name: files.setdefault(name, io.BytesIO()), ["ids"])
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
    assert [json.loads(own["record"]) for own in found["nncift"]] == RECORDS
    assert found[3]["messages"][-1] == {"role": "assistant", "content": "No."}
    assert found[3]["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"at": "Rome"}
    assert [own["rank"] for own in found["nncift"]] == [1, 2, 3, 4]


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


def test_dataset_info_names_files_and_columns_that_are_there(subset: pa.Table) -> None:
    files, _ = _export(subset)
    info = json.loads(files["dataset_info.json"])
    for entry in (info["nncift_alpaca"], info["nncift_sharegpt"]):
        rows = json.loads(files[entry["file_name"]])
        assert set(entry["columns"].values()) == {key for row in rows for key in row}


def test_the_weights_of_sources_are_shares_of_picks_against_candidates(subset: pa.Table) -> None:
    files: dict[str, io.BytesIO] = {}
    sources = pa.array(["a", "a", "a", "b"])
    table = subset.set_column(subset.schema.get_field_index("source"), "source", sources)
    write_exports(
        lambda: [table],
        lambda name: files.setdefault(name, io.BytesIO()),
        candidates={"a": 10, "b": 10, "c": 20},
    )
    weights = json.loads(files["dataset_info.json"].getvalue())["nncift_sources"]
    # 3 of 4 picks, from a quarter of the candidates
    assert weights["a"] == {"candidates": 10, "picks": 3, "share": 0.75, "repeat": 3.0}
    assert (weights["b"]["repeat"], weights["c"]["repeat"]) == (1.0, 0.0)
    assert yaml.safe_load(files["axolotl.yaml"].getvalue())["nncift_sources"] == weights


def test_pandas_reads_what_was_written(subset: pa.Table) -> None:
    files, _ = _export(subset)
    frame = pd.read_json(io.BytesIO(files["messages.jsonl"]), lines=True)
    assert len(frame) == len(RECORDS)
    assert list(pd.read_json(io.BytesIO(files["alpaca.json"])).columns) == [
        "instruction",
        "input",
        "output",
    ]


def test_a_source_in_a_forms_own_layout_leaves_as_it_came(tmp_path: Path) -> None:
    records = [
        {
            "id": at,
            "instruction": "a\u00e9",
            "input": "",
            "output": "b",
            "system": "s",
            "history": h,
        }
        for at, h in enumerate([[], [["c", "d"]]])
    ]
    files, _ = _export(_picked(tmp_path, records))
    lines = (tmp_path / "corpus.jsonl").read_text().split("\n")
    assert files["alpaca.json"].decode() == "[\n" + ",\n".join(lines) + "\n]\n"
    assert files["subset.jsonl"].decode().startswith(lines[0].removesuffix("}"))


def test_other_fields_leave_a_mixture_whose_readers_need_one_type_a_column(
    tmp_path: Path, subset: pa.Table
) -> None:
    own = {"id": "x", "messages": [{"role": "user", "content": "q", "weight": 1}]}
    own["messages"].append({"role": "assistant", "content": "a"})
    files, _ = _export(subset.slice(1, 1), _picked(tmp_path, [own]))
    line = files["messages.jsonl"].decode().split("\n")[1]
    assert line == json.dumps({"messages": own["messages"]})


def test_every_turn_of_the_assistant_keeps_calls_reasoning_and_results(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    other = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    record = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "t", "thinking": "r", "tool_calls": [call, other]},
            {"role": "tool", "content": "one", "tool_call_id": "c1"},
            {"role": "tool", "content": "two", "tool_call_id": "c2"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    files, _ = _export(_picked(tmp_path, [record]))
    (row,) = _lines(files["messages.jsonl"])
    assert row["messages"][1]["reasoning_content"] == "r"
    assert row["messages"][1]["tool_calls"] == [call, other]
    assert row["messages"][2] == record["messages"][2]
    assert row["tools"] == record["tools"]
    (shared,) = json.loads(files["sharegpt.json"])
    turns = [(turn["from"], turn["value"]) for turn in shared["conversations"]]
    calls = '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
    assert turns[1] == ("function_call", f"<think>\nr\n</think>\n\nt<tool_call>{calls}</tool_call>")
    assert turns[2] == ("observation", "one\n</tool_response>\n<tool_response>\ntwo")
    assert json.loads(shared["tools"]) == record["tools"]


def test_calls_without_ids_get_the_same_ones_as_their_results(subset: pa.Table) -> None:
    files, _ = _export(subset)
    turns = _lines(files["messages.jsonl"])[3]["messages"]
    assert turns[2]["tool_calls"][0]["id"] == turns[3]["tool_call_id"]


def test_alpaca_has_earlier_turns_as_history(tmp_path: Path) -> None:
    roles = ["system", "user", "assistant", "user", "assistant"]
    turns = [{"role": role, "content": str(at)} for at, role in enumerate(roles)]
    files, _ = _export(_picked(tmp_path, [{"messages": turns}]))
    (row,) = json.loads(files["alpaca.json"])
    plain = {"instruction": "3", "input": "", "output": "4"}
    assert row == plain | {"system": "0", "history": [["1", "2"]]}


def test_turns_that_do_not_alternate_are_joined_so_that_no_row_is_dropped(tmp_path: Path) -> None:
    roles = ["assistant", "user", "user", "assistant", "assistant"]
    turns = [{"role": role, "content": str(at)} for at, role in enumerate(roles)]
    table = _picked(tmp_path, [{"messages": turns}])
    files: dict[str, io.BytesIO] = {}
    _, lost = write_exports(lambda: [table], lambda name: files.setdefault(name, io.BytesIO()))
    (row,) = json.loads(files["sharegpt.json"].getvalue())
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert [turn["value"] for turn in row["conversations"]] == ["", "0", "1\n\n2", "3\n\n4"]
    assert "sharegpt.json: turns of one side in a row are joined to one (1 of 1 rows)" in lost


def test_a_preference_pair_is_written_for_dpo(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "q"}
    pair = {
        name: [asked, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")
    }
    table = _picked(tmp_path, [pair])
    files: dict[str, io.BytesIO] = {}
    _, lost = write_exports(lambda: [table], lambda name: files.setdefault(name, io.BytesIO()))
    (row,) = json.loads(files["preference.json"].getvalue())
    assert row == {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "chosen"},
        "rejected": {"from": "gpt", "value": "rejected"},
    }
    own = pq.read_table(io.BytesIO(files[DATASET_PARQUET].getvalue())).to_pylist()
    assert (own[0]["chosen"], own[0]["rejected"]) == (pair["chosen"], pair["rejected"])
    assert any(line.startswith("alpaca.json: the rejected response") for line in lost)


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
