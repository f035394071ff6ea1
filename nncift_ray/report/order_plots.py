"""Pictures of how far the network's order is its teacher's: of all pairs, and within rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from nncift_ray.report import svg
from nncift_ray.report.fidelity_plots import MODELS, title_of
from nncift_ray.report.headline import F64, NETWORK, ROW_COLUMN_MEAN, metric, splits_of
from nncift_ray.report.prediction_plots import split_label
from nncift_ray.report.svg import Chart, Panel
from nncift_ray.storage.schemas import POINTS

FOLLOWS = 0.3  # correlation from which on an order is followed
LOWEST_DRAWN = -0.5  # a bar below it is cut; its number still stands there
CHANCE = "chance_overlap"


@dataclass(frozen=True)
class _Measure:
    column: str  # of FIDELITY
    caption: str
    label: str  # under the axis, and for a screen reader


ALL_PAIRS = _Measure("spearman", "Order of all pairs", "Spearman's rank correlation")
WITHIN = _Measure("row_spearman", "Order within a row", "Spearman, mean over rows")
MEASURES = (
    ALL_PAIRS,
    WITHIN,
    _Measure("centred_r2", "Values, rows centred", "R² after row means are removed"),
    _Measure("top_overlap", "Best helpers found", "share of the best quarter"),
)


def plot_order(fidelity: pa.Table, block: str) -> Chart:
    """Draw network beside row + column mean by split, raw and within rows (FIDELITY, one block).

    Examples on their own have no rows of pairs: one panel, of the network alone.
    """
    name, title = f"order-{block}", title_of("Rank correlation", block)
    splits = splits_of(fidelity)
    # A constant such as the mean has no order.
    models = (NETWORK,) if block == POINTS else (NETWORK, ROW_COLUMN_MEAN)
    panels: list[Panel] = []
    for measure in MEASURES[:1] if block == POINTS else MEASURES:
        shown = _read(fidelity, splits, models, measure.column)
        if not splits or not np.isfinite(np.concatenate(list(shown.values()))).any():
            continue
        chance = _read(fidelity, splits, (NETWORK,), CHANCE)[NETWORK]
        with svg.theme():
            width = svg.FIGURE_WIDTH if block == POINTS else svg.PANEL_WIDTH
            figure, axes = svg.new_axes(1.2 + 0.44 * len(splits), width)
            labels = [split_label(s, block) for s in splits] if block == POINTS else splits
            _draw_bars(axes, labels, shown, measure.label)
            if measure.column == "top_overlap":
                _draw_chance(axes, chance)
            picture = svg.to_svg(figure, f"{name}-{measure.column}", f"{measure.caption} by split")
        panels.append(Panel(picture, "" if block == POINTS else measure.caption))
    if not panels:
        missing = "no correlation is defined: labels or predictions do not vary."
        return Chart(name, title, missing=missing)
    return Chart(
        name,
        _finding(fidelity, splits, block) or title,
        tuple(panels),
        sees=_sees(block),
        means=_means(block),
    )


def _finding(fidelity: pa.Table, splits: list[str], block: str) -> str:
    """Say of the hardest split that has one whether the network follows the teacher's order."""
    measures = (ALL_PAIRS,) if block == POINTS else (WITHIN, ALL_PAIRS)
    for measure in measures:
        values = _read(fidelity, splits, (NETWORK,), measure.column)[NETWORK]
        known = [i for i in range(len(splits)) if math.isfinite(values[i])]
        if known:
            value, split = float(values[known[-1]]), splits[known[-1]]
            verb = "follows" if value >= FOLLOWS else "barely follows"
            verb = verb if value > 0 else "does not follow"
            place = "within rows" if measure is WITHIN else ""
            order = f"the teacher's order {place}".rstrip()
            return f"In {split} the network {verb} {order}: {value:.2f}"
    return ""


def _sees(block: str) -> str:
    if block == POINTS:
        return (
            "how well the order of the predictions follows the order of the teacher's labels "
            "(1: the same order, 0: none)."
        )
    return (
        "the teacher's order found again (1: wholly, 0: not at all), over all pairs and within "
        "each row, by what the network had seen. Best helpers: of the quarter of a row's helpers "
        "that the teacher likes best, the share that the model does; the tick is chance."
    )


def _means(block: str) -> str:
    if block == POINTS:
        return "selection compares scores, so order matters more to it than error."
    return (
        "which helpers a row should take does not depend on the row's mean, so the first panel can "
        "look good by telling rows apart; the others cannot. The row + column mean knows which "
        "helpers are good for all; in Q2 and Q4 it never saw them."
    )


def _read(
    fidelity: pa.Table, splits: list[str], models: tuple[str, ...], column: str
) -> dict[str, F64]:
    return {
        model: np.array([metric(fidelity, split, model, column) for split in splits])
        for model in models
    }


def _draw_bars(axes: Axes, labels: list[str], shown: dict[str, F64], name: str) -> None:
    rows = _places(len(labels))
    offsets = (0.19, -0.19) if len(shown) > 1 else (0.0,)
    lowest = min(0.0, *(float(np.nan_to_num(values).min()) for values in shown.values()))
    lowest = max(lowest * 1.05, LOWEST_DRAWN)
    for offset, (model, values) in zip(offsets, shown.items(), strict=True):
        label, colour, _ = MODELS[model]
        bars = np.maximum(np.nan_to_num(values), lowest)
        axes.barh(rows + offset, bars, height=0.34, color=colour, label=label)
        for row, value in zip(rows + offset, values, strict=True):
            text = f"{value:.2f}" if math.isfinite(value) else "not defined"
            at = max(float(np.nan_to_num(value)), 0.0)
            axes.text(at + 0.012, row, text, va="center", color=svg.INK)
    axes.set_xlim(lowest, 1.0)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=svg.GREY, linewidth=1)
    axes.set_xlabel(name)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), handlelength=1.2, borderaxespad=0.2)


def _draw_chance(axes: Axes, chance: F64) -> None:
    for row, value in zip(_places(len(chance)), chance, strict=True):
        if math.isfinite(value):
            axes.plot([value, value], [row - 0.4, row + 0.4], color=svg.INK, linewidth=1.4)


def _places(count: int) -> F64:
    """Return where splits stand, the first on top."""
    return np.arange(count)[::-1].astype(np.float64)
