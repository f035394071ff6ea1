"""The set functions: what a good subset is, apart from how it is searched (`greedy`).

| objective | kind | reads | monotone |
|---|---|---|---|
| FacilityLocation | coverage | within (or cross) | yes |
| FacilityLocationMutualInformation | coverage | within, cross | yes |
| FacilityLocationQueryMutualInformation | coverage | cross | yes |
| FacilityLocationConditionalGain | coverage | within, existing | yes |
| SaturatedCoverage | saturation | within (or cross) | yes |
| GraphCut | pairwise | within | for symmetric s and lambda <= 1/2 |
| GraphCutConditionalGain | pairwise | within, existing | no |
| GraphCutMutualInformation | modular | cross | yes |
| TopScores | modular | points, or cross or within | where no score is negative |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.selection.problem import (
    COVERAGE,
    NO_ROWS,
    PAIRWISE,
    SATURATION,
    ColumnSource,
    DenseScores,
    Objective,
    Problem,
    Scores,
    SparseScores,
    StreamedScores,
    Terms,
    column_sums,
    diagonal,
    row_sums,
)

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


# Objectives that want every row covered by one good pick: facility location and its relatives.


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


# Graph cut: helpful on the whole, and unlike each other; and its forms with targets or old data.


@dataclass(frozen=True, slots=True, eq=False)
class GraphCut:
    """f(A) = sum_i sum_{j in A} s_ij - lambda * sum_{j in A} sum_{k in A} s_jk.

    Reward what helps everybody, less what the picks do for each other (both orders of a pair and
    the diagonal, as in submodlib). The double sum takes s_jk and s_kj alike, so influence needs
    no symmetrising: a pair costs lambda * (s_jk + s_kj). Reads `within`.

    Submodular for lambda >= 0. Monotone for lambda <= 1/2 if s is symmetric; influence is not, and
    a candidate that is helped more than it helps can have a negative gain even then
    (`Problem.is_monotone` looks at the numbers). Greedy fills its budget all the same, picks of
    negative gain last; `stop_gain=0` stops before the first of them.

    Attributes:
        scores: `within`, candidates x candidates.
        lambda_: Weight of diversity, >= 0.

    Source: GraphCut of submodlib (there for symmetric kernels).
    """

    scores: Scores
    lambda_: float = 0.5

    def __post_init__(self) -> None:
        """Raise ShapeError unless candidates x candidates, ValueError on a bad weight."""
        check_square(self.scores)
        check_weight("lambda_", self.lambda_)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        return _cut_terms(self.scores, self.lambda_, np.zeros(self.scores.num_columns))

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


@dataclass(frozen=True, slots=True, eq=False)
class GraphCutConditionalGain:
    """f(A) = GraphCut(A) - 2 * lambda * nu * sum_{j in A} sum_{p in P} s_jp.

    Graph cut that also counts what the existing examples p do for a pick: what they help much is
    redundant. Reads `within` and the sums over candidates x existing (existing p helps candidate
    j). Submodular; not monotone in general.

    Attributes:
        scores: `within`, candidates x candidates.
        existing_sum_J: sum_p s_jp of each candidate, in the scale of `scores`, >= 0.
        lambda_: Weight of diversity, >= 0.
        nu: Weight of the existing data, >= 0.

    Source: GraphCutConditionalGain of submodlib (there for symmetric kernels).
    """

    scores: Scores
    existing_sum_J: F64
    lambda_: float = 0.5
    nu: float = 1.0

    def __post_init__(self) -> None:
        """Raise ShapeError or ValueError on sums of another table, or on bad weights."""
        check_square(self.scores)
        check_weight("lambda_", self.lambda_)
        check_weight("nu", self.nu)
        if self.existing_sum_J.shape != (self.scores.num_columns,):
            shape = self.existing_sum_J.shape
            raise ShapeError(f"existing_sum_J is {shape}, expected [{self.scores.num_columns}]")
        if not (np.isfinite(self.existing_sum_J) & (self.existing_sum_J >= 0)).all():
            msg = "existing_sum_J must be sums of influence scaled to [0, 1]: finite and >= 0"
            raise ValueError(msg)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        penalty_J = 2.0 * self.lambda_ * self.nu * self.existing_sum_J.astype(np.float64)
        return _cut_terms(self.scores, self.lambda_, -penalty_J)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


@dataclass(frozen=True, slots=True, eq=False)
class GraphCutMutualInformation:
    """f(A) = 2 * lambda * sum_{j in A} sum_q s_qj: what the picks do for the targets, summed.

    Modular, so greedy on it is a sort by the column sums: no pick makes another less worth
    having. Reads `cross`. Monotone: a negative raw score adds little and takes nothing away.

    Attributes:
        scores: `cross`, targets x candidates.
        lambda_: Weight, >= 0; it scales the value and changes no ranking.

    Source: GraphCutMutualInformation of submodlib.
    """

    scores: Scores
    lambda_: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError on a bad weight."""
        check_weight("lambda_", self.lambda_)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        return Terms(2.0 * self.lambda_ * column_sums(self.scores), reads_lists=False)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


