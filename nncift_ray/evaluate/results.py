"""What an evaluation has measured, and the files it lies in: written whole, read back, drawn anew.

The tables are all there is to it: summary, pages and terminal are computed from them in seconds.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

import nncift_ray
from nncift_ray.corpus.hold_out import LEFT_OUT
from nncift_ray.errors import DataError, StorageError
from nncift_ray.evaluate.figures import EvaluationData
from nncift_ray.evaluate.methods import FULL, ICL, RANDOM, Cell, Subset, TestSet, Workbench
from nncift_ray.evaluate.metrics import draw_test_rows
from nncift_ray.evaluate.page import render_evaluation
from nncift_ray.evaluate.statistics import (
    DEFAULT_CONFIDENCE,
    DEFAULT_SAMPLES,
    LAWS,
    LOWER_IS_BETTER,
    Comparison,
    Law,
    MeanEstimate,
    Prices,
    Size,
    StepCost,
    add_up,
    compare_methods,
    compare_values,
    estimate_mean,
    extrapolate,
    measure_overlap,
    measure_step,
)
from nncift_ray.labels.sample import count_pairs
from nncift_ray.recipe.sections import Config, EvaluationConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageManifest, StageOutput, describe_environment
from nncift_ray.runtime.schemas import (
    AGREEMENT,
    ALL_STEPS,
    ANSWERS,
    COSTS,
    CROSS,
    FIDELITY,
    NETWORK_FIDELITY,
    POINTS,
    RESPONSES,
    SUMMARY,
    VERDICTS,
    WITHIN,
)
from nncift_ray.selection.problem import Objective
from nncift_ray.selection.tables import (
    ScoreTables,
    build_objective,
    resolve_selection,
    scored_blocks,
    scores_of,
)

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: What names a cell, seeds aside.
NAMING = ("test", "metric", "mode", "method", "budget")


@dataclass(frozen=True, slots=True)
class SummarySettings:
    """How sure is sure enough."""

    confidence: float = DEFAULT_CONFIDENCE
    num_samples: int = DEFAULT_SAMPLES  # resamplings
    seed: int = 0


class Group(NamedTuple):
    """What is read side by side: the methods of one such group are compared with each other."""

    test: str
    metric: str
    mode: str


class Line(NamedTuple):
    """A method at one of its sizes."""

    method: str
    budget: float


def summarise(scores: pa.Table, settings: SummarySettings | None = None) -> pa.Table:
    """Take the means of all values, with intervals, and compare every method with random.

    All cells of a test set, metric and mode answer the same rows. So a row that one of them has
    and another lacks is missing there, and counted, as are values that are null or not finite.
    Random's seeds become one row: of every test row the mean over the random subsets.

    Args:
        scores: SCORES.
        settings: Level of the intervals, resamplings and their seed.

    Returns:
        SUMMARY: a row a method, budget, mode, test set and metric, in the order they first occur.

    Raises:
        DataError: If a cell has two values of one row, or a method other than random has seeds.
    """
    settings = settings or SummarySettings()
    rows: list[dict[str, Any]] = []
    for group, values in _Scores.read(scores).split(Group._fields):
        rows += _summarise_group(Group(*group), values, settings)
    return pa.Table.from_pylist(rows, SUMMARY)


@dataclass(frozen=True, slots=True)
class _Scores:
    """SCORES as arrays [R]; of the columns that name a cell, numbers of their names."""

    names: Mapping[str, Sequence[Any]]
    codes: Mapping[str, I64]
    seed: I64
    row_index: I64
    num_examples: I64
    value: F64  # NaN: none

    @classmethod
    def read(cls, table: pa.Table) -> _Scores:
        keys = {name: table[name].combine_chunks().dictionary_encode() for name in NAMING}
        numbers = {
            name: np.asarray(table[name].cast(pa.int64()).to_numpy(), np.int64)
            for name in ("seed", "row_index", "num_examples")
        }
        value_R = np.asarray(table["value"].to_numpy(), np.float64)
        return cls(
            {name: key.dictionary.to_pylist() for name, key in keys.items()},
            {name: np.asarray(key.indices.to_numpy(), np.int64) for name, key in keys.items()},
            **numbers,
            value=np.where(np.isfinite(value_R), value_R, np.nan),
        )

    def take(self, places: I64) -> _Scores:
        return _Scores(
            self.names,
            {name: codes_R[places] for name, codes_R in self.codes.items()},
            self.seed[places], self.row_index[places], self.num_examples[places],
            self.value[places],
        )  # fmt: skip

    def split(self, names: Sequence[str]) -> list[tuple[list[Any], _Scores]]:
        """Part the values by what some columns name, in the order of the first of each part."""
        shape = [max(1, len(self.names[name])) for name in names]
        number_R = np.ravel_multi_index([self.codes[name] for name in names], shape)
        _, first, inverse = np.unique(number_R, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(first)))[:-1])
        found: list[tuple[list[Any], _Scores]] = []
        for part in (int(at) for at in np.argsort(first)):
            key = [self.names[name][int(self.codes[name][first[part]])] for name in names]
            found.append((key, self.take(parts[part])))
        return found


def _summarise_group(
    group: Group, scores: _Scores, settings: SummarySettings
) -> list[dict[str, Any]]:
    """Summarise the cells of one test set, metric and mode."""
    rows_N = np.unique(scores.row_index)
    values: dict[Line, F64] = {}
    sizes: dict[Line, int] = {}
    for key, cells in scores.split(Line._fields):
        line = Line(*key)
        values[line] = _cell_values(group, line, cells, rows_N)
        sizes[line] = int(cells.num_examples[0])
    compared = _compare(group, values, settings)
    options: dict[str, Any] = {
        "confidence": settings.confidence, "num_samples": settings.num_samples,
        "seed": settings.seed,
    }  # fmt: skip
    return [
        _row(group, line, sizes[line], values_NS, estimate_mean(values_NS, **options),
             compared.get(line))
        for line, values_NS in values.items()
    ]  # fmt: skip


def _cell_values(group: Group, line: Line, cells: _Scores, rows_N: I64) -> F64:
    """Return the values [N, S] of a method on all rows of its group, NaN where there is none."""
    seeds_S, seed_place = np.unique(cells.seed, return_inverse=True)
    if len(seeds_S) > 1 and line.method != RANDOM:
        raise DataError(
            f"scores of {line.method} ({group.mode}, {group.test}, {group.metric}) have seeds "
            f"{seeds_S[0]} and {seeds_S[-1]}: only random subsets are drawn more than once"
        )
    row_place = np.searchsorted(rows_N, cells.row_index)
    cell = row_place * len(seeds_S) + seed_place
    taken = np.bincount(cell)
    if taken.max(initial=0) > 1:
        row = rows_N[int(taken.argmax()) // len(seeds_S)]
        raise DataError(
            f"scores of {line.method} ({group.mode}, {group.test}, {group.metric}) have row {row} "
            "twice"
        )
    values_NS = np.full((len(rows_N), len(seeds_S)), np.nan)
    values_NS[row_place, seed_place] = cells.value
    return values_NS


def _compare(
    group: Group, values: Mapping[Line, F64], settings: SummarySettings
) -> dict[Line, Comparison]:
    """Compare the methods of each size with random subsets of that size."""
    found: dict[Line, Comparison] = {}
    for random, random_NS in values.items():
        if random.method != RANDOM:
            continue
        methods = {
            line.method: values_NS[:, 0] for line, values_NS in values.items()
            if line.budget == random.budget and line.method != RANDOM
        }  # fmt: skip
        comparisons = compare_methods(
            methods, random_NS, lower_is_better=group.metric in LOWER_IS_BETTER,
            confidence=settings.confidence, num_samples=settings.num_samples, seed=settings.seed,
        )  # fmt: skip
        found |= {Line(name, random.budget): each for name, each in comparisons.items()}
    return found


def _row(
    group: Group,
    line: Line,
    num_examples: int,
    values_NS: F64,
    estimate: MeanEstimate,
    comparison: Comparison | None,
) -> dict[str, Any]:
    return {
        **group._asdict(),
        **line._asdict(),
        "num_examples": num_examples,
        "num_seeds": values_NS.shape[1],
        "num_rows": estimate.num_rows,
        "num_missing": estimate.num_missing,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "seed_deviation": estimate.seed_deviation,
        "difference": comparison and comparison.difference,
        "difference_low": comparison and comparison.low,
        "difference_high": comparison and comparison.high,
        "p_value": comparison and comparison.p_value,
        "adjusted_p_value": comparison and comparison.adjusted_p_value,
        "verdict": comparison and comparison.verdict,
    }


# What an evaluation has measured, and the files it lies in: written whole, read back, drawn anew.

FACTS_NAME, PAGE_NAME = "evaluation.json", "report.html"
SUMMARY_TABLE = "summary"
#: The tables that are kept, by the names of their files; the first and last have no CSV.
TABLES = {
    "scores": schemas.SCORES,
    "costs": schemas.COSTS,
    "agreement": schemas.AGREEMENT,
    "fidelity": schemas.NETWORK_FIDELITY,
    "answers": schemas.ANSWERS,
}
WITHOUT_CSV = ("scores", "answers")


class EvaluationFacts(BaseModel):
    """What is to be known of an evaluation beside its tables.

    Attributes:
        name: Heading of the page.
        created: When, as it shall be read.
        version: Of nncift_ray.
        confidence: Level of intervals and verdicts.
        num_samples: Resamplings.
        seed: Of the resamplings.
        num_candidates: Candidates that subsets were chosen from.
        model: That was taught.
        judge: That graded answers; "" where none did.
        config: The recipe; it holds no secrets.
        environment: Versions that shaped the results.
        notices: What a reader should know: failures, models that stood in for others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    created: str = ""
    version: str = ""
    confidence: float = DEFAULT_CONFIDENCE
    num_samples: int = DEFAULT_SAMPLES
    seed: int = 0
    num_candidates: int = 0
    model: str = ""
    judge: str = ""
    config: dict[str, Any] = {}
    environment: dict[str, str] = {}
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationRecord:
    """The tables of an evaluation, whole or half done (``storage/evaluation_schemas.py``)."""

    facts: EvaluationFacts
    scores: pa.Table  # SCORES
    costs: pa.Table = field(default_factory=schemas.COSTS.empty_table)
    agreement: pa.Table = field(default_factory=schemas.AGREEMENT.empty_table)
    fidelity: pa.Table = field(default_factory=schemas.NETWORK_FIDELITY.empty_table)
    answers: pa.Table = field(default_factory=schemas.ANSWERS.empty_table)

    def __post_init__(self) -> None:
        """Refuse a table that is not as declared.

        Raises:
            StorageError: Naming the table, with both schemas.
        """
        for each in fields(self):
            schema = TABLES.get(each.name)
            if schema is not None and not getattr(self, each.name).schema.equals(schema):
                found = getattr(self, each.name).schema
                raise StorageError(
                    f"evaluation table '{each.name}' is\n{found}\nand should be\n{schema}"
                )


