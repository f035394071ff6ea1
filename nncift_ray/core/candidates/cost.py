"""What exact and pruned scoring would cost here, from rates measured on a sample.

Suffixes: I rows, J columns, H hidden units, F features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.candidates.protocol import CandidateGenerator
from nncift_ray.core.pairs.cell_scores import PackedCells, score_cells
from nncift_ray.core.pairs.pair_scores import top_k_rows

F32 = NDArray[np.float32]

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
    """Pairs scored exactly, top K included: those of whole cells, or of listed columns."""
    products: float = math.inf
    """Inner products with columns in the cells probed, the best listed; none for whole cells."""


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
    probed_fraction: float = 0.0,
) -> CostEstimate:
    """Predict the seconds of both ways.

    Args:
        rates: Measured on this machine by `measure_rates`.
        num_rows: Rows I of the whole job.
        num_columns: Columns J.
        num_cells: Cells of the index.
        scored_fraction: Share of a row's pairs that are scored, as tuning measured it; before
            that, probed cells over cells, or listed columns over columns.
        build_comparisons: Vectors compared while the index is built.
        num_workers: Workers that score at the same time.
        probed_fraction: Probed cells over cells, where their columns are listed first.
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


def measure_rates(
    generator: CandidateGenerator,
    probe: Callable[[F32, int], NDArray[np.integer]],
    cells: PackedCells,
    row_sample_IH: F32,
    column_sample_JH: F32,
    k: int,
    num_probes: int,
) -> Rates:
    """Time each step on samples; some thousands of rows and of columns take a second or two.

    Args:
        generator: A fitted generator that reads activations.
        probe: Names the cells of queries (`models.neighbour_index.NeighbourIndex.probe`).
        cells: The columns in their cells.
        row_sample_IH: Row activations.
        column_sample_JH: Column activations.
        k: Columns kept per row.
        num_probes: Cells probed per row.
    """
    w_H, bias = cells.panels.w_H, cells.panels.bias
    num_rows, num_columns = len(row_sample_IH), len(column_sample_JH)
    query_IF = generator.row_queries(row_sample_IH)
    cell_IP = probe(query_IF, num_probes)
    num_probed = int(score_cells(row_sample_IH, cells, cell_IP, k).num_pairs_I.sum())
    return Rates(
        exact_pairs=num_rows
        * num_columns
        / fastest_seconds(lambda: top_k_rows(row_sample_IH, column_sample_JH, w_H, bias, k)),
        featured_columns=num_columns
        / fastest_seconds(lambda: generator.column_features(column_sample_JH)),
        queried_rows=num_rows / fastest_seconds(lambda: generator.row_queries(row_sample_IH)),
        comparisons=num_rows
        * cells.num_cells
        / fastest_seconds(lambda: probe(query_IF, num_probes)),
        probed_pairs=num_probed
        / fastest_seconds(lambda: score_cells(row_sample_IH, cells, cell_IP, k)),
    )


def fastest_seconds(task: Callable[[], object]) -> float:
    """Return the wall seconds of the fastest of a few runs."""
    seconds: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begin)
    return max(min(seconds), 1e-9)  # a clock that has not moved
