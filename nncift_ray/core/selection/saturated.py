"""Saturated coverage: every row wants enough help, from whichever picks.

Suffixes: I rows (to be covered), J columns (may be selected).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.dense_scores import DenseScores
from nncift_ray.core.selection.problem import SATURATION, Problem, Scores, by_column

F64 = NDArray[np.float64]


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

    def problem(self) -> Problem:
        """Return the function by column."""
        return by_column(self.scores, kind=SATURATION, level_I=self.alpha * row_sums(self.scores))


def row_sums(scores: Scores) -> F64:
    """Return sum_j s_ij of each row [I], in float64."""
    if isinstance(scores, DenseScores):
        return scores.data_IJ.sum(axis=1, dtype=np.float64)
    row_E = np.repeat(np.arange(scores.num_rows), np.diff(scores.indptr))
    sum_I = np.bincount(row_E, weights=scores.data, minlength=scores.num_rows)
    return sum_I.astype(np.float64)  # without entries numpy counts in integers
