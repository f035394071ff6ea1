"""The part of a label that is its row's: known for labelled rows, predicted for all others.

A row's offset chooses no helper, but it is a third of the variance of real labels. Trained on what
is left of them, a network spends its units on telling helpers apart; the offset is predicted by a
ridge regression on the row's embedding, which cannot memorise, and is put back as two hidden units.
Suffixes: E examples, R rows with labels, D embedding, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Floats = NDArray[np.floating]
Integers = NDArray[np.integer]

PENALTIES = 10.0 ** np.arange(-4, 5)  # of the mean squared singular value


@dataclass(frozen=True, slots=True, eq=False)
class RowOffsets:
    """Offsets of rows, and what predicts them."""

    mean_E: F64  # mean label of each example; the grand mean of rows without labels
    weight_D: F64
    bias: float

    def predict(self, e_ND: Floats) -> F64:
        """Predict the offsets [N] of examples."""
        return e_ND.astype(np.float64) @ self.weight_D + self.bias


def fit_row_offsets(e_ED: Floats, rows: Integers, utility: Floats) -> RowOffsets:
    """Fit the mean label of each row by its embedding.

    The penalty is the one of least leave-one-out error over the rows, so that offsets that
    embeddings do not tell become the grand mean.

    Args:
        e_ED: Embeddings that `rows` points into.
        rows: Row of each pair [P].
        utility: Its label [P].
    """
    count_E = np.bincount(rows, minlength=len(e_ED))
    sum_E = np.bincount(rows, weights=utility.astype(np.float64), minlength=len(e_ED))
    labelled = count_E > 0
    mean_R = sum_E[labelled] / count_E[labelled]
    centre = float(mean_R.mean())
    mean_E = np.full(len(e_ED), centre)
    mean_E[labelled] = mean_R
    weight_D, bias = _ridge(e_ED[labelled].astype(np.float64), mean_R)
    return RowOffsets(mean_E, weight_D, bias)


def _ridge(e_RD: F64, target_R: F64) -> tuple[F64, float]:
    """Return weights and bias of the ridge regression that predicts left-out rows best."""
    middle_D: F64 = e_RD.mean(axis=0)
    centre = float(target_R.mean())
    left: F64
    size: F64
    right: F64
    left, size, right = np.linalg.svd(e_RD - middle_D, full_matrices=False)
    along: F64 = left.T @ (target_R - centre)
    unit = float(np.mean(np.square(size)))
    if unit == 0:
        none_D: F64 = np.zeros(len(middle_D))
        return none_D, centre
    best: tuple[float, F64] = (np.inf, np.zeros(len(size)))
    for penalty in PENALTIES * unit:
        kept: F64 = np.square(size) / (np.square(size) + penalty)
        leverage_R: F64 = np.square(left) @ kept + 1 / len(target_R)
        residual_R: F64 = (target_R - centre - left @ (kept * along)) / np.maximum(
            1 - leverage_R, 1e-9
        )
        error = float(np.mean(np.square(residual_R)))
        if error < best[0]:
            best = error, size / (np.square(size) + penalty) * along
    weight_D: F64 = right.T @ best[1]
    return weight_D, centre - float(middle_D @ weight_D)
