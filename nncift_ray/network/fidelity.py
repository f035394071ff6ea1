"""How well the network stands in for the teacher, beside models that know less.

A mean squared error says little alone: labels in a narrow band are met by any constant. So every
split is also scored by a constant, by the means of rows and columns, and by the paper's two
baselines; and since a row's offset chooses no helper, every model also within rows
(``WithinRows``). Suffixes: P pairs (or examples, of a pointwise teacher), G rows of pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from nncift_ray.errors import ShapeError
from nncift_ray.labels.sample import SPLITS, TRAIN

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Floats = NDArray[np.floating]
Integers = NDArray[np.integer]

NETWORK, ZERO, RANDOM = "network", "zero", "random"
MEAN, ROW_COLUMN_MEAN = "mean", "row_column_mean"
MIN_RANKED = 4  # pairs from which on the helpers of a row are ranked
TOP_SHARE = 0.25  # of a row's pairs; rounded up, so many are its best helpers


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRow(WithinRows):
    """One model on one split; nothing within rows is defined for examples on their own."""

    split: str
    model: str
    num_pairs: int
    mse: float  # squared label unit
    scaled_mse: float  # labels min-max scaled to [0, 1] over the whole block; NaN if all are equal
    r2: float | None  # None where the labels do not vary
    spearman: float | None  # None where either side does not vary


def fidelity_table(
    labels: Floats,
    predictions: Floats,
    splits: NDArray[np.str_],
    rows: Integers,
    cols: Integers | None,
    seed: int,
) -> list[FidelityRow]:
    """Measure the network and the baselines on every split that has pairs.

    The baselines know the training pairs only: `zero` predicts 0 in the labels' own unit ("no
    example helps"), `random` draws uniformly over the range of the labels, `mean` is their mean,
    `row_column_mean` is row mean + column mean - grand mean, of pairs only.

    Args:
        labels: Teacher's utilities [P], raw and signed.
        predictions: The network's influence [P], in the same unit.
        splits: Split of each pair [P], one of `SPLITS`.
        rows: Helped example of each pair [P].
        cols: Helper example of each pair [P]; None where examples are labelled on their own.
        seed: Of the random baseline.

    Raises:
        ShapeError: If the columns differ in length.
        ValueError: If there is no training pair, a split is unknown or a value is not finite.
    """
    _check_table(labels, predictions, splits, rows, cols)
    fitted, num_pairs = splits == TRAIN, len(labels)
    train = _f64(labels)[fitted]
    generator = np.random.Generator(np.random.PCG64(seed))
    models: dict[str, F64] = {
        NETWORK: _f64(predictions),
        ZERO: np.zeros(num_pairs),
        RANDOM: generator.uniform(train.min(), train.max(), num_pairs),
        MEAN: np.full(num_pairs, train.mean()),
    }
    if cols is not None:
        models[ROW_COLUMN_MEAN] = row_column_means(labels, rows, cols, fitted)
    scale = float(labels.min()), float(labels.max())
    table: list[FidelityRow] = []
    for split in SPLITS:
        at = splits == split
        if not at.any():
            continue
        truth = _f64(labels)[at]
        for model, values in models.items():
            predicted, within = values[at], WithinRows()
            if cols is not None:
                within = measure_within_rows(truth, predicted, rows[at])
            row = FidelityRow(
                split=split,
                model=model,
                num_pairs=len(truth),
                mse=mse(truth, predicted),
                scaled_mse=scaled_mse(truth, predicted, *scale),
                r2=r2(truth, predicted),
                spearman=spearman(truth, predicted),
                **asdict(within),
            )
            table.append(row)
    return table


def _check_table(
    labels: Floats,
    predictions: Floats,
    splits: NDArray[np.str_],
    rows: Integers,
    cols: Integers | None,
) -> None:
    columns = (labels, predictions, splits, rows, rows if cols is None else cols)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1:
        raise ShapeError(f"labels, predictions, splits, rows, cols differ in length: {lengths}")
    if unknown := set(np.unique(splits).tolist()) - set(SPLITS):
        raise ValueError(f"unknown splits {sorted(unknown)}, expected some of {SPLITS}")
    for name, values in (("label", labels), ("prediction", predictions)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name} of pair {bad[0]} is not finite ({len(bad)} such pairs)")
    if not (splits == TRAIN).any():
        raise ValueError("no training pair: the baselines have nothing to be fitted on")


def mse(labels: Floats, predictions: Floats) -> float:
    """Return the mean squared error, in squared label unit."""
    return float(np.mean(np.square(_f64(labels) - _f64(predictions))))


def scaled_mse(labels: Floats, predictions: Floats, minimum: float, maximum: float) -> float:
    """Return the mean squared error after mapping [minimum, maximum] to [0, 1], as in the paper.

    Both sides are mapped with the one scale given, that of all labels of the block. NaN when the
    scale has no width.
    """
    width = maximum - minimum
    return mse(labels, predictions) / width**2 if width > 0 else float("nan")


def r2(labels: Floats, predictions: Floats) -> float | None:
    """Return 1 - residual / total sum of squares; None when the labels do not vary."""
    truth = _f64(labels)
    if np.ptp(truth) == 0:
        return None
    total = float(np.square(truth - truth.mean()).sum())
    return 1.0 - float(np.square(truth - _f64(predictions)).sum()) / total


def spearman(labels: Floats, predictions: Floats) -> float | None:
    """Return the rank correlation, ties averaged; None when either side does not vary."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return None
    return float(np.corrcoef(rankdata(labels), rankdata(predictions))[0, 1])


