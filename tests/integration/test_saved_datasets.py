"""Data sets saved and read by the real ``datasets`` library."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from nncift_ray.corpus.export import write_exports
from nncift_ray.corpus.ingest import Row, expand_sources, read_examples
from nncift_ray.errors import DataError
from nncift_ray.report.page import render_export_readme
from nncift_ray.runtime import schemas

datasets = pytest.importorskip("datasets")

NUM_ROWS = 2_500


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _dataset(num_rows: int = NUM_ROWS) -> datasets.Dataset:
    rows = [{"instruction": f"do {i}", "input": "", "output": f"done {i}"} for i in range(num_rows)]
    return datasets.Dataset.from_list(rows)


def _read(pattern: Path) -> list[Row]:
    rows: list[Row] = []
    for source in expand_sources([str(pattern)]):
        for row in read_examples(source, "candidate"):
            assert "reason" not in row
            rows.append(row)
    return rows


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_saved_dataset_is_read_whole_and_in_order(tmp_path: Path, num_shards: int) -> None:
    _dataset().save_to_disk(str(tmp_path / "ds"), num_shards=num_shards)
    rows = _read(tmp_path / "ds")
    assert [row["prompt"] for row in rows] == [f"do {i}" for i in range(NUM_ROWS)]


def test_a_shuffled_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    shuffled = _dataset(100).shuffle(seed=0)
    shuffled.save_to_disk(str(tmp_path / "ds"))
    assert [row["prompt"] for row in _read(tmp_path / "ds")] == shuffled["instruction"][:]


def test_of_several_splits_one_has_to_be_named(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": _dataset(30), "test": _dataset(10)})
    splits.save_to_disk(str(tmp_path / "ds"))
    with pytest.raises(DataError, match="several splits"):
        expand_sources([str(tmp_path / "ds")])
    assert len(_read(tmp_path / "ds" / "test")) == 10


def test_of_a_cache_folder_one_split_is_named_and_what_map_keeps_is_left_out(
    tmp_path: Path,
) -> None:
    files: dict[str, str] = {}
    for split, number in [("train", 30), ("test", 10)]:
        files[split] = str(tmp_path / f"{split}.jsonl")
        _dataset(number).to_json(files[split])
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    (folder,) = {Path(file["filename"]).parent for file in loaded["train"].cache_files}
    loaded["train"].map(lambda row: {"output": f"{row['output']}!"})
    assert list(folder.glob("cache-*.arrow"))
    for pattern in (folder, tmp_path / "cache", folder / "*.arrow"):
        with pytest.raises(DataError, match=r"several splits \(test, train\)"):
            expand_sources([str(pattern)])
    assert [row["response"] for row in _read(folder / "json-train*")] == [
        f"done {number}" for number in range(30)
    ]


def test_exports_load_with_datasets(tmp_path: Path) -> None:
    _dataset(20).save_to_disk(str(tmp_path / "ds"))
    extra = [
        {**row, "row_index": i, "num_duplicates": 0, "rank": i + 1, "gain": 0.5}
        for i, row in enumerate(_read(tmp_path / "ds"))
    ]
    fields = [*schemas.EXAMPLES, pa.field("rank", pa.int32()), pa.field("gain", pa.float64())]
    files: dict[str, io.BytesIO] = {}
    table = pa.Table.from_pylist(extra, schema=pa.schema(fields))
    write_exports(lambda: [table], lambda name: files.setdefault(name, io.BytesIO()))
    files["README.md"] = io.BytesIO(render_export_readme("1f", "subset.parquet").encode())
    export = tmp_path / "export"
    for name, content in files.items():
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        (export / name).write_bytes(content.getvalue())
    for name in ("subset.jsonl", "messages.jsonl", "alpaca.json"):
        loaded = datasets.load_dataset("json", data_files=str(export / name), split="train")
        assert loaded.num_rows == 20
    assert datasets.load_dataset(str(export), split="train").num_rows == 20
    turns = json.loads(files["messages.jsonl"].getvalue().split(b"\n")[0])["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
