"""What an evaluation has measured: its tables, their files, and the statistics over them.

Every value is a row of one long table, SCORES; all that is shown is computed from the tables. A
value of a test row is a number; NaN is a value that is not there (a failed answer, a verdict that
could not be read) and is counted, never replaced. Suffixes: N rows, S seeds (random subsets), B
resamplings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

from nncift_ray.errors import DataError, ShapeError, StorageError
from nncift_ray.evaluation.ask import TEST_ROWS, TestSet, draw_test_rows
from nncift_ray.evaluation.methods import DRAWN, FULL, ICL, INITIAL, RANDOM, Cell, Subset
from nncift_ray.evaluation.metrics import LOWER_IS_BETTER, VALUES_OF
from nncift_ray.recipe.sections import EvaluationConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.schemas import SUMMARY
from nncift_ray.selection.greedy import evaluate
from nncift_ray.selection.names import resolve_selection, scores_of
from nncift_ray.selection.problem import Problem
from nncift_ray.selection.tables import ScoreTables, build_objective

F64 = NDArray[np.float64]
Verdict = Literal["better", "worse", "noise"]

#: Beyond so many rows means are normal, and resampling them is waste.
MANY_ROWS = 1000
#: With so few rows all patterns of signs are tried.
MAX_EXACT_ROWS = 16
SLAB_VALUES = 1 << 21  # drawn at once


class Resampling(NamedTuple):
    """How chance is measured."""

    confidence: float = 0.95  # level of intervals, two-sided; verdicts need p <= 1 - confidence
    num_samples: int = 10_000
    seed: int = 0


DEFAULT = Resampling()


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """The mean of a metric over the rows of a test set; columns of SUMMARY."""

    num_rows: int  # with a value, of one seed at least
    num_missing: int  # values that are not there, over all seeds
    mean: float | None = None  # None: there is no value
    low: float | None = None  # None: fewer than two rows
    high: float | None = None
    seed_deviation: float | None = None  # of the seeds' means; None: fewer than two seeds


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method beside random subsets of its size, on the same rows; columns of SUMMARY."""

    difference: float | None = None  # method minus random, in the metric's unit; None: no pair
    difference_low: float | None = None  # None: fewer than two rows
    difference_high: float | None = None
    p_value: float | None = None  # of this comparison alone
    adjusted_p_value: float | None = None  # after Holm, over the methods side by side
    #: By adjusted_p_value; None where nothing can be said: no common rows, or a single random
    #: subset, of which nobody knows how far others lie from it.
    verdict: Verdict | None = None


def estimate_mean(values: NDArray[np.floating], how: Resampling = DEFAULT) -> MeanEstimate:
    """Return the mean of a metric with its bootstrap interval, in the metric's unit.

    It is the percentile interval of resampled rows, widened for few rows, plus the spread of
    subsets. Answers of only 0 and 1 get Wilson's instead: none right of 100 is no proof that none
    ever will be, and resampling zeros gives [0, 0].

    Args:
        values: [N] of one subset, or [N, S] of S random subsets on the same rows. Rows of several
            subsets count with the mean over those that have a value.
        how: The interval's level, and the resamplings.

    Raises:
        ShapeError: If there are more than two axes.
    """
    values_NS = as_table(values)
    num_missing = int(np.isnan(values_NS).sum())
    values_NS = drop_empty(values_NS)
    num_rows, num_seeds = values_NS.shape
    if not num_rows:
        return MeanEstimate(0, num_missing)
    variance, _ = measure_seed_spread(values_NS)
    deviation = float(np.sqrt(variance)) if num_seeds > 1 else None
    rows_N = np.nanmean(values_NS, axis=1)
    mean = float(rows_N.mean())
    if num_rows < 2:
        return MeanEstimate(num_rows, num_missing, mean, seed_deviation=deviation)
    if np.isin(rows_N, (0.0, 1.0)).all():
        test = stats.binomtest(int(rows_N.sum()), num_rows)
        low, high = test.proportion_ci(confidence_level=how.confidence, method="wilson")
    else:
        rng = np.random.default_rng(how.seed)
        draws_B = draw_row_deviations(rows_N, how, rng)
        draws_B += draw_seed_deviations(values_NS, how, rng, one_more=False)
        low, high = mean + _quantiles(draws_B, how)
    return MeanEstimate(num_rows, num_missing, mean, float(low), float(high), deviation)


