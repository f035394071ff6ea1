"""Sums over all scores by row and by column, and the diagonal; streamed ones take one pass each.

Entries are added in the order of the rows, in float64, however the scores are held: the sums are
the same to the last bit.
Suffixes: I rows, J columns, E entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.dense_scores import DenseScores
from nncift_ray.core.selection.problem import Scores
from nncift_ray.core.selection.sparse_scores import SparseScores
from nncift_ray.core.selection.streamed_scores import StreamedScores

F64 = NDArray[np.float64]


def row_sums(scores: Scores) -> F64:
    """Return sum_j s_ij of each row [I], in float64."""
    if isinstance(scores, DenseScores):
        return scores.data_IJ.sum(axis=1, dtype=np.float64)
    if isinstance(scores, StreamedScores):
        return np.concatenate([np.zeros(0), *[row_sums(batch) for batch in scores.batches()]])
    row_E = np.repeat(np.arange(scores.num_rows), np.diff(scores.indptr))
    sum_I = np.bincount(row_E, weights=scores.data, minlength=scores.num_rows)
    return sum_I.astype(np.float64)  # without entries numpy counts in integers


def column_sums(scores: Scores) -> F64:
    """Return sum_i s_ij of each column [J], rows in ascending order, in float64."""
    if isinstance(scores, DenseScores):
        return scores.data_IJ.sum(axis=0, dtype=np.float64)
    if isinstance(scores, StreamedScores):
        sum_J = np.zeros(scores.num_columns)
        for batch in scores.batches():
            np.add.at(sum_J, batch.indices, batch.data.astype(np.float64))
        return sum_J
    sum_J = np.bincount(scores.indices, weights=scores.data, minlength=scores.num_columns)
    return sum_J.astype(np.float64)


def diagonal(scores: Scores) -> F64:
    """Return s_jj of each column [J] of square scores, 0 where it is not listed, in float64."""
    if isinstance(scores, DenseScores):
        return np.diagonal(scores.data_IJ).astype(np.float64)
    diagonal_J = np.zeros(scores.num_columns)
    if isinstance(scores, StreamedScores):
        start = 0
        for batch in scores.batches():
            _add_diagonal(batch, start, diagonal_J)
            start += batch.num_rows
    else:
        _add_diagonal(scores, 0, diagonal_J)
    return diagonal_J


def _add_diagonal(scores: SparseScores, first_row: int, diagonal_J: F64) -> None:
    row_E = np.repeat(np.arange(first_row, first_row + scores.num_rows), np.diff(scores.indptr))
    on_E = row_E == scores.indices
    np.add.at(diagonal_J, row_E[on_E], scores.data[on_E].astype(np.float64))