@dataclass(frozen=True)
class EvaluationFiles:
    """What lies in the folder of an evaluation."""

    folder: Location
    data: EvaluationData  # what page and terminal show
    summary: Location
    page: Location


def publish_record(record: EvaluationRecord, folder: Location) -> EvaluationFiles:
    """Summarise an evaluation and write its tables and its page.

    Args:
        record: What was measured so far.
        folder: Where the files go; those of an earlier call are replaced.

    Raises:
        DataError: If the scores contradict themselves (``summarise``).
    """
    data = show(record, folder)
    for name in TABLES:
        _write_table(folder, name, getattr(record, name))
    _write_table(folder, SUMMARY_TABLE, data.summary)
    (folder / FACTS_NAME).write_bytes(record.facts.model_dump_json(indent=1).encode())
    (folder / PAGE_NAME).write_bytes(render_evaluation(data).encode("utf-8"))
    return EvaluationFiles(folder, data, folder / f"{SUMMARY_TABLE}.csv", folder / PAGE_NAME)


def show(record: EvaluationRecord, folder: Location) -> EvaluationData:
    """Return what page and terminal show of an evaluation, its summary computed.

    Raises:
        DataError: As ``publish_record``.
    """
    facts = record.facts
    settings = SummarySettings(facts.confidence, facts.num_samples, facts.seed)
    return EvaluationData(
        name=facts.name,
        summary=summarise(record.scores, settings),
        **{name: getattr(record, name) for name in TABLES},
        confidence=facts.confidence,
        num_candidates=facts.num_candidates,
        model=facts.model,
        judge=facts.judge,
        created=facts.created,
        version=facts.version,
        config=facts.config,
        environment=facts.environment,
        outputs={
            "every value": str(folder / "scores.parquet"),
            "means and verdicts": str(folder / f"{SUMMARY_TABLE}.csv"),
            "costs": str(folder / "costs.csv"),
            "agreement with teachers": str(folder / "agreement.csv"),
            "fidelity of networks": str(folder / "fidelity.csv"),
            "page": str(folder / PAGE_NAME),
        },
        notices=facts.notices,
    )


