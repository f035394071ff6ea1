"""Set functions over sparse influence: what a good subset is, apart from how it is searched.

All work on scaled influence in [0, 1]. Raw influence is signed, so `InfluenceScale` maps it with
ONE minimum and maximum for every list an objective reads (`within` and `cross` alike): scales of
their own would make the two incomparable. An entry absent from a row's list counts as 0, the
global minimum, so the value on lists is a lower bound of the value on all pairs.

Every objective here is a coverage plus a modular term,

    f(A) = sum_i max_{j in A} v_ij + sum_{j in A} m_j        (max over nothing = 0),

submodular because v >= 0, and monotone where m >= 0; `CoverageProblem` holds v by column and m, and
the optimisers of `greedy` read nothing else. Suffixes: I rows (to be covered), J columns (may be
selected), K list places, E entries, S selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.sparse_scores import SparseScores
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CoverageProblem:
    """f(A) = sum_i max_{j in A} v_ij + sum_{j in A} m_j, by column: all an optimiser needs.

    Column j covers rows `rows[indptr[j]:indptr[j+1]]` (ascending) with `values[...]`.
    """

    indptr: I64
    rows: I32
    values: F32
    modular_J: F64
    num_rows: int

    @property
    def num_columns(self) -> int:
        """Number of columns J that may be selected."""
        return len(self.modular_J)


class Objective(Protocol):
    """A set function over columns: its lists, and the problem that the optimisers read."""

    @property
    def scores(self) -> SparseScores:
        """The scaled influence the objective covers rows with."""
        ...

    def problem(self) -> CoverageProblem:
        """Return the function by column."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocation:
    """f(A) = sum_i max_{j in A} s_ij: every row wants one selected example that helps it.

    Source: FacilityLocation of submodlib; DELIFT, arXiv 2411.04425 (general tuning).
    """

    scores: SparseScores

    def problem(self) -> CoverageProblem:
        """Return the function by column."""
        return _by_column(self.scores, None, np.zeros(self.scores.num_columns))


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocationMutualInformation:
    """f(A) = sum_i min(max_{j in A} s_ij, eta * max_q s_qi): cover what helps the targets.

    i, j are candidates and q targets: candidate i is worth covering only as far as it helps some
    target. Equals a coverage by min(s_ij, eta * max_q s_qi).

    Attributes:
        scores: `within`, candidates x candidates.
        column_max_J: max_q s_qi of each candidate i over the targets (from `cross`), in the same
            scale as `scores`.
        eta: Weight of the targets, >= 0; 1 in the paper.

    Source: FacilityLocationMutualInformation (FL1MI) of submodlib; DELIFT, arXiv 2411.04425.
    """

    scores: SparseScores
    column_max_J: F32
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on maxima of another table or another scale."""
        if self.scores.num_rows != self.scores.num_columns:
            msg = (
                "within is candidates x candidates; got"
                f" {self.scores.num_rows} x {self.scores.num_columns}"
            )
            raise ShapeError(msg)
        _check_column_max(self.column_max_J, self.scores.num_columns, self.eta)

    def problem(self) -> CoverageProblem:
        """Return the function by column."""
        cap_I = (self.eta * self.column_max_J.astype(np.float64)).astype(np.float32)
        return _by_column(self.scores, cap_I, np.zeros(self.scores.num_columns))


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocationQueryMutualInformation:
    """f(A) = sum_q max_{j in A} s_qj + eta * sum_{j in A} max_q s_qj: the variant form.

    Each target q wants one selected example that helps it, and each selected example should help
    some target. Needs only `cross`.

    Attributes:
        scores: `cross`, targets x candidates.
        column_max_J: max_q s_qj of each candidate j over the targets, in the scale of `scores`.
        eta: Weight of the second term, >= 0.

    Source: FacilityLocationVariantMutualInformation (FL2MI, FLQMI) of submodlib; DELIFT,
    arXiv 2411.04425.
    """

    scores: SparseScores
    column_max_J: F32
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on maxima of another table or another scale."""
        _check_column_max(self.column_max_J, self.scores.num_columns, self.eta)

    def problem(self) -> CoverageProblem:
        """Return the function by column."""
        return _by_column(self.scores, None, self.eta * self.column_max_J.astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class TopScores:
    """f(A) = sum_{j in A} m_j: the best scores, whatever the other picks are.

    Greedy on it is a sort, best first. A score may have any sign, larger is better: the budget is
    filled, so negative scores come last and are never skipped.

    Attributes:
        score_J: Score m_j of each candidate, finite: of a pointwise teacher, or its mean influence
            on the rows of the subtask where that is highest (`column_sums.best_group_mean`).

    Source: LESS, arXiv 2402.04333, section 4; SelectIT, arXiv 2402.16705 (the top share by score).
    """

    score_J: F64

    def __post_init__(self) -> None:
        """Raise ValueError when a score is not finite."""
        bad = np.flatnonzero(~np.isfinite(self.score_J))
        if len(bad):
            msg = f"score of candidate {bad[0]} is not finite ({len(bad)} of {len(self.score_J)})"
            raise ValueError(msg)

    @property
    def scores(self) -> SparseScores:
        """No rows: nothing is covered."""
        return SparseScores(
            np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), len(self.score_J)
        )

    def problem(self) -> CoverageProblem:
        """Return the function by column."""
        return _by_column(self.scores, None, self.score_J)


