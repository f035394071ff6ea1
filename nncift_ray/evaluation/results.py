"""What an evaluation has measured: its tables and the files they lie in.

Every value is a row of one long table, SCORES; all that is shown is computed from the tables.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nncift_ray.errors import StorageError
from nncift_ray.evaluation.ask import TEST_ROWS, TestSet, draw_test_rows
from nncift_ray.evaluation.compare import DEFAULT, Resampling, summarise
from nncift_ray.evaluation.methods import FULL, ICL, RANDOM, Cell, Subset
from nncift_ray.evaluation.metrics import VALUES_OF
from nncift_ray.recipe.sections import EvaluationConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.selection.greedy import evaluate
from nncift_ray.selection.names import resolve_selection, scores_of
from nncift_ray.selection.problem import Problem
from nncift_ray.selection.tables import ScoreTables, build_objective

EVALUATION_FOLDER = "evaluation"
FACTS_NAME, PAGE_NAME = "evaluation.json", "report.html"
SUBSETS_NAME = "subsets.parquet"
WITHOUT_CSV = ("scores", "answers")
ROWS_SHOWN = 3  # of each test set, with the answers of all methods
MAX_CHARS = 4_000  # of a text that is kept to be shown


class EvaluationFacts(BaseModel):
    """What is to be known of an evaluation beside its tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # heading of the page
    created: str = ""  # as it shall be read
    version: str = ""  # of nncift_ray
    confidence: float = DEFAULT.confidence  # of intervals and verdicts
    num_samples: int = DEFAULT.num_samples  # resamplings
    num_candidates: int = 0
    model: str = ""  # that was taught
    judge: str = ""  # that graded answers; "" where none did
    config: dict[str, Any] = {}  # the recipe; it holds no secrets
    environment: dict[str, str] = {}
    notices: tuple[str, ...] = ()  # failures, models that stood in for others


@dataclass(frozen=True)
class Evaluation:
    """The tables of an evaluation, whole or half done; the summary is computed from the scores."""

    facts: EvaluationFacts
    scores: pa.Table = field(default_factory=schemas.SCORES.empty_table)
    costs: pa.Table = field(default_factory=schemas.COSTS.empty_table)
    agreement: pa.Table = field(default_factory=schemas.AGREEMENT.empty_table)
    fidelity: pa.Table = field(default_factory=schemas.NETWORK_FIDELITY.empty_table)
    answers: pa.Table = field(default_factory=schemas.ANSWERS.empty_table)

    def __post_init__(self) -> None:
        """Refuse a table that is not as declared.

        Raises:
            StorageError: Naming the table, with both schemas.
        """
        for each in fields(self)[1:]:
            found, schema = getattr(self, each.name).schema, each.default_factory().schema  # pyright: ignore
            if not found.equals(schema):
                raise StorageError(
                    f"evaluation table '{each.name}' is\n{found}\nand should be\n{schema}"
                )

    @cached_property
    def summary(self) -> pa.Table:
        """Means, differences to random and verdicts (SUMMARY).

        Raises:
            DataError: If the scores contradict themselves.
        """
        how = Resampling(self.facts.confidence, self.facts.num_samples)
        return summarise(self.scores, how)

    def write(self, folder: Location) -> None:
        """Write all tables, those of an earlier call are replaced."""
        for name in (*TABLES, "summary"):
            table, out = getattr(self, name), io.BytesIO()
            pq.write_table(table, out, compression="zstd")
            (folder / f"{name}.parquet").write_bytes(out.getvalue())
            if name not in WITHOUT_CSV:
                write_csv(folder / f"{name}.csv", table)
        (folder / FACTS_NAME).write_bytes(self.facts.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, folder: Location) -> Evaluation:
        """Read the tables of an evaluation back.

        Raises:
            StorageError: If there is none, or a file of it is damaged or of another version.
        """
        if not (folder / FACTS_NAME).exists():
            raise StorageError(
                f"{folder}: there is no evaluation (no {FACTS_NAME}); run nncift evaluate first"
            )
        try:
            facts = EvaluationFacts.model_validate_json((folder / FACTS_NAME).read_bytes())
        except ValidationError as error:
            raise StorageError(
                f"{folder / FACTS_NAME}: not of this version of nncift_ray "
                f"({error.error_count()} problems, first: {error.errors()[0]['msg']}); run nncift "
                "evaluate again"
            ) from error
        return cls(facts, **{name: _read_table(folder / f"{name}.parquet") for name in TABLES})


