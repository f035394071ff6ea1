"""The pair network: what each example is worth by itself, and how well two of them fit.

    s_ij = r(x_i) + c(x_j) + max(<P x_i, Q x_j>, 0)^2

x is an example's embedding, the blocks of its profile and a few scalars (``Inputs``). The paper's
network adds what it knows of the row and of the column, so on unseen examples it ranks helpers
alike for every row; here the two meet in an inner product. Everything is fitted in closed form:

1. Labels are centred by row and by column; what is left is the interaction.
2. A ridge regression of it on the inner products of the blocks and the products of scalars. The
   weights are drawn to equal weights of all cosines, so that few labels leave the untrained cosine.
3. A threshold and a square, because help is rare and large: max(t - v, 0)^2. Penalty and threshold
   are chosen on pairs of examples that were left out.
4. The weighted sum of inner products becomes one, of ``rank`` numbers a side.
5. Row and column effects: ridges of what the pair part leaves, penalty by leaving one out.

Suffixes: P pairs, N examples, X inputs, K products, F numbers of the inner product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.network.factored import FactoredNetwork, Inputs

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

PENALTIES = (0.003, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of a product of variance 1, a pair
#: Of the sum of products, in its standard deviations; the first leaves it all but linear.
THRESHOLDS = (-20.0, -6.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
EFFECT_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
CENTRING_ROUNDS = 20  # of rows and columns in turn; a complete block needs one
MAX_PAIRS = 200_000  # that the products are fitted on; more are sampled
SMALLEST_SPREAD = 1e-6  # share of the largest below which a direction of the inputs is rounding


@dataclass(frozen=True, slots=True)
class PairChoice:
    """What was chosen on the way to a pair network."""

    penalty: float
    threshold: float
    parts: tuple[float, ...]
    """Standard deviation that the embedding, each block and all scalars together add to the root
    of a pair's part."""


def fit_pair(
    inputs: Inputs,
    row_NX: F32,
    column_MX: F32,
    row_P: I64,
    column_P: I64,
    utility_P: F64,
    folds: Sequence[Bool],
    sample_NX: F32,
    rank: int,
    seed: int = 0,
) -> tuple[FactoredNetwork, PairChoice]:
    """Fit the pair network to labelled pairs.

    Args:
        inputs: How inputs were made ready.
        row_NX: Prepared inputs of the helped examples [N, X].
        column_MX: Of the helpers [M, X].
        row_P: Row of each pair.
        column_P: Column of each pair.
        utility_P: Its label.
        folds: Masks of the pairs [P] that touch the examples left out together; none where there
            are too few examples: then the untrained cosine decides.
        sample_NX: Prepared inputs of examples like those that will be scored: what the compression
            to ``rank`` numbers must keep.
        rank: Numbers F of the inner product, a constant among them; the example's own effect is
            one more, the last.
        seed: Of the sample of pairs, where there are more than ``MAX_PAIRS``.

    Raises:
        ValueError: If there is no pair.

    Memory: 8 * P * (blocks + scalars^2) bytes, P at most ``MAX_PAIRS``.
    """
    if len(utility_P) == 0:
        raise ValueError("there is no training pair: label more pairs or lower validation_fraction")
    if len(utility_P) > MAX_PAIRS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(utility_P))[:MAX_PAIRS])
        row_P, column_P, utility_P = row_P[kept], column_P[kept], utility_P[kept]
        folds = [fold[kept] for fold in folds]
    product_PK, scale_K = _products(inputs, row_NX[row_P], column_MX[column_P])
    penalty, threshold = _choose(product_PK, utility_P, row_P, column_P, folds, inputs)
    fit = _Interaction.of(inputs, product_PK, utility_P, row_P, column_P)
    weight_K = fit.weights(penalty)
    slope, shift = fit.link(weight_K, threshold)
    matrix_XX = _matrix(inputs, weight_K / scale_K * slope)
    row_FX, column_FX = _factor(matrix_XX, sample_NX, rank - 1)
    pair_P = _pair_part(row_NX @ row_FX.T, column_MX @ column_FX.T, row_P, column_P, shift)
    effects = _effects(row_NX, column_MX, row_P, column_P, utility_P - pair_P)
    part_K = np.abs(weight_K * slope)  # the products' own deviation is 1
    num_blocks = len(inputs.widths)
    scalars = float(np.sqrt(np.square(part_K[num_blocks:]).sum()))
    network = _network(inputs, row_FX, column_FX, shift, rank, *effects)
    return network, PairChoice(penalty, threshold, (*part_K[:num_blocks].tolist(), scalars))


