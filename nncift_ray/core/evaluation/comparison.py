"""A method held against Random: the difference, how sure it is, and a verdict in one word.

Suffixes: N rows of the test set, S seeds (random subsets), B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.evaluation.resampling import (
    F64,
    draw_row_deviations,
    measure_seed_spread,
    sign_flip_p_value,
)
from nncift_ray.core.evaluation.statistics import (
    DEFAULT_CONFIDENCE,
    DEFAULT_SAMPLES,
    as_table,
    drop_empty,
    quantiles,
)
from nncift_ray.errors import ShapeError

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
