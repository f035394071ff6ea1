"""The subsets that are compared: drawn at random, all candidates, or selected by a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nncift_ray.config import Config
from nncift_ray.pipeline.evaluation.cells import FULL, INITIAL, RANDOM, SubsetKey
from nncift_ray.storage.output import StageOutput

SUBSET_STREAM = 33  # random stream of the draws, apart from those of samples and test rows


@dataclass(frozen=True)
class Subset:
    """Which candidates a model is taught with, and what it took to find them."""

    key: SubsetKey
    members: NDArray[np.int64]  # sorted row numbers of candidates
    #: The recipe that selected them, and its stages up to select; none where nobody was asked.
    config: Config | None = None
    outputs: Mapping[str, StageOutput] = field(default_factory=dict[str, StageOutput])

    @property
    def num_examples(self) -> int:
        """Its size."""
        return len(self.members)


def budget_count(budget: float, num_candidates: int) -> int:
    """Return how many examples a budget is, as the select stage counts."""
    return min(num_candidates, max(1, round(budget * num_candidates)))


def members_without_teacher(
    key: SubsetKey, num_candidates: int, seed: int
) -> NDArray[np.int64] | None:
    """Return the members of a subset that asks no teacher; None: a method has to select it.

    Random subsets are nested: of one draw, a smaller budget is part of a larger one, so that a
    learning curve shows what more data do and not what other data do.

    Args:
        key: Whose subset.
        num_candidates: Candidates there are.
        seed: Of the recipe's selection; the draw's own number comes to it.
    """
    if key.method == INITIAL:
        return np.arange(0, dtype=np.int64)
    if key.method == FULL:
        return np.arange(num_candidates, dtype=np.int64)
    if key.method != RANDOM:
        return None
    sequence = np.random.SeedSequence([seed, key.seed, SUBSET_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_candidates)
    return np.sort(order[: budget_count(key.budget, num_candidates)]).astype(np.int64)


def selected_members(select: StageOutput) -> NDArray[np.int64]:
    """Return the members of a finished selection."""
    return np.sort(select.read("ranking", ["row_index"])["row_index"].to_numpy())
