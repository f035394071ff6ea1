"""Models that know less than the network: what it has to beat before it is worth anything.

Suffixes: E examples, D features, P pairs (or examples, of a pointwise teacher), I rows, J columns,
B resamples, Q coordinates (the smaller of E and D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.labels.sample import unseen_folds

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Integers = NDArray[np.integer]

PENALTIES = tuple(10.0**power for power in range(-4, 4))  # times the mean variance of a coordinate
NUM_FOLDS = 5
MAX_SWEEPS = 10_000
CONVERGED = 1e-10  # of the largest value


@dataclass(frozen=True, slots=True, eq=False)
class PairFeatures:
    """The features of labelled pairs, each example's once."""

    helped_ED: Floats
    helped_pos: Integers  # row of helped_ED, per pair [P]
    helper_ED: Floats | None = None  # None where examples are labelled on their own
    helper_pos: Integers | None = None
    embedding_dim: int | None = None  # first features, of which a cosine is taken; None: all

    def __post_init__(self) -> None:
        """Raise ShapeError where a side of the pairs lacks its half."""
        if (self.helper_ED is None) != (self.helper_pos is None):
            raise ShapeError("helper_ED and helper_pos: give both or neither")
        for features, place in self.sides:
            if features.ndim != 2 or place.max(initial=-1) >= len(features):
                raise ShapeError(
                    f"features {features.shape}: expected a row for each of the positions up to "
                    f"{place.max(initial=-1)}"
                )
        if len({features.shape[1] for features, _ in self.sides}) > 1:
            raise ShapeError(f"features differ in length: {[x.shape for x, _ in self.sides]}")

    @property
    def sides(self) -> Sequence[tuple[Floats, Integers]]:
        """(Features, positions) of the helped, then of the helpers where there are any."""
        helped = self.helped_ED, self.helped_pos
        if self.helper_ED is None or self.helper_pos is None:
            return [helped]
        return [helped, (self.helper_ED, self.helper_pos)]


def cosines(features: PairFeatures) -> F64:
    """Return the untrained cosine [P] of each pair's embeddings; 0 beside a zero vector.

    Memory: 8 bytes a pair of the examples given, of which labels of a block are nearly all.
    """
    (helped, row_P), (helper, column_P) = (
        (_unit(each[:, : features.embedding_dim]), at) for each, at in features.sides
    )
    return (helped @ helper.T)[row_P, column_P]


def _unit(vectors_ED: Floats) -> F64:
    length = np.linalg.norm(vectors_ED.astype(np.float64), axis=1, keepdims=True)
    return np.divide(vectors_ED, length, out=np.zeros(vectors_ED.shape), where=length > 0)


# The mean of the row plus that of the column.


def row_column_means(labels: Floats, rows: Integers, cols: Integers, fitted: Bools) -> F64:
    """Predict every pair [P] by r_i + c_j, fitted by least squares to the ``fitted`` pairs.

    What this cannot explain is true interaction of two examples. An unseen row (column) counts as
    the average of those seen, so a pair of two unseen examples gets a constant.
    """
    number_I, row_P = np.unique(rows[fitted], return_inverse=True)
    number_J, column_P = np.unique(cols[fitted], return_inverse=True)
    values = np.zeros((len(number_I), len(number_J)))
    present = np.zeros_like(values)
    np.add.at(values, (row_P, column_P), labels[fitted].astype(np.float64))
    np.add.at(present, (row_P, column_P), 1.0)
    r_I, c_J = (effect[:, 0] for effect in two_way_effects(values, present))
    return _of_seen(rows, number_I, r_I) + _of_seen(cols, number_J, c_J)


def _of_seen(numbers_P: Integers, seen_G: Integers, effect_G: F64) -> F64:
    """Return the effect of each pair's row or column, or the mean effect where it is unseen."""
    place = np.minimum(np.searchsorted(seen_G, numbers_P), len(seen_G) - 1)
    return np.where(seen_G[place] == numbers_P, effect_G[place], effect_G.mean())


def two_way_effects(
    values_IJ: F64,
    present_IJ: F64,
    rows_IB: F64 | None = None,
    columns_JB: F64 | None = None,
    *,
    converged: float = CONVERGED,
    max_sweeps: int = MAX_SWEEPS,
) -> tuple[F64, F64]:
    """Return the least squares r [I, B] and c [J, B] of values ~ r_i + c_j.

    By alternating means, which are exact after one sweep where no pair is missing.

    Args:
        values_IJ: Values, 0 where ``present_IJ`` is 0; sums of them where it is above 1.
        present_IJ: How often each pair is there.
        rows_IB: How often each row counts, in B weightings at once; by default once.
        columns_JB: The same of columns.
        converged: Change, as a share of the largest value, at which to stop.
        max_sweeps: Sweeps after which to stop in any case.
    """
    rows_IB = np.ones((len(values_IJ), 1)) if rows_IB is None else rows_IB
    columns_JB = np.ones((values_IJ.shape[1], 1)) if columns_JB is None else columns_JB
    row_mass, column_mass = present_IJ @ columns_JB, present_IJ.T @ rows_IB
    row_sum, column_sum = values_IJ @ columns_JB, values_IJ.T @ rows_IB
    c_JB = np.zeros(columns_JB.shape)
    tolerance = converged * float(np.abs(values_IJ).max(initial=0.0))
    for _ in range(max_sweeps):
        r_IB = _divide(row_sum - present_IJ @ (columns_JB * c_JB), row_mass)
        before, c_JB = c_JB, _divide(column_sum - present_IJ.T @ (rows_IB * r_IB), column_mass)
        if np.abs(c_JB - before).max(initial=0.0) <= tolerance:
            break
    return _divide(row_sum - present_IJ @ (columns_JB * c_JB), row_mass), c_JB


