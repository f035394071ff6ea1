"""What exact and pruned scoring would cost here, from rates measured on a sample.

Suffixes: I rows, J columns, H hidden units, F features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 3  # the best of so many runs counts: what else the machine does only slows it


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of one worker, each per second."""

    exact_pairs: float
    """Pairs of the streamed kernel, top K included."""
    featured_columns: float
    """Columns turned into features."""
    queried_rows: float
    """Rows turned into queries."""
    comparisons: float
    """Queries compared with centres of cells, the choice of cells included."""
    probed_pairs: float
    """Listed pairs scored exactly, top K included."""
    products: float
    """Inner products with columns in the cells probed, the best listed."""


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Wall seconds of both ways; the index is built once, by one worker."""

    exact_seconds: float
    build_seconds: float
    search_seconds: float

    @property
    def pruned_seconds(self) -> float:
        """Building the index and searching it."""
        return self.build_seconds + self.search_seconds

    @property
    def pruning_pays(self) -> bool:
        """Whether pruning is the faster way."""
        return self.pruned_seconds < self.exact_seconds


def estimate_cost(
    rates: Rates,
    *,
    num_rows: int,
    num_columns: int,
    num_cells: int,
    scored_fraction: float,
    build_comparisons: int,
    num_workers: int = 1,
    probed_fraction: float,
) -> CostEstimate:
    """Predict the seconds of both ways.

    Args:
        rates: Measured on this machine.
        num_rows: Rows I of the whole job.
        num_columns: Columns J.
        num_cells: Cells of the index.
        scored_fraction: Share of a row's pairs that are scored, as tuning measured it; before
            that, listed columns over columns.
        build_comparisons: Vectors compared while the index is built.
        num_workers: Workers that score at the same time.
        probed_fraction: Probed cells over cells.
    """
    row_seconds = (
        1 / rates.queried_rows
        + num_cells / rates.comparisons
        + num_columns * probed_fraction / rates.products
        + num_columns * scored_fraction / rates.probed_pairs
    )
    return CostEstimate(
        exact_seconds=num_rows * num_columns / rates.exact_pairs / num_workers,
        build_seconds=num_columns / rates.featured_columns + build_comparisons / rates.comparisons,
        search_seconds=num_rows * row_seconds / num_workers,
    )


def fastest_seconds(task: Callable[[], object]) -> float:
    """Return the wall seconds of the fastest of a few runs."""
    seconds: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begin)
    return max(min(seconds), 1e-9)  # a clock that has not moved
