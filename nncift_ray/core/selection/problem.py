"""What an optimiser reads of a set function: its columns, and what is covered so far.

Three kinds of function are enough for every objective here. With m_j a modular term, all over
scaled influence in [0, 1], and A the columns picked:

    coverage     f(A) = sum_i max_{j in A} v_ij                 + sum_{j in A} m_j
    saturation   f(A) = sum_i min(sum_{j in A} v_ij, cap_i)     + sum_{j in A} m_j
    pairwise     f(A) = -sum_{{j, k} in A} w_jk                 + sum_{j in A} m_j

(max over nothing = 0). All are submodular because v, w >= 0. The gain of a column is one sum in
float64 in a fixed order, and picking more only lowers each operand of it: rounded addition is
monotone in each operand, so a gain computed earlier is never below the one computed now, to the
last bit. That is what lets a lazy search return what the plain one does.
Suffixes: I rows (to be covered), J columns (may be selected), E entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.dense_gain import covered_gain, saturated_gain
from nncift_ray.core.selection.dense_scores import DenseScores
from nncift_ray.core.selection.sparse_scores import SparseScores
from nncift_ray.core.selection.streamed_scores import StreamedScores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Scores = SparseScores | DenseScores | StreamedScores

COVERAGE, SATURATION, PAIRWISE = 0, 1, 2
NO_ROWS: I32 = np.zeros(0, np.int32)


class Columns(NamedTuple):
    """The columns as the kernels take them: entries of column j are `indptr[j]:indptr[j+1]`.

    `rows` is ascending within a column; of a dense problem it is empty, and column j holds every
    row in order. Of a pairwise problem the "rows" are the other columns, and one may come twice.
    """

    kind: int
    dense: bool
    indptr: I64
    rows: I32
    values: F32
    modular_J: F64


class State(NamedTuple):
    """What the picks so far have done.

    `cover_I` is max_{j in A} v_ij (coverage, else empty); `level` is what is left of cap_i
    (saturation), or sum_{k in A} w_jk of each column (pairwise), else empty.
    """

    cover_I: F32
    level: F64


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A set function by column.

    Attributes:
        kind: COVERAGE, SATURATION or PAIRWISE.
        indptr: First entry of each column [J + 1].
        rows: Row of each entry [E], ascending within a column; empty where the matrix is dense.
        values: Value of each entry [E], >= 0.
        modular_J: m_j of each column.
        num_rows: Rows I.
        cap_I: Caps of a saturation problem [I], else empty.
        dense: Whether every column holds every row.
    """

    kind: int
    indptr: I64
    rows: I32
    values: F32
    modular_J: F64
    num_rows: int
    cap_I: F64
    dense: bool = False

    @property
    def num_columns(self) -> int:
        """Number of columns J that may be selected."""
        return len(self.modular_J)

    @property
    def columns(self) -> Columns:
        """The columns, for the kernels."""
        return Columns(self.kind, self.dense, self.indptr, self.rows, self.values, self.modular_J)

    def empty_state(self) -> State:
        """Return the state of no pick."""
        if self.kind == COVERAGE:
            return State(np.zeros(self.num_rows, np.float32), np.zeros(0))
        level = self.cap_I.copy() if self.kind == SATURATION else np.zeros(self.num_columns)
        return State(np.zeros(0, np.float32), level)

    def is_monotone(self) -> bool:
        """Whether no pick can ever lower the value, on these very numbers.

        A submodular function is monotone where no column would lower the value as the last one.
        """
        if self.kind == PAIRWISE:
            last_J = np.empty(self.num_columns)
            last_gains(self.columns, last_J)
            return bool((last_J >= 0).all())
        return bool((self.modular_J >= 0).all())

    def never_falls(self) -> bool:
        """Whether a gain of 0 is final: true where every term of a gain is >= 0."""
        return self.kind != PAIRWISE and bool((self.modular_J >= 0).all())

    def restricted(self, columns_S: I64) -> Problem:
        """Return the problem of some columns alone, numbered in the order given.

        Every row stays, so gains are those of the whole problem; of a pairwise one, the pairs
        inside stay.
        """
        return restrict(self, columns_S)


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a set function is made of besides the entries of its lists: numbers a row or a column.

    What is summed over lists (caps of saturation, the relevance of graph cut) is summed over all of
    them, so the terms of a part of the columns are those of the whole.

    Attributes:
        modular_J: m_j of each column.
        kind: COVERAGE, SATURATION or PAIRWISE.
        cap_I: Coverage: entries count up to this.
        floor_I: Coverage: entries count above this.
        level_I: Saturation: the caps.
        pair_weight: Pairwise: w_jk = pair_weight * (s_jk + s_kj).
        reads_lists: False where the function is its modular term alone.
    """

    modular_J: F64
    kind: int = COVERAGE
    cap_I: F32 | None = None
    floor_I: F32 | None = None
    level_I: F64 | None = None
    pair_weight: float = 0.0
    reads_lists: bool = True


class Objective(Protocol):
    """A set function over columns: its influence, and the problem that the optimisers read."""

    @property
    def scores(self) -> Scores:
        """The scaled influence the objective covers rows with."""
        ...

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        ...

    def problem(self) -> Problem:
        """Return the function by column, all of it in memory."""
        ...


def restrict(problem: Problem, columns_S: I64) -> Problem:
    """Return the problem of some columns alone (see `Problem.restricted`)."""
    starts, stops = problem.indptr[columns_S], problem.indptr[columns_S + 1]
    indptr = np.zeros(len(columns_S) + 1, np.int64)
    np.cumsum(stops - starts, out=indptr[1:])
    entries = np.repeat(starts - indptr[:-1], stops - starts)
    entries += np.arange(indptr[-1], dtype=np.int64)
    rows = problem.rows if problem.dense else problem.rows[entries]
    values, modular_S = problem.values[entries], problem.modular_J[columns_S]
    if problem.kind != PAIRWISE:
        return Problem(
            problem.kind, indptr, rows, values, modular_S, problem.num_rows, problem.cap_I,
            problem.dense,
        )  # fmt: skip
    new_number = np.full(problem.num_columns, -1, np.int32)
    new_number[columns_S] = np.arange(len(columns_S), dtype=np.int32)
    if problem.dense:
        inside = np.tile(columns_S, len(columns_S)) + np.repeat(starts, len(columns_S))
        size = len(columns_S)
        return Problem(
            PAIRWISE, np.arange(size + 1, dtype=np.int64) * size, NO_ROWS, problem.values[inside],
            modular_S, size, problem.cap_I, dense=True,
        )  # fmt: skip
    kept = new_number[rows] >= 0
    counts = np.concatenate([[0], np.cumsum(kept)])[indptr]
    return Problem(
        PAIRWISE, counts.astype(np.int64), new_number[rows[kept]], values[kept], modular_S,
        len(columns_S), problem.cap_I,
    )  # fmt: skip


@compiled
def gain_of(columns: Columns, state: State, j: int) -> float:
    """Return f(A + j) - f(A)."""
    if columns.kind == PAIRWISE:
        return columns.modular_J[j] - state.level[j]
    gain = columns.modular_J[j]
    first, last = columns.indptr[j], columns.indptr[j + 1]
    if columns.dense and columns.kind == COVERAGE:
        return gain + covered_gain(columns.values, first, state.cover_I)
    if columns.dense:
        return gain + saturated_gain(columns.values, first, state.level)
    if columns.kind == COVERAGE:
        for entry in range(first, last):
            gain += _above(columns.values[entry], state.cover_I[int(columns.rows[entry])])
        return gain
    for entry in range(first, last):
        gain += _within(columns.values[entry], state.level[int(columns.rows[entry])])
    return gain


@compiled
def _above(value: np.float32, cover: np.float32) -> float:
    """Return by how much a value exceeds what covers its row."""
    more = np.float64(value) - np.float64(cover)
    return more if more > 0.0 else 0.0


@compiled
def _within(value: np.float32, left: float) -> float:
    """Return how much of a value fits into what a row still lacks."""
    return min(np.float64(value), left)


@compiled
def add(columns: Columns, state: State, j: int) -> None:
    """Add column j to the selection."""
    first, last = columns.indptr[j], columns.indptr[j + 1]
    for entry in range(first, last):
        i = entry - first if columns.dense else np.int64(columns.rows[entry])
        value = columns.values[entry]
        if columns.kind == COVERAGE:
            if value > state.cover_I[i]:
                state.cover_I[i] = value
        elif columns.kind == SATURATION:
            left = state.level[i] - np.float64(value)
            state.level[i] = left if left > 0.0 else 0.0
        else:
            state.level[i] += np.float64(value)


@compiled
def add_each(columns: Columns, state: State, columns_S: I64) -> None:
    """Add columns to the selection."""
    for j in columns_S:
        add(columns, state, j)


@compiled
def all_gains(columns: Columns, state: State, gain_J: F64) -> None:
    """Write the gain of every column, picked ones included."""
    for j in range(len(gain_J)):
        gain_J[j] = gain_of(columns, state, j)


@compiled
def gains_of(columns: Columns, state: State, columns_S: I64, gain_S: F64) -> None:
    """Write the gains of some columns."""
    for place in range(len(columns_S)):
        gain_S[place] = gain_of(columns, state, columns_S[place])


@compiled
def last_gains(columns: Columns, gain_J: F64) -> None:
    """Write each column's gain on top of all the others, of a pairwise problem."""
    for j in range(len(gain_J)):
        gain = columns.modular_J[j]
        first = columns.indptr[j]
        for entry in range(first, columns.indptr[j + 1]):
            other = entry - first if columns.dense else np.int64(columns.rows[entry])
            if other != j:
                gain -= np.float64(columns.values[entry])
        gain_J[j] = gain
