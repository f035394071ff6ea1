"""Graph cut: helpful on the whole, and unlike each other; and its forms with targets or old data.

Raw influence is signed and scaled as in `coverage`: the global minimum is 0. For graph cut that
matters more than for a maximum, since a sum over many small values is not small: a candidate's
value is its mean influence above the global minimum, and two picks that merely do not help each
other (raw 0) still pay the scaled value of 0. Absent entries count as 0. Row = helped, column =
helper.

Suffixes: I rows, J columns (may be selected).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.assembling import problem_of
from nncift_ray.core.selection.coverage import check_square, check_weight
from nncift_ray.core.selection.problem import PAIRWISE, Problem, Scores, Terms
from nncift_ray.core.selection.score_sums import column_sums, diagonal
from nncift_ray.errors import ShapeError

F64 = NDArray[np.float64]


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
