"""Every value of an evaluation in one long table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.config import EvaluationConfig
from nncift_ray.pipeline.evaluation.cells import ICL, Cell
from nncift_ray.pipeline.evaluation.held_out import TestSet
from nncift_ray.storage import evaluation_schemas as schemas
from nncift_ray.storage.output import StageOutput

#: A metric of the recipe, and the names of its values. ROUGE comes in two.
NAMES_OF_METRIC: Mapping[str, tuple[str, ...]] = {
    "nll": ("nll",),
    "rouge": ("rouge1", "rougeL"),
    "bge": ("bge",),
    "exact_match": ("exact_match",),
    "judge": ("judge",),
}
#: Metrics of written answers: without a model, by the embedder, by a judge.
BY_RULE, BY_MODEL, BY_JUDGE = ("rouge", "exact_match"), ("bge",), ("judge",)
GRADED = (*BY_RULE, *BY_MODEL)
ANSWERED = (*GRADED, *BY_JUDGE)


@dataclass(frozen=True)
class CellResult:
    """What a cell left behind; nothing where it failed, or was not asked for."""

    likelihoods: StageOutput | None = None
    responses: StageOutput | None = None
    grades: tuple[StageOutput, ...] = ()
    verdicts: StageOutput | None = None


def nll_rows(cell: Cell, test: TestSet, evaluation: EvaluationConfig) -> NDArray[np.int64]:
    """Return the rows whose likelihood is measured: prompts of the mode icl are long, so fewer."""
    most = evaluation.nll_max_rows if cell.mode == ICL else None
    return test.rows(most, evaluation.generation.seed)


def answered_rows(test: TestSet, evaluation: EvaluationConfig) -> NDArray[np.int64]:
    """Return the rows that answers are written for."""
    return test.rows(evaluation.generation.max_rows, evaluation.generation.seed)


def cell_scores(
    cell: Cell,
    num_examples: int,
    test: TestSet,
    evaluation: EvaluationConfig,
    result: CellResult,
) -> pa.Table:
    """Return the values of a cell; one that failed, or is not there, is null.

    A row that a metric does not apply to (an answer with no number in it, for exact match) has no
    value and no row.
    """
    tables: list[pa.Table] = []
    for metric in evaluation.metrics:
        rows = answered_rows(test, evaluation)
        if metric == "nll":
            rows = nll_rows(cell, test, evaluation)
        for name in NAMES_OF_METRIC[metric]:
            values, applies = _values(metric, name, rows, result)
            tables.append(_table(cell, num_examples, test, name, rows[applies], values[applies]))
    return pa.concat_tables(tables) if tables else schemas.SCORES.empty_table()


def _values(
    metric: str, name: str, rows: NDArray[np.int64], result: CellResult
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the value of each row, NaN where there is none, and whether there could be one."""
    values = np.full(len(rows), np.nan)
    applies = np.ones(len(rows), dtype=bool)
    found: dict[int, float | None] = {}
    if metric == "nll" and result.likelihoods is not None:
        found = _read(result.likelihoods, "likelihoods", "nll")
    elif metric in BY_JUDGE and result.verdicts is not None:
        found = _read(result.verdicts, "verdicts", "score")
    elif metric in GRADED:
        for grades in result.grades:
            found |= _read(grades, "grades", "value", name)
    for position, row in enumerate(rows.tolist()):
        if row in found:
            value = found[row]
            values[position] = np.nan if value is None else value
            applies[position] = metric not in GRADED or value is not None
    return values, applies


def _read(
    output: StageOutput, table: str, column: str, metric: str | None = None
) -> dict[int, float | None]:
    columns = ["row_index", column] + ([] if metric is None else ["metric"])
    found = output.read(table, columns, getattr(schemas, table.upper()))
    return {
        row["row_index"]: row[column]
        for row in found.to_pylist()
        if metric is None or row["metric"] == metric
    }


def _table(
    cell: Cell,
    num_examples: int,
    test: TestSet,
    metric: str,
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
) -> pa.Table:
    size = len(rows)
    same = {
        "method": cell.subset.method,
        "budget": cell.subset.budget,
        "num_examples": num_examples,
        "seed": cell.subset.seed,
        "mode": cell.mode,
        "test": cell.test,
        "metric": metric,
    }
    arrays = {
        name: pa.array([value] * size, schemas.SCORES.field(name).type)
        for name, value in same.items()
    }
    arrays["row_index"] = pa.array(rows)
    arrays["example_id"] = pa.array(test.ids[rows].tolist(), pa.string())
    arrays["value"] = pa.array(values, pa.float64(), mask=np.isnan(values))
    return pa.table(arrays, schema=schemas.SCORES)