def _products(inputs: Inputs, row_PX: F32, column_PX: F32) -> tuple[F64, F64]:
    """Return every block's inner product and the products of scalars, of variance 1, and scales."""
    blocks = [(row_PX[:, b] * column_PX[:, b]).sum(axis=1) for b in inputs.blocks]
    z_PS, y_PS = row_PX[:, inputs.scalars], column_PX[:, inputs.scalars]
    scalars_PK = (z_PS[:, :, None] * y_PS[:, None, :]).reshape(len(row_PX), -1)
    product_PK = np.column_stack([*blocks, scalars_PK]).astype(np.float64)
    scale_K = product_PK.std(axis=0)
    scale_K[scale_K == 0] = 1.0
    return product_PK / scale_K, scale_K


def centre_pairs(value_PK: F64, row_P: I64, column_P: I64) -> F64:
    """Return values [P, K] without row and column effects (least squares, by turns)."""
    centred_PK = value_PK.copy()
    for _ in range(CENTRING_ROUNDS):
        before = centred_PK
        for group_P in (row_P, column_P):
            centred_PK = centred_PK - _group_means(centred_PK, group_P)[group_P]
        if np.abs(centred_PK - before).max(initial=0.0) <= 1e-9 * np.abs(value_PK).max(initial=1.0):
            break
    return centred_PK