def coverage(objective: Objective, order_S: I64) -> tuple[I64, F32]:
    """Say which pick covers each row best.

    Args:
        objective: What was optimised; its scaled influence is read uncapped.
        order_S: Selected columns, best first.

    Returns:
        (best pick of each row [I], a column, -1 when no pick is in its list; its scaled influence
        [I], 0 then). Equal influence goes to the earlier pick.
    """
    scores = objective.scores
    rank_J = np.full(scores.num_columns, np.iinfo(np.int64).max, np.int64)
    rank_J[order_S] = np.arange(len(order_S))
    best_I = np.full(scores.num_rows, -1, np.int64)
    value_I = np.zeros(scores.num_rows, np.float32)
    _best_picks(scores.indptr, scores.indices, scores.data, rank_J, len(order_S), best_I, value_I)
    return best_I, value_I


@compiled
def _best_picks(
    indptr: I64, indices: I32, data: F32, rank_J: I64, num_picks: int, best_I: I64, value_I: F32
) -> None:
    for i in range(len(best_I)):
        best, best_rank, best_value = -1, num_picks, np.float32(-1.0)
        for entry in range(indptr[i], indptr[i + 1]):
            j, value = indices[entry], data[entry]
            rank = rank_J[j]
            if rank >= num_picks:
                continue
            if value > best_value or (value == best_value and rank < best_rank):
                best, best_rank, best_value = j, rank, value
        if best >= 0:
            best_I[i], value_I[i] = best, best_value


def _by_column(scores: SparseScores, cap_I: F32 | None, modular_J: F64) -> CoverageProblem:
    """Turn lists of rows into lists of columns, values capped by row, rows ascending."""
    num_entries_J = np.bincount(scores.indices, minlength=scores.num_columns)
    indptr = np.zeros(scores.num_columns + 1, np.int64)
    np.cumsum(num_entries_J, out=indptr[1:])
    rows = np.empty(len(scores.indices), np.int32)
    values = np.empty(len(scores.indices), np.float32)
    cap = np.ones(scores.num_rows, np.float32) if cap_I is None else cap_I
    _scatter(scores.indptr, scores.indices, scores.data, cap, indptr[:-1].copy(), rows, values)
    return CoverageProblem(indptr, rows, values, modular_J, scores.num_rows)


@compiled
def _scatter(
    indptr: I64, indices: I32, data: F32, cap_I: F32, next_J: I64, rows: I32, values: F32
) -> None:
    for i in range(len(cap_I)):
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            rows[next_J[j]] = i
            values[next_J[j]] = min(data[entry], cap_I[i])
            next_J[j] += 1


def _check_column_max(column_max_J: F32, num_columns: int, eta: float) -> None:
    if column_max_J.shape != (num_columns,):
        msg = f"column_max_J is {column_max_J.shape}, expected [{num_columns}] (one a candidate)"
        raise ShapeError(msg)
    if not (np.isfinite(column_max_J) & (column_max_J >= 0) & (column_max_J <= 1)).all():
        msg = "column_max_J must be scaled to [0, 1] with the scale of the lists"
        raise ValueError(msg)
    if not (math.isfinite(eta) and eta >= 0):
        msg = f"eta must be a finite number >= 0, got {eta}"
        raise ValueError(msg)
