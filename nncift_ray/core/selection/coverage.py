"""Objectives that want every row covered by one good pick: facility location and its relatives.

Raw influence is signed. `InfluenceScale` maps it to [0, 1] with ONE minimum and maximum for all
that an objective reads (`within` and `cross` alike: scales of their own would make the two
incomparable), so the most harmful score is 0, a negative one is a small value, and none is a
penalty. An entry absent from a row's list counts as 0 too: the value on lists is a lower bound of
the value on all pairs. Row = helped, column = helper. Each function here is submodular and, having
no negative term, monotone.

Suffixes: I rows (to be covered), J columns (may be selected), S selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.assembling import problem_of
from nncift_ray.core.selection.dense_scores import DenseScores
from nncift_ray.core.selection.problem import Objective, Problem, Scores, Terms
from nncift_ray.core.selection.sparse_scores import SparseScores
from nncift_ray.core.selection.streamed_scores import StreamedScores
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocation:
    """f(A) = sum_i max_{j in A} s_ij: every row wants one selected example that helps it.

    Reads `within` (candidates x candidates), or `cross` to cover targets. A negative raw score
    covers little: a pick that harms a row leaves the row as it was, since the row takes its best
    pick. Monotone submodular.

    Source: FacilityLocation of submodlib; DELIFT, arXiv 2411.04425 (general tuning).
    """

    scores: Scores

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        return Terms(np.zeros(self.scores.num_columns))

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocationMutualInformation:
    """f(A) = sum_i min(max_{j in A} s_ij, eta * max_q s_qi): cover what helps the targets.

    i, j are candidates and q targets: candidate i is worth covering only as far as it helps some
    target. Equals a coverage by min(s_ij, eta * max_q s_qi). Reads `within` and, as the maxima,
    `cross`. A candidate whose raw influence on every target is the global minimum is worth
    nothing; one that is merely negative is worth little. Monotone submodular.

    Attributes:
        scores: `within`, candidates x candidates.
        column_max_J: max_q s_qi of each candidate i over the targets (from `cross`), in the same
            scale as `scores`.
        eta: Weight of the targets, >= 0; 1 in the paper.

    Source: FacilityLocationMutualInformation (FL1MI) of submodlib; DELIFT, arXiv 2411.04425.
    """

    scores: Scores
    column_max_J: F32
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on maxima of another table or another scale."""
        check_square(self.scores)
        check_scaled("column_max_J", self.column_max_J, self.scores.num_columns)
        check_weight("eta", self.eta)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        cap_I = (self.eta * self.column_max_J.astype(np.float64)).astype(np.float32)
        return Terms(np.zeros(self.scores.num_columns), cap_I=cap_I)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocationQueryMutualInformation:
    """f(A) = sum_q max_{j in A} s_qj + eta * sum_{j in A} max_q s_qj: the variant form.

    Each target q wants one selected example that helps it, and each selected example should help
    some target. Reads `cross` alone. A negative raw score neither covers its target nor lowers the
    pick's best, both being maxima. Monotone submodular.

    Attributes:
        scores: `cross`, targets x candidates.
        column_max_J: max_q s_qj of each candidate j over the targets, in the scale of `scores`.
        eta: Weight of the second term, >= 0.

    Source: FacilityLocationVariantMutualInformation (FL2MI, FLQMI) of submodlib; DELIFT,
    arXiv 2411.04425.
    """

    scores: Scores
    column_max_J: F32
    eta: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on maxima of another table or another scale."""
        check_scaled("column_max_J", self.column_max_J, self.scores.num_columns)
        check_weight("eta", self.eta)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        return Terms(self.eta * self.column_max_J.astype(np.float64))

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


@dataclass(frozen=True, slots=True, eq=False)
class FacilityLocationConditionalGain:
    """f(A) = sum_i max(max_{j in A} s_ij - nu * max_{p in P} s_ip, 0): what the data at hand lack.

    i, j are candidates and p the examples trained on already: a row counts only as far as a pick
    helps it more than the existing data do. Equals a coverage by max(s_ij - nu * P_i, 0). Reads
    `within` and the best existing helper of each row (existing p helps row i: the same
    orientation as `within`, candidates x existing). A row whose raw scores for the existing data
    are all the global minimum has P_i = 0 and counts in full. Monotone submodular.

    Attributes:
        scores: `within`, candidates x candidates (any rows will do).
        existing_max_I: P_i = max_p s_ip of each row, in the scale of `scores`.
        nu: Weight of the existing data, >= 0; 1 in the paper, 0 forgets them.

    Source: FacilityLocationConditionalGain of submodlib; DELIFT, arXiv 2411.04425 (continual).
    """

    scores: Scores
    existing_max_I: F32
    nu: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on maxima of another table or another scale."""
        check_scaled("existing_max_I", self.existing_max_I, self.scores.num_rows)
        check_weight("nu", self.nu)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        floor_I = (self.nu * self.existing_max_I.astype(np.float64)).astype(np.float32)
        return Terms(np.zeros(self.scores.num_columns), floor_I=floor_I)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


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
    if isinstance(scores, DenseScores):
        return _dense_coverage(scores, order_S)
    rank_J = np.full(scores.num_columns, np.iinfo(np.int64).max, np.int64)
    rank_J[order_S] = np.arange(len(order_S))
    if not isinstance(scores, StreamedScores):
        return _listed_coverage(scores, rank_J, len(order_S))
    covered = [_listed_coverage(batch, rank_J, len(order_S)) for batch in scores.batches()]
    best_I = np.concatenate([np.zeros(0, np.int64), *[best for best, _ in covered]])
    return best_I, np.concatenate([np.zeros(0, np.float32), *[value for _, value in covered]])


def _listed_coverage(scores: SparseScores, rank_J: I64, num_picks: int) -> tuple[I64, F32]:
    best_I = np.full(scores.num_rows, -1, np.int64)
    value_I = np.zeros(scores.num_rows, np.float32)
    _best_picks(scores.indptr, scores.indices, scores.data, rank_J, num_picks, best_I, value_I)
    return best_I, value_I


def _dense_coverage(scores: DenseScores, order_S: I64) -> tuple[I64, F32]:
    best_I = np.full(scores.num_rows, -1, np.int64)
    value_I = np.zeros(scores.num_rows, np.float32)
    for j in order_S:
        better_I = (scores.data_IJ[:, j] > value_I) | (best_I < 0)
        best_I[better_I] = j
        value_I[better_I] = scores.data_IJ[better_I, j]
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


def check_square(scores: Scores) -> None:
    """Raise ShapeError unless rows and columns are the same candidates."""
    if scores.num_rows != scores.num_columns:
        msg = f"within is candidates x candidates; got {scores.num_rows} x {scores.num_columns}"
        raise ShapeError(msg)


def check_scaled(name: str, values: F32, length: int) -> None:
    """Raise unless there is one value in [0, 1] for each candidate or row."""
    if values.shape != (length,):
        msg = f"{name} is {values.shape}, expected [{length}] (one a candidate)"
        raise ShapeError(msg)
    if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        msg = f"{name} must be scaled to [0, 1] with the scale of the lists"
        raise ValueError(msg)


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError unless a weight is a finite number >= 0."""
    if not (math.isfinite(weight) and weight >= 0):
        msg = f"{name} must be a finite number >= 0, got {weight}"
        raise ValueError(msg)
