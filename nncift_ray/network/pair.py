"""The pair network: what each example is worth by itself, and how well two of them fit.

    s_ij = r(x_i) + c(x_j) + max(<P x_i, Q x_j>, 0)^2

x is an example's embedding, the blocks of its profile and a few scalars (``Inputs``). The paper's
network adds what it knows of the row and of the column, so on unseen examples it ranks helpers
alike for every row; here the two meet in an inner product:

1. Labels are centred by row and by column; what is left is the interaction.
2. It is told by max(v, 0)^2, because help is rare and large; v is a weighted sum of the cosines of
   the blocks and a shift, fitted by least squares. It is drawn to equal weights and the best of
   some shifts, the more the noisier labels are, so that few leave the untrained cosine.
3. The weighted sum of cosines becomes one inner product, of ``rank`` numbers a side.
4. Row and column effects: ridges of what the pair part leaves on the embedding alone or on all
   inputs; which, and the penalty, by leaving one out.

Suffixes: P pairs, N examples, X inputs, K cosines, F numbers of the inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.optimize import least_squares

from nncift_ray.network.factored import FactoredNetwork, Inputs

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

#: Of the sum of cosines, in its standard deviations; the first leaves it all but linear. The best
#: one is where the fit begins, and what it is drawn to.
THRESHOLDS = (-20.0, -6.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0)
PRIOR_PAIRS = 1000.0  # labels, of nothing but noise, that equal weights count as
#: What is believed of the correlation of the plain sum with help, and how many labels that counts.
BELIEVED, BELIEVED_PAIRS = 0.3, 50.0
FIRST_NOISE = 1e-5  # share of the labels that is noise, until a fit has shown it: next to none
MOST_EVALUATIONS = 40  # of the least squares problem
EFFECT_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
CENTRING_ROUNDS = 20  # of rows and columns in turn; a complete block needs one
MAX_PAIRS = 200_000  # that the products are fitted on; more are sampled
SMALLEST_SPREAD = 1e-6  # share of the largest below which a direction of the inputs is rounding


def fit_pair(
    inputs: Inputs,
    row_NX: F32,
    column_MX: F32,
    row_P: I64,
    column_P: I64,
    utility_P: F64,
    sample_NX: F32,
    rank: int,
    seed: int = 0,
) -> tuple[FactoredNetwork, list[float]]:
    """Return the pair network of labelled pairs, and the weight of the embedding and of each block.

    A weight is the standard deviation that a block adds to the root of a pair's part.

    Args:
        inputs: How inputs were made ready.
        row_NX: Prepared inputs of the helped examples [N, X].
        column_MX: Of the helpers [M, X].
        row_P: Row of each pair.
        column_P: Column of each pair.
        utility_P: Its label.
        sample_NX: Prepared inputs of examples like those that will be scored: what the compression
            to ``rank`` numbers must keep.
        rank: Numbers F of the inner product, a constant among them; the example's own effect is
            one more, the last.
        seed: Of the sample of pairs, where there are more than ``MAX_PAIRS``.

    Raises:
        ValueError: If there is no pair.

    Memory: some 100 * P * blocks bytes, P at most ``MAX_PAIRS``.
    """
    if len(utility_P) == 0:
        raise ValueError("there is no training pair: label more pairs or lower validation_fraction")
    if len(utility_P) > MAX_PAIRS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(utility_P))[:MAX_PAIRS])
        row_P, column_P, utility_P = row_P[kept], column_P[kept], utility_P[kept]
    product_PK, scale_K = _cosines(inputs, row_NX[row_P], column_MX[column_P])
    weight_K, shift = _interaction(product_PK, utility_P, row_P, column_P)
    matrix_XX = _matrix(inputs, weight_K / scale_K)
    row_FX, column_FX = _factor(matrix_XX, sample_NX, rank - 1)
    pair_P = _pair_part(row_NX @ row_FX.T, column_MX @ column_FX.T, row_P, column_P, shift)
    effects = _effects(inputs, row_NX, column_MX, row_P, column_P, utility_P - pair_P)
    network = _network(inputs, row_FX, column_FX, shift, rank, *effects)
    return network, np.abs(weight_K).tolist()


def _cosines(inputs: Inputs, row_PX: F32, column_PX: F32) -> tuple[F64, F64]:
    """Return every block's inner product, of variance 1, and what each was divided by."""
    product_PK = np.stack([(row_PX[:, b] * column_PX[:, b]).sum(axis=1) for b in inputs.blocks], 1)
    scale_K = product_PK.std(axis=0, dtype=np.float64)
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


