"""Statistics: means with intervals, differences to random subsets, and a verdict in one word.

A value of a test row is a number; NaN is a value that is not there (a failed answer, a verdict that
could not be read) and is counted, never replaced. Suffixes: N rows, S seeds (random subsets), B
resamplings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from nncift_ray.errors import DataError, ShapeError
from nncift_ray.evaluation.methods import DRAWN, INITIAL, RANDOM
from nncift_ray.evaluation.metrics import LOWER_IS_BETTER
from nncift_ray.runtime.schemas import SUMMARY

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
