"""Builds a problem from scores by row and the terms of an objective, whole or for some columns.

Suffixes: I rows, J columns, K other columns, S some columns, E entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.column_source import ColumnSource
from nncift_ray.core.selection.dense_scores import DenseScores
from nncift_ray.core.selection.problem import (
    COVERAGE,
    NO_ROWS,
    PAIRWISE,
    Objective,
    Problem,
    Scores,
    Terms,
)
from nncift_ray.core.selection.sparse_scores import SparseScores
from nncift_ray.core.selection.streamed_scores import StreamedScores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class StreamedProblem:
    """A set function whose columns are read when they are asked for: a `ColumnSource`.

    Attributes:
        scores: The lists.
        terms: The rest, of all columns.
    """

    scores: StreamedScores
    terms: Terms

    @property
    def num_columns(self) -> int:
        """Number of columns J."""
        return self.scores.num_columns

    def restricted(self, columns_S: I64) -> Problem:
        """Return what `Problem.restricted` would of the whole, to the last bit; one pass.

        Memory: the entries of the columns (of a pairwise problem the pairs inside), three times
        for a moment, and some numbers a row and a column.
        """
        terms = replace(self.terms, modular_J=self.terms.modular_J[columns_S])
        if not terms.reads_lists:
            return modular_problem(terms.modular_J)
        if terms.kind != PAIRWISE:
            return problem_of(self.scores.restricted(columns_S), terms)
        # The two entries of a pair lie in the order of the rows: that decides the last bit of sums.
        rising_S = np.argsort(columns_S, kind="stable")
        sorted_S, place_S = columns_S[rising_S], np.empty(len(columns_S), np.int64)
        place_S[rising_S] = np.arange(len(columns_S))
        terms = replace(terms, modular_J=self.terms.modular_J[sorted_S])
        return problem_of(self.scores.restricted(sorted_S, sorted_S), terms).restricted(place_S)


def column_source(objective: Objective) -> ColumnSource:
    """Return where an objective's columns come from: its lists where streamed, else a `Problem`."""
    if isinstance(objective.scores, StreamedScores):
        return StreamedProblem(objective.scores, objective.terms())
    return objective.problem()


def problem_of(scores: Scores, terms: Terms) -> Problem:
    """Turn influence by row into a problem by column; streamed scores are read whole."""
    if not terms.reads_lists:
        return modular_problem(terms.modular_J)
    scores = scores.whole() if isinstance(scores, StreamedScores) else scores
    return _pairwise(scores, terms) if terms.kind == PAIRWISE else _by_column(scores, terms)


def modular_problem(modular_J: F64) -> Problem:
    """Return the problem of a sum over the picks alone."""
    return Problem(
        COVERAGE,
        np.zeros(len(modular_J) + 1, np.int64),
        NO_ROWS,
        np.zeros(0, np.float32),
        modular_J.astype(np.float64),
        0,
        np.zeros(0),
    )


def _by_column(scores: SparseScores | DenseScores, terms: Terms) -> Problem:
    """Return v_ij = max(min(s_ij, cap_i) - floor_i, 0) by column."""
    level = np.zeros(0) if terms.level_I is None else terms.level_I
    kind, modular_J, cap_I, floor_I = terms.kind, terms.modular_J, terms.cap_I, terms.floor_I
    if isinstance(scores, DenseScores):
        values_JI = np.ascontiguousarray(scores.data_IJ.T)
        if cap_I is not None:
            values_JI = np.minimum(values_JI, cap_I)
        if floor_I is not None:
            values_JI = np.maximum(values_JI - floor_I, np.float32(0))
        indptr = np.arange(scores.num_columns + 1, dtype=np.int64) * scores.num_rows
        flat = values_JI.reshape(-1)
        return Problem(kind, indptr, NO_ROWS, flat, modular_J, scores.num_rows, level, dense=True)
    indptr = np.zeros(scores.num_columns + 1, np.int64)
    np.cumsum(np.bincount(scores.indices, minlength=scores.num_columns), out=indptr[1:])
    rows = np.empty(len(scores.indices), np.int32)
    values = np.empty(len(scores.indices), np.float32)
    cap = np.ones(scores.num_rows, np.float32) if cap_I is None else cap_I
    floor = np.zeros(scores.num_rows, np.float32) if floor_I is None else floor_I
    twice = _scatter(
        scores.indptr, scores.indices, scores.data, cap, floor, indptr[:-1].copy(), rows, values
    )
    if twice >= 0:
        msg = f"the list of row {twice} names a column twice"
        raise ValueError(msg)
    return Problem(kind, indptr, rows, values, modular_J, scores.num_rows, level)


def _pairwise(scores: SparseScores | DenseScores, terms: Terms) -> Problem:
    """Return pair_weight * (s_jk + s_kj) of every two columns, the diagonal left out."""
    size, no_caps, weight = scores.num_columns, np.zeros(0), np.float32(terms.pair_weight)
    if isinstance(scores, DenseScores):
        weight_JK = scores.data_IJ + scores.data_IJ.T
        weight_JK *= weight
        np.fill_diagonal(weight_JK, 0)
        indptr = np.arange(size + 1, dtype=np.int64) * size
        flat = weight_JK.reshape(-1)
        return Problem(PAIRWISE, indptr, NO_ROWS, flat, terms.modular_J, size, no_caps, dense=True)
    indptr, others, values = _neighbours(scores)
    values *= weight
    return Problem(PAIRWISE, indptr, others, values, terms.modular_J, size, no_caps)


def _neighbours(scores: SparseScores) -> tuple[I64, I32, F32]:
    """List for each column those it helps and those that help it, itself left out."""
    size = scores.num_columns
    row_E = np.repeat(np.arange(size, dtype=np.int32), np.diff(scores.indptr))
    off_E = row_E != scores.indices
    count_J = np.bincount(row_E[off_E], minlength=size)
    count_J += np.bincount(scores.indices[off_E], minlength=size)
    indptr = np.zeros(size + 1, np.int64)
    np.cumsum(count_J, out=indptr[1:])
    others, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    _scatter_both(scores.indptr, scores.indices, scores.data, indptr[:-1].copy(), others, values)
    return indptr, others, values


@compiled
def _scatter(
    indptr: I64, indices: I32, data: F32, cap_I: F32, floor_I: F32,
    next_J: I64, rows: I32, values: F32,
) -> int:  # fmt: skip
    """Write the entries by column; return a row that lists a column twice, or -1."""
    twice = -1
    for i in range(len(cap_I)):
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            place = next_J[j]
            rows[place] = i
            values[place] = max(min(data[entry], cap_I[i]) - floor_I[i], np.float32(0))
            next_J[j] = place + 1
    for j in range(len(next_J)):
        for place in range(next_J[j - 1] + 1 if j > 0 else 1, next_J[j]):
            if rows[place] == rows[place - 1]:
                twice = rows[place]
    return twice


@compiled
def _scatter_both(
    indptr: I64, indices: I32, data: F32, next_J: I64, others: I32, values: F32
) -> None:
    for i in range(len(indptr) - 1):
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            if j != i:
                others[next_J[j]], values[next_J[j]] = i, data[entry]
                next_J[j] += 1
                others[next_J[i]], values[next_J[i]] = j, data[entry]
                next_J[i] += 1
