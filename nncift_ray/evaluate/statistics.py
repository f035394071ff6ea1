"""Means with their intervals: how sure a number of the table is.

A value of a test row is a number; NaN is a value that is not there (a failed answer, a verdict that
could not be read) and is counted, never replaced. Suffixes: N rows, S seeds (random subsets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import hypergeom

from nncift_ray.errors import ShapeError
from nncift_ray.selection.greedy import evaluate
from nncift_ray.selection.problem import Objective, Problem

F64 = NDArray[np.float64]

#: Rows beyond this number are averaged in so many random groups first.
MAX_GROUPS = 4096
#: Values drawn at once: 32 MiB of float64, and as much for the places they are drawn from.
SLAB_VALUES = 1 << 22
#: With so few rows all patterns of signs are tried.
MAX_EXACT_ROWS = 16
#: Sums that differ by less than this share of what is summed are the same sum, rounded otherwise.
ROUNDING = 1e-12


def group_rows(values_N: F64, rng: np.random.Generator) -> F64:
    """Return at most ``MAX_GROUPS`` values [G] that resample like all rows, in bounded time.

    Rows are dealt to groups at random. What is returned of a group is the sum of its deviations,
    scaled so that mean, variance and skewness of resampled *means* are those of the rows in
    expectation; with up to ``MAX_GROUPS`` rows it is the rows themselves.
    """
    num_rows = len(values_N)
    if num_rows <= MAX_GROUPS:
        return values_N
    mean = values_N.mean()
    return mean + _group_sums(values_N - mean, rng) * (MAX_GROUPS / num_rows)


def draw_row_deviations(
    values_N: F64, num_samples: int, confidence: float, rng: np.random.Generator
) -> F64:
    """Draw how far the mean over other rows of the same kind lies from the mean over these [B].

    Rows are resampled with replacement. The deviations are widened by sqrt(N / (N - 1)), which the
    resampled variance lacks, and by Student's quantile over the normal one, which repairs what is
    left for few rows at the level ``confidence`` (the "expanded" interval of Hesterberg, What
    Teachers Should Know about the Bootstrap, 2015). For 100 rows that is 2 %, for 5 rows 58 %.

    Memory: two slabs of ``SLAB_VALUES`` whatever N; 8 B more for the result.
    """
    values_G = group_rows(values_N, rng)
    num = len(values_G)
    means_B = np.empty(num_samples)
    for start, stop in _slabs(num_samples, num):
        places = rng.integers(num, size=(stop - start, num), dtype=np.int32)
        means_B[start:stop] = values_G[places].mean(axis=1)
    tail = (1 + confidence) / 2
    student = float(stats.t.ppf(tail, num - 1)) / float(stats.norm.ppf(tail))
    return (means_B - values_N.mean()) * (np.sqrt(num / (num - 1)) * student)


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How random subsets differ among themselves, estimated from the rows they share.

    With r_is the value of row i under subset s, r_is = row_i + subset_s + rest_is:
    ``means_variance`` is the variance (S - 1 below) of the subsets' means over rows, which holds
    subset_s and, over N, rest_is; ``rest_variance`` is that share of rest_is, which comes back
    with other rows and is no property of the subsets.
    """

    num_seeds: int
    means_variance: float
    rest_variance: float  # of rest_is, divided by the rows: part of means_variance

    def draw_deviations(
        self, num_samples: int, rng: np.random.Generator, *, unseen_subset: bool
    ) -> F64:
        """Draw how far the mean of these subsets lies from that of all random subsets [B].

        Three subsets cannot be resampled honestly: the variance of what is drawn from S values is
        short of a factor (S - 1) / S, and its tails end at the worst of three. So subsets are
        taken as normal around their mean, with a variance that is itself drawn from what S values
        leave open (the generalised interval of Weerahandi, 1993: S - 1 over a chi-squared number);
        without ``rest_variance`` this is Student's t with S - 1 degrees of freedom. With 3
        subsets the 97.5 % point is 4.3 standard errors, with 5 it is 2.8.

        Args:
            num_samples: B.
            rng: The draws.
            unseen_subset: Add the deviation of one more subset of the same kind.
        """
        if self.num_seeds < 2:  # nothing is known of the spread
            return np.zeros(num_samples)
        freedom = self.num_seeds - 1
        drawn_B = self.means_variance * freedom / rng.chisquare(freedom, num_samples)
        variance_B = np.maximum(drawn_B - self.rest_variance, 0.0)
        share = 1 / self.num_seeds + (1.0 if unseen_subset else 0.0)
        return rng.standard_normal(num_samples) * np.sqrt(variance_B * share)