def read_record(folder: Location) -> EvaluationRecord:
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
            f"{folder / FACTS_NAME}: not of this version of nncift_ray ({error.error_count()} "
            f"problems, first: {error.errors()[0]['msg']}); run nncift evaluate again"
        ) from error
    tables = {name: _read_table(folder / f"{name}.parquet") for name in TABLES}
    return EvaluationRecord(facts, **tables)


def _read_table(location: Location) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(location.read_bytes()))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{location}: damaged ({error}); run nncift evaluate again") from error


def _write_table(folder: Location, name: str, table: pa.Table) -> None:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    (folder / f"{name}.parquet").write_bytes(out.getvalue())
    if name not in WITHOUT_CSV:
        text = io.BytesIO()
        pyarrow.csv.write_csv(table, text)
        (folder / f"{name}.csv").write_bytes(text.getvalue())


# Every value of an evaluation in one long table.

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


# Some answers for people to look at: the same held-out rows, answered after each method.

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


# How near the subsets of networks and smaller models come to those of their teachers.

FIT = "fit"


def collect_agreement(subsets: Sequence[Subset]) -> pa.Table:
    """Hold every subset against its teacher's of the same size.

    Args:
        subsets: All that were selected, random ones among them.

    Returns:
        AGREEMENT: a row a method that stands in for a teacher, and size, where the teacher by its
        own labels was selected, too. Values are the teacher's objective over its own labels.
    """
    by_name = {(subset.key.method, subset.key.budget): subset for subset in subsets
               if subset.outputs}  # fmt: skip
    objectives: dict[str, Objective] = {}
    rows: list[dict[str, Any]] = []
    for (method, budget), subset in by_name.items():
        prefix, _, teacher_name = method.rpartition("+")
        teacher = by_name.get((teacher_name, budget))
        if not prefix or teacher is None:
            continue
        if teacher_name not in objectives:  # the same at every size
            objectives[teacher_name] = _objective_of(teacher)
        random = [other.members for other in subsets
                  if other.key.method == RANDOM and other.key.budget == budget]  # fmt: skip
        rows.append(
            {"method": method, "teacher": teacher_name, "budget": budget}
            | _compare_agreeing(subset, teacher, objectives[teacher_name], random)
        )
    return pa.Table.from_pylist(rows, AGREEMENT)


