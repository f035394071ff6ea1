"""Scaled influence, a set function over its columns, and what the optimisers read of it.

Three kinds of function are enough for every objective here. With m_j a modular term, all over
scaled influence in [0, 1], and A the columns picked:

    coverage     f(A) = sum_i max_{j in A} v_ij                 + sum_{j in A} m_j
    saturation   f(A) = sum_i min(sum_{j in A} v_ij, cap_i)     + sum_{j in A} m_j
    pairwise     f(A) = -sum_{{j, k} in A} w_jk                 + sum_{j in A} m_j

(max over nothing = 0). All are submodular because v, w >= 0. The gain of a column is one sum in
float64 in a fixed order, and picking more only lowers each operand of it: rounded addition is
monotone in each operand, so a gain computed earlier is never below the one computed now, to the
last bit. That is what lets a lazy search return what the plain one does.
Suffixes: I rows (to be covered), J columns (may be selected), E entries, S some columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

COVERAGE, SATURATION, PAIRWISE, MODULAR = 0, 1, 2, 3
NO_ROWS: I32 = np.zeros(0, np.int32)
LANES = 32  # partial sums of a dense column: additions under way side by side


@dataclass(frozen=True, slots=True)
class InfluenceScale:
    """The one linear map from raw influence to [0, 1], shared by everything that is compared."""

    min: float
    max: float

    def __post_init__(self) -> None:
        """Raise ValueError when the bounds are not finite or not in order."""
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.max):
            msg = f"an influence scale needs finite min <= max, got {self.min} and {self.max}"
            raise ValueError(msg)

    def apply(self, raw: F32) -> F32:
        """Return raw influence as float32 in [0, 1]; all 0 when the scale has no width.

        Raises:
            ValueError: If a value is outside the scale (NaN too): the scale is of other scores.
        """
        bad = np.flatnonzero(~((raw >= np.float32(self.min)) & (raw <= np.float32(self.max))))
        if len(bad):
            msg = (
                f"influence {raw.reshape(-1)[bad[0]]} lies outside the scale"
                f" [{self.min}, {self.max}]: compute the scale over all blocks that are compared"
            )
            raise ValueError(msg)
        width = self.max - self.min
        if width == 0:
            return np.zeros(raw.shape, np.float32)
        scaled = raw.astype(np.float64)  # then in place: a second copy would double the memory
        scaled -= self.min
        scaled /= width
        return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32)

    def apply_to_means(self, mean: F64) -> F64:
        """Return means of raw influence on the scale; all 0 when the scale has no width.

        In float64, since means differ by less than the influences they are made of; and not
        clipped, since a mean of rounded influences may pass a bound by that rounding.
        """
        width = self.max - self.min
        return np.zeros_like(mean) if width == 0 else (mean - self.min) / width


@dataclass(frozen=True, slots=True, eq=False)
class SparseScores:
    """Scaled influence of the listed columns of each row, as compressed rows.

    Row i holds columns `indices[indptr[i]:indptr[i+1]]` with values `data[...]` in [0, 1].
    """

    indptr: I64
    indices: I32
    data: F32
    num_columns: int

    def __post_init__(self) -> None:
        """Raise ShapeError on arrays that do not belong together, ValueError on bad entries."""
        if self.indptr.ndim != 1 or len(self.indptr) == 0 or self.indptr[0] != 0:
            raise ShapeError("indptr must be [I + 1] and begin with 0")
        if not self.indptr[-1] == len(self.indices) == len(self.data):
            msg = f"{self.indptr[-1]} entries, {len(self.indices)} indices, {len(self.data)} values"
            raise ShapeError(msg)
        if (np.diff(self.indptr) < 0).any():
            raise ShapeError("indptr must not decrease")
        low, high = self.indices.min(initial=0), self.indices.max(initial=-1)
        if low < 0 or high >= self.num_columns:
            msg = (
                f"columns {low}..{high} listed, there are {self.num_columns}: are these lists of"
                " another table?"
            )
            raise ValueError(msg)
        _check_scaled(self.data)

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return len(self.indptr) - 1

    def batches(self) -> Iterator[SparseScores]:
        """Yield all rows as one batch."""
        yield self


@dataclass(frozen=True, slots=True, eq=False)
class StreamedScores:
    """Scaled influence in batches of rows, read anew for every pass over them.

    Attributes:
        num_rows: Rows I of all batches.
        num_columns: Columns J.
        batches: Reads the lists from the first row to the last; every batch names all columns.
    """

    num_rows: int
    num_columns: int
    batches: Callable[[], Iterator[SparseScores]]


@dataclass(frozen=True, slots=True, eq=False)
class DenseScores:
    """Scaled influence [I, J] in [0, 1], float32: row i is helped by column j.

    The optimisers read it by column: a matrix in Fortran order is taken as it is, one in C order is
    copied once (4 * I * J bytes).
    """

    data_IJ: F32

    def __post_init__(self) -> None:
        """Raise ShapeError unless the matrix is [I, J] of float32, ValueError on raw influence."""
        if self.data_IJ.ndim != 2 or self.data_IJ.dtype != np.float32:
            msg = f"a dense matrix is [I, J] float32; got {self.data_IJ.shape} {self.data_IJ.dtype}"
            raise ShapeError(msg)
        _check_scaled(self.data_IJ)

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return self.data_IJ.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns J."""
        return self.data_IJ.shape[1]