def _group_means(value_PK: F64, group_P: I64) -> F64:
    count_G = np.maximum(np.bincount(group_P), 1)
    sums = [np.bincount(group_P, weights=column) for column in value_PK.T]
    return np.stack(sums, axis=1) / count_G[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class _Interaction:
    """Centred products and labels of some pairs, for ridges of several penalties.

    Weights are drawn to the best multiple of equal weights of the cosines, never a negative one.
    """

    product_PK: F64  # not centred
    row_P: I64
    column_P: I64
    label_P: F64  # centred
    gram_KK: F64  # of the centred products
    prior_K: F64
    along_K: F64  # centred products times what the prior leaves of the labels

    @classmethod
    def of(
        cls, inputs: Inputs, product_PK: F64, utility_P: F64, row_P: I64, column_P: I64
    ) -> _Interaction:
        """Centre products and labels."""
        centred_PK = centre_pairs(product_PK, row_P, column_P)
        label_P = centre_pairs(utility_P[:, None], row_P, column_P)[:, 0]
        prior_K = np.zeros(product_PK.shape[1])
        prior_K[: len(inputs.widths)] = 1.0
        along_P = centred_PK @ prior_K
        size = float(along_P @ along_P)
        prior_K *= max(float(along_P @ label_P), 0.0) / size if size > 0 else 0.0
        along_K = centred_PK.T @ (label_P - centred_PK @ prior_K)
        gram_KK = centred_PK.T @ centred_PK
        return cls(product_PK, row_P, column_P, label_P, gram_KK, prior_K, along_K)

    def weights(self, penalty: float) -> F64:
        """Return the weights of the products [K]."""
        drawn_KK = self.gram_KK + penalty * len(self.label_P) * np.eye(len(self.prior_K))
        return self.prior_K + np.linalg.solve(drawn_KK, self.along_K)

    def link(self, weight_K: F64, threshold: float) -> tuple[float, float]:
        """Return slope and shift: the part of a pair is max(slope * sum + shift, 0)^2."""
        sum_P = self.product_PK @ weight_K
        spread, mean = float(sum_P.std()), float(sum_P.mean())
        if spread == 0:
            return 0.0, 0.0
        square_P = np.maximum((sum_P - mean) / spread - threshold, 0.0) ** 2
        square_P = centre_pairs(square_P[:, None], self.row_P, self.column_P)[:, 0]
        size = float(square_P @ square_P)
        # A negative amount would be help that falls with likeness: then nothing is known of pairs.
        amount = max(float(square_P @ self.label_P) / size, 0.0) if size > 0 else 0.0
        slope = amount**0.5 / spread
        return slope, -slope * mean - amount**0.5 * threshold


def _choose(
    product_PK: F64,
    utility_P: F64,
    row_P: I64,
    column_P: I64,
    folds: Sequence[Bool],
    inputs: Inputs,
) -> tuple[float, float]:
    """Return the penalty and the threshold of least error on the pairs left out."""
    if not folds:
        return PENALTIES[-1], THRESHOLDS[0]
    error = np.zeros((len(PENALTIES), len(THRESHOLDS)))
    for out_P in folds:
        seen, ends = ~out_P, (row_P[out_P], column_P[out_P])
        fit = _Interaction.of(
            inputs, product_PK[seen], utility_P[seen], row_P[seen], column_P[seen]
        )
        label_P = centre_pairs(utility_P[out_P, None], *ends)
        for p, penalty in enumerate(PENALTIES):
            weight_K = fit.weights(penalty)
            sum_P = product_PK[out_P] @ weight_K
            links = [fit.link(weight_K, threshold) for threshold in THRESHOLDS]
            found_PT = np.stack([np.maximum(a * sum_P + b, 0.0) ** 2 for a, b in links], axis=1)
            error[p] += np.square(centre_pairs(found_PT, *ends) - label_P).sum(axis=0)
    best = np.unravel_index(np.argmin(error), error.shape)
    return PENALTIES[best[0]], THRESHOLDS[best[1]]


def _matrix(inputs: Inputs, weight_K: F64) -> F64:
    """Return M with x^T M y = the weighted sum of products [X, X]."""
    num_inputs, num_blocks = len(inputs.mean_D), len(inputs.widths)
    matrix_XX = np.zeros((num_inputs, num_inputs))
    for block, weight in zip(inputs.blocks, weight_K, strict=False):
        matrix_XX[block, block] = weight * np.eye(block.stop - block.start)
    scalars = inputs.scalars
    size = scalars.stop - scalars.start
    matrix_XX[scalars, scalars] = weight_K[num_blocks:].reshape(size, size)
    return matrix_XX


def _factor(matrix_XX: F64, sample_NX: F32, rank: int) -> tuple[F64, F64]:
    """Return row and column factors [F, X] whose product is the nearest of that rank to M.

    Near as the sample sees it: the error of x^T M y, squared, over pairs of its examples.
    """
    second_XX = sample_NX.T.astype(np.float64) @ sample_NX / max(len(sample_NX), 1)
    square_X, direction_XX = np.linalg.eigh(second_XX)
    kept = square_X > SMALLEST_SPREAD**2 * square_X[-1]
    length_X = np.sqrt(np.where(kept, square_X, 0.0))
    inverse_X = np.divide(1.0, length_X, out=np.zeros_like(length_X), where=length_X > 0)
    root_XX = direction_XX * length_X @ direction_XX.T
    inverse_XX = direction_XX * inverse_X @ direction_XX.T
    left_XX, size_X, right_XX = np.linalg.svd(root_XX @ matrix_XX @ root_XX)
    root_F = np.sqrt(size_X[:rank])
    return (
        (inverse_XX @ left_XX[:, :rank] * root_F).T,
        (inverse_XX @ right_XX[:rank].T * root_F).T,
    )


def _pair_part(row_NF: F64, column_MF: F64, row_P: I64, column_P: I64, shift: float) -> F64:
    product_P = np.einsum("pf,pf->p", row_NF[row_P], column_MF[column_P])
    return np.maximum(product_P + shift, 0.0) ** 2


def _effects(
    row_NX: F32, column_MX: F32, row_P: I64, column_P: I64, rest_P: F64
) -> tuple[F64, float, F64]:
    """Return weights of the row effect [X], its constant, and weights of the column effect [X].

    A row's effect is estimated by its mean, a column's by its mean of what the rows leave.
    """
    row_mean_N = _group_means(rest_P[:, None], row_P)[:, 0]
    left_P = rest_P - row_mean_N[row_P]
    column_mean_M = _group_means(left_P[:, None], column_P)[:, 0]
    rows, columns = np.unique(row_P), np.unique(column_P)
    row_X, constant = ridge_leaving_one_out(row_NX[rows], row_mean_N[rows])
    column_X, column_constant = ridge_leaving_one_out(column_MX[columns], column_mean_M[columns])
    return row_X, constant + column_constant, column_X


def ridge_leaving_one_out(x_NX: F32, y_N: F64) -> tuple[F64, float]:
    """Return ridge weights [X] and a constant, the penalty by leaving one example out.

    A constant alone is among what is tried: few labels may say nothing of unseen examples.
    """
    mean_X, mean = x_NX.mean(axis=0, dtype=np.float64), float(y_N.mean())
    centred_NX, rest_N = x_NX - mean_X, y_N - mean
    left_NR, size_R, right_RX = np.linalg.svd(centred_NX, full_matrices=False)
    along_R = left_NR.T @ rest_N
    num_examples = len(y_N)
    best_error, best_X = float(np.square(rest_N).sum()), np.zeros(x_NX.shape[1])
    if num_examples > 2:
        best_error *= (num_examples / (num_examples - 1)) ** 2  # a mean, too, leaves one out
        for penalty in EFFECT_PENALTIES:
            shrink_R = size_R**2 / (size_R**2 + penalty)
            fitted_N = left_NR @ (shrink_R * along_R)
            leverage_N = np.square(left_NR) @ shrink_R + 1 / num_examples
            error = float(np.square((rest_N - fitted_N) / np.maximum(1 - leverage_N, 1e-9)).sum())
            if error < best_error:
                divided_R = np.divide(size_R, size_R**2 + penalty)
                best_error, best_X = error, right_RX.T @ (divided_R * along_R)
    return best_X, mean - float(mean_X @ best_X)


def _network(
    inputs: Inputs,
    row_FX: F64,
    column_FX: F64,
    shift: float,
    rank: int,
    row_effect_X: F64,
    effect: float,
    column_effect_X: F64,
) -> FactoredNetwork:
    """Put together weights [F + 1, X] and biases: factors, the constant, the own effect."""
    size = abs(shift) ** 0.5  # of the constant on either side: their product is the shift
    sides: list[tuple[F32, F32]] = []
    for factor_FX, own_X, constant, own in (
        (row_FX, row_effect_X, size, effect),
        (column_FX, column_effect_X, float(np.copysign(size, shift)), 0.0),
    ):
        weight_FX = np.zeros((rank + 1, factor_FX.shape[1]))
        weight_FX[: len(factor_FX)], weight_FX[rank] = factor_FX, own_X
        bias_F = np.zeros(rank + 1)
        bias_F[rank - 1], bias_F[rank] = constant, own
        sides.append((weight_FX.astype(np.float32), bias_F.astype(np.float32)))
    (w_row, b_row), (w_column, b_column) = sides
    none = np.zeros(0, np.float32)
    return FactoredNetwork(w_row, b_row, w_column, none, 0.0, b_col_H=b_column, inputs=inputs)
