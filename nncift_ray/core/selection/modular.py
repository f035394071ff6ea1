"""Objectives without interaction: the best scores, whatever the other picks are.

Suffixes: J columns (may be selected).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.assembling import problem_of
from nncift_ray.core.selection.problem import Problem, Terms
from nncift_ray.core.selection.sparse_scores import SparseScores

F64 = NDArray[np.float64]


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