def measure_seed_spread(values_NS: F64) -> SeedSpread:
    """Estimate the spread of subsets from a table [N, S] of which each column has some value.

    NaN is a missing value. Rows are centred first, so that a subset that lacks the hard rows is
    not taken for a good one; with no value missing this is the two-way analysis of variance.
    """
    num_rows, num_seeds = values_NS.shape
    if num_seeds < 2:
        return SeedSpread(num_seeds, 0.0, 0.0)
    centred_NS = values_NS - np.nanmean(values_NS, axis=1, keepdims=True)
    means_S = np.nanmean(centred_NS, axis=0)
    freedom = np.count_nonzero(~np.isnan(values_NS)) - num_rows - num_seeds + 1
    rest = float(np.nansum(np.square(centred_NS - means_S)))
    rest_variance = rest / freedom / num_rows if freedom > 0 else 0.0
    return SeedSpread(num_seeds, float(means_S.var(ddof=1)), rest_variance)


def sign_flip_p_value(differences_N: F64, num_samples: int, rng: np.random.Generator) -> float:
    """Test whether the mean of paired differences is 0, by flipping signs (two-sided).

    If neither side is better, a row's difference is as likely d as -d. The p-value is the share of
    sign patterns whose mean is at least as far from 0 as the observed one: of all patterns for up
    to ``MAX_EXACT_ROWS`` differences other than 0 (exact), else of drawn ones and the observed
    one. Beyond ``MAX_GROUPS`` rows the signs of random groups are flipped, which is as valid.

    Source: Fisher's randomisation test; Edgington and Onghena, Randomization Tests, 4th ed.
    """
    differences_N = differences_N[differences_N != 0]  # flips of a 0 change nothing
    if not len(differences_N):
        return 1.0
    if len(differences_N) <= MAX_EXACT_ROWS:
        sums = _all_signed_sums(differences_N)
        return float(np.mean(_as_far(sums, differences_N)))
    values_G = _group_sums(differences_N, rng)
    as_far = 1  # the observed pattern
    for start, stop in _slabs(num_samples, len(values_G)):
        signs = 1 - 2 * rng.integers(2, size=(stop - start, len(values_G)), dtype=np.int8)
        as_far += int(_as_far(signs @ values_G, values_G).sum())
    return as_far / (num_samples + 1)


def _group_sums(values_N: F64, rng: np.random.Generator) -> F64:
    """Deal values to ``MAX_GROUPS`` groups at random and add each up [G]; few stay themselves."""
    if len(values_N) <= MAX_GROUPS:
        return values_N
    starts_G = np.arange(MAX_GROUPS) * len(values_N) // MAX_GROUPS
    return np.add.reduceat(rng.permutation(values_N), starts_G)


