"""The files that an evaluation leaves for people, in a fixed place below the run directory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import nncift_ray
from nncift_ray.core.evaluation.costs import Prices
from nncift_ray.pipeline.evaluation.agreeing import collect_agreement, collect_fidelity
from nncift_ray.pipeline.evaluation.cells import FULL, Cell
from nncift_ray.pipeline.evaluation.costing import collect_costs, partial_notices
from nncift_ray.pipeline.evaluation.held_out import TestSet
from nncift_ray.pipeline.evaluation.record import (
    EvaluationFacts,
    EvaluationFiles,
    EvaluationRecord,
    publish_record,
)
from nncift_ray.pipeline.evaluation.scores import CellResult
from nncift_ray.pipeline.evaluation.showing import collect_answers
from nncift_ray.pipeline.evaluation.subsets import Subset
from nncift_ray.pipeline.evaluation.workbench import Workbench
from nncift_ray.stages.corpus.hold_out import LEFT_OUT
from nncift_ray.storage import evaluation_schemas as schemas
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.manifest import describe_environment
from nncift_ray.storage.output import StageOutput

EVALUATION_FOLDER = "evaluation"
LEFT_OUT_NAME = "left_out.csv"
SUBSETS_NAME = "subsets.parquet"


@dataclass(frozen=True)
class Measured:
    """What an evaluation has come to so far."""

    scores: pa.Table  # SCORES
    subsets: Sequence[Subset]
    tests: Mapping[str, TestSet]
    examples: StageOutput  # of the deduplicate stage
    model: str  # that was taught
    judge: str  # that graded answers; "" where none did
    notices: tuple[str, ...]
    results: Mapping[Cell, CellResult]  # by cell, as far as they were measured


def publish(bench: Workbench, measured: Measured) -> EvaluationFiles:
    """Write every table of an evaluation, whole or half done, and its page."""
    folder, config, subsets = bench.run_dir / EVALUATION_FOLDER, bench.config, measured.subsets
    facts = EvaluationFacts(
        name=config.report.title or bench.run_dir.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=nncift_ray.__version__,
        confidence=config.evaluation.confidence,
        num_samples=config.evaluation.bootstrap_samples,
        num_candidates=measured.examples.num_rows("candidates"),
        model=measured.model,
        judge=measured.judge,
        config=config.model_dump(mode="json"),
        environment=describe_environment(),
        notices=(*measured.notices, *partial_notices(subsets)),
    )
    prices = Prices(config.cluster.price_per_gpu_hour, config.cluster.price_per_cpu_hour)
    record = EvaluationRecord(
        facts,
        measured.scores,
        costs=collect_costs(subsets, prices, config.evaluation.extrapolate_to),
        agreement=collect_agreement(subsets),
        fidelity=collect_fidelity(subsets),
        answers=collect_answers(
            shown_results(measured.results, config.evaluation.budgets[0]),
            {name: test.output for name, test in measured.tests.items()},
            config.evaluation.generation.seed,
        ),
    )
    files = publish_record(record, folder)
    text = io.BytesIO()
    pyarrow.csv.write_csv(left_out(measured.tests), text)
    (folder / LEFT_OUT_NAME).write_bytes(text.getvalue())
    write_subsets(folder / SUBSETS_NAME, subsets, measured.examples)
    return files


def write_subsets(location: Location, subsets: Sequence[Subset], examples: StageOutput) -> None:
    """Write which examples each method picked, subset by subset; ``full`` would be all of them."""
    with location.open_whole() as out:
        file = pa.PythonFile(out, mode="w")
        with pq.ParquetWriter(file, schemas.SUBSETS, compression="zstd") as writer:
            for subset in subsets:
                if subset.key.method != FULL and subset.num_examples:
                    writer.write_table(_picks(subset, examples))


def _picks(subset: Subset, examples: StageOutput) -> pa.Table:
    ids = examples.take_rows("candidates", subset.members, ["example_id"])["example_id"]
    size, key = len(ids), subset.key
    columns = [
        pa.repeat(key.method, size),
        pa.repeat(key.budget, size),
        pa.repeat(pa.scalar(key.seed, pa.int32()), size),
        ids,
    ]
    return pa.table(columns, schema=schemas.SUBSETS)


def shown_results(results: Mapping[Cell, CellResult], budget: float) -> dict[Cell, CellResult]:
    """Return the cells whose answers are shown: of one size, and of random one draw.

    None where no answers were written.
    """
    if not any(result.responses for result in results.values()):
        return {}
    return {
        cell: result for cell, result in results.items()
        if cell.subset.seed == 0 and cell.subset.budget in (budget, 0.0, 1.0)
    }  # fmt: skip


def left_out(tests: Mapping[str, TestSet]) -> pa.Table:
    """Return the rows of all test sets that no model is tested on, and why."""
    schema = schemas.LEFT_OUT.insert(0, pa.field("test", pa.string(), nullable=False))
    tables = [schema.empty_table()]
    for name, test in tests.items():
        rows = test.output.read(LEFT_OUT, schema=schemas.LEFT_OUT)
        names = pa.array([name] * rows.num_rows, pa.string())
        tables.append(pa.table([names, *rows.columns], schema=schema))
    return pa.concat_tables(tables)
