"""The cells of a sweep, seeds together: what its plot and its table show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report.formatting import format_number
from nncift_ray.report.headline import NETWORK, ROW_COLUMN_MEAN

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")


@dataclass(frozen=True)
class SweepPoint:
    """One setting, over its seeds. Errors are on labels scaled to [0, 1]."""

    block: str
    fraction: float
    num_hidden: int
    depth: int
    num_train_pairs: int
    #: (split, model) to the error of every seed.
    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    row_spearman: list[float] = field(default_factory=list)  # of the network in Q4, a seed each

    def error(self, split: str, model: str = NETWORK) -> float:
        """Return the mean error over seeds; NaN where the split has no pairs."""
        errors = self.errors.get((split, model), [])
        return float(np.mean(errors)) if errors else float("nan")

    def spread(self, split: str) -> tuple[float, float]:
        """Return the least and the largest error of the network over seeds."""
        errors = self.errors.get((split, NETWORK), [float("nan")])
        return min(errors), max(errors)


def sweep_points(cells: pa.Table) -> list[SweepPoint]:
    """Bring the rows of SWEEP_CELLS together by setting, in the order of the settings."""
    points: dict[tuple[Any, ...], SweepPoint] = {}
    for row in cells.to_pylist():
        key = (row["block"], row["num_hidden"], row["depth"], row["fraction"])
        if key not in points:
            points[key] = SweepPoint(
                row["block"], row["fraction"], row["num_hidden"], row["depth"],
                row["num_train_pairs"],
            )  # fmt: skip
        point = points[key]
        point.errors.setdefault((row["split"], row["model"]), []).append(row["scaled_mse"])
        if (row["split"], row["model"]) == ("Q4", NETWORK) and row["row_spearman"] is not None:
            point.row_spearman.append(row["row_spearman"])
    return [points[key] for key in sorted(points)]


def quadrants_of(points: Sequence[SweepPoint]) -> list[str]:
    """Return the quadrants that any point has pairs of."""
    return [name for name in QUADRANTS if any((name, NETWORK) in one.errors for one in points)]


def sweep_table(cells: pa.Table) -> RenderableType:
    """Make the table that a sweep ends with in a terminal."""
    points = sweep_points(cells)
    quadrants = quadrants_of(points)
    table = Table(
        title=Text("1,000 x mean squared error on labels scaled to [0, 1], mean over seeds"),
        caption=Text("Q4: mean is row + col mean, vs the network against it, rank within rows"),
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1),
    )
    for name in ("block", "part", "hidden", "depth", "pairs", *quadrants, "mean", "vs", "rank"):
        table.add_column(name, justify="left" if name == "block" else "right", no_wrap=True)
    for point in points:
        network, mean = point.error("Q4"), point.error("Q4", _baseline(point))
        table.add_row(
            point.block, f"{point.fraction:g}", f"{point.num_hidden:,}", str(point.depth),
            f"{point.num_train_pairs:,}",
            *(format_number(1000 * point.error(name), 3) for name in quadrants),
            format_number(1000 * mean, 3), f"{network / mean - 1:+.0%}" if mean > 0 else "",
            f"{np.mean(point.row_spearman):.2f}" if point.row_spearman else "",
        )  # fmt: skip
    return table


def describe_gain(point: SweepPoint) -> str:
    """Say how far the network's Q4 error lies below that of the best mean."""
    network, mean = point.error("Q4"), point.error("Q4", _baseline(point))
    if not (np.isfinite(network) and mean > 0):
        return ""
    change = 1 - network / mean
    return f"{abs(change):.0%} {'lower' if change >= 0 else 'higher'}"


def _baseline(point: SweepPoint) -> str:
    return ROW_COLUMN_MEAN if ("Q4", ROW_COLUMN_MEAN) in point.errors else "mean"