def _cut_terms(scores: Scores, lambda_: float, modular_J: F64) -> Terms:
    """Return sum_i s_ij - lambda s_jj + modular_j of each column, and lambda."""
    modular_J = modular_J + column_sums(scores)
    modular_J -= lambda_ * diagonal(scores)
    return Terms(modular_J, PAIRWISE, pair_weight=lambda_)


# Objectives without interaction: the best scores, whatever the other picks are.


@dataclass(frozen=True, slots=True, eq=False)
class TopScores:
    """f(A) = sum_{j in A} m_j: the best scores, whatever the other picks are.

    Greedy on it is a sort, best first. A score may have any sign, larger is better: the budget is
    filled, so negative scores come last and are never skipped (unless `stop_gain=0` says so).
    Modular, so submodular; monotone where no score is negative.

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

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        return Terms(self.score_J, reads_lists=False)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


# Saturated coverage: every row wants enough help, from whichever picks.


@dataclass(frozen=True, slots=True, eq=False)
class SaturatedCoverage:
    """f(A) = sum_i min(sum_{j in A} s_ij, alpha * sum_j s_ij): help counts until there is enough.

    Unlike facility location a row gains from its second helper too, until it has the share alpha
    of all the help there is for it. Reads `within`, or `cross` to help targets. Raw influence is
    scaled as in `coverage`, so a negative score adds little to its row and takes nothing away; an
    entry outside a row's list adds nothing and is not counted in the row's total. Monotone
    submodular.

    Attributes:
        scores: Influence on the rows to be helped.
        alpha: Share of a row's total at which it has enough, in (0, 1].

    Source: Lin and Bilmes 2011, A class of submodular functions for document summarization;
    SaturatedCoverage of apricot has one threshold in place of alpha.
    """

    scores: Scores
    alpha: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError unless alpha is in (0, 1]."""
        if not (math.isfinite(self.alpha) and 0 < self.alpha <= 1):
            msg = f"alpha must lie in (0, 1], got {self.alpha}"
            raise ValueError(msg)

    def terms(self) -> Terms:
        """Return what the function is made of besides its entries."""
        level_I = self.alpha * row_sums(self.scores)
        return Terms(np.zeros(self.scores.num_columns), SATURATION, level_I=level_I)

    def problem(self) -> Problem:
        """Return the function by column."""
        return problem_of(self.scores, self.terms())


# The set functions: what a good subset is, apart from how it is searched (`greedy`).

__all__ = [
    "FacilityLocation",
    "FacilityLocationConditionalGain",
    "FacilityLocationMutualInformation",
    "FacilityLocationQueryMutualInformation",
    "GraphCut",
    "GraphCutConditionalGain",
    "GraphCutMutualInformation",
    "Objective",
    "Problem",
    "SaturatedCoverage",
    "TopScores",
    "coverage",
]