def _compare_agreeing(
    subset: Subset, teacher: Subset, objective: Objective, random: Sequence[Any]
) -> dict[str, float | None]:
    num_candidates = teacher.outputs["deduplicate"].num_rows("candidates")
    overlap = measure_overlap(subset.members, teacher.members, num_candidates)
    value = compare_values(objective, subset.members, teacher.members, random)
    return {
        "overlap": overlap.fraction,
        "chance_overlap": overlap.chance_fraction,
        "objective": value.method,
        "teacher_objective": value.teacher,
        "random_objective": value.random,
    }


def _objective_of(teacher: Subset) -> Objective:
    """Build the set function that a teacher's subset was selected by, over its own labels."""
    assert teacher.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
    examples = teacher.outputs["deduplicate"]
    num_candidates, num_existing = (examples.num_rows(t) for t in ("candidates", "existing"))
    tables = ScoreTables.open(scores_of(teacher.outputs), num_candidates, num_existing)
    return build_objective(resolve_selection(teacher.config), tables)


def collect_fidelity(subsets: Sequence[Subset]) -> pa.Table:
    """Gather the fidelity of every method's network (NETWORK_FIDELITY)."""
    tables = [NETWORK_FIDELITY.empty_table()]
    seen: set[str] = set()
    for subset in subsets:
        method = subset.key.method
        if FIT not in subset.outputs or method in seen:
            continue
        seen.add(method)
        table = subset.outputs[FIT].read("fidelity", schema=FIDELITY)
        names = pa.array([method] * table.num_rows, pa.string())
        tables.append(pa.table([names, *table.columns], schema=NETWORK_FIDELITY))
    return pa.concat_tables(tables)