def _interaction(product_PK: F64, utility_P: F64, row_P: I64, column_P: I64) -> tuple[F64, float]:
    """Return weights [K] and a shift: a pair's part is max(product @ weights + shift, 0)^2.

    The weights are drawn to those of the best link of the plain sum; all are 0 where help does not
    grow with it: then nothing is known of pairs.
    """

    def centre(value_PK: F64) -> F64:
        return centre_pairs(value_PK, row_P, column_P)

    num_pairs, num_products = product_PK.shape
    label_P = centre(utility_P[:, None])[:, 0]
    mean_K, unit = product_PK.mean(axis=0), float(label_P.std())
    label_P /= unit or 1.0
    slope, shift = _link((product_PK - mean_K).sum(axis=1), label_P, centre)
    if unit * slope == 0:
        return np.zeros(num_products), 0.0
    root = num_pairs**0.5  # errors count as means
    all_PK = np.column_stack([product_PK - mean_K, np.ones(num_pairs)])
    prior_K = np.append(np.full(num_products, slope), shift)

    def errors(point_K: F64) -> F64:
        part_P = np.maximum(all_PK @ point_K, 0.0) ** 2
        error_P = centre(part_P[:, None])[:, 0] - label_P
        return np.concatenate([error_P / root, pull * (point_K - prior_K)])

    def slopes(point_K: F64) -> F64:
        slope_PK = centre(2 * np.maximum(all_PK @ point_K, 0.0)[:, None] * all_PK)
        return np.vstack([slope_PK / root, pull * np.eye(num_products + 1)])

    noise, pull, point_K = FIRST_NOISE, 0.0, prior_K
    for _ in range(2):
        pull = (PRIOR_PAIRS * noise) ** 0.5 / root
        found = least_squares(errors, point_K, slopes, method="lm", max_nfev=MOST_EVALUATIONS)
        noise, point_K = float(np.square(found.fun[:num_pairs]).sum()), found.x
    weight_K, shift = point_K[:-1] * unit**0.5, point_K[-1] * unit**0.5
    return weight_K, float(shift - mean_K @ weight_K)


def _link(sum_P: F64, label_P: F64, centre: Callable[[F64], F64]) -> tuple[float, float]:
    """Return slope and shift of the best link: a pair's part is max(slope * sum + shift, 0)^2.

    ``sum_P`` has mean 0.
    """
    spread = float(sum_P.std())
    if spread == 0:
        return 0.0, 0.0
    threshold_T = spread * np.array(THRESHOLDS)
    square_PT = centre(np.maximum(sum_P[:, None] - threshold_T, 0.0) ** 2)
    size_T = np.maximum(square_PT.std(axis=0), np.finfo(np.float64).tiny)
    known_T = square_PT.T @ label_P / (size_T * len(label_P))  # correlations
    best = int(np.argmax(known_T))
    known = float(known_T[best]) * len(label_P) + BELIEVED * BELIEVED_PAIRS
    # A negative amount would be help that falls with likeness: then nothing is known of pairs.
    root = (max(known, 0.0) / (len(label_P) + BELIEVED_PAIRS) / float(size_T[best])) ** 0.5
    return root, -root * float(threshold_T[best])