#: The tables that are kept, by the names of their files.
TABLES = tuple(each.name for each in fields(Evaluation)[1:])


def _read_table(location: Location) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(location.read_bytes()))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{location}: damaged ({error}); run nncift evaluate again") from error


def write_csv(location: Location, table: pa.Table) -> None:
    """Write a table as CSV."""
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text)
    location.write_bytes(text.getvalue())


# Every value of an evaluation in one long table, from what the stages of its cells left.


#: What a cell left behind, by table; nothing where it failed, or was not asked for.
CellOutputs = Mapping[str, StageOutput]
GRADES = ("grades", "cosines")  # two outputs of one schema: by rules, and by the embedder


def values_of(outputs: CellOutputs, metric: str) -> dict[int, float | None]:
    """Return the values of a metric by row; those it does not apply to are None."""
    if metric == "nll":
        return _column(outputs, "likelihoods", "nll")
    if metric == "judge":
        return _column(outputs, "verdicts", "score")
    columns = ["row_index", "metric", "value"]
    rows = [
        row for name in GRADES if name in outputs
        for row in outputs[name].read("grades", columns, schemas.GRADES).to_pylist()
    ]  # fmt: skip
    return {row["row_index"]: row["value"] for row in rows if row["metric"] == metric}


def _column(outputs: CellOutputs, table: str, column: str) -> dict[int, Any]:
    """Return a column of a table by row of the test set."""
    if table not in outputs:
        return {}
    found = outputs[table].read(table, ["row_index", column], getattr(schemas, table.upper()))
    return dict(zip(*(each.to_pylist() for each in found.columns), strict=True))


def cell_scores(
    cell: Cell,
    num_examples: int,
    test: TestSet,
    evaluation: EvaluationConfig,
    outputs: CellOutputs,
) -> pa.Table:
    """Return the values of a cell (SCORES); one that failed, or is not there, is null.

    A row that a metric does not apply to (a reference that is a text, for exact match) has no row.
    """
    subset, num_rows = cell.subset, test.output.num_rows(TEST_ROWS)
    tables = [schemas.SCORES.empty_table()]
    for metric in evaluation.metrics:
        most = evaluation.generation.max_rows
        if metric == "nll":  # prompts of the mode icl are long, so fewer
            most = evaluation.nll_max_rows if cell.mode == ICL else None
        drawn = draw_test_rows(num_rows, most, evaluation.generation.seed)
        for name in VALUES_OF[metric]:
            found = values_of(outputs, name)
            applies = [row not in found or found[row] is not None or name == "judge"
                       for row in drawn.tolist()]  # fmt: skip
            rows = drawn[np.array(applies, bool)]
            columns = {
                "method": subset.method, "budget": subset.budget, "num_examples": num_examples,
                "seed": subset.seed, "mode": cell.mode, "test": cell.test, "metric": name,
                "row_index": rows, "example_id": test.ids[rows],
                "value": pa.array([found.get(row) for row in rows.tolist()], pa.float64()),
            }  # fmt: skip
            columns = {
                of.name: pa.repeat(pa.scalar(values, of.type), len(rows))
                if isinstance(values := columns[of.name], str | int | float) else pa.array(values)
                for of in schemas.SCORES
            }  # fmt: skip
            tables.append(pa.table(columns, schema=schemas.SCORES))
    return pa.concat_tables(tables)


def collect_answers(
    results: Mapping[Cell, CellOutputs], tests: Mapping[str, TestSet], seed: int, budget: float
) -> pa.Table:
    """Gather the answers of the cells of one size, of random one draw, to a few rows a test set.

    The rows are part of the draw that was answered: nobody chose them by their answers. Texts are
    cut to ``MAX_CHARS`` characters; a cell without an answer to a row has a row with null
    (ANSWERS). There is no row where no answers were written at all.
    """
    rows: list[dict[str, Any]] = []
    answered = any("responses" in outputs for outputs in results.values())
    for cell, outputs in results.items() if answered else ():
        if cell.subset.seed != 0 or cell.subset.budget not in (budget, 0.0, 1.0):
            continue
        test = tests[cell.test].output
        numbers = draw_test_rows(test.num_rows(TEST_ROWS), ROWS_SHOWN, seed)
        texts = test.take_rows(TEST_ROWS, numbers, ["prompt", "response"]).to_pylist()
        responses = _column(outputs, "responses", "response")
        verdicts = _column(outputs, "verdicts", "score")
        for row, text in zip(numbers.tolist(), texts, strict=True):
            answer = responses.get(row)
            rows.append(
                {
                    "test": cell.test,
                    "row_index": row,
                    "prompt": text["prompt"][:MAX_CHARS],
                    "reference": text["response"][:MAX_CHARS],
                    "method": cell.subset.method,
                    "budget": cell.subset.budget,
                    "seed": cell.subset.seed,
                    "mode": cell.mode,
                    "response": None if answer is None else answer[:MAX_CHARS],
                    "verdict": verdicts.get(row),
                }
            )
    return pa.Table.from_pylist(rows, schemas.ANSWERS)


