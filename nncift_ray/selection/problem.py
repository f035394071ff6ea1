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

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nncift_ray import jit as code
from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


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

    @classmethod
    def covering(cls, *scales: InfluenceScale) -> InfluenceScale:
        """Return the scale from the least minimum to the greatest maximum of those given."""
        return cls(min(s.min for s in scales), max(s.max for s in scales))

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
        # In place: on a million lists a second float64 copy would be half a gigabyte.
        scaled = raw.astype(np.float64)
        scaled -= self.min
        scaled /= width
        return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32)

    def apply_to_means(self, mean: F64) -> F64:
        """Return means of raw influence on the scale: what the mean of the scaled would be.

        In float64, since means differ by less than the influences they are made of; and not
        clipped, since a mean of rounded influences may pass a bound by that rounding. All 0 when
        the scale has no width.
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
            msg = "indptr must be [I + 1] and begin with 0"
            raise ShapeError(msg)
        if not self.indptr[-1] == len(self.indices) == len(self.data):
            msg = f"{self.indptr[-1]} entries, {len(self.indices)} indices, {len(self.data)} values"
            raise ShapeError(msg)
        if (np.diff(self.indptr) < 0).any():
            msg = "indptr must not decrease"
            raise ShapeError(msg)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < (
            self.num_columns
        ):
            msg = (
                f"columns {self.indices.min()}..{self.indices.max()} listed,"
                f" there are {self.num_columns}: are these lists of another table?"
            )
            raise ValueError(msg)
        if len(self.data) and not (self.data.min() >= 0 and self.data.max() <= 1):
            msg = "influence must be scaled to [0, 1] first (InfluenceScale.apply)"
            raise ValueError(msg)

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return len(self.indptr) - 1

    @classmethod
    def from_top_k(
        cls, index_IK: I32, raw_IK: F32, num_columns: int, scale: InfluenceScale
    ) -> SparseScores:
        """Compress the lists of `top_k_rows` (raw influence, index -1 where padded).

        Raises:
            ShapeError: If the two arrays differ in shape.
            ValueError: If an entry lies outside the scale or the columns.
        """
        if index_IK.shape != raw_IK.shape or index_IK.ndim != 2:
            msg = f"lists are [I, K] twice; got {index_IK.shape} and {raw_IK.shape}"
            raise ShapeError(msg)
        listed_IK = index_IK >= 0
        indptr = np.zeros(len(index_IK) + 1, np.int64)
        np.cumsum(listed_IK.sum(axis=1), out=indptr[1:])
        indices = index_IK[listed_IK].astype(np.int32)
        return cls(indptr, indices, scale.apply(raw_IK[listed_IK]), num_columns)


# Influence of every pair as a matrix, where it fits in memory.


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
        if self.data_IJ.size and not (self.data_IJ.min() >= 0 and self.data_IJ.max() <= 1):
            msg = "influence must be scaled to [0, 1] first (InfluenceScale.apply), without NaN"
            raise ValueError(msg)

    @classmethod
    def from_raw(cls, raw_IJ: F32, scale: InfluenceScale) -> DenseScores:
        """Scale a matrix of raw influence.

        Raises:
            ValueError: If an entry lies outside the scale (NaN too).
        """
        return cls(np.asfortranarray(scale.apply(raw_IJ)))

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return self.data_IJ.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns J."""
        return self.data_IJ.shape[1]


# Influence whose lists are read anew, some rows at a time, for what no memory holds in one piece.


@dataclass(frozen=True, slots=True, eq=False)
class StreamedScores:
    """Scaled influence in batches of rows.

    Attributes:
        num_rows: Rows I of all batches.
        num_columns: Columns J.
        batches: Reads the lists from the first row to the last; every batch names all columns.
            Called once for each pass over the lists.
    """

    num_rows: int
    num_columns: int
    batches: Callable[[], Iterator[SparseScores]]

    def whole(self) -> SparseScores:
        """Read all lists into memory."""
        return _joined(list(self.batches()), self.num_columns)

    def restricted(self, columns_S: I64, rows_R: I64 | None = None) -> SparseScores:
        """Read the entries of some columns, numbered in the order given; one pass.

        Args:
            columns_S: The columns wanted.
            rows_R: The rows wanted, ascending; None keeps every row, with what is left of its list.

        Returns:
            The entries in the order they have in their lists.

        Memory: the entries kept (twice for a moment), 4 bytes a column, 8 a row, and a batch.
        """
        number_J = np.full(self.num_columns, -1, np.int32)
        number_J[columns_S] = np.arange(len(columns_S), dtype=np.int32)
        kept: list[SparseScores] = []
        start = 0
        for batch in self.batches():
            stop = start + batch.num_rows
            if rows_R is not None:
                first, last = np.searchsorted(rows_R, [start, stop])
                batch_rows = rows_R[first:last] - start
            else:
                batch_rows = None
            kept.append(_kept(batch, number_J, len(columns_S), batch_rows))
            start = stop
        return _joined(kept, len(columns_S))