# What each method's choice cost, step by step, from the manifests of its stages.

EMBED, LABEL, GRADIENTS, INDEX = "embed", "label", "gradients", "index"
NETWORK = "fit"
DELIFT_SE = "delift_se"
#: Steps whose work grows with the number of labels.
BY_LABELS = (LABEL, NETWORK, "teacher_scores")
NOT_CHARGED = ("export",)
LAW_OF_BLOCK: Mapping[str, Law] = {CROSS: "cross", WITHIN: "within", POINTS: "candidates"}


def collect_costs(
    subsets: Sequence[Subset], prices: Prices, wanted_candidates: int | None = None
) -> pa.Table:
    """Collect the costs of every method that asks a teacher.

    Args:
        subsets: As they were selected; the first of each method is charged.
        prices: US dollars an hour.
        wanted_candidates: Size of a larger corpus, with as many targets, that costs are
            extrapolated to; None: none.

    Returns:
        COSTS: a row a step and one of all. What was not measured is marked ``extrapolated``: a
        larger corpus, and a teacher by its own labels that was asked about a part of the pairs.
    """
    chosen = _one_a_method(subsets)
    users = Counter(output.fingerprint for subset in chosen for output in _charged(subset).values())
    rows: list[dict[str, Any]] = []
    for subset in chosen:
        rows += _rows_of(subset, prices, users, wanted_candidates)
    return pa.Table.from_pylist(rows, COSTS)


def _one_a_method(subsets: Sequence[Subset]) -> list[Subset]:
    found: dict[str, Subset] = {}
    for subset in subsets:
        if subset.outputs:
            found.setdefault(subset.key.method, subset)
    return list(found.values())


def _charged(subset: Subset) -> dict[str, StageOutput]:
    """Return the stages that a method's choice rests on."""
    reads_vectors = NETWORK in subset.outputs or _config(subset).teacher.kind == DELIFT_SE
    return {
        name: output for name, output in subset.outputs.items()
        if name not in NOT_CHARGED and (name != EMBED or reads_vectors)
    }  # fmt: skip


def _config(subset: Subset) -> Config:
    assert subset.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
    return subset.config


