"""How much of the exact lists a search finds, and the smallest search that finds enough.

Suffixes: I rows held out, K kept columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.rescoring import RescoredTopK
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FIRST_PROBES = 4
CANDIDATES_PER_KEPT = (2, 3, 4, 6, 8, 16)  # candidates listed, as multiples of K
PRODUCTS_PER_LISTED = 16  # products with features that cost as much as one column scored anew


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How widely to search for a row's columns."""

    num_probes: int
    """Cells searched a row."""
    num_candidates: int
    """Columns listed by approximate score, to be scored anew."""


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """What one setting found on the held-out rows."""

    settings: SearchSettings
    recall: float  # mean over rows of recall@K
    standard_error: float  # of that mean
    scored_fraction: float  # pairs scored exactly, of all pairs of those rows
    seconds: float  # wall clock, all rows, search and scoring


@dataclass(frozen=True, slots=True)
class Tuning:
    """The points tried, narrowest first, and the first that found enough."""

    wanted_recall: float
    points: tuple[RecallPoint, ...]
    chosen: RecallPoint | None  # None when even the widest setting found too little

    @property
    def best(self) -> RecallPoint:
        """The chosen point, or else the one of highest recall."""
        return self.chosen or max(self.points, key=lambda point: point.recall)


def recall_at_k(found_score_IK: F32, exact_score_IK: F32) -> F64:
    """Return for each row the share of its true K best that were found [I], from exact scores.

    Scores, not columns, are compared: a column that ties with the K-th best is as good as it. A
    row with fewer than K columns is measured on those it has; one with none counts as found.

    Args:
        found_score_IK: Scores of the found columns, best first, -inf where there is none. They
            have to be exact (`rescoring`).
        exact_score_IK: Scores of the true K best (`pair_scores.top_k_rows`), likewise.

    Raises:
        ShapeError: If the shapes differ.
    """
    if found_score_IK.shape != exact_score_IK.shape or found_score_IK.ndim != 2:
        msg = f"lists are {found_score_IK.shape} and {exact_score_IK.shape}, expected both [I, K]"
        raise ShapeError(msg)
    num_true_I = np.isfinite(exact_score_IK).sum(axis=1)
    true_IK = np.where(np.isfinite(exact_score_IK), exact_score_IK, np.inf)
    worst_true_I = true_IK.min(axis=1)
    num_found_I = (found_score_IK >= worst_true_I[:, None]).sum(axis=1)
    return np.where(num_true_I > 0, num_found_I / np.maximum(num_true_I, 1), 1.0)


def listing_schedule(k: int, num_columns: int, num_cells: int) -> list[SearchSettings]:
    """Return settings that list candidates, cheapest first.

    A row costs a product for each column of its cells, and as much as some sixteen for each column
    listed. The last setting probes every cell for the longest list.
    """
    lengths = sorted({min(multiple * k, num_columns) for multiple in CANDIDATES_PER_KEPT})
    every = [
        SearchSettings(probes, length)
        for probes in _doubling(FIRST_PROBES, num_cells)
        for length in lengths
    ]

    def cost(settings: SearchSettings) -> float:
        products = settings.num_probes * num_columns / num_cells
        return products + PRODUCTS_PER_LISTED * settings.num_candidates

    return sorted(every, key=cost)


def tune(
    search: Callable[[SearchSettings], RescoredTopK],
    exact_score_IK: F32,
    num_columns: int,
    schedule: Sequence[SearchSettings],
    wanted_recall: float,
    *,
    standard_errors: float = 0.0,
) -> Tuning:
    """Try settings in order on held-out rows until one reaches the recall wanted.

    The choice depends on recall alone, never on the clock, so that it is the same on any machine;
    the schedule is what orders settings by their cost.

    Args:
        search: Searches all held-out rows and scores exactly what it finds.
        exact_score_IK: The rows' true lists, from `pair_scores.top_k_rows`.
        num_columns: Columns there are.
        schedule: Settings, narrowest first; at least one.
        wanted_recall: Mean recall@K to reach.
        standard_errors: How many of its standard errors a measured mean must lie above that: it is
            of a sample, so a bound that must hold wants a margin of two.

    Returns:
        Every point tried, and the chosen one; `chosen` is None if none sufficed.

    Raises:
        ValueError: If the schedule or the sample of rows is empty.
    """
    num_rows = len(exact_score_IK)
    if not schedule or num_rows == 0:
        msg = f"nothing to tune on: {len(schedule)} settings, {num_rows} held-out rows"
        raise ValueError(msg)
    points: list[RecallPoint] = []
    for settings in schedule:
        begin = time.perf_counter()
        found = search(settings)
        seconds = time.perf_counter() - begin
        recall_I = recall_at_k(found.score_IK, exact_score_IK)
        points.append(
            RecallPoint(
                settings,
                recall=float(recall_I.mean()),
                standard_error=float(recall_I.std() / np.sqrt(num_rows)),
                scored_fraction=float(found.num_pairs_I.sum() / (num_rows * max(num_columns, 1))),
                seconds=seconds,
            )
        )
        lower_bound = points[-1].recall - standard_errors * points[-1].standard_error
        if lower_bound >= wanted_recall:
            return Tuning(wanted_recall, tuple(points), points[-1])
    return Tuning(wanted_recall, tuple(points), None)


def _doubling(first: int, last: int) -> list[int]:
    """Return first, 2 first, 4 first... below last, and last."""
    values: list[int] = []
    value = first
    while value < last:
        values.append(value)
        value *= 2
    return [*values, last]