def _divide(one: F64, other: F64) -> F64:
    return np.divide(one, other, out=np.zeros_like(one), where=other > 0)


# Ridge on the features of helped and helper side by side.


def additive_ridge(labels: Floats, features: PairFeatures, fitted: Bools, seed: int) -> F64:
    """Predict every pair [P] by ridge on [x_i, x_j], which is some r_i + c_j, of unseen ones too.

    It ranks helpers alike for every row: what it captures is popularity, and no model knows pairs
    that does no better. Fitted to the ``fitted`` pairs; the penalty is the one of `PENALTIES` with
    the least squared error over folds of their unseen rows and columns, 1 where they are too few.

    Memory: 8 * (2 * min(E, D)) ** 2 bytes a few times; no array of pairs times features.
    """
    sides = [(_coordinates(each), place) for each, place in features.sides]
    truth, fitted_P = labels.astype(np.float64), np.flatnonzero(fitted)
    numbers = [place[fitted_P] for _, place in sides]
    masks = unseen_folds(
        numbers[0], numbers[1] if len(numbers) > 1 else None,
        same_examples=False, num_folds=NUM_FOLDS, seed=seed,
    )  # fmt: skip
    penalty = 1.0
    if masks:
        errors = np.zeros(len(PENALTIES))
        for mask in masks:
            model = _RidgeSums.of(truth, sides, fitted_P[~mask])
            asked = fitted_P[mask]
            for place, each in enumerate(PENALTIES):
                errors[place] += np.square(model.predict(sides, asked, each) - truth[asked]).sum()
        penalty = PENALTIES[int(errors.argmin())]
    return _RidgeSums.of(truth, sides, fitted_P).predict(sides, np.arange(len(truth)), penalty)


def _coordinates(features_ED: Floats) -> F64:
    """Return [E, Q] with the same inner products, which are all that ridge sees of features."""
    values = features_ED.astype(np.float64)
    if values.shape[1] <= len(values):
        return values
    return np.asarray(np.linalg.qr(values.T, mode="r")).T


@dataclass(frozen=True, slots=True, eq=False)
class _RidgeSums:
    """Centred sums of squares and products of some pairs' features and labels."""

    gram_QQ: F64
    product_Q: F64
    mean_Q: F64
    mean_label: float
    scale: float  # mean variance of a coordinate, times the number of pairs

    @classmethod
    def of(cls, labels_P: F64, sides: Sequence[tuple[F64, Integers]], at: I64) -> _RidgeSums:
        """Sum over the pairs ``at``, by example first: a side's features are read once."""
        truth = labels_P[at] - labels_P[at].mean()
        counts = [np.bincount(place[at], minlength=len(each)) for each, place in sides]
        means = [count @ each / len(at) for count, (each, _) in zip(counts, sides, strict=True)]
        centred = [each - mean for (each, _), mean in zip(sides, means, strict=True)]
        sums = [np.bincount(place[at], truth, len(each)) for each, place in sides]
        product = np.concatenate([x.T @ y for x, y in zip(centred, sums, strict=True)])
        blocks = [[x.T @ (n[:, None] * x)] for x, n in zip(centred, counts, strict=True)]
        if len(sides) == 1:
            gram = blocks[0][0]
        else:
            together = np.zeros((len(centred[0]), len(centred[1])))
            np.add.at(together, (sides[0][1][at], sides[1][1][at]), 1.0)
            cross = centred[0].T @ (together @ centred[1])
            gram = np.block([[blocks[0][0], cross], [cross.T, blocks[1][0]]])
        mean, scale = np.concatenate(means), float(np.trace(gram)) / len(gram)
        return cls(gram, product, mean, float(labels_P[at].mean()), scale)

    def predict(self, sides: Sequence[tuple[F64, Integers]], at: I64, penalty: float) -> F64:
        """Return the predictions of the pairs ``at``; a constant where features do not vary."""
        if not self.scale > 0:
            return np.full(len(at), self.mean_label)
        ridge = penalty * self.scale * np.eye(len(self.gram_QQ))
        factor = scipy.linalg.cho_factor(self.gram_QQ + ridge, overwrite_a=True)
        weights = np.asarray(scipy.linalg.cho_solve(factor, self.product_Q))
        found, start = np.full(len(at), self.mean_label - float(self.mean_Q @ weights)), 0
        for each, place in sides:
            found += (each @ weights[start : start + each.shape[1]])[place[at]]
            start += each.shape[1]
        return found
