"""Picture of how far the network is from its teacher: error, beside models that know less."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nncift_ray.report import svg
from nncift_ray.report.formatting import format_number, format_percent, format_tick
from nncift_ray.report.headline import (
    F64,
    MEAN,
    NETWORK,
    ROW_COLUMN_MEAN,
    best_baseline,
    metric,
    splits_of,
)
from nncift_ray.report.prediction_plots import split_label
from nncift_ray.report.svg import Chart, Panel
from nncift_ray.storage.schemas import POINTS

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
ROW_SHIFT = {NETWORK: 0.13, ROW_COLUMN_MEAN: -0.13}


def plot_errors(fidelity: pa.Table, block: str, owner: str = "") -> Chart:
    """Draw the scaled MSE of network and baselines by split, log axis (FIDELITY, one block).

    ``owner`` tells the pictures of several networks on one page apart.
    """
    name, title = f"mse-{block}{owner}", title_of("Error", block)
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
        _draw_errors(axes, [split_label(split, block) for split in splits], table)
        picture = svg.to_svg(figure, name, "Mean squared error by split and model")
    return Chart(
        name,
        _error_title(splits, table, block),
        (Panel(picture),),
        sees="the mean squared error on labels scaled to [0, 1], on a log scale: further left is "
        "better.",
        means=_errors_mean(block),
    )


def title_of(measure: str, block: str) -> str:
    """Name a measure without a finding."""
    return f"{measure} on held-out examples" if block == POINTS else f"{measure} by quadrant"


def _errors_mean(block: str) -> str:
    if block == POINTS:
        return (
            "zero and random never see a label; the mean knows the labels and no example. Only "
            "what the network gains over it is knowledge of examples."
        )
    return (
        "zero and random never see a label; the row + column mean knows how good each "
        "example is on average. Only what the network gains over it is knowledge of pairs."
    )


def _error_title(splits: list[str], table: dict[str, F64], block: str) -> str:
    baseline = best_baseline(block)
    known = f"the {MODELS[baseline][0]}" + (" label" if baseline == MEAN else "")
    ratios = table[NETWORK] / np.where(table[baseline] > 0, table[baseline], np.nan)
    usable = [(s, float(r)) for s, r in zip(splits, ratios, strict=True) if math.isfinite(r)]
    if not usable:
        return title_of("Error", block)
    split, ratio = usable[-1]
    if abs(ratio - 1) < SAME_ERROR:
        return f"In {split} the network does about as well as {known}"
    if ratio > 2:
        times = format_number(ratio, 2)
        return f"In {split} the network's error is {times} times that of {known}"
    word = "below" if ratio < 1 else "above"
    change = format_percent(abs(1 - ratio))
    return f"In {split} the network's error is {change} {word} that of {known}"


def _draw_errors(axes: Axes, labels: list[str], table: dict[str, F64]) -> None:
    rows = np.arange(len(labels))[::-1].astype(np.float64)
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
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.5, len(labels) - 0.5)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="both")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("mean squared error, labels scaled to [0, 1] (log)")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
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
