"""Pictures of scoring all pairs: how scores are distributed, and what pruning finds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nncift_ray.core.pairs.score_histogram import bin_edges, spread_counts
from nncift_ray.report import svg
from nncift_ray.report.data import unit_of
from nncift_ray.report.formatting import (
    format_compact,
    format_number,
    format_percent,
    format_percent_tick,
    format_tick,
)
from nncift_ray.report.headline import blocks_of, numbers, select_block
from nncift_ray.report.svg import Chart, Panel

NUM_BARS = 48
_COUNTED = (
    "; of more than some thousand rows every n-th was counted, of a pruned block the rows held "
    "out, each with all its columns"
)


def plot_histogram(histogram: pa.Table, *, of_labels: bool = False) -> Chart:
    """Draw how the scores of each block are distributed (SCORE_HISTOGRAM, one row a bin).

    Of labels every one is counted.
    """
    blocks = blocks_of(histogram)
    if not blocks:
        return Chart("histogram", "Distribution of scores", missing="nothing was scored.")
    panels: list[Panel] = []
    for block in blocks:
        with svg.theme():
            size = (2.75,) if len(blocks) == 1 else (2.4, svg.PANEL_WIDTH)
            figure, axes = svg.new_axes(*size)
            _draw_histogram(axes, select_block(histogram, block))
            picture = svg.to_svg(figure, f"histogram-{block}", f"Histogram of scores, {block}")
        panels.append(Panel(picture, block if len(blocks) > 1 else ""))
    counted = int(numbers(histogram, "count").sum())
    unit = unit_of(blocks[0])
    which = "" if of_labels or unit == "examples" else _COUNTED
    return Chart(
        "histogram",
        f"Distribution of {format_compact(counted)} scores",
        tuple(panels),
        sees=f"the share of {unit} by score{which}.",
        means="a long thin tail on the right holds what is worth having; where the right edge is "
        "steep, much is nearly as good as the best.",
    )


def _draw_histogram(axes: Axes, histogram: pa.Table) -> None:
    bins = numbers(histogram, "bin").astype(np.int64)
    counts = numbers(histogram, "count").astype(np.int64)
    low, high = bin_edges(bins)
    # Bars narrower than the bins that were counted in would show the bins' edges as steps.
    widest = float((high - low)[np.argmax(counts)])
    num_bars = int(np.clip((high.max() - low.min()) / (2 * widest), 1, NUM_BARS))
    edges = np.linspace(float(low.min()), float(high.max()), num_bars + 1)
    share = spread_counts(bins, counts, edges) / counts.sum()
    axes.stairs(share, edges, fill=True, color=svg.BLUE, alpha=0.35)
    axes.stairs(share, edges, color=svg.BLUE, linewidth=1.4)
    axes.grid(axis="y")
    axes.set_ylim(0, 1.08 * float(share.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.set_xlabel("score, in the teacher's unit")
    axes.set_ylabel("share")


def plot_recall(tried: pa.Table, final: pa.Table, min_recall: float) -> Chart:
    """Draw recall against the share of pairs scored.

    Args:
        tried: Every setting of the search that was tried (RECALL).
        final: Recall of the lists on other rows (ROW_RECALL); empty if the run went exact.
        min_recall: The share that the recipe asks for.
    """
    title = "Recall of the pruned lists"
    blocks = blocks_of(tried)
    if not blocks:
        reason = "no index was searched: every pair was scored."
        return Chart("recall", title, missing=reason)
    panels: list[Panel] = []
    for block in blocks:
        with svg.theme():
            size = (2.75,) if len(blocks) == 1 else (2.5, svg.PANEL_WIDTH)
            figure, axes = svg.new_axes(*size)
            measured = final.filter(pc.field("block") == block)
            _draw_recall(axes, select_block(tried, block), measured, min_recall)
            picture = svg.to_svg(figure, f"recall-{block}", f"Recall by pairs scored, {block}")
        panels.append(Panel(picture, block if len(blocks) > 1 else ""))
    return Chart(
        "recall",
        _recall_title(final, title),
        tuple(panels),
        sees="for each width of the search the share of the true best helpers that it finds on "
        "held-out rows, with two standard errors (dots), the recall asked for (dashed), and the "
        "recall of this run's own lists on other rows (diamond).",
        means="the narrowest search whose bar lies above the dashed line was taken. To the right "
        "recall costs time; what is missing are mostly helpers near the end of a list.",
    )


def _recall_title(final: pa.Table, otherwise: str) -> str:
    if not final.num_rows:
        return f"{otherwise}: tried, and every pair scored instead"
    recall = float(numbers(final, "recall").mean())
    share = float(numbers(final, "scored_fraction").mean())
    return (
        f"{format_percent(recall)} of the true best helpers found by scoring "
        f"{format_percent(share)} of the pairs"
    )


def _draw_recall(axes: Axes, tried: pa.Table, final: pa.Table, min_recall: float) -> None:
    share, recall = numbers(tried, "scored_fraction"), numbers(tried, "recall")
    error = 2 * numbers(tried, "standard_error")
    order = np.argsort(share, kind="stable")
    axes.errorbar(
        share[order], recall[order], error[order],
        color=svg.BLUE, marker="o", markersize=5, linewidth=1.6, elinewidth=1.0, capsize=2,
    )  # fmt: skip
    axes.axhline(min_recall, color=svg.ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
    lowest = min(float((recall - error).min()), min_recall)
    if final.num_rows:
        values = numbers(final, "recall")
        axes.errorbar(
            [float(numbers(final, "scored_fraction").mean())], [float(values.mean())],
            [2 * float(values.std()) / np.sqrt(len(values))],
            color=svg.GREEN, marker="D", markersize=7, elinewidth=1.4, capsize=3, zorder=5,
        )  # fmt: skip
    room = max(1.0 - lowest, 0.01)
    axes.set_ylim(lowest - 0.12 * room, 1.0 + 0.12 * room)
    axes.set_xscale("log")
    axes.set_xlim(0.3 * float(share.min()), 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.grid(axis="y")
    axes.set_xlabel("share of the pairs scored")
    axes.set_ylabel("recall")
    axes.annotate(
        f"asked for: {format_number(min_recall, 3)}", (1, min_recall),
        xycoords=("axes fraction", "data"), xytext=(-4, -12), textcoords="offset points",
        ha="right", color=svg.ORANGE,
    )  # fmt: skip