Scores = SparseScores | DenseScores | StreamedScores


def _check_scaled(values: F32) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        msg = "influence must be scaled to [0, 1] first (InfluenceScale.apply), without NaN"
        raise ValueError(msg)


# Sums over all scores by row and by column, and the diagonal; streamed ones take one pass each.


def row_sums(scores: Scores) -> F64:
    """Return sum_j s_ij of each row [I], in float64."""
    if isinstance(scores, DenseScores):
        return scores.data_IJ.sum(axis=1, dtype=np.float64)
    sums = [
        np.bincount(_entry_rows(batch), batch.data, batch.num_rows).astype(np.float64)
        for batch in scores.batches()
    ]
    return np.concatenate([np.zeros(0), *sums])


def column_sums(scores: Scores) -> F64:
    """Return sum_i s_ij of each column [J], rows in ascending order, in float64."""
    if isinstance(scores, DenseScores):
        return scores.data_IJ.sum(axis=0, dtype=np.float64)
    sum_J = np.zeros(scores.num_columns)
    for batch in scores.batches():
        np.add.at(sum_J, batch.indices, batch.data.astype(np.float64))
    return sum_J


def diagonal(scores: Scores) -> F64:
    """Return s_jj of each column [J] of square scores, 0 where it is not listed, in float64."""
    if isinstance(scores, DenseScores):
        return np.diagonal(scores.data_IJ).astype(np.float64)
    diagonal_J, first = np.zeros(scores.num_columns), 0
    for batch in scores.batches():
        row_E = first + _entry_rows(batch)
        on_E = row_E == batch.indices
        np.add.at(diagonal_J, row_E[on_E], batch.data[on_E].astype(np.float64))
        first += batch.num_rows
    return diagonal_J


def best_first(scores: Scores, rank_J: I64) -> tuple[I64, I32]:
    """Return where each row's list begins [I + 1], and its columns [E], the largest score first.

    Equals go by the rank of the column, smaller first. Of dense scores every column is listed.
    """
    if isinstance(scores, DenseScores):
        rows, columns = scores.data_IJ.shape
        indptr = np.arange(rows + 1, dtype=np.int64) * columns
        indices = np.tile(np.arange(columns, dtype=np.int32), rows)
        scores = SparseScores(indptr, indices, scores.data_IJ.reshape(-1), columns)
    starts, found, end = [np.zeros(1, np.int64)], list[I32](), 0
    for batch in scores.batches():
        order_E = np.lexsort((rank_J[batch.indices], -batch.data, _entry_rows(batch)))
        found.append(batch.indices[order_E].astype(np.int32))
        starts.append(end + batch.indptr[1:])
        end += int(batch.indptr[-1])
    return np.concatenate(starts), np.concatenate([np.zeros(0, np.int32), *found])


def _entry_rows(batch: SparseScores) -> I64:
    return np.repeat(np.arange(batch.num_rows), np.diff(batch.indptr))


# A set function, and its columns as the kernels read them.


