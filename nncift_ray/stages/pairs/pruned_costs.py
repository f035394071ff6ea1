"""How fast this machine scores all pairs, and how fast the pairs that an index proposes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nncift_ray.core.candidates.cost import CostEstimate, Rates, estimate_cost, fastest_seconds
from nncift_ray.core.candidates.recall import SearchSettings
from nncift_ray.core.pairs.pair_backend import ScoresRows
from nncift_ray.models.neighbour_index import build_comparisons, num_cells
from nncift_ray.stages.pairs.column_index import ColumnIndex, ColumnSource

SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 16_384
LARGEST_CROSSING = 2**30
STEPS_PER_DOUBLING = 4
SMALLEST_SHARE = 10  # listing takes at least a tenth of the time that it is measured with


@dataclass(frozen=True, slots=True, eq=False)
class RowSample:
    """Some rows of a block: their activations, and what the generator reads of them."""

    a_IH: np.ndarray
    row_IX: np.ndarray


#: Times both ways on some rows: (index, rows, source, settings, k, what scores all pairs).
MeasureRates = Callable[
    [ColumnIndex, RowSample, ColumnSource, SearchSettings, int, ScoresRows], Rates
]


def measure_rates(
    index: ColumnIndex,
    rows: RowSample,
    source: ColumnSource,
    settings: SearchSettings,
    k: int,
    score_rows: ScoresRows,
) -> Rates:
    """Time each step of both ways on some thousands of rows and columns (a MeasureRates)."""
    network, num_rows = source.network, len(rows.a_IH)
    b_JH, column_JX = source.b_JH[:SAMPLE_COLUMNS], source.column_JX[:SAMPLE_COLUMNS]
    query_IF = index.queries(rows.row_IX)
    proposed = index.propose(query_IF, settings)
    num_scored = int(index.score(rows.a_IH, proposed, k).num_pairs_I.sum())

    def score_all() -> object:
        return score_rows(rows.a_IH, b_JH, network.w_H, network.bias, k)

    # Listing chooses cells too: that part is timed apart, since it grows otherwise.
    num_cells_here, num_probes = index.neighbours.num_cells, settings.num_probes
    probed_columns = index.num_columns * min(1.0, num_probes / num_cells_here)
    choosing = fastest_seconds(lambda: index.choose_cells(query_IF, num_probes))
    listing = fastest_seconds(lambda: index.propose(query_IF, settings))
    score_all()  # a device compiles on its first call
    return Rates(
        exact_pairs=num_rows * len(b_JH) / fastest_seconds(score_all),
        featured_columns=len(column_JX)
        / fastest_seconds(lambda: index.generator.column_features(column_JX)),
        queried_rows=num_rows / fastest_seconds(lambda: index.queries(rows.row_IX)),
        comparisons=num_rows * num_cells_here / choosing,
        products=num_rows * probed_columns / max(listing - choosing, listing / SMALLEST_SHARE),
        probed_pairs=max(num_scored, 1)
        / fastest_seconds(lambda: index.score(rows.a_IH, proposed, k)),
    )


def predict(
    rates: Rates,
    *,
    num_rows: int,
    num_columns: int,
    cells: int,
    scored_fraction: float,
    num_probes: int,
    num_workers: int,
) -> CostEstimate:
    """Predict the seconds of both ways for a block."""
    return estimate_cost(
        rates,
        num_rows=num_rows,
        num_columns=num_columns,
        num_cells=cells,
        scored_fraction=scored_fraction,
        build_comparisons=build_comparisons(num_columns) if cells > 1 else num_columns,
        num_workers=num_workers,
        probed_fraction=min(1.0, num_probes / cells),
    )


def crossing_rows(rates: Rates, settings: SearchSettings, num_workers: int) -> int | None:
    """Return from how many rows, and as many columns, on pruning is predicted to be faster.

    Cells probed and columns listed a row are taken to stay as they are. None: not below 2**30.
    """
    size = 1024
    while size <= LARGEST_CROSSING:
        cells = num_cells(size)
        estimate = predict(
            rates,
            num_rows=size,
            num_columns=size,
            cells=cells,
            scored_fraction=min(1.0, settings.num_candidates / size),
            num_probes=settings.num_probes,
            num_workers=num_workers,
        )
        if estimate.pruning_pays:
            return size
        size = round(size * 2 ** (1 / STEPS_PER_DOUBLING))
    return None