def _rows_of(
    subset: Subset, prices: Prices, users: Counter[str], wanted_candidates: int | None
) -> list[dict[str, Any]]:
    charged, labels = _charged(subset), _Labels.count(subset)
    costs = [_cost_of(output, prices) for output in charged.values()]
    shared = {name: users[output.fingerprint] > 1 for name, output in charged.items()}
    size = labels.size
    tables = [(size, costs)]
    if labels.is_partial:
        tables.append((size, _grow(subset, costs, labels, size)))
    if wanted_candidates is not None and wanted_candidates > size.num_candidates:
        wanted = replace(size, num_candidates=wanted_candidates)
        tables.append((wanted, _grow(subset, costs, labels, wanted)))
    return [
        asdict(cost)
        | {
            "method": subset.key.method,
            "num_candidates": at.num_candidates,
            "shared": any(shared.values()) if cost.step == ALL_STEPS else shared[cost.step],
            "labelled_fraction": _fraction(cost, labels),
        }
        for at, steps in tables
        for cost in (*steps, add_up(steps, ALL_STEPS))
    ]


def _fraction(cost: StepCost, labels: _Labels) -> float | None:
    if cost.step not in (LABEL, ALL_STEPS):
        return None
    return None if cost.extrapolated else labels.fraction


def _cost_of(output: StageOutput, prices: Prices) -> StepCost:
    manifest = output.manifest
    return measure_step(
        manifest.stage,
        wall_seconds=wall_seconds(manifest),
        worker_seconds=manifest.worker_seconds,
        num_cpus=manifest.num_cpus,
        num_gpus=manifest.num_gpus,
        prices=prices,
        num_tokens=_num_tokens(output),
    )


def wall_seconds(manifest: StageManifest) -> float:
    """Return the seconds of a stage, over all runs that worked on it.

    A manifest knows the run that finished the stage. Shards that were finished before that run
    began took their own seconds, on as many workers as worked side by side in the last one.
    """
    began = datetime.fromisoformat(manifest.finished_at) - timedelta(seconds=manifest.wall_seconds)
    # Manifests are dated to the second; clocks of workers may differ by more.
    margin = timedelta(seconds=1)
    earlier = sum(
        shard.seconds for shard in manifest.shards
        if shard.finished_at and datetime.fromisoformat(shard.finished_at) < began - margin
    )  # fmt: skip
    late = manifest.worker_seconds - earlier
    side_by_side = late / manifest.wall_seconds if manifest.wall_seconds > 0 else 1.0
    return manifest.wall_seconds + earlier / max(1.0, side_by_side)


def _num_tokens(output: StageOutput) -> int | None:
    """Return the tokens that a language model computed for a stage; None: it asked none."""
    manifest = output.manifest
    counts = manifest.counts()
    if "tokens" in counts:
        computed = counts["tokens"] - counts.get("cached_tokens", 0)
    elif manifest.stage == LABEL:  # of a run before shards counted tokens
        table = output.read("measurements", ["num_tokens", "num_cached_tokens"])
        computed = sum(
            int(total - cached)
            for total, cached in zip(*(column.to_numpy() for column in table.columns), strict=True)
        )
    else:
        computed = 0
    return computed or None