class State(NamedTuple):
    """What the picks so far have done.

    `cover_I` is max_{j in A} v_ij (coverage, else empty); `level` is what is left of cap_i
    (saturation), or sum_{k in A} w_jk of each column (pairwise), else empty.
    """

    cover_I: F32
    level: F64


class Problem(NamedTuple):
    """A set function by column: entries of column j are `indptr[j]:indptr[j+1]`.

    `rows` is ascending within a column; of a dense problem it is empty, and column j holds every
    row in order. Of a pairwise problem the "rows" are the other columns, and one may come twice.

    Attributes:
        kind: COVERAGE, SATURATION, PAIRWISE or MODULAR (no entries).
        dense: Whether every column holds every row.
        indptr: First entry of each column [J + 1].
        rows: Row of each entry [E].
        values: Value of each entry [E], >= 0.
        modular_J: m_j of each column.
        num_rows: Rows I.
        cap_I: Caps of a saturation problem [I], else empty.
    """

    kind: int
    dense: bool
    indptr: I64
    rows: I32
    values: F32
    modular_J: F64
    num_rows: int
    cap_I: F64

    @property
    def num_columns(self) -> int:
        """Number of columns J that may be selected."""
        return len(self.modular_J)

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
            _last_gains(self, last_J)
            return bool((last_J >= 0).all())
        return bool((self.modular_J >= 0).all())

    def never_falls(self) -> bool:
        """Whether a gain of 0 is final: true where every term of a gain is >= 0."""
        return self.kind != PAIRWISE and bool((self.modular_J >= 0).all())


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A set function: scaled influence, and numbers a row or a column (`objectives` makes them).

    What is summed over lists (caps of saturation, the relevance of graph cut) is summed over all
    of them, so a part of the columns has the numbers of the whole.

    Attributes:
        scores: The influence that rows are covered with.
        modular_J: m_j of each column.
        kind: COVERAGE, SATURATION, PAIRWISE or MODULAR.
        cap_I: Coverage: entries count up to this.
        floor_I: Coverage: entries count above this.
        level_I: Saturation: the caps.
        pair_weight: Pairwise: w_jk = pair_weight * (s_jk + s_kj).
    """

    scores: Scores
    modular_J: F64
    kind: int = COVERAGE
    cap_I: F32 | None = None
    floor_I: F32 | None = None
    level_I: F64 | None = None
    pair_weight: float = 0.0

    @property
    def num_columns(self) -> int:
        """Number of columns J."""
        return len(self.modular_J)

    def problem(self) -> Problem:
        """Return the function by column.

        Memory: 8 bytes an entry (4 in a dense matrix), of a pairwise one twice that. Streamed
        scores are read twice, a batch at a time.
        """
        scores = self.scores
        if self.kind == MODULAR:
            return self._modular(self.modular_J)
        if isinstance(scores, DenseScores):
            return self._dense(scores.data_IJ, self.modular_J)
        return self._sparse(lambda: _numbered(scores), self.modular_J)

    def restricted(self, columns_S: I64) -> Problem:
        """Return the function of some columns alone, numbered in the order given; one pass.

        Every row stays, so gains are those of the whole problem to the last bit; of a pairwise
        one, the pairs inside stay.

        Memory: the entries of these columns twice, 12 bytes a row, 4 a column, and a batch.
        """
        scores, modular_S = self.scores, self.modular_J[columns_S]
        if self.kind == MODULAR:
            return self._modular(modular_S)
        if isinstance(scores, DenseScores):
            rows = columns_S if self.kind == PAIRWISE else np.arange(scores.num_rows)
            return self._dense(scores.data_IJ[np.ix_(rows, columns_S)], modular_S)
        number_J = np.full(self.num_columns, -1, np.int32)
        number_J[columns_S] = np.arange(len(columns_S), dtype=np.int32)
        pairs = self.kind == PAIRWISE
        kept = [_kept(batch, number_J, pairs=pairs) for batch in _numbered(scores)]
        return self._sparse(lambda: kept, modular_S)

    def _modular(self, modular_J: F64) -> Problem:
        indptr, none = np.zeros(len(modular_J) + 1, np.int64), np.zeros(0, np.float32)
        return Problem(MODULAR, False, indptr, NO_ROWS, none, modular_J, 0, np.zeros(0))

    def _dense(self, score_IJ: F32, modular_J: F64) -> Problem:
        if self.kind == PAIRWISE:
            value_JI = score_IJ + score_IJ.T
            value_JI *= np.float32(self.pair_weight)
            np.fill_diagonal(value_JI, 0)
        else:
            value_JI = np.ascontiguousarray(score_IJ.T)
            if self.cap_I is not None:
                value_JI = np.minimum(value_JI, self.cap_I)
            if self.floor_I is not None:
                value_JI = np.maximum(value_JI - self.floor_I, np.float32(0))
        num_rows = len(score_IJ)
        indptr = np.arange(len(modular_J) + 1, dtype=np.int64) * num_rows
        flat = value_JI.reshape(-1)
        return Problem(self.kind, True, indptr, NO_ROWS, flat, modular_J, num_rows, self._caps)

    def _sparse(self, batches: Callable[[], Iterable[RowBatch]], modular_J: F64) -> Problem:
        pairs, weight = self.kind == PAIRWISE, np.float32(self.pair_weight)
        num_rows = len(modular_J) if pairs else self.scores.num_rows
        next_J = np.zeros(len(modular_J) + 1, np.int64)
        for batch in batches():
            _count(batch, pairs, next_J[1:])
        np.cumsum(next_J, out=next_J)
        indptr = next_J.copy()
        rows, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        cap_I = np.ones(num_rows, np.float32) if self.cap_I is None else self.cap_I
        floor_I = np.zeros(num_rows, np.float32) if self.floor_I is None else self.floor_I
        for batch in batches():
            if pairs:
                _scatter_pairs(batch, weight, next_J, rows, values)
            else:
                _scatter(batch, cap_I, floor_I, next_J, rows, values)
        twice = -1 if pairs else _find_repeated(indptr, rows)
        if twice >= 0:
            raise ValueError(f"the list of row {twice} names a column twice")
        return Problem(self.kind, False, indptr, rows, values, modular_J, num_rows, self._caps)

    @property
    def _caps(self) -> F64:
        return np.zeros(0) if self.level_I is None else self.level_I


class RowBatch(NamedTuple):
    """Lists of some rows; `row_I` is the number of each row."""

    row_I: I32
    indptr: I64
    indices: I32
    data: F32


def _numbered(scores: SparseScores | StreamedScores) -> Iterator[RowBatch]:
    first = 0
    for batch in scores.batches():
        row_I = np.arange(first, first + batch.num_rows, dtype=np.int32)
        yield RowBatch(row_I, batch.indptr, batch.indices, batch.data)
        first += batch.num_rows


def _kept(batch: RowBatch, number_J: I32, *, pairs: bool) -> RowBatch:
    """Return the entries of numbered columns; of pairs those in numbered rows, renamed too."""
    number_E, row_I = number_J[batch.indices], batch.row_I
    keep_E = number_E >= 0
    if pairs:
        row_I = number_J[row_I]
        keep_E &= np.repeat(row_I >= 0, np.diff(batch.indptr))
    before_E = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep_E, dtype=np.int64)])
    return RowBatch(row_I, before_E[batch.indptr], number_E[keep_E], batch.data[keep_E])


@compiled
def _count(batch: RowBatch, pairs: bool, count_J: I64) -> None:
    """Count the entries of each column; the two of a pair, the diagonal left out."""
    for place in range(len(batch.row_I)):
        i = batch.row_I[place]
        for entry in range(batch.indptr[place], batch.indptr[place + 1]):
            j = batch.indices[entry]
            if not pairs:
                count_J[j] += 1
            elif i != j:
                count_J[i] += 1
                count_J[j] += 1


@compiled
def _scatter(
    batch: RowBatch, cap_I: F32, floor_I: F32, next_J: I64, rows: I32, values: F32
) -> None:
    """Write v_ij = max(min(s_ij, cap_i) - floor_i, 0) by column."""
    for place in range(len(batch.row_I)):
        i = batch.row_I[place]
        for entry in range(batch.indptr[place], batch.indptr[place + 1]):
            at = next_J[batch.indices[entry]]
            next_J[batch.indices[entry]] = at + 1
            rows[at] = i
            values[at] = max(min(batch.data[entry], cap_I[i]) - floor_I[i], np.float32(0))


@compiled
def _scatter_pairs(
    batch: RowBatch, weight: np.float32, next_J: I64, others: I32, values: F32
) -> None:
    """Write for each column those it helps and those that help it, itself left out."""
    for place in range(len(batch.row_I)):
        i = batch.row_I[place]
        for entry in range(batch.indptr[place], batch.indptr[place + 1]):
            j, value = batch.indices[entry], batch.data[entry] * weight
            if i == j:
                continue
            others[next_J[j]], values[next_J[j]] = i, value
            next_J[j] += 1
            others[next_J[i]], values[next_J[i]] = j, value
            next_J[i] += 1


@compiled
def _find_repeated(indptr: I64, rows: I32) -> int:
    """Return a row that lists a column twice, or -1."""
    for j in range(len(indptr) - 1):
        for entry in range(indptr[j] + 1, indptr[j + 1]):
            if rows[entry] == rows[entry - 1]:
                return rows[entry]
    return -1


@compiled
def gain_of(problem: Problem, state: State, j: int) -> float:
    """Return f(A + j) - f(A)."""
    gain, first = problem.modular_J[j], problem.indptr[j]
    if problem.kind == PAIRWISE:
        return gain - state.level[j]
    if problem.dense:
        return gain + _dense_gain(problem, state, first)
    for entry in range(first, problem.indptr[j + 1]):
        gain += _row_gain(problem, state, entry, int(problem.rows[entry]))
    return gain


@compiled
def _row_gain(problem: Problem, state: State, entry: int, i: int) -> float:
    """Return what an entry adds to its row: what exceeds its cover, or fits into what it lacks."""
    value = np.float64(problem.values[entry])
    if problem.kind == COVERAGE:
        return max(value - np.float64(state.cover_I[i]), 0.0)
    return min(value, state.level[i])


@compiled
def _dense_gain(problem: Problem, state: State, first: int) -> float:
    """Return what a column of every row adds, in `LANES` sums that a core adds side by side."""
    sums, total = np.zeros(LANES), 0.0
    whole = problem.num_rows // LANES * LANES
    for start in range(0, whole, LANES):
        value = problem.values[first + start : first + start + LANES]
        if problem.kind == COVERAGE:
            cover = state.cover_I[start : start + LANES]
            for lane in range(LANES):
                sums[lane] += max(np.float64(value[lane]) - np.float64(cover[lane]), 0.0)
        else:
            level = state.level[start : start + LANES]
            for lane in range(LANES):
                sums[lane] += min(np.float64(value[lane]), level[lane])
    for i in range(whole, problem.num_rows):
        sums[i - whole] += _row_gain(problem, state, first + i, i)
    for lane in range(LANES):
        total += sums[lane]
    return total


@compiled
def add(problem: Problem, state: State, j: int) -> None:
    """Add column j to the selection."""
    first, last = problem.indptr[j], problem.indptr[j + 1]
    for entry in range(first, last):
        i = entry - first if problem.dense else np.int64(problem.rows[entry])
        value = problem.values[entry]
        if problem.kind == COVERAGE:
            if value > state.cover_I[i]:
                state.cover_I[i] = value
        elif problem.kind == SATURATION:
            left = state.level[i] - np.float64(value)
            state.level[i] = left if left > 0.0 else 0.0
        else:
            state.level[i] += np.float64(value)


@compiled
def add_each(problem: Problem, state: State, columns_S: I64) -> None:
    """Add columns to the selection."""
    for j in columns_S:
        add(problem, state, j)


@compiled
def all_gains(problem: Problem, state: State, gain_J: F64) -> None:
    """Write the gain of every column, picked ones included."""
    for j in range(len(gain_J)):
        gain_J[j] = gain_of(problem, state, j)


@compiled
def _last_gains(problem: Problem, gain_J: F64) -> None:
    """Write each column's gain on top of all the others, of a pairwise problem."""
    for j in range(len(gain_J)):
        gain_J[j] = problem.modular_J[j]
        first = problem.indptr[j]
        for entry in range(first, problem.indptr[j + 1]):
            other = entry - first if problem.dense else np.int64(problem.rows[entry])
            if other != j:
                gain_J[j] -= np.float64(problem.values[entry])
