"""Pictures of the network against its teacher: scatter, error, rank correlation."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nncift_ray.report import svg
from nncift_ray.report.formatting import format_count, format_number, format_percent, format_tick
from nncift_ray.report.headline import (
    BEST_BASELINE,
    F64,
    NETWORK,
    metric,
    numbers,
    splits_of,
)
from nncift_ray.report.svg import Chart, Panel

MAX_SCATTER_POINTS = 300  # above it points hide each other and the file grows: draw density
SAME_ERROR = 0.02  # relative difference that a few hundred pairs do not resolve
# Order, colour and marker of the models; the markers tell them apart without colour.
MODELS = {
    "network": ("network", svg.BLUE, "o"),
    "row_column_mean": ("row + column mean", svg.ORANGE, "D"),
    "mean": ("mean", svg.GREEN, "s"),
    "zero": ("zero", svg.PURPLE, "^"),
    "random": ("random", svg.GREY, "v"),
}
# The two that are compared most stand a little apart, so that equal errors do not hide each other.
ROW_SHIFT = {NETWORK: 0.13, BEST_BASELINE: -0.13}
SPLIT_MEANING = {
    "Q1": "both seen",
    "Q2": "one seen",
    "Q3": "one seen",
    "Q4": "neither seen",
}


def split_label(split: str) -> str:
    """Name a split with what the network saw of its pairs in training."""
    meaning = SPLIT_MEANING.get(split)
    return f"{split}, {meaning}" if meaning else split


def plot_predictions(predictions: pa.Table, block: str) -> Chart:
    """Draw prediction against teacher's label, one panel per quadrant (PREDICTIONS, one block)."""
    name, title = f"scatter-{block}", "Predicted against teacher"
    utility, influence = numbers(predictions, "utility"), numbers(predictions, "influence")
    finite = np.isfinite(utility) & np.isfinite(influence)
    split = np.asarray(predictions["split"].to_pylist(), dtype=object)
    groups = [(s, finite & (split == s)) for s in splits_of(predictions)]
    groups = [(s, mask) for s, mask in groups if mask.any()]
    if not groups:
        return Chart(name, title, missing="no held-out pair was predicted.")
    everything = np.concatenate([v[mask] for _, mask in groups for v in (utility, influence)])
    limits = _padded_range(everything)
    panels, correlations = [], []
    for s, mask in groups:
        correlations.append(rank_correlation(utility[mask], influence[mask]))
        with svg.theme():
            figure, axes = svg.new_axes(2.5, svg.PANEL_WIDTH)
            _draw_scatter(axes, utility[mask], influence[mask], limits)
            picture = svg.to_svg(figure, f"{name}-{s}", f"Predicted against teacher, {s}")
        panels.append(Panel(picture, split_label(s)))
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
        sees="each held-out pair by the teacher's label (across) and the network's prediction (up) "
        "by what the network had seen of the two examples; stronger colour: more pairs.",
        means="on the diagonal the network repeats the teacher; a flat cloud means it predicts "
        "the mean. The last panel is what selection over unseen pairs rests on.",
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


def _draw_scatter(axes: Axes, utility: F64, influence: F64, limits: tuple[float, float]) -> None:
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
    text = f"ρ {rho} · {format_count(len(x))} pairs"
    axes.set_title(text, fontsize=svg.FONT_SIZE, color=svg.INK, loc="left")


def plot_errors(fidelity: pa.Table, block: str) -> Chart:
    """Draw the scaled MSE of network and baselines by split, log axis (FIDELITY, one block)."""
    name, title = f"mse-{block}", "Error by quadrant"
    splits = splits_of(fidelity)
    table = {
        model: np.array([metric(fidelity, split, model, "scaled_mse") for split in splits])
        for model in MODELS
    }
    known = np.concatenate(list(table.values())) if splits else np.array([])
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return Chart(name, title, missing="no error above zero was measured.")
    with svg.theme():
        figure, axes = svg.new_axes(1.0 + 0.37 * len(splits))
        _draw_errors(axes, splits, table)
        picture = svg.to_svg(figure, name, "Mean squared error by quadrant and model")
    return Chart(
        name,
        _error_title(splits, table),
        (Panel(picture),),
        sees="the mean squared error on labels scaled to [0, 1], on a log scale: further left is "
        "better.",
        means="zero and random never see a label; the row + column mean knows how good each "
        "example is on average. Only what the network gains over it is knowledge of pairs.",
    )


