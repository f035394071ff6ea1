"""Test rows that are among the candidates are left out, counted and named; others stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.corpus.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.errors import DataError
from nncift_ray.evaluation.hold_out import LEFT_OUT, HoldOutStage, prompt_key
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage


def bring(stage: Stage, folder: Path) -> StageOutput:
    run_dir = Location.of(str(folder / "run"))
    return run_stage(stage, run_dir, execute=execute_here, reporter=SilentReporter())


def read(folder: Path, **rows_of_role: list[tuple[str, str]]) -> StageOutput:
    """Ingest and deduplicate rows (prompt, answer) of the roles given."""
    files: dict[str, list[str]] = {}
    for role, rows in rows_of_role.items():
        path = folder / f"{role}-{len(list(folder.iterdir()))}.jsonl"
        records = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows]
        path.write_text("\n".join(records) + "\n")
        files[role] = [str(path)]
    sources = find_sources(files.get("candidates", []), files.get("targets", []))
    return bring(DeduplicateStage(bring(IngestStage(sources), folder)), folder)


def hold_out(folder: Path, tests: list[tuple[str, str]], **corpus: Any) -> StageOutput:
    return bring(HoldOutStage(read(folder, targets=tests), read(folder, **corpus), "mine"), folder)


def test_copies_and_known_prompts_are_left_out_with_their_reason(tmp_path: Path) -> None:
    candidates = [("What is 1 + 1?", "2"), ("Name  a colour.\n", "Red"), ("Sing.", "La")]
    tests = [
        ("new one", "x"),
        ("What is 1 + 1?", "2"),  # a candidate
        ("new two", "y"),
        ("name a COLOUR.", "Blue"),  # a candidate's prompt, in other case and spacing
    ]
    output = hold_out(tmp_path, tests, candidates=candidates)
    kept = output.read("targets").to_pylist()
    assert [(row["row_index"], row["prompt"]) for row in kept] == [(0, "new one"), (1, "new two")]
    left = output.read(LEFT_OUT).to_pylist()
    assert [(row["line"], row["reason"]) for row in left] == [
        (2, "same_example"), (4, "same_prompt"),
    ]  # fmt: skip
    facts = output.manifest.facts()
    assert (facts["num_same_example"], facts["num_same_prompt"]) == (1, 1)


def test_rows_among_the_targets_stay_and_are_counted(tmp_path: Path) -> None:
    output = hold_out(
        tmp_path,
        [("seen", "a"), ("seen by prompt", "b"), ("new", "c")],
        candidates=[("other", "d")],
        targets=[("seen", "a"), ("seen by prompt", "z")],
    )
    assert output.num_rows("targets") == 3
    assert output.manifest.facts()["num_among_targets"] == 2


def test_a_test_set_without_a_row_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    rows = [("a", "b"), ("c", "d")]
    with pytest.raises(DataError, match="evaluation.tests.mine: each of its 2 rows"):
        hold_out(tmp_path, rows, candidates=rows)


def test_prompts_of_other_words_have_other_keys() -> None:
    assert prompt_key("Add 1 and 2.") != prompt_key("Add 12.")
    assert prompt_key("Add 1 and 2.") == prompt_key("add 1\tand\n2. ")