# How near the subsets of networks and smaller models come to those of their teachers.


def collect_agreement(subsets: Sequence[Subset]) -> pa.Table:
    """Hold every subset against its teacher's of the same size.

    Returns:
        AGREEMENT: a row a method that stands in for a teacher, and size, where the teacher by its
        own labels was selected, too. Values are the teacher's objective over its own labels, scaled
        as its own selection scaled them.
    """
    selected = {(s.key.method, s.key.budget): s for s in subsets if s.outputs}
    problems: dict[str, Problem] = {}
    rows: list[dict[str, Any]] = []
    for (method, budget), subset in selected.items():
        prefix, _, name = method.rpartition("+")
        teacher = selected.get((name, budget))
        if not prefix or teacher is None:
            continue
        if name not in problems:  # the same at every size
            problems[name] = _problem_of(teacher)
        random = [
            subset_value(problems[name], other.members) for other in subsets
            if other.key.method == RANDOM and other.key.budget == budget
        ]  # fmt: skip
        shared = len(np.intersect1d(subset.members, teacher.members))
        num_candidates = teacher.outputs["deduplicate"].num_rows("candidates")
        rows.append(
            {
                "method": method,
                "teacher": name,
                "budget": budget,
                "overlap": shared / len(subset.members),
                "chance_overlap": len(teacher.members) / num_candidates,
                "objective": subset_value(problems[name], subset.members),
                "teacher_objective": subset_value(problems[name], teacher.members),
                "random_objective": float(np.mean(random)) if random else None,
            }
        )
    return pa.Table.from_pylist(rows, schemas.AGREEMENT)


def subset_value(problem: Problem, members: NDArray[np.int64]) -> float:
    """Return what a subset is worth, in the objective's unit: one pass over its columns."""
    return float(evaluate(problem, np.sort(members).astype(np.int64))[-1])


def _problem_of(teacher: Subset) -> Problem:
    """Build the set function that a teacher's subset was selected by, over its own labels."""
    assert teacher.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
    examples = teacher.outputs["deduplicate"]
    num_candidates, num_existing = (examples.num_rows(t) for t in ("candidates", "existing"))
    tables = ScoreTables.open(scores_of(teacher.outputs), num_candidates, num_existing)
    return build_objective(resolve_selection(teacher.config), tables).problem()


def collect_fidelity(subsets: Sequence[Subset]) -> pa.Table:
    """Gather the fidelity of every method's network (NETWORK_FIDELITY)."""
    fitted = {s.key.method: s.outputs["fit"] for s in reversed(subsets) if "fit" in s.outputs}
    tables = [schemas.NETWORK_FIDELITY.empty_table()]
    for method, fit in reversed(fitted.items()):
        table = fit.read("fidelity", schema=schemas.FIDELITY)
        names = pa.repeat(method, table.num_rows)
        tables.append(pa.table([names, *table.columns], schema=schemas.NETWORK_FIDELITY))
    return pa.concat_tables(tables)


# Which examples each method picked.


def write_subsets(location: Location, subsets: Sequence[Subset], examples: StageOutput) -> None:
    """Write which examples each method picked, subset by subset; ``full`` would be all of them."""
    with (
        location.open_whole() as out,
        pq.ParquetWriter(
            pa.PythonFile(out, mode="w"), schemas.SUBSETS, compression="zstd"
        ) as writer,
    ):
        for subset in subsets:
            if subset.key.method == FULL or not len(subset.members):
                continue
            picks = examples.take_rows("candidates", subset.members, ["example_id"])
            key, size = subset.key, len(picks)
            seeds = pa.repeat(pa.scalar(key.seed, pa.int32()), size)
            columns = [pa.repeat(key.method, size), pa.repeat(key.budget, size), seeds]
            table = pa.table([*columns, picks["example_id"]], schema=schemas.SUBSETS)
            writer.write_table(table)
