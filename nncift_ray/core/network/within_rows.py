"""How well a model tells which helper is best for a row, whatever the row's offset.

What moves a label most is often its row: some examples gain from any help, others from none. That
moves all helpers of a row alike and changes no choice among them, so a model can do well on all
pairs and know nothing of which helper to take. Here every row is measured for itself.
Suffixes: P pairs, G rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Floats = NDArray[np.floating]
Integers = NDArray[np.integer]

MIN_RANKED = 4  # pairs from which on the helpers of a row are ranked
TOP_SHARE = 0.25  # of a row's pairs; rounded up, so many are its best helpers


@dataclass(frozen=True, slots=True)
class WithinRows:
    """Agreement within rows; None where it is not defined."""

    num_rows: int = 0
    """Rows of `MIN_RANKED` pairs or more whose labels vary: what the last four rest on."""
    centred_r2: float | None = None
    """R2 after each row's mean over these pairs is taken from labels and from predictions.

    0 is a model that knows no helper of a row from another. A row of one pair adds nothing.
    """
    centred_spearman: float | None = None
    """Rank correlation of the centred values, over the pairs of rows that have two or more."""
    row_spearman: float | None = None
    """Mean over rows of the rank correlation within the row.

    A row that is predicted constant counts 0; None where all are.
    """
    top_overlap: float | None = None
    """Mean over rows of the share of the teacher's best helpers that are among the model's best.

    The best are ceil(m / 4) of a row's m pairs. Ties are broken at random, in expectation.
    """
    chance_overlap: float | None = None
    """The same of a model that knows nothing: mean of ceil(m / 4) / m."""


def measure_within_rows(labels: Floats, predictions: Floats, rows: Integers) -> WithinRows:
    """Compare labels [P] with predictions [P] of the pairs of rows [P], row by row."""
    truth, predicted = labels.astype(np.float64), predictions.astype(np.float64)
    num_rows, *of_rows = _rank_rows(truth, predicted, rows)
    compared = _sizes(rows) > 1
    centred = [centre(values[compared], rows[compared]) for values in (truth, predicted)]
    return WithinRows(num_rows, *_compare(*centred), *of_rows)


def centre(values: F64, rows: Integers) -> F64:
    """Take from each value [P] the mean of its row; exactly 0 in a row of equal values."""
    order, starts_G = _by_row(rows)
    if not len(starts_G):
        return values
    group_P = _number(rows)
    mean_G = np.bincount(group_P, weights=values) / np.bincount(group_P)
    lowest_G = np.minimum.reduceat(values[order], starts_G)
    equal_G = lowest_G == np.maximum.reduceat(values[order], starts_G)
    return values - np.where(equal_G, lowest_G, mean_G)[group_P]


def _compare(truth: F64, predicted: F64) -> tuple[float | None, float | None]:
    """Return R2 and rank correlation of centred values."""
    if not truth.any():
        return None, None
    r2 = 1.0 - float(np.square(truth - predicted).sum() / np.square(truth).sum())
    if not predicted.any():
        return r2, None
    return r2, float(np.corrcoef(rankdata(truth), rankdata(predicted))[0, 1])


def _rank_rows(
    truth: F64, predicted: F64, rows: Integers
) -> tuple[int, float | None, float | None, float | None]:
    """Return the number of rows ranked, their mean correlation, top overlap, and that of chance."""
    spread = centre(truth, rows)
    varied_G = np.bincount(_number(rows), weights=np.abs(spread), minlength=1) > 0
    kept = (_sizes(rows) >= MIN_RANKED) & varied_G[_number(rows)]
    if not kept.any():
        return 0, None, None, None
    truth, predicted, rows = truth[kept], predicted[kept], rows[kept]
    group_P = _number(rows)
    size_G = np.bincount(group_P)
    wanted_G = np.ceil(TOP_SHARE * size_G)
    both_P = _in_top(truth, group_P, wanted_G) * _in_top(predicted, group_P, wanted_G)
    overlap_G = np.bincount(group_P, weights=both_P) / wanted_G
    return (
        len(size_G),
        _mean_correlation(truth, predicted, group_P),
        float(overlap_G.mean()),
        float((wanted_G / size_G).mean()),
    )


def _mean_correlation(truth: F64, predicted: F64, group_P: I64) -> float | None:
    """Return the mean rank correlation of rows whose ``truth`` varies."""
    one_P, other_P = (centre(_ranks(values, group_P)[0], group_P) for values in (truth, predicted))
    if not other_P.any():
        return None
    product_G, one_G, other_G = (
        np.bincount(group_P, weights=values)
        for values in (one_P * other_P, np.square(one_P), np.square(other_P))
    )
    size_G = np.sqrt(one_G * other_G)
    return float(np.divide(product_G, size_G, out=np.zeros(len(size_G)), where=size_G > 0).mean())


def _in_top(values: F64, group_P: I64, wanted_G: F64) -> F64:
    """Return the probability that a pair is among the largest of its row, ties broken at random."""
    rank_P, ties_P = _ranks(-values, group_P)
    better_P = rank_P - (ties_P + 1) / 2
    return np.clip((wanted_G[group_P] - better_P) / ties_P, 0.0, 1.0)


def _ranks(values: F64, group_P: I64) -> tuple[F64, F64]:
    """Return each pair's rank within its row, from 1, ties averaged, and how many share it."""
    order = np.lexsort((values, group_P))
    group, value = group_P[order], values[order]
    new = np.concatenate([[True], (group[1:] != group[:-1]) | (value[1:] != value[:-1])])
    tie_P = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(values)))
    row_start = np.searchsorted(group, group)
    rank, ties = np.empty(len(values)), np.empty(len(values))
    rank[order] = (first + (count + 1) / 2)[tie_P] - row_start
    ties[order] = count[tie_P]
    return rank, ties


def _number(rows: Integers) -> I64:
    """Number the rows of pairs from 0."""
    return np.unique(rows, return_inverse=True)[1].astype(np.int64)


def _sizes(rows: Integers) -> I64:
    """Return for each pair how many pairs its row has."""
    group_P = _number(rows)
    return np.bincount(group_P, minlength=1)[group_P]


def _by_row(rows: Integers) -> tuple[I64, I64]:
    """Return an order that puts rows together, and where in it each starts."""
    order = np.argsort(rows, kind="stable")
    return order, np.unique(rows[order], return_index=True)[1].astype(np.int64)