def _kept(batch: SparseScores, number_J: I32, num_columns: int, rows_R: I64 | None) -> SparseScores:
    """Return the entries of numbered columns, in some rows of a batch (None: all)."""
    number_E = number_J[batch.indices]
    keep_E = number_E >= 0
    if rows_R is not None:
        wanted_I = np.zeros(batch.num_rows, np.bool_)
        wanted_I[rows_R] = True
        keep_E &= np.repeat(wanted_I, np.diff(batch.indptr))
    before_E = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep_E)])
    length_I = np.diff(before_E[batch.indptr])
    length_R = length_I if rows_R is None else length_I[rows_R]
    indptr = np.zeros(len(length_R) + 1, np.int64)
    np.cumsum(length_R, out=indptr[1:])
    return SparseScores(indptr, number_E[keep_E], batch.data[keep_E], num_columns)


def _joined(batches: list[SparseScores], num_columns: int) -> SparseScores:
    length_I = np.concatenate([np.zeros(1, np.int64), *[np.diff(b.indptr) for b in batches]])
    return SparseScores(
        np.cumsum(length_I),
        np.concatenate([np.zeros(0, np.int32), *[batch.indices for batch in batches]]),
        np.concatenate([np.zeros(0, np.float32), *[batch.data for batch in batches]]),
        num_columns,
    )


# The gain of a column that holds every row, in vectors.


WIDTH = 8  # doubles side by side
NUM_SUMS = 4  # vectors under way: as many as an addition takes cycles
LANES = WIDTH * NUM_SUMS


def _above_dense_gain(builder: Any, value: Any, cover: Any) -> Any:
    """Return max(value - cover, 0)."""
    zero = code.ir.Constant(value.type, [0.0] * WIDTH)
    return code.select(builder, ">", builder.fsub(value, cover), zero)


def _within_dense_gain(builder: Any, value: Any, left: Any) -> Any:
    """Return min(value, left)."""
    return code.select(builder, "<", value, left)


def _lane_sums(term: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a function that writes the lanes of sum_i term(value_i, held_i) over whole steps."""

    @code.intrinsic
    def run(context: Any, values: Any, start: Any, held: Any, num_steps: Any, lane: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value, other, target = (
                code.array(context, builder, signature, arguments, n).data for n in (0, 2, 4)
            )
            wide = code.vector_of(code.DOUBLE, WIDTH)
            zero = code.ir.Constant(wide, [0.0] * WIDTH)
            sums = [code.register(builder, zero) for _ in range(NUM_SUMS)]
            with code.cgutils.for_range(builder, arguments[3]) as loop:
                first = builder.mul(loop.index, code.const(LANES))
                for n, held_sum in enumerate(sums):
                    place = builder.add(first, code.const(n * WIDTH))
                    x = _doubles(builder, value, builder.add(arguments[1], place), wide)
                    y = _doubles(builder, other, place, wide)
                    added = builder.fadd(builder.load(held_sum), term(builder, x, y))
                    builder.store(added, held_sum)
            for n, held_sum in enumerate(sums):
                code.store(builder, builder.load(held_sum), target, code.const(n * WIDTH))
            return context.get_dummy_value()

        return code.types.void(values, start, held, num_steps, lane), generate

    return run


def _doubles(builder: Any, data: Any, place: Any, wide: Any) -> Any:
    """Load floats or doubles as doubles."""
    if data.type.pointee == code.DOUBLE:
        return code.load(builder, data, place, wide)
    narrow = code.vector_of(code.FLOAT, WIDTH)
    return builder.fpext(code.load(builder, data, place, narrow), wide)


_sums_above, _sums_within = _lane_sums(_above_dense_gain), _lane_sums(_within_dense_gain)


@compiled
def covered_gain(values: F32, first: int, cover_I: F32) -> float:
    """Return sum_i max(v_i - cover_i, 0) of the column that begins at entry `first`."""
    lanes = np.empty(LANES)
    steps = len(cover_I) // LANES
    _sums_above(values, first, cover_I, steps, lanes)
    for i in range(steps * LANES, len(cover_I)):
        lanes[i % LANES] += max(np.float64(values[first + i]) - np.float64(cover_I[i]), 0.0)
    return _total(lanes)


@compiled
def saturated_gain(values: F32, first: int, left_I: F64) -> float:
    """Return sum_i min(v_i, left_i) of the column that begins at entry `first`."""
    lanes = np.empty(LANES)
    steps = len(left_I) // LANES
    _sums_within(values, first, left_I, steps, lanes)
    for i in range(steps * LANES, len(left_I)):
        lanes[i % LANES] += min(np.float64(values[first + i]), left_I[i])
    return _total(lanes)


@compiled
def _total(lanes: F64) -> float:
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    return total


# What an optimiser reads of a set function: its columns, and what is covered so far.

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


# Where the columns of a search in parts come from, and how its parts are run.

#: `run(function, tasks)` calls the function on each task and returns the results in order.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class ColumnSource(Protocol):
    """Where a part's columns come from; a `Problem` is one."""

    @property
    def num_columns(self) -> int:
        """Number of columns J of the whole ground set."""
        ...

    def restricted(self, columns_S: I64) -> Problem:
        """Return the problem of some columns, in the order given, over all rows."""
        ...


# Sums over all scores by row and by column, and the diagonal; streamed ones take one pass each.


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
