"""Means with their intervals: how sure a number of the table is.

A value of a test row is a number; NaN is a value that is not there (a failed answer, a verdict that
could not be read) and is counted, never replaced. Suffixes: N rows, S seeds (random subsets).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nncift_ray.core.evaluation.resampling import (
    F64,
    draw_row_deviations,
    measure_seed_spread,
)
from nncift_ray.errors import ShapeError

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
