"""Picture of the network's predictions against the teacher's labels."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nncift_ray.report import svg
from nncift_ray.report.data import unit_of
from nncift_ray.report.formatting import format_count, format_number, format_tick
from nncift_ray.report.headline import F64, numbers, splits_of
from nncift_ray.report.svg import Chart, Panel
from nncift_ray.storage.schemas import POINTS

MAX_SCATTER_POINTS = 300  # above it points hide each other and the file grows: draw density
SPLIT_MEANING = {
    "Q1": "both seen",
    "Q2": "one seen",
    "Q3": "one seen",
    "Q4": "neither seen",
}


def split_label(split: str, block: str) -> str:
    """Name a split with what the network saw of its pairs (or examples) in training."""
    meaning = "not seen" if block == POINTS else SPLIT_MEANING.get(split)
    return f"{split}, {meaning}" if meaning else split


def plot_predictions(predictions: pa.Table, block: str) -> Chart:
    """Draw prediction against teacher's label, one panel per quadrant (PREDICTIONS, one block)."""
    name, title, unit = f"scatter-{block}", "Predicted against teacher", unit_of(block)
    utility, influence = numbers(predictions, "utility"), numbers(predictions, "influence")
    finite = np.isfinite(utility) & np.isfinite(influence)
    split = np.asarray(predictions["split"].to_pylist(), dtype=object)
    groups = [(s, finite & (split == s)) for s in splits_of(predictions)]
    groups = [(s, mask) for s, mask in groups if mask.any()]
    if not groups:
        return Chart(name, title, missing=f"none of the held-out {unit} was predicted.")
    everything = np.concatenate([v[mask] for _, mask in groups for v in (utility, influence)])
    limits = _padded_range(everything)
    size = (2.5, svg.PANEL_WIDTH) if len(groups) > 1 else (4.0, svg.FIGURE_WIDTH)
    panels, correlations = [], []
    for s, mask in groups:
        correlations.append(rank_correlation(utility[mask], influence[mask]))
        with svg.theme():
            figure, axes = svg.new_axes(*size)
            _draw_scatter(axes, utility[mask], influence[mask], limits, unit)
            picture = svg.to_svg(figure, f"{name}-{s}", f"Predicted against teacher, {s}")
        panels.append(Panel(picture, split_label(s, block)))
    known = [c for c in correlations if math.isfinite(c)]
    if known:
        reach = f"{format_number(min(known), 2)} to {format_number(max(known), 2)}"
        title = (
            f"Rank correlation with the teacher: {reach if len(known) > 1 else reach.split()[0]}"
        )
    return Chart(
        name,
        title,
        tuple(panels),
        sees=_scatter_sees(block),
        means="on the diagonal the network repeats the teacher; a flat cloud means it predicts "
        f"the mean. {groups[-1][0]} is what selection over unseen {unit} rests on.",
    )


def _scatter_sees(block: str) -> str:
    if block == POINTS:
        return (
            "each held-out example by the teacher's label (across) and the network's prediction "
            "(up); stronger colour: more examples."
        )
    return (
        "each held-out pair by the teacher's label (across) and the network's prediction (up) "
        "by what the network had seen of the two examples; stronger colour: more pairs."
    )


def rank_correlation(left: F64, right: F64) -> float:
    """Return Spearman's correlation (mean ranks for ties), nan where either side is constant."""
    ranks = [_mean_ranks(values) for values in (left, right)]
    if len(left) < 2 or any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: F64) -> F64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _padded_range(values: F64) -> tuple[float, float]:
    """Span the bulk of the values: a few outliers must not push the rest into a corner."""
    low, high = (float(v) for v in np.quantile(values, [0.002, 0.998]))
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad


def _draw_scatter(
    axes: Axes, utility: F64, influence: F64, limits: tuple[float, float], unit: str
) -> None:
    axes.axline((limits[0], limits[0]), slope=1, color=svg.GREY, linewidth=1.2)
    inset = 0.03 * (limits[1] - limits[0])  # outliers stand at the edge, whole
    x, y = (np.clip(v, limits[0] + inset, limits[1] - inset) for v in (utility, influence))
    if len(x) <= MAX_SCATTER_POINTS:
        axes.plot(x, y, "o", color=svg.BLUE, markersize=4, alpha=0.45, markeredgewidth=0)
    else:
        cells = axes.hexbin(x, y, gridsize=24, extent=(*limits, *limits), mincnt=1, linewidths=0)
        counts = np.log1p(np.asarray(cells.get_array(), dtype=np.float64))
        cells.set_array(None)
        # Opacity, not lightness, carries the count: it reads on a light and on a dark page.
        alphas = 0.14 + 0.86 * counts / counts.max()
        cells.set_facecolor([(svg.BLUE, float(alpha)) for alpha in alphas])
        cells.set_edgecolor("none")
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.set_xlabel("teacher")
    axes.set_ylabel("network")
    rho = format_number(rank_correlation(utility, influence), 2)
    text = f"ρ {rho} · {format_count(len(x))} {unit}"
    axes.set_title(text, fontsize=svg.FONT_SIZE, color=svg.INK, loc="left")
