"""The cells of a sweep, seeds together: what its plot and its table show."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report import figures as svg
from nncift_ray.report.data import NETWORK, ROW_COLUMN_MEAN
from nncift_ray.report.text import format_number

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")


@dataclass(frozen=True)
class SweepPoint:
    """One setting, over its seeds. Errors are on labels scaled to [0, 1]."""

    block: str
    fraction: float
    num_hidden: int
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
        key = (row["block"], row["num_hidden"], row["fraction"])
        if key not in points:
            points[key] = SweepPoint(
                row["block"], row["fraction"], row["num_hidden"],
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
    for name in ("block", "part", "hidden", "pairs", *quadrants, "mean", "vs", "rank"):
        table.add_column(name, justify="left" if name == "block" else "right", no_wrap=True)
    for point in points:
        network, mean = point.error("Q4"), point.error("Q4", _baseline(point))
        table.add_row(
            point.block, f"{point.fraction:g}", f"{point.num_hidden:,}",
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


# The paper's plot: training size against error, by quadrant, with the baselines.

PANEL_INCHES = (3.6, 3.2)
DOTS_PER_INCH = 160
COLOURS = {"Q1": svg.BLUE, "Q2": svg.GREEN, "Q3": svg.PURPLE, "Q4": svg.ORANGE}
MARKERS = {"Q1": "o", "Q2": "s", "Q3": "^", "Q4": "D"}
MEANINGS = {
    "Q1": "Q1: both seen",
    "Q2": "Q2: helper unseen",
    "Q3": "Q3: helped unseen",
    "Q4": "Q4: neither seen",
}
#: The paper's two baselines know no label: one line each, of Q4.
BLIND = {"zero": (0, (1, 1.5)), "random": (0, (5, 1.5, 1, 1.5))}
MAX_TICKS = 5


def plot_sweep(cells: pa.Table) -> bytes:
    """Draw SWEEP_CELLS as a PNG: a panel a block and hidden size, on the same axes."""
    points = sweep_points(cells)
    blocks = sorted({one.block for one in points})
    columns = sorted({one.num_hidden for one in points})
    size = (0.8 + PANEL_INCHES[0] * len(columns), 1.4 + PANEL_INCHES[1] * len(blocks))
    with svg.theme(), mpl.rc_context({"figure.facecolor": "white", "savefig.facecolor": "white"}):
        figure = Figure(figsize=(max(size[0], 6.4), size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(blocks), len(columns), sharex=True, sharey=True, squeeze=False)
        for y, block in enumerate(blocks):
            for x, num_hidden in enumerate(columns):
                panel = [p for p in points if (p.block, p.num_hidden) == (block, num_hidden)]
                _draw_panel(grid[y, x], panel)
                units = f"{num_hidden} hidden units"
                grid[y, x].set_title(f"{block}, {units}" if len(blocks) > 1 else units,
                                     color=svg.INK, fontsize=svg.FONT_SIZE + 0.5)  # fmt: skip
                if y == len(blocks) - 1:
                    grid[y, x].set_xlabel("labelled pairs trained on")
            grid[y, 0].set_ylabel("mean squared error")
        _label_axes(grid[0, 0], points)
        figure.suptitle("Error by training size (labels scaled to [0, 1])", color=svg.INK,
                        fontsize=svg.FONT_SIZE + 2.5, fontweight="bold")  # fmt: skip
        figure.legend(handles=_legend(quadrants_of(points)), loc="outside lower center", ncols=4,
                      columnspacing=1.4, handlelength=2.4)  # fmt: skip
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(axes: Axes, points: Sequence[SweepPoint]) -> None:
    """Draw one setting: the network a quadrant with its seeds' range, and the baselines."""
    points = sorted(points, key=lambda one: one.num_train_pairs)
    sizes = [one.num_train_pairs for one in points]
    for model, dashes in BLIND.items():
        axes.plot(sizes, [one.error("Q4", model) for one in points], color=svg.GREY, lw=1.3,
                  ls=dashes)  # fmt: skip
    for name in quadrants_of(points):
        spread = np.array([one.spread(name) for one in points])
        axes.fill_between(sizes, spread[:, 0], spread[:, 1], color=COLOURS[name], alpha=0.15, lw=0)
        means = [one.error(name, ROW_COLUMN_MEAN) for one in points]
        axes.plot(sizes, means, color=COLOURS[name], lw=1.2, ls=(0, (4, 2.2)), alpha=0.9)
        axes.plot(sizes, [one.error(name) for one in points], color=COLOURS[name], lw=1.9,
                  marker=MARKERS[name], ms=4.5)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True)


def _label_axes(axes: Axes, points: Sequence[SweepPoint]) -> None:
    """Put ticks at round errors and at the sizes that were trained; panels share them."""
    sizes = sorted({one.num_train_pairs for one in points})
    while len(sizes) > MAX_TICKS:
        sizes = [*sizes[:-1:2], sizes[-1]]
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.0f}"


def _legend(quadrants: Sequence[str]) -> list[Line2D]:
    network = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], ms=4.5, lw=1.9,
               label=MEANINGS[name])
        for name in quadrants
    ]  # fmt: skip
    mean = Line2D([], [], color=svg.MUTED, lw=1.2, ls=(0, (4, 2.2)), label="row + column mean")
    blind = [
        Line2D([], [], color=svg.GREY, lw=1.3, ls=dashes, label=f"always {model}" if model == "zero"
               else "random (Q4)")
        for model, dashes in BLIND.items()
    ]  # fmt: skip
    return [*network, mean, *blind]