def _error_title(splits: list[str], table: dict[str, F64]) -> str:
    ratios = table[NETWORK] / np.where(table[BEST_BASELINE] > 0, table[BEST_BASELINE], np.nan)
    usable = [(s, float(r)) for s, r in zip(splits, ratios, strict=True) if math.isfinite(r)]
    if not usable:
        return "Error by quadrant"
    split, ratio = usable[-1]
    if abs(ratio - 1) < SAME_ERROR:
        return f"In {split} the network does about as well as the row + column mean"
    if ratio > 2:
        times = format_number(ratio, 2)
        return f"In {split} the network's error is {times} times that of the row + column mean"
    word = "below" if ratio < 1 else "above"
    change = format_percent(abs(1 - ratio))
    return f"In {split} the network's error is {change} {word} that of the row + column mean"


def _draw_errors(axes: Axes, splits: list[str], table: dict[str, F64]) -> None:
    rows = np.arange(len(splits))[::-1].astype(np.float64)
    for model, (label, colour, marker) in reversed(
        MODELS.items()
    ):  # the network comes last, on top
        values = np.where(table[model] > 0, table[model], np.nan)
        if np.isfinite(values).any():
            size = 9 if model == NETWORK else 7
            axes.plot(
                values,
                rows + ROW_SHIFT.get(model, 0.0),
                marker,
                color=colour,
                label=label,
                markersize=size,
                markeredgecolor=svg.CARD,
            )
    axes.set_xscale("log")
    _label_log_axis(axes)
    axes.set_yticks(rows, [split_label(split) for split in splits])
    axes.set_ylim(-0.5, len(splits) - 0.5)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="both")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("mean squared error, labels scaled to [0, 1] (log)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=len(handles),
        handletextpad=0.1,
        columnspacing=0.9,
        borderaxespad=0.2,
        handlelength=1.4,
    )


def _label_log_axis(axes: Axes) -> None:
    """Label decades, and steps inside them where the axis spans less than two."""
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_spearman(fidelity: pa.Table, block: str) -> Chart:
    """Draw Spearman's correlation by split, beside row + column mean (FIDELITY, one block)."""
    name, title = f"spearman-{block}", "Rank correlation by quadrant"
    splits = splits_of(fidelity)
    shown = {
        model: np.array([metric(fidelity, split, model, "spearman") for split in splits])
        for model in (NETWORK, BEST_BASELINE)
    }
    if not splits or not np.isfinite(np.concatenate(list(shown.values()))).any():
        return Chart(
            name, title, missing="no correlation is defined: labels or predictions do not vary."
        )
    network = shown[NETWORK]
    hardest = [i for i in range(len(splits)) if math.isfinite(network[i])]
    if hardest:
        value = float(network[hardest[-1]])
        word = "follows" if value >= 0.3 else "barely follows" if value > 0 else "does not follow"
        title = f"In {splits[hardest[-1]]} the network {word} the teacher's order: {value:.2f}"
    with svg.theme():
        figure, axes = svg.new_axes(1.0 + 0.44 * len(splits))
        _draw_spearman(axes, splits, shown)
        picture = svg.to_svg(figure, name, "Spearman correlation by quadrant")
    return Chart(
        name,
        title,
        (Panel(picture),),
        sees="how well the order of the predictions follows the order of the teacher's labels "
        "(1: the same order, 0: none).",
        means="selection compares scores, so order matters more to it than error.",
    )


def _draw_spearman(axes: Axes, splits: list[str], shown: dict[str, F64]) -> None:
    rows = np.arange(len(splits))[::-1].astype(np.float64)
    for offset, (model, values) in zip((0.19, -0.19), shown.items(), strict=True):
        label, colour, _ = MODELS[model]
        axes.barh(rows + offset, np.nan_to_num(values), height=0.34, color=colour, label=label)
        for row, value in zip(rows + offset, values, strict=True):
            text = f"{value:.2f}" if math.isfinite(value) else "not defined"
            at = max(float(np.nan_to_num(value)), 0.0)
            axes.text(at + 0.012, row, text, va="center", color=svg.INK)
    lowest = float(np.nan_to_num(np.concatenate(list(shown.values()))).min())
    axes.set_xlim(min(0.0, lowest * 1.05), 1.0)
    axes.set_yticks(rows, [split_label(split) for split in splits])
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=svg.GREY, linewidth=1)
    axes.set_xlabel("Spearman's rank correlation")
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, handlelength=1.2, borderaxespad=0.2
    )
