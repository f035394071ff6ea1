"""Some answers for people to look at: the same held-out rows, answered after each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.pipeline.evaluation.cells import Cell
from nncift_ray.pipeline.evaluation.scores import CellResult
from nncift_ray.storage.evaluation_schemas import ANSWERS, RESPONSES, VERDICTS
from nncift_ray.storage.output import StageOutput

ROWS_SHOWN = 3  # of each test set
MAX_CHARS = 4_000  # of a text that is kept to be shown


def collect_answers(
    results: Mapping[Cell, CellResult],
    tests: Mapping[str, StageOutput],
    seed: int,
    num_rows: int = ROWS_SHOWN,
) -> pa.Table:
    """Gather the answers of all cells to a few rows of each test set.

    Args:
        results: Of the cells to show, e.g. those of one size; of random, one draw.
        tests: Test sets by name: their ``targets`` are the rows.
        seed: Of the draw of the rows that were answered. A smaller draw is part of it, so those
            shown are among them, and nobody chose them by their answers.
        num_rows: Rows of each test set.

    Returns:
        ANSWERS; texts are cut to ``MAX_CHARS`` characters. A cell that has no answer to a row has
        a row with a null answer.
    """
    rows: list[dict[str, Any]] = []
    for name, test in tests.items():
        shown = draw_test_rows(test.num_rows("targets"), num_rows, seed)
        texts = test.take_rows("targets", shown, ["prompt", "response"]).to_pylist()
        for cell, result in results.items():
            if cell.test == name:
                rows += _answers(cell, result, shown.tolist(), texts)
    return pa.Table.from_pylist(rows, ANSWERS)


def _answers(
    cell: Cell, result: CellResult, shown: Sequence[int], texts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    responses = _column(result.responses, "responses", "response", RESPONSES)
    verdicts = _column(result.verdicts, "verdicts", "score", VERDICTS)
    subset = cell.subset
    return [
        {
            "test": cell.test,
            "row_index": row,
            "prompt": text["prompt"][:MAX_CHARS],
            "reference": text["response"][:MAX_CHARS],
            "method": subset.method,
            "budget": subset.budget,
            "seed": subset.seed,
            "mode": cell.mode,
            "response": responses[row][:MAX_CHARS] if row in responses else None,
            "verdict": verdicts.get(row),
        }
        for row, text in zip(shown, texts, strict=True)
    ]


def _column(
    output: StageOutput | None, table: str, column: str, schema: pa.Schema
) -> dict[int, Any]:
    """Return a column of a stage's table by row of the test set."""
    if output is None:
        return {}
    found = output.read(table, ["row_index", column], schema)
    return {row["row_index"]: row[column] for row in found.to_pylist()}
