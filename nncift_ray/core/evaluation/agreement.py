"""How near a method's subset comes to its teacher's: the same picks, or picks as good.

Two subsets may share little and be worth the same, where many candidates are alike; so the value of
both under the teacher's own scores stands beside the overlap. Suffix: S members of a subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from nncift_ray.core.selection.baseline import evaluate
from nncift_ray.core.selection.problem import Objective, Problem

Members = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Picks that two subsets share, beside what chance alone would share."""

    shared: int
    fraction: float  # of the first subset's picks
    chance_fraction: float  # expected where the first is drawn at random
    #: Probability that a random subset shares as many or more.
    p_value: float


@dataclass(frozen=True, slots=True)
class ObjectiveAgreement:
    """What subsets are worth to one teacher: its set function over its own scores."""

    method: float
    teacher: float
    random: float | None  # mean of the random subsets; None: none were given

    @property
    def gain_fraction(self) -> float | None:
        """What the method gains over random, as a share of what the teacher gains.

        1: as good as the teacher's own subset; 0: no better than random. None where random is not
        known, or the teacher gains nothing.
        """
        if self.random is None or self.teacher <= self.random:
            return None
        return (self.method - self.random) / (self.teacher - self.random)


def measure_overlap(members: Members, others: Members, num_candidates: int) -> Overlap:
    """Compare two subsets of the same candidates.

    Args:
        members: Row numbers [S] of a subset, each once.
        others: Row numbers of the subset it is held against.
        num_candidates: Candidates that both were chosen from.

    Raises:
        ValueError: If a subset is empty, names a candidate twice, or one that does not exist.
    """
    for subset in (members, others):
        _check_members(subset, num_candidates)
    shared = len(np.intersect1d(members, others))
    law = hypergeom(num_candidates, len(others), len(members))
    return Overlap(
        shared,
        shared / len(members),
        len(others) / num_candidates,
        float(law.sf(shared - 1)),
    )


def compare_values(
    objective: Objective | Problem,
    members: Members,
    teacher_members: Members,
    random_subsets: Sequence[Members] = (),
) -> ObjectiveAgreement:
    """Value subsets by the teacher's set function.

    Args:
        objective: Over the teacher's scores, scaled as its own selection scaled them.
        members: The method's subset.
        teacher_members: The teacher's, greedily chosen, so a lucky subset may be worth more.
        random_subsets: Random subsets, best of the size of the others.

    Returns:
        Values in the objective's unit: compare them only with each other.

    Raises:
        ValueError: As ``measure_overlap``.

    Time: one pass over the entries of all subsets' columns.
    """
    problem = objective if isinstance(objective, Problem) else objective.problem()
    values = [_value(problem, subset) for subset in (members, teacher_members, *random_subsets)]
    random = float(np.mean(values[2:])) if random_subsets else None
    return ObjectiveAgreement(values[0], values[1], random)


def _value(problem: Problem, members: Members) -> float:
    _check_members(members, problem.num_columns)
    return float(evaluate(problem, np.sort(members).astype(np.int64))[-1])


def _check_members(members: Members, num_candidates: int) -> None:
    if not len(members):
        raise ValueError("a subset without members agrees with nothing")
    if not 0 <= members.min() <= members.max() < num_candidates:
        raise ValueError(
            f"a subset has members {members.min()}..{members.max()}, there are {num_candidates} "
            "candidates"
        )
    if len(np.unique(members)) < len(members):
        raise ValueError("a subset names a candidate twice")