def compare_with_random(
    method: NDArray[np.floating],
    random: NDArray[np.floating],
    *,
    lower_is_better: bool,
    subset_was_chosen: bool = True,
    how: Resampling = DEFAULT,
) -> Comparison:
    """Compare a method with random subsets, row by row.

    The difference is the mean over rows of: the method's value minus the mean over the random
    subsets that have one. Its interval has the chance of the rows, which are resampled with their
    pairs, and of the subsets: models taught with two equally good ones differ on all rows alike.
    Random's mean carries 1/S of that variance, and the method's one subset carries it once, since
    where choosing is of no use it is nothing but one more draw. (Without that a fourth random
    subset would be called better or worse about once in six times.) With one random subset the
    interval covers rows alone, and there is no verdict. See docs/evaluation.md, "What is noise".

    The p-value is the larger of two: that at which the interval would touch 0, and the sign-flip
    test over rows, which is exact for few rows and knows no subsets.

    Args:
        method: [N] values of the method.
        random: [N] or [N, S] values of random subsets on the same rows.
        lower_is_better: The direction of the metric.
        subset_was_chosen: False for a method without a subset and without training (the initial
            model): it has no luck of the draw of its own.
        how: The interval's level, and the resamplings.

    Returns:
        The comparison by itself: adjusted_p_value is p_value.

    Raises:
        ShapeError: If the rows of the two differ in number.
    """
    random_NS, method_N1 = as_table(random), as_table(method)
    if method_N1.shape[1] != 1 or len(method_N1) != len(random_NS):
        raise ShapeError(
            f"the method has values {np.shape(method)}, random {np.shape(random)}: they must be "
            "[rows] and [rows, seeds] of the same rows"
        )
    pairs_NS = drop_empty(method_N1 - random_NS)
    if len(pairs_NS) < 2:
        return Comparison(float(np.nanmean(pairs_NS)) if len(pairs_NS) else None)
    rng = np.random.default_rng(how.seed)
    differences_N = np.nanmean(pairs_NS, axis=1)
    difference = float(differences_N.mean())
    draws_B = draw_row_deviations(differences_N, how, rng) + difference
    draws_B += draw_seed_deviations(pairs_NS, how, rng, one_more=subset_was_chosen)
    low, high = _quantiles(draws_B, how)
    beyond = min(int((draws_B <= 0).sum()), int((draws_B >= 0).sum()))
    touches_zero = min(1.0, 2 * (beyond + 1) / (how.num_samples + 1))
    p_value = max(touches_zero, sign_flip_p_value(differences_N, how.num_samples, rng))
    found = Comparison(difference, float(low), float(high), p_value, p_value)
    if pairs_NS.shape[1] < 2:
        return found
    return replace(found, verdict=_verdict(found, lower_is_better, how))


def _verdict(found: Comparison, lower_is_better: bool, how: Resampling) -> Verdict:
    p_value, difference = found.adjusted_p_value, found.difference
    if p_value is None or difference is None or p_value > 1 - how.confidence:
        return "noise"
    return "better" if (difference < 0) == lower_is_better else "worse"


def compare_methods(
    methods: Mapping[str, NDArray[np.floating]],
    random: NDArray[np.floating],
    *,
    lower_is_better: bool,
    how: Resampling = DEFAULT,
) -> dict[str, Comparison]:
    """Compare all methods that are read side by side with the same random subsets.

    Verdicts go by p-values adjusted with ``holm``: the chance of any false "better" or "worse"
    among these methods is at most 1 - confidence. Intervals are not adjusted.
    """
    alone = [
        compare_with_random(
            values, random, lower_is_better=lower_is_better, subset_was_chosen=name != INITIAL,
            how=how,
        )
        for name, values in methods.items()
    ]  # fmt: skip
    adjusted = holm([each.p_value for each in alone])
    found = [replace(each, adjusted_p_value=p) for each, p in zip(alone, adjusted, strict=True)]
    return {
        name: replace(each, verdict=each.verdict and _verdict(each, lower_is_better, how))
        for name, each in zip(methods, found, strict=True)
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values of several comparisons (Holm, 1979); None stays None and does not count.

    With m p-values in rising order, the k-th becomes the largest of (m - j + 1) p_j over j <= k,
    at most 1. Calling those of at most alpha significant is wrong anywhere with a probability of
    at most alpha, however the comparisons hang together (here they share random).
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p_value, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_value))
        adjusted[place] = highest
    return adjusted


