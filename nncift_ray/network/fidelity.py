"""How well the network stands in for the teacher, beside models that know less.

A mean squared error says little alone: labels in a narrow band are met by any constant. A row's
offset chooses no helper, and a helper that is good for every row needs no network. So every model
is measured in three ways: over all pairs, within rows (``row_spearman``, `capture`), and by what
is left when row and column effects are taken away (`interaction_correlation`), beside models
that know less. Suffixes: E examples, D features, P pairs (or examples, of a pointwise teacher), G
rows of pairs, I rows, J columns, B resamples, M the pairs of one row, Q coordinates (the smaller of
E and D).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.stats import rankdata

from nncift_ray.errors import ShapeError
from nncift_ray.labels.sample import QUADRANTS, SPLITS, TRAIN, unseen_folds

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


NETWORK, ZERO, RANDOM = "network", "zero", "random"
MEAN, ROW_COLUMN_MEAN = "mean", "row_column_mean"
ADDITIVE_RIDGE, COSINE = "additive_ridge", "cosine"
MIN_RANKED = 4  # pairs from which on the helpers of a row are ranked
BEST_SHARE, FEW_SHARE = 0.125, 0.01  # of a row's pairs; the nearest number, one at least
NUM_DRAWS, INTERVAL = 400, 0.95
MIN_DRAWN = 5  # rows, and columns, from which on resampling them says something
PAIRS_AN_EFFECT = 2  # from which on resampling them leaves interactions to correlate
ROUNDING = 1e-6  # of the largest value: what single precision leaves of no interaction


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMeasures:
    """Agreement of labels and predictions of pairs; None where it is not defined.

    ``_low`` and ``_high`` are 95 % intervals of 400 resamples of rows and columns, on the safe
    (wide) side where pairs of a row have little in common; None where
    either are fewer than five, or the pairs too scattered for interactions.
    """

    num_rows: int = 0
    """Rows of `MIN_RANKED` pairs or more whose labels vary: what ranks and captures rest on."""
    row_spearman: float | None = None
    """Mean over rows of the rank correlation within the row.

    A row that is predicted constant counts 0; None where all are.
    """
    interaction_correlation: float | None = None
    interaction_correlation_low: float | None = None
    interaction_correlation_high: float | None = None
    capture: float | None = None
    capture_low: float | None = None
    capture_high: float | None = None
    capture_1pct: float | None = None
    capture_1pct_low: float | None = None
    capture_1pct_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRow(PairMeasures):
    """One model on one split; no measure of pairs is defined for examples on their own."""

    split: str
    model: str
    num_pairs: int
    mse: float | None  # squared label unit; None of a cosine, which has another unit
    scaled_mse: float | None  # labels scaled to [0, 1] over the whole block; NaN if all are equal
    r2: float | None  # None where the labels do not vary, and of a cosine
    spearman: float | None  # None where either side does not vary


def fidelity_table(
    labels: Floats,
    predictions: Floats,
    splits: NDArray[np.str_],
    rows: Integers,
    cols: Integers | None,
    features: PairFeatures,
    seed: int,
) -> list[FidelityRow]:
    """Measure the network and its rivals on every split that has pairs.

    The rivals know the training pairs only: `zero` predicts 0 in the labels' own unit ("no
    example helps"), `random` draws uniformly over the range of the labels, `mean` is their mean,
    `additive_ridge` is ridge on the features of both examples; and of pairs only,
    `row_column_mean` is the least squares fit of a row and a column effect (in Q4 a constant) and
    `cosine` the cosine of the two examples' embeddings, which was fitted to nothing.

    Args:
        labels: Teacher's utilities [P], raw and signed.
        predictions: The network's influence [P], in the same unit.
        splits: Split of each pair [P], one of `SPLITS`.
        rows: Helped example of each pair [P].
        cols: Helper example of each pair [P]; None where examples are labelled on their own.
        features: What the network reads of the pairs.
        seed: Of the random baseline, the ridge's folds and the resamples.

    Raises:
        ShapeError: If the columns differ in length.
        ValueError: If there is no training pair, a split is unknown, a pair is named twice in one
            split or a value is not finite.
    """
    _check_table(labels, predictions, splits, rows, cols, features)
    models = _predict_all(labels, predictions, splits == TRAIN, rows, cols, features, seed)
    scale = float(labels.min()), float(labels.max())
    table: list[FidelityRow] = []
    for split in SPLITS:
        at = splits == split
        if not at.any():
            continue
        truth = _f64(labels)[at]
        draws = seed if split in QUADRANTS else None
        for model, values in models.items():
            predicted, of_pairs = values[at], PairMeasures()
            if cols is not None:
                of_pairs = measure_pairs(truth, predicted, rows[at], cols[at], draws)
            in_unit = model != COSINE
            row = FidelityRow(
                split=split,
                model=model,
                num_pairs=len(truth),
                mse=mse(truth, predicted) if in_unit else None,
                scaled_mse=scaled_mse(truth, predicted, *scale) if in_unit else None,
                r2=r2(truth, predicted) if in_unit else None,
                spearman=spearman(truth, predicted),
                **asdict(of_pairs),
            )
            table.append(row)
    return table


def _predict_all(
    labels: Floats,
    predictions: Floats,
    fitted: Bools,
    rows: Integers,
    cols: Integers | None,
    features: PairFeatures,
    seed: int,
) -> dict[str, F64]:
    """Return the predictions [P] of every model."""
    train, num_pairs = _f64(labels)[fitted], len(labels)
    generator = np.random.Generator(np.random.PCG64(seed))
    models: dict[str, F64] = {
        NETWORK: _f64(predictions),
        ZERO: np.zeros(num_pairs),
        RANDOM: generator.uniform(train.min(), train.max(), num_pairs),
        MEAN: np.full(num_pairs, train.mean()),
        ADDITIVE_RIDGE: additive_ridge(labels, features, fitted, seed),
    }
    if cols is not None:
        models[ROW_COLUMN_MEAN] = row_column_means(labels, rows, cols, fitted)
        models[COSINE] = cosines(features)
    return models


def _check_table(
    labels: Floats,
    predictions: Floats,
    splits: NDArray[np.str_],
    rows: Integers,
    cols: Integers | None,
    features: PairFeatures,
) -> None:
    columns = (labels, predictions, splits, rows, rows if cols is None else cols)
    lengths = [len(column) for column in (*columns, *(place for _, place in features.sides))]
    if len(set(lengths)) != 1 or (cols is None) != (features.helper_pos is None):
        raise ShapeError(
            "labels, predictions, splits, rows, cols and the features' positions differ in "
            f"length: {lengths}"
        )
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


# What a model knows of pairs: between the helpers of a row, and beyond row and column effects.


def interaction_correlation(labels_IJ: Floats, predictions_IJ: Floats) -> float:
    """Return the correlation of double-centred labels and predictions.

    Both lose the least squares fit of a row and a column effect first: what is left is what no
    model that ranks helpers alike for every row can know. NaN where nothing is left of either.

    Args:
        labels_IJ: Labels of rows and columns; NaN where a pair has none.
        predictions_IJ: Predictions; those of pairs without a label are not read.

    Raises:
        ShapeError: If the matrices differ in shape.
    """
    return float(_interactions(*_matrices(labels_IJ, predictions_IJ), None)[0])


def capture(labels_IJ: Floats, predictions_IJ: Floats, share: float = BEST_SHARE) -> float:
    """Return how much of what the best helpers of a row are worth the predicted best have.

    (mean label of the predicted best - row's mean) / (that of the truly best - row's mean), either
    side summed over the rows of `MIN_RANKED` labels or more: a row that hardly varies has hardly a
    say, where a mean of the rows' own ratios would be its noise. The best are ``share`` of the
    row's labelled pairs, rounded to the nearest number and one at least. Ties are broken at
    random, in expectation: a constant prediction captures 0. NaN where no row varies.

    Args:
        labels_IJ: Labels of rows and columns; NaN where a pair has none.
        predictions_IJ: Predictions; those of pairs without a label are not read.
        share: In (0, 1).

    Raises:
        ShapeError: If the matrices differ in shape.
        ValueError: If ``share`` is out of range.
    """
    return float(_captures(*_matrices(labels_IJ, predictions_IJ), None, share=share)[0])


def _matrices(labels_IJ: Floats, predictions_IJ: Floats) -> tuple[F64, F64, Bools]:
    """Return labels and predictions with 0 where a pair has no label, and where it has one."""
    if labels_IJ.ndim != 2 or labels_IJ.shape != predictions_IJ.shape:
        raise ShapeError(
            f"labels {labels_IJ.shape} and predictions {predictions_IJ.shape}: expected two "
            "matrices of one shape"
        )
    present = ~np.isnan(labels_IJ)
    return (
        _f64(np.where(present, labels_IJ, 0)),
        _f64(np.where(present, predictions_IJ, 0)),
        present,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Draws:
    """How often each row and each column is there, in the sample itself and in resamples."""

    rows_IB: F64
    columns_JB: F64

    @classmethod
    def of(cls, shape: tuple[int, int], seed: int | None) -> _Draws:
        """Draw rows and columns, each with replacement; no seed: the sample alone.

        Source: the pigeonhole bootstrap, Owen 2007, arXiv 0709.1648.
        """
        generator, weights = np.random.default_rng(seed), list[F64]()
        for size in shape:
            drawn = np.zeros((0, size))
            if seed is not None:
                counts = generator.multinomial(size, np.full(size, 1 / size), NUM_DRAWS)
                drawn = counts.astype(np.float64)
            weights.append(np.concatenate([np.ones((1, size)), drawn]).T)
        return cls(*weights)


def _interactions(labels_IJ: F64, predictions_IJ: F64, present: Bools, draws: _Draws | None) -> F64:
    """Return the correlation [B] of what row and column effects leave, of the sample first."""
    # A pair alone in its row or column is met by an effect exactly: it says nothing here.
    row_at, column_at = _core(present)
    here = present[np.ix_(row_at, column_at)]
    if draws is None or here.sum() < PAIRS_AN_EFFECT * sum(here.shape):
        draws = _Draws.of(present.shape, None)
    rows_IB, columns_JB = draws.rows_IB[row_at], draws.columns_JB[column_at]
    undefined = np.full(rows_IB.shape[1], np.nan)
    if not here.any():
        return undefined
    left: list[F64] = []
    for values in (labels_IJ, predictions_IJ):
        values = values[np.ix_(row_at, column_at)]
        residual = _residual(values - values[here].mean(), here)
        size = float(np.sqrt(np.square(residual).sum() / here.sum()))
        if size <= ROUNDING * np.abs(values[here]).max():
            return undefined
        left.append(residual / size)
    mass = here.astype(np.float64)
    effects = [
        two_way_effects(each, mass, rows_IB, columns_JB, converged=1e-6, max_sweeps=100)
        for each in left
    ]

    def product(x: int, y: int) -> F64:
        """Sum x y over a resample, less its own row and column effects of x."""
        (r_IB, c_JB), values = effects[x], left[y]
        both = (rows_IB * ((left[x] * values) @ columns_JB)).sum(axis=0)
        of_rows = (rows_IB * r_IB * (values @ columns_JB)).sum(axis=0)
        return both - of_rows - (columns_JB * c_JB * (values.T @ rows_IB)).sum(axis=0)

    squares = product(0, 0), product(1, 1)
    total = rows_IB.sum(axis=0) * columns_JB.sum(axis=0)
    known = np.minimum(*squares) > ROUNDING * np.maximum(total, 1)
    norm = np.sqrt(squares[0] * squares[1], out=np.ones_like(total), where=known)
    return np.where(known, np.clip(product(0, 1) / norm, -1, 1), np.nan)


def _core(present: Bools) -> tuple[I64, I64]:
    """Return the rows and columns left when those of fewer than two pairs go, again and again."""
    rows, columns = (np.ones(size, np.bool_) for size in present.shape)
    while True:
        here = present & rows[:, None] & columns
        kept = here.sum(axis=1) > 1, here.sum(axis=0) > 1
        if kept[0].sum() == rows.sum() and kept[1].sum() == columns.sum():
            return np.flatnonzero(rows), np.flatnonzero(columns)
        rows, columns = rows & kept[0], columns & kept[1]


def _residual(values_IJ: F64, present: Bools) -> F64:
    """Take row and column effects from values; 0 where a pair is missing."""
    r_I1, c_J1 = two_way_effects(np.where(present, values_IJ, 0), present.astype(np.float64))
    return np.where(present, values_IJ - r_I1 - c_J1.T, 0)


def _captures(
    labels_IJ: F64, predictions_IJ: F64, present: Bools, draws: _Draws | None, *, share: float
) -> F64:
    """Return the capture [B] at a share, of the sample first and then of each resample."""
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    draws = draws or _Draws.of(present.shape, None)
    gained_B, possible_B = (np.zeros(draws.rows_IB.shape[1]) for _ in range(2))
    for row, at in enumerate(present):
        label, weight_MB = labels_IJ[row, at], draws.columns_JB[at]
        spread = np.ptp(label) if len(label) >= MIN_RANKED else 0.0
        if not spread:
            continue
        label = label - label.mean()
        mass_B = weight_MB.sum(axis=0)
        wanted_B = np.maximum(1, np.floor(share * mass_B + 0.5))
        mean_B = label @ weight_MB / np.maximum(mass_B, 1)
        found_B, best_B = (
            _mean_of_best(scores, label, weight_MB, wanted_B) - mean_B
            for scores in (predictions_IJ[row, at], label)
        )
        varies_B = (best_B > ROUNDING * spread) & (mass_B > 0)
        weight_B = draws.rows_IB[row] * varies_B
        gained_B += weight_B * found_B
        possible_B += weight_B * best_B
    none_B = np.full_like(possible_B, np.nan)
    return np.divide(gained_B, possible_B, out=none_B, where=possible_B > 0)


def _mean_of_best(scores_M: F64, label_M: F64, weight_MB: F64, wanted_B: F64) -> F64:
    """Return the mean label [B] of the pairs of highest score, as many as wanted, ties shared."""
    order = np.argsort(-scores_M, kind="stable")
    ranked, weight = scores_M[order], weight_MB[order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    mass = np.add.reduceat(weight, start, axis=0)
    worth = np.add.reduceat(weight * label_M[order, None], start, axis=0)
    before = np.cumsum(mass, axis=0) - mass
    taken = np.divide(wanted_B - before, mass, out=np.zeros_like(mass), where=mass > 0)
    return (np.clip(taken, 0, 1) * worth).sum(axis=0) / wanted_B


def measure_pairs(
    labels: Floats, predictions: Floats, rows: Integers, cols: Integers, seed: int | None
) -> PairMeasures:
    """Compare labels [P] with predictions [P] of the pairs of rows [P] and cols [P].

    Intervals are drawn with ``seed``; None leaves them out.

    Raises:
        ValueError: If a pair is named twice.
    """
    truth, predicted = _f64(labels), _f64(predictions)
    matrices = _spread_out(truth, predicted, rows, cols)
    shape = matrices[0].shape
    draws = _Draws.of(shape, seed if min(shape) >= MIN_DRAWN else None)
    measures: dict[str, Callable[..., F64]] = {
        "interaction_correlation": _interactions,
        "capture": functools.partial(_captures, share=BEST_SHARE),
        "capture_1pct": functools.partial(_captures, share=FEW_SHARE),
    }
    found: dict[str, float | None] = {}
    for name, measure in measures.items():
        value, *resampled = (float(each) for each in measure(*matrices, draws))
        found[name] = None if np.isnan(value) else value
        known = [each for each in resampled if not np.isnan(each)]
        if found[name] is not None and known:
            tail = (1 - INTERVAL) / 2
            low, high = np.quantile(known, [tail, 1 - tail])
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    num_rows, correlation = _rank_within_rows(*matrices)
    return PairMeasures(num_rows=num_rows, row_spearman=correlation, **found)


def _spread_out(
    truth: F64, predicted: F64, rows: Integers, cols: Integers
) -> tuple[F64, F64, Bools]:
    """Return labels and predictions as matrices, 0 where a pair is missing, and where it is not."""
    number_I, row_P = np.unique(rows, return_inverse=True)
    number_J, column_P = np.unique(cols, return_inverse=True)
    count = np.zeros((len(number_I), len(number_J)), np.int64)
    np.add.at(count, (row_P, column_P), 1)
    if (count > 1).any():
        row, column = np.argwhere(count > 1)[0]
        raise ValueError(f"the pair ({number_I[row]}, {number_J[column]}) is named twice")
    labels_IJ, predictions_IJ = np.zeros(count.shape), np.zeros(count.shape)
    labels_IJ[row_P, column_P], predictions_IJ[row_P, column_P] = truth, predicted
    return labels_IJ, predictions_IJ, count > 0


def _rank_within_rows(
    labels_IJ: F64, predictions_IJ: F64, present: Bools
) -> tuple[int, float | None]:
    """Return how many rows are ranked, and their mean rank correlation."""
    found = [
        spearman(label[at], predicted[at])
        for label, predicted, at in zip(labels_IJ, predictions_IJ, present, strict=True)
        if at.sum() >= MIN_RANKED and np.ptp(label[at]) > 0
    ]
    known = [each for each in found if each is not None]
    return len(found), sum(known) / len(found) if known else None


def _f64(values: Floats) -> F64:
    return values.astype(np.float64)
