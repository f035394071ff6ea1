"""The set functions: what a good subset is, apart from how it is searched (`greedy`).

| function | kind | reads | monotone |
|---|---|---|---|
| facility_location | coverage | within (or cross) | yes |
| facility_location_mutual_information | coverage | within, cross | yes |
| facility_location_query_mutual_information | coverage | cross | yes |
| facility_location_conditional_gain | coverage | within (or cross), existing | yes |
| saturated_coverage | saturation | within (or cross) | yes |
| graph_cut | pairwise | within | for symmetric s and lambda <= 1/2 |
| graph_cut_conditional_gain | pairwise | within, existing | no |
| graph_cut_mutual_information | modular | cross | yes |
| top_scores | modular | points, or sums | where no score is negative |

`within` is candidates x candidates, `cross` targets x candidates; s_ij says how much column j helps
row i, scaled to [0, 1]. Each raises ShapeError where numbers are of another table, and ValueError
where they are not on the scale or a weight is no weight. Then: what a finished selection covers,
what other columns would add to it, and which picks they are redundant with.
Suffixes: I rows (covered), J columns, S selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.selection.problem import (
    MODULAR,
    PAIRWISE,
    SATURATION,
    DenseScores,
    Objective,
    Problem,
    Scores,
    SparseScores,
    add_each,
    all_gains,
    column_sums,
    diagonal,
    row_sums,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def facility_location(scores: Scores) -> Objective:
    """Return f(A) = sum_i max_{j in A} s_ij: every row wants one selected example that helps it.

    A negative raw score covers little: a pick that harms a row leaves the row as it was, since the
    row takes its best pick.

    Source: FacilityLocation of submodlib; DELIFT, arXiv 2411.04425 (general tuning).
    """
    return Objective(scores, np.zeros(scores.num_columns))


def facility_location_mutual_information(
    scores: Scores, column_max_J: F32, eta: float = 1.0
) -> Objective:
    """Return f(A) = sum_i min(max_{j in A} s_ij, eta * max_q s_qi): cover what helps the targets.

    Candidate i is worth covering only as far as it helps some target q.

    Args:
        scores: `within`.
        column_max_J: max_q s_qi of each candidate i over the targets, in the scale of `scores`.
        eta: Weight of the targets, >= 0; 1 in the paper.

    Source: FacilityLocationMutualInformation (FL1MI) of submodlib; DELIFT, arXiv 2411.04425.
    """
    _check_square(scores)
    _check_scaled("column_max_J", column_max_J, scores.num_columns)
    cap_I = (_weight("eta", eta) * column_max_J.astype(np.float64)).astype(np.float32)
    return Objective(scores, np.zeros(scores.num_columns), cap_I=cap_I)


def facility_location_query_mutual_information(
    scores: Scores, column_max_J: F32, eta: float = 1.0
) -> Objective:
    """Return f(A) = sum_q max_{j in A} s_qj + eta * sum_{j in A} max_q s_qj: the variant form.

    Each target q wants one selected example that helps it, and each selected example should help
    some target. Over the pool in place of the targets (`within`) the first sum is the form of
    DELIFT's text.

    Args:
        scores: `cross`, or `within`.
        column_max_J: max_q s_qj of each candidate j over the targets, in the scale of `scores`.
        eta: Weight of the second term, >= 0.

    Source: FacilityLocationVariantMutualInformation (FL2MI, FLQMI) of submodlib; DELIFT,
    arXiv 2411.04425.
    """
    _check_scaled("column_max_J", column_max_J, scores.num_columns)
    return Objective(scores, _weight("eta", eta) * column_max_J.astype(np.float64))


def facility_location_conditional_gain(
    scores: Scores, existing_max_I: F32, nu: float = 1.0
) -> Objective:
    """Return f(A) = sum_i max(max_{j in A} s_ij - nu * max_p s_ip, 0): what the data at hand lack.

    A row counts only as far as a pick helps it more than the existing examples p do.

    Args:
        scores: `within`, or `cross`.
        existing_max_I: max_p s_ip of each row, in the scale of `scores`; 0 where all of them are
            the global minimum, and the row counts in full.
        nu: Weight of the existing data, >= 0; 1 in the paper, 0 forgets them.

    Source: FacilityLocationConditionalGain of submodlib; DELIFT, arXiv 2411.04425 (continual).
    """
    _check_scaled("existing_max_I", existing_max_I, scores.num_rows)
    floor_I = (_weight("nu", nu) * existing_max_I.astype(np.float64)).astype(np.float32)
    return Objective(scores, np.zeros(scores.num_columns), floor_I=floor_I)


def saturated_coverage(scores: Scores, alpha: float = 0.1) -> Objective:
    """Return f(A) = sum_i min(sum_{j in A} s_ij, alpha * sum_j s_ij): help counts until enough.

    Unlike facility location a row gains from its second helper too, until it has the share alpha
    (in (0, 1]) of all the help there is for it; an entry outside a row's list is not counted.

    Source: Lin and Bilmes 2011, A class of submodular functions for document summarization;
    SaturatedCoverage of apricot has one threshold in place of alpha.
    """
    if not (math.isfinite(alpha) and 0 < alpha <= 1):
        raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
    modular_J, level_I = np.zeros(scores.num_columns), alpha * row_sums(scores)
    return Objective(scores, modular_J, SATURATION, level_I=level_I)


def graph_cut(scores: Scores, lambda_: float = 0.5) -> Objective:
    """Return f(A) = sum_i sum_{j in A} s_ij - lambda * sum_{j in A} sum_{k in A} s_jk.

    Reward what helps everybody, less what the picks do for each other (both orders of a pair and
    the diagonal, as in submodlib): a pair costs lambda * (s_jk + s_kj), so influence needs no
    symmetrising. Submodular for lambda >= 0. Since influence is not symmetric, a candidate that is
    helped more than it helps can have a negative gain for any lambda (`Problem.is_monotone` looks
    at the numbers). Greedy fills its budget all the same; `stop_gain=0` stops before such picks.

    Source: GraphCut of submodlib (there for symmetric kernels). Reads `within`.
    """
    return _cut(scores, lambda_, np.zeros(scores.num_columns))


def graph_cut_conditional_gain(
    scores: Scores, existing_sum_J: F64, lambda_: float = 0.5, nu: float = 1.0
) -> Objective:
    """Return f(A) = graph_cut(A) - 2 * lambda * nu * sum_{j in A} sum_p s_jp.

    What the existing examples p help much is redundant.

    Args:
        scores: `within`.
        existing_sum_J: sum_p s_jp of each candidate, in the scale of `scores`, >= 0.
        lambda_: Weight of diversity, >= 0.
        nu: Weight of the existing data, >= 0.

    Source: GraphCutConditionalGain of submodlib (there for symmetric kernels).
    """
    if existing_sum_J.shape != (scores.num_columns,):
        shape = existing_sum_J.shape
        raise ShapeError(f"existing_sum_J is {shape}, expected [{scores.num_columns}]")
    if not (np.isfinite(existing_sum_J) & (existing_sum_J >= 0)).all():
        msg = "existing_sum_J must be sums of influence scaled to [0, 1]: finite and >= 0"
        raise ValueError(msg)
    weight = 2.0 * _weight("lambda_", lambda_) * _weight("nu", nu)
    return _cut(scores, lambda_, -(weight * existing_sum_J.astype(np.float64)))


def graph_cut_mutual_information(scores: Scores, lambda_: float = 0.5) -> Objective:
    """Return f(A) = 2 * lambda * sum_{j in A} sum_q s_qj: what the picks do for the targets.

    Modular, so greedy on it is a sort by the column sums of `cross`; lambda (>= 0) scales the value
    and changes no ranking.

    Source: GraphCutMutualInformation of submodlib.
    """
    return Objective(scores, 2.0 * _weight("lambda_", lambda_) * column_sums(scores), MODULAR)


def top_scores(score_J: F64) -> Objective:
    """Return f(A) = sum_{j in A} m_j: the best scores, whatever the other picks are.

    Greedy on it is a sort, best first. A score may have any sign; the budget is filled, so negative
    scores come last and are never skipped (unless `stop_gain=0` says so).

    Args:
        score_J: Score of each candidate, finite: of a pointwise teacher, or its mean influence on
            the rows of the subtask where that is highest (`scores.exact.best_group_mean`).

    Source: LESS, arXiv 2402.04333, section 4; SelectIT, arXiv 2402.16705 (the top share by score).
    """
    bad = np.flatnonzero(~np.isfinite(score_J))
    if len(bad):
        msg = f"score of candidate {bad[0]} is not finite ({len(bad)} of {len(score_J)})"
        raise ValueError(msg)
    none = SparseScores(
        np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), len(score_J)
    )
    return Objective(none, score_J.astype(np.float64), MODULAR)


def _cut(scores: Scores, lambda_: float, modular_J: F64) -> Objective:
    _check_square(scores)
    modular_J = modular_J + column_sums(scores)
    modular_J -= _weight("lambda_", lambda_) * diagonal(scores)
    return Objective(scores, modular_J, PAIRWISE, pair_weight=lambda_)


def _check_square(scores: Scores) -> None:
    if scores.num_rows != scores.num_columns:
        msg = f"within is candidates x candidates; got {scores.num_rows} x {scores.num_columns}"
        raise ShapeError(msg)


def _check_scaled(name: str, values: F32, length: int) -> None:
    if values.shape != (length,):
        raise ShapeError(f"{name} is {values.shape}, expected [{length}] (one a candidate)")
    if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} must be scaled to [0, 1] with the scale of the lists")


def _weight(name: str, weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {weight}")
    return weight


# What a finished selection covers, and how the other columns compare with it.


def coverage(objective: Objective, order_S: I64) -> tuple[I64, F32]:
    """Return which pick covers each row best [I], and its scaled influence [I], read uncapped.

    The pick is a column, -1 (of influence 0) where no pick is in the row's list. Equal influence
    goes to the earlier pick of `order_S`, the selected columns, best first.
    """
    scores = objective.scores
    best_I, value_I = np.full(scores.num_rows, -1, np.int64), np.zeros(scores.num_rows, np.float32)
    if isinstance(scores, DenseScores):
        for j in order_S:
            better_I = (scores.data_IJ[:, j] > value_I) | (best_I < 0)
            best_I[better_I] = j
            value_I[better_I] = scores.data_IJ[better_I, j]
        return best_I, value_I
    rank_J, first = _ranks(scores.num_columns, order_S), 0
    for batch in scores.batches():
        part = slice(first, first + batch.num_rows)
        _best_picks(batch.indptr, batch.indices, batch.data, rank_J, best_I[part], value_I[part])
        first += batch.num_rows
    return best_I, value_I


def _ranks(num_columns: int, order_S: I64) -> I64:
    """Return the rank of each column among the picks, from 0; -1 where it is none."""
    rank_J = np.full(num_columns, -1, np.int64)
    rank_J[order_S] = np.arange(len(order_S))
    return rank_J


@compiled
def _best_picks(
    indptr: I64, indices: I32, data: F32, rank_J: I64, best_I: I64, value_I: F32
) -> None:
    for i in range(len(best_I)):
        for entry in range(indptr[i], indptr[i + 1]):
            j, value = indices[entry], data[entry]
            rank = rank_J[j]
            if rank < 0:
                continue
            ahead = value > value_I[i] or (value == value_I[i] and rank < rank_J[best_I[i]])
            if best_I[i] < 0 or ahead:
                best_I[i], value_I[i] = j, value


@dataclass(frozen=True, slots=True, eq=False)
class MarginalGains:
    """What columns would add to a selection, and which picks make them redundant.

    Attributes:
        objective: The set function.
        problem: Its columns; None where not all of them are in memory at once.
        order_S: The picks, best first.
        rank_J: Rank of each column among the picks, from 0; -1 where it is none.
        best_I: The pick that covers each row best, -1 for none (`coverage`).
        alone_J: What each column is worth alone [J].
        gain_J: What each column would add to the whole selection [J]; of a pick itself, how much a
            copy of it would.
    """

    objective: Objective
    problem: Problem | None
    order_S: I64
    rank_J: I64
    best_I: I64
    alone_J: F64
    gain_J: F64

    def redundant_with(self, columns_S: I64) -> list[tuple[I64, F64]]:
        """Say which picks make columns redundant: what of their worth alone the picks give already.

        Returns:
            For each column (picks, what each gives of the column's worth), the largest first, ties
            by rank. A covered row counts for the pick that covers it best; of graph cut a pick
            counts for what the two do for each other. The amounts add up to alone - gain, but for
            rows that several picks saturate, whose loss is all counted for the best of them.
        """
        if self.problem is not None:
            return _redundant(self.problem, self.order_S, self.best_I, columns_S)
        num_picks = len(self.order_S)
        problem = self.objective.restricted(np.concatenate([self.order_S, columns_S]))
        best_I = np.where(self.best_I >= 0, self.rank_J[self.best_I], -1)
        numbers_S = num_picks + np.arange(len(columns_S))
        found = _redundant(problem, np.arange(num_picks), best_I, numbers_S)
        return [(self.order_S[picks], amount) for picks, amount in found]


def marginal_gains(
    objective: Objective,
    order_S: I64,
    best_I: I64,
    num_parts: int | None = None,
    problem: Problem | None = None,
) -> MarginalGains:
    """Return what every column would add to a selection.

    Args:
        objective: The set function, on lists.
        order_S: The picks, best first.
        best_I: The pick that covers each row best, -1 for none.
        num_parts: Into how many parts the columns that are no picks are cut; each is read with the
            picks, so gains are to the last bit those of None, all columns at once.
        problem: The set function by column, where it is at hand and there are no parts.

    Raises:
        ValueError: If the scores are dense.
    """
    if isinstance(objective.scores, DenseScores):
        raise ValueError("marginal gains need scores on lists; dense ones name no rows")
    rank_J = _ranks(objective.num_columns, order_S)
    if num_parts is None:
        problem = objective.problem() if problem is None else problem
        alone_J, gain_J = _gains(problem, order_S)
        return MarginalGains(objective, problem, order_S, rank_J, best_I, alone_J, gain_J)
    alone_J, gain_J = np.zeros(objective.num_columns), np.zeros(objective.num_columns)
    for part in np.array_split(np.flatnonzero(rank_J < 0), num_parts):
        columns_S = np.concatenate([order_S, part])
        read = objective.restricted(columns_S)
        alone_J[columns_S], gain_J[columns_S] = _gains(read, np.arange(len(order_S)))
    return MarginalGains(objective, None, order_S, rank_J, best_I, alone_J, gain_J)


def _gains(problem: Problem, order_S: I64) -> tuple[F64, F64]:
    """Return what every column is worth alone [J] and after the picks [J]."""
    state = problem.empty_state()
    alone_J, gain_J = np.empty(problem.num_columns), np.empty(problem.num_columns)
    all_gains(problem, state, alone_J)
    add_each(problem, state, order_S)
    all_gains(problem, state, gain_J)
    return alone_J, gain_J


def _redundant(
    problem: Problem, order_S: I64, best_I: I64, columns_S: I64
) -> list[tuple[I64, F64]]:
    state, rank_J = problem.empty_state(), _ranks(problem.num_columns, order_S)
    add_each(problem, state, order_S)
    found: list[tuple[I64, F64]] = []
    for j in columns_S:
        part = slice(problem.indptr[j], problem.indptr[j + 1])
        rows, value = problem.rows[part], problem.values[part].astype(np.float64)
        if problem.kind == PAIRWISE:
            pick, loss = rows.astype(np.int64), value
        elif problem.kind == SATURATION:
            cap = problem.cap_I[rows]
            left = np.minimum(state.level[rows], cap)
            pick, loss = best_I[rows], np.minimum(value, cap) - np.minimum(value, left)
        else:
            pick, loss = best_I[rows], np.minimum(value, state.cover_I[rows].astype(np.float64))
        keep = (pick >= 0) & (loss > 0) & (pick != j)
        keep[keep] &= rank_J[pick[keep]] >= 0
        picks, back = np.unique(pick[keep], return_inverse=True)
        amount = np.bincount(back, loss[keep], len(picks)).astype(np.float64)
        order = np.lexsort((rank_J[picks], -amount))
        found.append((picks[order], amount[order]))
    return found