def row_column_means(
    labels: Floats, rows: Integers, cols: Integers, fitted: NDArray[np.bool_]
) -> F64:
    """Predict every pair [P] by row mean + column mean - grand mean of the ``fitted`` ones.

    What this cannot explain is true interaction of two examples. An unseen row (column) counts as
    average.
    """
    train = _f64(labels)[fitted]
    grand = float(train.mean())
    row_P, col_P = (_group_means(train, groups, fitted, grand) for groups in (rows, cols))
    return row_P + col_P - grand


def _group_means(train: F64, groups: Integers, fitted: NDArray[np.bool_], unseen: float) -> F64:
    """Return for each pair the mean of the training labels of its group."""
    number_G, place = np.unique(groups[fitted], return_inverse=True)
    mean_G = np.bincount(place, weights=train) / np.bincount(place)
    group_P = np.minimum(np.searchsorted(number_G, groups), len(number_G) - 1)
    return np.where(number_G[group_P] == groups, mean_G[group_P], unseen)


# Within rows.


def measure_within_rows(labels: Floats, predictions: Floats, rows: Integers) -> WithinRows:
    """Compare labels [P] with predictions [P] of the pairs of rows [P], row by row."""
    truth, predicted = _f64(labels), _f64(predictions)
    group_P = _number(rows)
    size_P = np.bincount(group_P, minlength=1)[group_P]
    paired = size_P > 1
    centred = [centre(values[paired], rows[paired]) for values in (truth, predicted)]
    centred_r2, centred_spearman = _compare_centred(*centred)
    spread_G = np.bincount(group_P, weights=np.abs(centre(truth, rows)), minlength=1)
    ranked = (size_P >= MIN_RANKED) & (spread_G > 0)[group_P]
    if not ranked.any():
        return WithinRows(centred_r2=centred_r2, centred_spearman=centred_spearman)
    truth, predicted, group_P = truth[ranked], predicted[ranked], _number(rows[ranked])
    size_G = np.bincount(group_P)
    wanted_G = np.ceil(TOP_SHARE * size_G)
    both_P = _in_top(truth, group_P, wanted_G) * _in_top(predicted, group_P, wanted_G)
    overlap_G = np.bincount(group_P, weights=both_P) / wanted_G
    return WithinRows(
        num_rows=len(size_G),
        centred_r2=centred_r2,
        centred_spearman=centred_spearman,
        row_spearman=_mean_correlation(truth, predicted, group_P),
        top_overlap=float(overlap_G.mean()),
        chance_overlap=float((wanted_G / size_G).mean()),
    )


def centre(values: F64, rows: Integers) -> F64:
    """Take from each value [P] the mean of its row; exactly 0 in a row of equal values."""
    if not len(rows):
        return values
    group_P = _number(rows)
    order = np.argsort(rows, kind="stable")
    start_G = np.unique(rows[order], return_index=True)[1]
    mean_G = np.bincount(group_P, weights=values) / np.bincount(group_P)
    lowest_G = np.minimum.reduceat(values[order], start_G)
    equal_G = lowest_G == np.maximum.reduceat(values[order], start_G)
    return values - np.where(equal_G, lowest_G, mean_G)[group_P]


def _compare_centred(truth: F64, predicted: F64) -> tuple[float | None, float | None]:
    """Return R2 and rank correlation."""
    if not truth.any():
        return None, None
    centred_r2 = 1.0 - float(np.square(truth - predicted).sum() / np.square(truth).sum())
    if not predicted.any():
        return centred_r2, None
    return centred_r2, float(np.corrcoef(rankdata(truth), rankdata(predicted))[0, 1])


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
    rank, ties = np.empty(len(values)), np.empty(len(values))
    rank[order] = (first + (count + 1) / 2)[tie_P] - np.searchsorted(group, group)
    ties[order] = count[tie_P]
    return rank, ties


def _number(rows: Integers) -> I64:
    """Number the rows of pairs from 0."""
    return np.unique(rows, return_inverse=True)[1].astype(np.int64)


def _f64(values: Floats) -> F64:
    return values.astype(np.float64)