class _Labels:
    """How many labels a method asked for, of how many there could be."""

    def __init__(self, size: Size, blocks: Mapping[str, int], asked: int, by_network: bool) -> None:
        self.size, self._blocks, self.asked, self._by_network = size, blocks, asked, by_network

    @classmethod
    def count(cls, subset: Subset) -> _Labels:
        examples, label = subset.outputs["deduplicate"], subset.outputs[LABEL]
        size = Size(examples.num_rows("candidates"), examples.num_rows("targets"))
        blocks = {block: possible_labels(block, size) for block in scored_blocks(subset.outputs)}
        asked = sum(counts["num_pairs"] for counts in label.manifest.facts()["asked"].values())
        return cls(size, blocks, asked, NETWORK in subset.outputs)

    @property
    def possible(self) -> int:
        return sum(self._blocks.values())

    @property
    def fraction(self) -> float:
        return self.asked / self.possible if self.possible else 0.0

    @property
    def is_partial(self) -> bool:
        """Whether labels that are to be scores are not all there."""
        return not self._by_network and self.asked < self.possible

    def wanted(self, config: Config, size: Size) -> float:
        """Return how many labels the method would ask for on a corpus of another size."""
        if not self._by_network:
            return sum(possible_labels(block, size) for block in self._blocks)
        if config.labels.label_pairs is not None:
            return self.asked
        # A fraction of rows and columns, up to a most: what was asked, grown alike.
        power = {POINTS: 1}
        now, then = (
            sum(
                min(
                    possible_labels(block, at) * config.labels.fraction ** power.get(block, 2),
                    config.labels.max_pairs,
                )
                for block in self._blocks
            )
            for at in (self.size, size)
        )
        return self.asked * then / now if now else self.asked


def possible_labels(block: str, size: Size) -> int:
    """Return how many pairs (or examples) a block has."""
    if block == POINTS:
        return size.num_candidates
    rows = size.num_targets if block == CROSS else size.num_candidates
    return count_pairs(rows, size.num_candidates, block == WITHIN)


def _grow(
    subset: Subset, costs: Sequence[StepCost], labels: _Labels, wanted: Size
) -> list[StepCost]:
    """Extrapolate every step by what its work grows with."""
    grown_labels = labels.wanted(_config(subset), wanted)
    return [
        extrapolate([cost], *_sizes(subset, cost.step, labels, wanted, grown_labels),
                    {cost.step: _law(subset, cost.step, labels)}, _start(subset, cost))[0]
        for cost in costs
    ]  # fmt: skip


def _sizes(
    subset: Subset, step: str, labels: _Labels, wanted: Size, grown_labels: float
) -> tuple[Size, Size]:
    """Return the sizes that a step's work is measured by: of the corpus, or of its labels."""
    if step in BY_LABELS:
        return Size(labels.asked), Size(round(grown_labels))
    if step == GRADIENTS and NETWORK in subset.outputs:
        # Of the examples in the sample, which is a square of rows and columns.
        return Size(1000), Size(round(1000 * (grown_labels / labels.asked) ** 0.5))
    return labels.size, wanted


def _law(subset: Subset, step: str, labels: _Labels) -> Law:
    if step in BY_LABELS:
        return "candidates"  # of the sizes that _sizes gives: one unit a label
    if step == GRADIENTS:
        return "candidates" if NETWORK in subset.outputs else "rows"
    if step == "score_pairs":
        blocks = scored_blocks(subset.outputs)
        if INDEX in subset.outputs:
            return "rows"
        return LAW_OF_BLOCK[blocks[0]] if len(blocks) == 1 else "pairs"
    return LAWS[step]


def _start(subset: Subset, cost: StepCost) -> dict[str, float]:
    """Return the seconds in which a step only started its workers, which do not grow."""
    manifest = subset.outputs[cost.step].manifest
    return {cost.step: max(0.0, cost.seconds - manifest.worker_seconds)}


def partial_notices(subsets: Sequence[Subset]) -> list[str]:
    """Say which teachers by their own labels were asked about a part of the pairs only."""
    notices: list[str] = []
    for subset in _one_a_method(subsets):
        labels = _Labels.count(subset)
        if labels.is_partial:
            notices.append(
                f"{subset.key.method} was asked about {labels.asked:,} of "
                f"{labels.possible:,} pairs ({labels.fraction:.1%}), whole rows drawn with the "
                "seed: its subset is that of a sample, and its cost for all pairs is extrapolated"
            )
    return notices


# The files that an evaluation leaves for people, in a fixed place below the run directory.

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
