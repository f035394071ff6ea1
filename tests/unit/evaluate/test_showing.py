from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from nncift_ray.evaluation.ask import TestSet, draw_test_rows
from nncift_ray.evaluation.methods import Cell, SubsetKey
from nncift_ray.evaluation.results import ROWS_SHOWN, CellOutputs, collect_answers
from nncift_ray.runtime import schemas
from nncift_ray.runtime import schemas as evaluation_schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageManifest, StageOutput

NUM_ROWS, SEED, SHOWN = 20, 5, ROWS_SHOWN


def write_output(folder: Path, name: str, table: pa.Table) -> StageOutput:
    """Write a table as the output of a stage."""
    location = Location.of(str(folder))
    sink = Sink(location, name, 0, 1, lambda table_name, schema: None)
    sink.write(name, table)
    record = sink.finish(0.0)
    manifest = StageManifest(
        stage=name, version=1, fingerprint=name, settings={}, inputs={}, seed=0, num_items=1,
        num_failures=0, wall_seconds=0, worker_seconds=0, num_cpus=1, num_gpus=0,
        finished_at="", environment={}, shards=(record,),
    )  # fmt: skip
    return StageOutput(location, manifest)


def write_test(folder: Path) -> StageOutput:
    rows = [
        {"row_index": i, "example_id": f"{i:032x}", "prompt": f"<b>{i}</b>", "response": f"é {i}",
         "record": "{}", "source": "t.jsonl", "line": i, "layout": "auto", "num_duplicates": 0}
        for i in range(NUM_ROWS)
    ]  # fmt: skip
    return write_output(folder, "targets", pa.Table.from_pylist(rows, schemas.EXAMPLES))


def write_responses(folder: Path, rows: list[int], text: str = "answer") -> StageOutput:
    made = [
        {"row_index": i, "example_id": f"{i:032x}", "response": f"{text} {i}",
         "num_prompt_tokens": 1, "num_tokens": 1, "finish_reason": "stop"}
        for i in rows
    ]  # fmt: skip
    return write_output(
        folder, "responses", pa.Table.from_pylist(made, evaluation_schemas.RESPONSES)
    )


def cell_of(method: str) -> Cell:
    return Cell(SubsetKey(method, 0, 0.1), "tuned", "gsm8k")


def show(folder: Path, method: str, result: CellOutputs) -> list[dict[str, Any]]:
    answered = {"responses": write_responses(folder / "other", list(range(NUM_ROWS)))}
    results = {cell_of("initial"): answered, cell_of(method): result}
    tests = {"gsm8k": TestSet("gsm8k", write_test(folder / "test"))}
    table = collect_answers(results, tests, SEED, 0.1)
    assert table.schema.equals(evaluation_schemas.ANSWERS)
    return [row for row in table.to_pylist() if row["method"] == method]


def test_shown_rows_are_among_the_answered_ones_and_not_chosen(tmp_path: Path) -> None:
    answered = draw_test_rows(NUM_ROWS, 8, SEED).tolist()
    responses = write_responses(tmp_path / "a", answered)
    rows = show(tmp_path, "random", {"responses": responses})
    assert [row["row_index"] for row in rows] == draw_test_rows(NUM_ROWS, SHOWN, SEED).tolist()
    for row in rows:
        assert row["response"] == f"answer {row['row_index']}"
        assert row["prompt"] == f"<b>{row['row_index']}</b>"
        assert row["reference"] == f"é {row['row_index']}"


def test_an_answer_that_is_not_there_is_null_and_has_a_row(tmp_path: Path) -> None:
    rows = show(tmp_path, "delift", {})
    assert [row["response"] for row in rows] == [None] * SHOWN
    assert [row["verdict"] for row in rows] == [None] * SHOWN


def test_the_judges_score_stands_beside_the_answer_and_none_where_unreadable(
    tmp_path: Path,
) -> None:
    shown = draw_test_rows(NUM_ROWS, SHOWN, SEED).tolist()
    made = [
        {"row_index": i, "example_id": f"{i:032x}", "score": score, "verdict": "text"}
        for i, score in zip(shown, (4, None, 1), strict=True)
    ]
    verdicts = write_output(
        tmp_path / "v", "verdicts", pa.Table.from_pylist(made, evaluation_schemas.VERDICTS)
    )
    responses = write_responses(tmp_path / "a", shown)
    rows = show(tmp_path, "random", {"responses": responses, "verdicts": verdicts})
    assert [row["verdict"] for row in rows] == [4, None, 1]