# What chance does to a mean.


def draw_row_deviations(values_N: F64, how: Resampling, rng: np.random.Generator) -> F64:
    """Draw how far the mean over other rows of the same kind lies from the mean over these [B].

    Rows are resampled with replacement. The deviations are widened by sqrt(N / (N - 1)), which the
    resampled variance lacks, and by Student's quantile over the normal one, which repairs what is
    left for few rows at the interval's level (the "expanded" interval of Hesterberg, What
    Teachers Should Know about the Bootstrap, 2015). For 100 rows that is 2 %, for 5 rows 58 %.
    """
    num_rows = len(values_N)
    if num_rows > MANY_ROWS:
        return rng.standard_normal(how.num_samples) * float(stats.sem(values_N))
    resampled = stats.bootstrap(
        (values_N,),
        np.mean,
        n_resamples=how.num_samples,
        batch=max(1, SLAB_VALUES // num_rows),
        method="percentile",
        rng=rng,
    )
    means_B = np.asarray(resampled.bootstrap_distribution, dtype=np.float64)
    tail = (1 + how.confidence) / 2
    student = float(stats.t.ppf(tail, num_rows - 1)) / float(stats.norm.ppf(tail))
    return (means_B - values_N.mean()) * (np.sqrt(num_rows / (num_rows - 1)) * student)


def measure_seed_spread(values_NS: F64) -> tuple[float, float]:
    """Return the variance of the subsets' means (S - 1 below), and the part of it due to rows.

    With r_is the value of row i under subset s, r_is = row_i + subset_s + rest_is: the variance of
    the means holds subset_s and, over N, rest_is, which comes back with other rows and is no
    property of the subsets. Rows are centred first, so that a subset that lacks the hard rows is
    not taken for a good one; with no value missing this is the two-way analysis of variance.
    """
    num_rows, num_seeds = values_NS.shape
    if num_seeds < 2:
        return 0.0, 0.0
    centred_NS = values_NS - np.nanmean(values_NS, axis=1, keepdims=True)
    means_S = np.nanmean(centred_NS, axis=0)
    freedom = np.count_nonzero(~np.isnan(values_NS)) - num_rows - num_seeds + 1
    rest = float(np.nansum(np.square(centred_NS - means_S)))
    return float(means_S.var(ddof=1)), rest / freedom / num_rows if freedom > 0 else 0.0


def draw_seed_deviations(
    values_NS: F64, how: Resampling, rng: np.random.Generator, *, one_more: bool
) -> F64:
    """Draw how far the mean of these subsets lies from that of all random subsets [B].

    Three subsets cannot be resampled honestly: the variance of what is drawn from S values is short
    of a factor (S - 1) / S, and its tails end at the worst of three. So subsets are taken as normal
    around their mean, with a variance that is itself drawn from what S values leave open (the
    generalised interval of Weerahandi, 1993: S - 1 over a chi-squared number); where rows add
    nothing this is Student's t with S - 1 degrees of freedom. With 3 subsets the 97.5 % point is
    4.3 standard errors, with 5 it is 2.8. ``one_more`` adds the deviation of one more subset.
    """
    num_seeds = values_NS.shape[1]
    if num_seeds < 2:  # nothing is known of the spread
        return np.zeros(how.num_samples)
    means_variance, rest_variance = measure_seed_spread(values_NS)
    drawn_B = means_variance * (num_seeds - 1) / rng.chisquare(num_seeds - 1, how.num_samples)
    variance_B = np.maximum(drawn_B - rest_variance, 0.0)
    share = 1 / num_seeds + (1.0 if one_more else 0.0)
    return rng.standard_normal(how.num_samples) * np.sqrt(variance_B * share)


def sign_flip_p_value(differences_N: F64, num_samples: int, rng: np.random.Generator) -> float:
    """Test whether the mean of paired differences is 0, by flipping signs (two-sided).

    If neither side is better, a row's difference is as likely d as -d. All patterns of signs are
    tried for up to ``MAX_EXACT_ROWS`` rows (exact), else drawn ones; of more than ``MANY_ROWS`` the
    test is Student's, which then is the same.

    Source: Fisher's randomisation test; Edgington and Onghena, Randomization Tests, 4th ed.
    """
    differences_N = differences_N[differences_N != 0]  # flips of a 0 change nothing
    if not len(differences_N):
        return 1.0
    if len(differences_N) > MANY_ROWS:
        return float(stats.ttest_1samp(differences_N, 0.0).pvalue)
    exact = len(differences_N) <= MAX_EXACT_ROWS
    tested = stats.permutation_test(
        (differences_N,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**MAX_EXACT_ROWS if exact else num_samples,
        batch=max(1, SLAB_VALUES // len(differences_N)),
        rng=rng,
    )
    return float(tested.pvalue)


def as_table(values: NDArray[np.floating]) -> F64:
    """Return values as a float64 table [N, S], S = 1 where there is one axis.

    Raises:
        ShapeError: If there is no axis, or more than two.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2):
        raise ShapeError(f"values must be [rows] or [rows, seeds], not of shape {table.shape}")
    return table[:, None] if table.ndim == 1 else table


def drop_empty(values_NS: F64) -> F64:
    """Leave out seeds with no value at all, then rows with none."""
    there_NS = ~np.isnan(values_NS)
    return values_NS[there_NS.any(axis=1)][:, there_NS.any(axis=0)]


def _quantiles(draws_B: F64, how: Resampling) -> F64:
    tail = (1 - how.confidence) / 2
    return np.asarray(np.quantile(draws_B, [tail, 1 - tail]), dtype=np.float64)


# The summary of all scores.


def summarise(scores: pa.Table, how: Resampling = DEFAULT) -> pa.Table:
    """Take the means of all values (SCORES) and compare every method with random (SUMMARY).

    All cells of a test set, metric and mode answer the same rows. So a row that one of them has
    and another lacks is missing there, and counted, as are values that are null or not finite.
    Random's seeds become one row: of every test row the mean over the random subsets.

    Returns:
        A row a method, budget, mode, test set and metric, in the order they first occur.

    Raises:
        DataError: If a cell has two values of one row, or a method other than random has seeds.
    """
    frame: Any = scores.to_pandas()
    frame["value"] = frame["value"].where(np.isfinite(frame["value"].astype(float)))
    rows: list[dict[str, Any]] = []
    for named, group in frame.groupby(["test", "metric", "mode"], sort=False):
        test, metric, mode = map(str, named)
        values = _values_by_line(group, f"{mode}, {test}, {metric}")
        sizes = group.groupby(["method", "budget"])["num_examples"].first()
        compared = _compare_lines(values, metric in LOWER_IS_BETTER, how)
        for (method, budget), values_NS in values.items():
            rows.append(
                {"test": test, "metric": metric, "mode": mode, "method": method, "budget": budget}
                | {"num_examples": int(sizes[method, budget]), "num_seeds": values_NS.shape[1]}
                | asdict(estimate_mean(values_NS, how))
                | asdict(compared.get((method, budget), Comparison()))
            )
    return pa.Table.from_pylist(rows, SUMMARY)


def _values_by_line(group: Any, where: str) -> dict[tuple[str, float], F64]:
    """Return the values [N, S] of each method and budget on all rows of the group, NaN: none."""
    names = ["method", "budget", "seed", "row_index"]
    twice = group[group.duplicated(names)]
    if len(twice):
        raise DataError(
            f"scores of {twice.iloc[0]['method']} ({where}) have row {twice.iloc[0]['row_index']} "
            "twice"
        )
    rows_N = np.unique(group["row_index"])
    found: dict[tuple[str, float], F64] = {}
    for (method, budget), cells in group.groupby(["method", "budget"], sort=False):
        values = cells.pivot(index="row_index", columns="seed", values="value")
        if values.shape[1] > 1 and method not in DRAWN:
            raise DataError(
                f"scores of {method} ({where}) have seeds {values.columns[0]} and "
                f"{values.columns[-1]}: only random subsets are drawn more than once"
            )
        found[str(method), float(budget)] = values.reindex(rows_N).to_numpy(np.float64)
    return found


def _compare_lines(
    values: Mapping[tuple[str, float], F64], lower_is_better: bool, how: Resampling
) -> dict[tuple[str, float], Comparison]:
    """Compare the methods of each size with random subsets of that size."""
    found: dict[tuple[str, float], Comparison] = {}
    for (random, budget), random_NS in values.items():
        if random == RANDOM:
            methods = {
                method: values_NS.mean(axis=1) for (method, size), values_NS in values.items()
                if size == budget and method != RANDOM
            }  # fmt: skip
            compared = compare_methods(methods, random_NS, lower_is_better=lower_is_better, how=how)
            found |= {(method, budget): each for method, each in compared.items()}
    return found


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
