"""Subtasks of targets, read from their original records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nncift_ray.corpus import examples as subtasks
from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import DataError
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageManifest, StageOutput
from nncift_ray.runtime.schemas import EXAMPLES


def make_examples(folder: Path, records: list[object]) -> StageOutput:
    """Write targets with these records, as a finished stage would."""
    row = {"prompt": "p", "response": "r", "source": "t.jsonl", "layout": "auto"}
    rows = [
        {**row, "row_index": i, "example_id": f"{i:032x}", "record": json.dumps(record),
         "line": i + 1, "num_duplicates": 0}
        for i, record in enumerate(records)
    ]  # fmt: skip
    sink = Sink(Location.of(str(folder)), "deduplicate", 0, 1, lambda table, schema: None)
    sink.write_rows("targets", rows, EXAMPLES)
    manifest = StageManifest.model_construct(stage="deduplicate", shards=(sink.finish(0.0),))
    return StageOutput(Location.of(str(folder)), manifest)


def test_subtasks_are_sorted_by_name_and_name_each_target(tmp_path: Path) -> None:
    records: list[object] = [{"task": "b"}, {"task": "a"}, {"task": 3}, {"task": "b"}]
    found = read_subtasks(make_examples(tmp_path, records), "task")
    assert found.names == ("3", "a", "b")
    assert found.group_I.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("record", [{"other": 1}, {"task": None}, ["task"]])
def test_a_missing_field_names_key_row_file_and_line(tmp_path: Path, record: object) -> None:
    examples = make_examples(tmp_path, [{"task": "a"}, record])
    with pytest.raises(DataError, match=r"data\.subtask_by: target 1 \(t\.jsonl:2\).*'task'"):
        read_subtasks(examples, "task")


def test_a_field_that_is_an_id_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtasks, "MAX_SUBTASKS", 3)
    examples = make_examples(tmp_path, [{"id": i} for i in range(4)])
    with pytest.raises(DataError, match="4 values in 4 targets, more than 3"):
        read_subtasks(examples, "id")


def test_one_subtask_has_no_name() -> None:
    one = Subtasks.one(3)
    assert one.names == (None,)
    assert one.group_I.tolist() == [0, 0, 0]
