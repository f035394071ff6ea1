"""Ingest and deduplication by the stage contract, run in this process with no Ray."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.corpus.examples import DeduplicateStage, find_first_copies
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import Reporter


class _Silent(Reporter):
    """Reports nothing."""


def _write(path: Path, *pairs: tuple[str, str]) -> str:
    rows = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in pairs]
    path.write_text("\n".join(rows))
    return str(path)


def _run(run_dir: Path, stage: IngestStage | DeduplicateStage) -> StageOutput:
    return run_stage(stage, Location.of(str(run_dir)), execute=execute_here, reporter=_Silent())


def _ingest(run_dir: Path, candidates: list[str], targets: list[str]) -> StageOutput:
    return _run(run_dir, IngestStage(find_sources(candidates, targets)))


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[str], list[str]]:
    first = _write(tmp_path / "a.jsonl", ("p1", "r1"), ("p2", "r2"), ("p1", "r1 "), ("", "x"))
    second = _write(tmp_path / "b.jsonl", ("p3", "r3"), ("p1\r\n", "r1"), ("p2", "other"))
    target = _write(tmp_path / "t.jsonl", ("t1", "r"), ("p3", "r3"), ("t1", "r"))
    return [first, second], [target]


def test_records_keep_files_lines_and_roles(
    tmp_path: Path, corpus: tuple[list[str], list[str]]
) -> None:
    output = _ingest(tmp_path / "run", *corpus)
    rows = output.read("records").to_pylist()
    assert [(Path(row["source"]).name, row["line"], row["role"]) for row in rows] == [
        *(("a.jsonl", line, "candidate") for line in (1, 2, 3)),
        *(("b.jsonl", line, "candidate") for line in (1, 2, 3)),
        *(("t.jsonl", line, "target") for line in (1, 2, 3)),
    ]
    (error,) = output.read("errors").to_pylist()
    assert (error["source"], error["line"], error["reason"]) == (corpus[0][0], 4, "no_prompt")


def test_the_layout_found_is_recorded_by_file(
    tmp_path: Path, corpus: tuple[list[str], list[str]]
) -> None:
    facts = _ingest(tmp_path / "run", *corpus).manifest.facts()
    assert facts[f"candidate {corpus[0][0]}"] == {
        "layouts": {"prompt_completion": 3},
        "rows": 3,
        "errors": 1,
    }


def test_the_first_of_equal_examples_stays_and_counts_the_others(
    tmp_path: Path, corpus: tuple[list[str], list[str]]
) -> None:
    output = _run(tmp_path / "run", DeduplicateStage(_ingest(tmp_path / "run", *corpus)))
    candidates = output.read("candidates")
    assert candidates.schema.equals(schemas.EXAMPLES)
    columns = ["row_index", "prompt", "response", "num_duplicates"]
    assert [tuple(row[name] for name in columns) for row in candidates.to_pylist()] == [
        (0, "p1", "r1", 2),
        (1, "p2", "r2", 0),
        (2, "p3", "r3", 0),
        (3, "p2", "other", 0),
    ]
    targets = output.read("targets").to_pylist()
    assert [(row["row_index"], row["prompt"]) for row in targets] == [(0, "t1"), (1, "p3")]
    assert output.manifest.facts() == {
        "num_candidates": 4,
        "num_duplicate_candidates": 2,
        "num_targets": 2,
        "num_duplicate_targets": 1,
        "num_targets_among_candidates": 1,
    }


def test_copies_across_files_and_batches_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 6_000, 12_000)
    files = [
        _write(tmp_path / f"{part}.jsonl", *((f"p{n}", "r") for n in numbers[part::3]))
        for part in range(3)
    ]
    output = _run(tmp_path / "run", DeduplicateStage(_ingest(tmp_path / "run", files, [])))
    order = [n for part in range(3) for n in numbers[part::3].tolist()]
    firsts = list(dict.fromkeys(order))
    table = output.read("candidates")
    assert table.column("prompt").to_pylist() == [f"p{n}" for n in firsts]
    assert table.column("row_index").to_pylist() == list(range(len(firsts)))
    assert table.column("num_duplicates").to_pylist() == [order.count(n) - 1 for n in firsts]


def test_first_copies_are_told_by_both_halves_of_an_id() -> None:
    pairs = [(1, 1), (1, 2), (2, 1), (1, 1), (1, 2), (1, 1)]
    ids = pa.array([bytes(7) + bytes([a]) + bytes(7) + bytes([b]) for a, b in pairs], pa.binary(16))
    assert find_first_copies(ids).tolist() == [2, 1, 0, -1, -1, -1]
    assert find_first_copies(ids[:0]).tolist() == []


def test_a_role_without_a_usable_row_stops_with_the_reasons(tmp_path: Path) -> None:
    good, empty = _write(tmp_path / "a.jsonl", ("p", "r")), tmp_path / "t.jsonl"
    empty.write_text('{"prompt": "a", "response": ""}\n')
    ingest = _ingest(tmp_path / "run", [good], [str(empty)])
    with pytest.raises(
        DataError, match=r"data\.targets, 1 .*\n.*t\.jsonl:1: the response is empty"
    ):
        _run(tmp_path / "run", DeduplicateStage(ingest))


def test_the_same_content_is_not_read_twice_and_changed_content_is(
    tmp_path: Path, corpus: tuple[list[str], list[str]]
) -> None:
    first = _ingest(tmp_path / "run", *corpus)
    _write(tmp_path / "t.jsonl", ("t1", "r"), ("p3", "r3"), ("t1", "r"))
    assert _ingest(tmp_path / "run", *corpus).fingerprint == first.fingerprint
    _write(tmp_path / "t.jsonl", ("t2", "r"))
    assert _ingest(tmp_path / "run", *corpus).fingerprint != first.fingerprint


def test_the_stage_can_be_sent_to_actors(
    tmp_path: Path, corpus: tuple[list[str], list[str]]
) -> None:
    stage = IngestStage(find_sources(*corpus), DataConfig(candidates=("a",), max_chars=9_000))
    copy: IngestStage = pickle.loads(pickle.dumps(stage))  # noqa: S301  (our own bytes)
    assert copy.settings() == stage.settings()
    assert copy.item_weight(0, 3) == 3
    assert _run(tmp_path / "run", copy).num_rows("records") == 9