def _matrix(inputs: Inputs, weight_K: F64) -> F64:
    """Return M with x^T M y = the weighted sum of products [X, X]."""
    num_inputs = len(inputs.mean_D)
    matrix_XX = np.zeros((num_inputs, num_inputs))
    for block, weight in zip(inputs.blocks, weight_K, strict=True):
        matrix_XX[block, block] = weight * np.eye(block.stop - block.start)
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
    left_XX, size_X, right_XX = decompose(root_XX @ matrix_XX @ root_XX)
    root_F = np.sqrt(size_X[:rank])
    return (
        (inverse_XX @ left_XX[:, :rank] * root_F).T,
        (inverse_XX @ right_XX[:rank].T * root_F).T,
    )


def decompose(matrix_NX: NDArray[np.floating]) -> tuple[F64, F64, F64]:
    """Return the thin singular value decomposition: left [N, R], sizes [R], right [R, X].

    LAPACK's usual driver may fail on a sound matrix; the other takes six times as long.
    """
    try:
        return np.linalg.svd(matrix_NX, full_matrices=False)
    except np.linalg.LinAlgError:
        left_NR, size_R, right_RX = linalg.svd(
            matrix_NX, full_matrices=False, lapack_driver="gesvd"
        )
        return left_NR, size_R, right_RX


def _pair_part(row_NF: F64, column_MF: F64, row_P: I64, column_P: I64, shift: float) -> F64:
    product_P = np.einsum("pf,pf->p", row_NF[row_P], column_MF[column_P])
    return np.maximum(product_P + shift, 0.0) ** 2


def _effects(
    inputs: Inputs, row_NX: F32, column_MX: F32, row_P: I64, column_P: I64, rest_P: F64
) -> tuple[F64, float, F64]:
    """Return weights of the row effect [X], its constant, and weights of the column effect [X].

    A row's effect is estimated by its mean, a column's by its mean of what the rows leave.
    """
    row_mean_N = _group_means(rest_P[:, None], row_P)[:, 0]
    left_P = rest_P - row_mean_N[row_P]
    column_mean_M = _group_means(left_P[:, None], column_P)[:, 0]
    rows, columns = np.unique(row_P), np.unique(column_P)
    cuts = (inputs.widths[0], row_NX.shape[1])
    row_X, constant = ridge_leaving_one_out(row_NX[rows], row_mean_N[rows], cuts)
    column_X, other = ridge_leaving_one_out(column_MX[columns], column_mean_M[columns], cuts)
    return row_X, constant + other, column_X


def ridge_leaving_one_out(
    x_NX: F32, y_N: F64, cuts: Sequence[int] | None = None
) -> tuple[F64, float]:
    """Return ridge weights [X] and a constant of least error where one example is left out.

    What is tried: every penalty, on as many of the first inputs as each of ``cuts`` says (all of
    them by default), and a constant alone: few labels may say nothing of unseen examples.
    """
    mean_X, mean = x_NX.mean(axis=0, dtype=np.float64), float(y_N.mean())
    centred_NX, rest_N = x_NX - mean_X, y_N - mean
    num_examples, best_X = len(y_N), np.zeros(x_NX.shape[1])
    if num_examples <= 2:
        return best_X, mean
    # A mean, too, leaves one out.
    best_error = float(np.square(rest_N).sum()) * (num_examples / (num_examples - 1)) ** 2
    for cut in cuts or [len(mean_X)]:
        left_NR, size_R, right_RX = decompose(centred_NX[:, :cut])
        along_R = left_NR.T @ rest_N
        for penalty in EFFECT_PENALTIES:
            shrink_R = size_R**2 / (size_R**2 + penalty)
            fitted_N = left_NR @ (shrink_R * along_R)
            leverage_N = np.square(left_NR) @ shrink_R + 1 / num_examples
            error = float(np.square((rest_N - fitted_N) / np.maximum(1 - leverage_N, 1e-9)).sum())
            if error < best_error:
                divided_R = np.divide(size_R, size_R**2 + penalty)
                best_error, best_X = error, np.zeros(len(mean_X))
                best_X[:cut] = right_RX.T @ (divided_R * along_R)
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
