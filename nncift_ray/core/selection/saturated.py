"""Saturated coverage: every row wants enough help, from whichever picks.

Suffixes: I rows (to be covered), J columns (may be selected).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nncift_ray.core.selection.assembling import problem_of
from nncift_ray.core.selection.problem import SATURATION, Problem, Scores, Terms
from nncift_ray.core.selection.score_sums import row_sums


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