def _all_signed_sums(differences_N: F64) -> F64:
    """Return the sums of all patterns with the first sign fixed: the others mirror them."""
    sums = differences_N[:1]
    for difference in differences_N[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _as_far(sums: F64, differences: F64) -> NDArray[np.bool_]:
    tolerance = ROUNDING * float(np.abs(differences).sum())
    return np.abs(sums) >= abs(float(differences.sum())) - tolerance


def _slabs(num_samples: int, num_values: int) -> list[tuple[int, int]]:
    step = max(1, SLAB_VALUES // num_values)
    return [(at, min(at + step, num_samples)) for at in range(0, num_samples, step)]


# Means with their intervals: how sure a number of the table is.

DEFAULT_SAMPLES = 10_000
DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """The mean of a metric over the rows of a test set."""

    num_rows: int  # with a value, of one seed at least
    num_missing: int  # values that are not there, over all seeds
    mean: float | None  # None: there is no value
    low: float | None  # None: fewer than two rows
    high: float | None
    seed_deviation: float | None  # of the seeds' means (S - 1 below); None: fewer than two seeds


def estimate_mean(
    values: NDArray[np.floating],
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    num_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> MeanEstimate:
    """Return the mean of a metric with its bootstrap interval.

    The interval says where the mean over all rows of that kind lies, of which the test set is a
    sample; of several random subsets, the mean over all random subsets of that size. It is the
    percentile interval of resampled rows, widened for few rows, plus the spread of subsets
    (``resampling`` has both). Answers of only 0 and 1 get Wilson's interval instead: none right
    of 100 is no proof that none ever will be, and resampling zeros gives [0, 0].

    Args:
        values: [N] of one subset, or [N, S] of S random subsets on the same rows; NaN is missing.
        confidence: Level of the interval, two-sided.
        num_samples: Resamplings.
        seed: Of the resamplings; equal seeds and shapes resample equal rows.

    Returns:
        The estimate, in the metric's unit. Rows of several subsets count with the mean over those
        that have a value.

    Raises:
        ShapeError: If there are more than two axes.
    """
    values_NS = as_table(values)
    num_missing = int(np.isnan(values_NS).sum())
    values_NS = drop_empty(values_NS)
    num_rows, num_seeds = values_NS.shape
    if not num_rows:
        return MeanEstimate(0, num_missing, None, None, None, None)
    spread = measure_seed_spread(values_NS)
    deviation = float(np.sqrt(spread.means_variance)) if num_seeds > 1 else None
    rows_N = np.nanmean(values_NS, axis=1)
    mean = float(rows_N.mean())
    if num_rows < 2:
        return MeanEstimate(num_rows, num_missing, mean, None, None, deviation)
    if np.isin(rows_N, (0.0, 1.0)).all():
        low, high = _wilson(int(rows_N.sum()), num_rows, confidence)
        return MeanEstimate(num_rows, num_missing, mean, low, high, deviation)
    rng = np.random.default_rng(seed)
    draws_B = draw_row_deviations(rows_N, num_samples, confidence, rng)
    draws_B += spread.draw_deviations(num_samples, rng, unseen_subset=False)
    low, high = mean + quantiles(draws_B, confidence)
    return MeanEstimate(num_rows, num_missing, mean, float(low), float(high), deviation)


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


def quantiles(draws_B: F64, confidence: float) -> F64:
    """Return the two quantiles [2] between which ``confidence`` of the draws lie."""
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(draws_B, [tail, 1 - tail]), dtype=np.float64)


def _wilson(num_ones: int, num_rows: int, confidence: float) -> tuple[float, float]:
    test = stats.binomtest(num_ones, num_rows)
    interval = test.proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


# A method held against Random: the difference, how sure it is, and a verdict in one word.

#: Metrics of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"nll"})

Verdict = Literal["better", "worse", "noise"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One method beside random subsets of the same size, on the same rows."""

    num_rows: int  # where the method and a random subset have a value
    num_missing: int  # rows where one side has none; they say nothing of a pair
    num_seeds: int  # random subsets with any value
    difference: float | None  # method minus random, in the metric's unit; None: no common row
    low: float | None  # None: fewer than two rows
    high: float | None
    p_value: float | None  # of this comparison alone
    adjusted_p_value: float | None  # after Holm, over the methods that are read side by side
    #: By adjusted_p_value; None where nothing can be said: no common rows, or a single random
    #: subset, of which nobody knows how far others lie from it.
    verdict: Verdict | None


def compare_with_random(
    method: NDArray[np.floating],
    random: NDArray[np.floating],
    *,
    lower_is_better: bool,
    subset_was_chosen: bool = True,
    confidence: float = DEFAULT_CONFIDENCE,
    num_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare a method with random subsets, row by row.

    The difference is the mean over rows of: the method's value minus the mean over the random
    subsets. Two things make it uncertain, and both are in the interval.

    *Rows.* Other test rows would give another mean; rows are resampled, each with its pair.

    *Subsets.* Models taught with two equally good subsets differ, by luck of the draw and of
    training, on all rows alike; no number of rows averages that out. S random subsets show how
    much. Random's mean carries a share 1/S of that variance, and the method's one subset carries
    it once: where choosing is of no use, its subset is nothing but one more draw. So the question
    answered is "is this more than one more random subset could show by luck?", and a table that
    asked only "is this very subset better than the average one?" would call a fourth random
    subset better or worse about once in six times.

    Limits. The method's subset is taken to vary as random ones do, which cannot be checked with
    one subset of it. Subsets are taken as normal: with three the spread is known so badly that a
    difference must exceed five of their standard deviations, with five 3.0, with ten 2.4. What
    would change with other training seeds is known only as far as it is in the random subsets. With
    one random subset the interval covers rows alone, and there is no verdict.

    The p-value is the larger of two: that at which the interval would touch 0, and the sign-flip
    test over rows, which is exact for few rows and knows no subsets. A verdict needs both.

    Args:
        method: [N] values of the method; NaN is missing.
        random: [N] or [N, S] values of random subsets on the same rows; NaN is missing. A row's
            mean is over the subsets with a value.
        lower_is_better: The direction of the metric, see ``LOWER_IS_BETTER``.
        subset_was_chosen: False for a method without a subset and without training (the initial
            model): it has no luck of the draw of its own.
        confidence: Level of the interval; the verdict is "noise" unless p <= 1 - confidence.
        num_samples: Resamplings.
        seed: Of the resamplings.

    Returns:
        The comparison by itself: adjusted_p_value is p_value.

    Raises:
        ShapeError: If the rows of the two differ in number.
    """
    pairs_NS = _pair(method, random)
    num_rows, num_seeds = pairs_NS.shape
    num_missing = len(method) - num_rows
    if num_rows < 2:
        difference = float(np.nanmean(pairs_NS)) if num_rows else None
        return Comparison(
            num_rows, num_missing, num_seeds, difference, None, None, None, None, None
        )
    rng = np.random.default_rng(seed)
    differences_N = np.nanmean(pairs_NS, axis=1)
    difference = float(differences_N.mean())
    draws_B = draw_row_deviations(differences_N, num_samples, confidence, rng)
    draws_B += measure_seed_spread(pairs_NS).draw_deviations(
        num_samples, rng, unseen_subset=subset_was_chosen
    )
    draws_B += difference
    low, high = quantiles(draws_B, confidence)
    p_value = max(_p_value_of_draws(draws_B), sign_flip_p_value(differences_N, num_samples, rng))
    verdict = _verdict(difference, p_value, num_seeds, lower_is_better, confidence)
    return Comparison(
        num_rows, num_missing, num_seeds, difference, float(low), float(high),
        p_value, p_value, verdict,
    )  # fmt: skip


def compare_methods(
    methods: Mapping[str, NDArray[np.floating]],
    random: NDArray[np.floating],
    *,
    lower_is_better: bool,
    untrained: Sequence[str] = ("initial",),
    confidence: float = DEFAULT_CONFIDENCE,
    num_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare all methods that are read side by side with the same random subsets.

    Of ten methods that are no better than random, one or another looks significant by chance in
    two tables of five. So p-values are adjusted (``holm``), and verdicts go by the adjusted ones:
    the chance of any false "better" or "worse" among these methods is at most 1 - confidence.
    Intervals are not adjusted; one may exclude 0 where the verdict is "noise".

    Args:
        methods: Values [N] by method, of one budget, mode, test set and metric.
        random: [N] or [N, S] on the same rows.
        lower_is_better: The direction of the metric.
        untrained: Methods without subset and training, see ``compare_with_random``.
        confidence: Of intervals and verdicts.
        num_samples: Resamplings.
        seed: Of the resamplings; all methods are resampled alike.

    Raises:
        ShapeError: If the rows of two differ in number.
    """
    alone = {
        name: compare_with_random(
            values,
            random,
            lower_is_better=lower_is_better,
            subset_was_chosen=name not in untrained,
            confidence=confidence,
            num_samples=num_samples,
            seed=seed,
        )
        for name, values in methods.items()
    }
    adjusted = holm([each.p_value for each in alone.values()])
    return {
        name: replace(
            each,
            adjusted_p_value=p_value,
            verdict=_verdict(each.difference, p_value, each.num_seeds, lower_is_better, confidence),
        )
        for (name, each), p_value in zip(alone.items(), adjusted, strict=True)
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


def _pair(method: NDArray[np.floating], random: NDArray[np.floating]) -> F64:
    """Return method minus random [rows with a pair, seeds with a value]."""
    random_NS = as_table(random)
    method_N1 = as_table(method)
    if method_N1.shape[1] != 1 or len(method_N1) != len(random_NS):
        raise ShapeError(
            f"the method has values {np.shape(method)}, random {np.shape(random)}: they must be "
            "[rows] and [rows, seeds] of the same rows"
        )
    return drop_empty(method_N1 - random_NS)


def _p_value_of_draws(draws_B: F64) -> float:
    """Return 1 - the confidence at which the interval of the draws would touch 0."""
    beyond = min(int((draws_B <= 0).sum()), int((draws_B >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(draws_B) + 1))


def _verdict(
    difference: float | None,
    p_value: float | None,
    num_seeds: int,
    lower_is_better: bool,
    confidence: float,
) -> Verdict | None:
    if difference is None or p_value is None or num_seeds < 2:
        return None
    if p_value > 1 - confidence:
        return "noise"
    return "better" if (difference < 0) == lower_is_better else "worse"


# How near a method's subset comes to its teacher's: the same picks, or picks as good.

Members = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Picks that two subsets share, beside what chance alone would share."""

    shared: int
    fraction: float  # of the first subset's picks
    chance_fraction: float  # expected where the first is drawn at random
    #: Probability that a random subset shares as many or more.
    p_value: float


@dataclass(frozen=True, slots=True)
class ObjectiveAgreement:
    """What subsets are worth to one teacher: its set function over its own scores."""

    method: float
    teacher: float
    random: float | None  # mean of the random subsets; None: none were given

    @property
    def gain_fraction(self) -> float | None:
        """What the method gains over random, as a share of what the teacher gains.

        1: as good as the teacher's own subset; 0: no better than random. None where random is not
        known, or the teacher gains nothing.
        """
        if self.random is None or self.teacher <= self.random:
            return None
        return (self.method - self.random) / (self.teacher - self.random)


def measure_overlap(members: Members, others: Members, num_candidates: int) -> Overlap:
    """Compare two subsets of the same candidates.

    Args:
        members: Row numbers [S] of a subset, each once.
        others: Row numbers of the subset it is held against.
        num_candidates: Candidates that both were chosen from.

    Raises:
        ValueError: If a subset is empty, names a candidate twice, or one that does not exist.
    """
    for subset in (members, others):
        _check_members(subset, num_candidates)
    shared = len(np.intersect1d(members, others))
    law = hypergeom(num_candidates, len(others), len(members))
    return Overlap(
        shared,
        shared / len(members),
        len(others) / num_candidates,
        float(law.sf(shared - 1)),
    )


def compare_values(
    objective: Objective | Problem,
    members: Members,
    teacher_members: Members,
    random_subsets: Sequence[Members] = (),
) -> ObjectiveAgreement:
    """Value subsets by the teacher's set function.

    Args:
        objective: Over the teacher's scores, scaled as its own selection scaled them.
        members: The method's subset.
        teacher_members: The teacher's, greedily chosen, so a lucky subset may be worth more.
        random_subsets: Random subsets, best of the size of the others.

    Returns:
        Values in the objective's unit: compare them only with each other.

    Raises:
        ValueError: As ``measure_overlap``.

    Time: one pass over the entries of all subsets' columns.
    """
    problem = objective if isinstance(objective, Problem) else objective.problem()
    values = [_value(problem, subset) for subset in (members, teacher_members, *random_subsets)]
    random = float(np.mean(values[2:])) if random_subsets else None
    return ObjectiveAgreement(values[0], values[1], random)


def _value(problem: Problem, members: Members) -> float:
    _check_members(members, problem.num_columns)
    return float(evaluate(problem, np.sort(members).astype(np.int64))[-1])


def _check_members(members: Members, num_candidates: int) -> None:
    if not len(members):
        raise ValueError("a subset without members agrees with nothing")
    if not 0 <= members.min() <= members.max() < num_candidates:
        raise ValueError(
            f"a subset has members {members.min()}..{members.max()}, there are {num_candidates} "
            "candidates"
        )
    if len(np.unique(members)) < len(members):
        raise ValueError("a subset names a candidate twice")


# What the steps of a method cost, by how much another costs less, and what more data would cost.

SECONDS_PER_HOUR = 3600.0

#: What a step's work grows with, N candidates and T targets:
#: constant 1, candidates N, rows N + T, within N^2, cross N T, pairs N (N + T).
Law = Literal["constant", "candidates", "rows", "within", "cross", "pairs"]

#: The law of each stage as the default recipe uses it. Where the labels are a share of the pairs
#: ("teacher" methods that label all of them), give ``LAWS | {"label": "pairs"}``.
LAWS: Mapping[str, Law] = {
    "ingest": "rows",
    "deduplicate": "rows",
    "embed": "rows",
    # A number of labels, or `labels.fraction` up to `labels.max_pairs`, which large corpora meet.
    "label": "constant",
    "fit": "constant",
    # LESS: warm-up on a share of the candidates; gradients of the sampled examples.
    "warmup": "candidates",
    "gradients": "constant",
    "project": "rows",
    "index": "candidates",
    "score_pairs": "pairs",
    # All labels of the teacher in the place of a network's scores.
    "teacher_scores": "pairs",
    # On lists of fixed length: lazy greedy looks at a candidate a few times.
    "select_partitions": "candidates",
    "select": "candidates",
    "export": "candidates",
}


@dataclass(frozen=True, slots=True)
class Size:
    """How large a corpus is."""

    num_candidates: int
    num_targets: int = 0

    def work(self, law: Law) -> float:
        """Return the amount of work by a law, in its own unit."""
        n, t = float(self.num_candidates), float(self.num_targets)
        return {
            "constant": 1.0,
            "candidates": n,
            "rows": n + t,
            "within": n * n,
            "cross": n * t,
            "pairs": n * (n + t),
        }[law]


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars an hour."""

    per_gpu_hour: float
    per_cpu_hour: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step took."""

    step: str  # a stage's name, or "all"
    seconds: float  # on the clock
    accelerator_seconds: float  # GPUs held, over all actors, while they worked
    cpu_seconds: float  # CPUs held, likewise
    num_tokens: int | None  # computed by a language model; None: it asks none
    price: float  # US dollars
    extrapolated: bool = False


def measure_step(
    step: str,
    *,
    wall_seconds: float,
    worker_seconds: float,
    num_cpus: float,
    num_gpus: float,
    prices: Prices,
    num_tokens: int | None = None,
) -> StepCost:
    """Return the cost of a finished stage from what its manifest says.

    What holds a GPU is priced by the hour of GPU, which comes with its CPUs, all else by the hour
    of CPU. Workers count while they work on shards; loading models and idle actors do not.

    Args:
        step: The stage's name.
        wall_seconds: From the stage's start to its end. Of a stage that was stopped and went on
            the manifest knows the last run alone: its seconds are too few, the others are right.
        worker_seconds: Sum over all shards.
        num_cpus: CPUs of one worker.
        num_gpus: GPUs of one worker.
        prices: What they cost.
        num_tokens: Tokens computed by a language model.
    """
    accelerator_seconds = worker_seconds * num_gpus
    cpu_seconds = worker_seconds * num_cpus
    price = (
        accelerator_seconds * prices.per_gpu_hour if num_gpus else cpu_seconds * prices.per_cpu_hour
    ) / SECONDS_PER_HOUR
    return StepCost(step, wall_seconds, accelerator_seconds, cpu_seconds, num_tokens, price)


def add_up(costs: Sequence[StepCost], step: str = "all") -> StepCost:
    """Return the cost of steps one after another; extrapolated if one of them is."""
    tokens = [cost.num_tokens for cost in costs if cost.num_tokens is not None]
    return StepCost(
        step,
        sum(cost.seconds for cost in costs),
        sum(cost.accelerator_seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
        sum(tokens) if tokens else None,
        sum(cost.price for cost in costs),
        any(cost.extrapolated for cost in costs),
    )


def reduction_percent(cost: float, reference: float) -> float | None:
    """Return by how many percent a cost is below a reference; negative: it is above.

    None for a reference of nothing.
    """
    return 100.0 * (1.0 - cost / reference) if reference > 0 else None


def extrapolate(
    costs: Sequence[StepCost],
    measured: Size,
    wanted: Size,
    laws: Mapping[str, Law] = LAWS,
    fixed_seconds: Mapping[str, float] | None = None,
) -> list[StepCost]:
    """Say what steps would cost on a corpus of another size, on the same machines.

    Args:
        costs: Measured, each a single step.
        measured: The corpus they were measured on.
        wanted: The corpus that is asked about.
        laws: What each step's work grows with.
        fixed_seconds: Seconds on the clock of a step that do not grow, e.g. loading a model; a
            minute of it on a thousand rows is not a thousand minutes on a million.

    Returns:
        The costs in the same order, all marked as extrapolated, those that stay the same as well.

    Raises:
        ValueError: If a step has no law, or the measured corpus has no work of its law.
    """
    return [
        _grow(cost, _growth(cost.step, measured, wanted, laws), (fixed_seconds or {}))
        for cost in costs
    ]


def _growth(step: str, measured: Size, wanted: Size, laws: Mapping[str, Law]) -> float:
    if step not in laws:
        raise ValueError(f"nothing says what the work of step '{step}' grows with")
    work = measured.work(laws[step])
    if work <= 0:
        raise ValueError(
            f"step '{step}' grows with {laws[step]}, of which the measured corpus has none"
        )
    return wanted.work(laws[step]) / work


def _grow(cost: StepCost, growth: float, fixed_seconds: Mapping[str, float]) -> StepCost:
    fixed = min(fixed_seconds.get(cost.step, 0.0), cost.seconds)
    tokens = None if cost.num_tokens is None else round(cost.num_tokens * growth)
    return replace(
        cost,
        seconds=fixed + (cost.seconds - fixed) * growth,
        accelerator_seconds=cost.accelerator_seconds * growth,
        cpu_seconds=cost.cpu_seconds * growth,
        num_tokens=tokens,
        price=cost.price * growth,
        extrapolated=True,
    )
