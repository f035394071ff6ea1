"""Pictures of pool and subset side by side: the mix of sources or tasks, the lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nncift_ray.report import svg
from nncift_ray.report.data import Lengths, MixRow
from nncift_ray.report.formatting import (
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    shorten_middle,
)
from nncift_ray.report.headline import F64, mix_shares
from nncift_ray.report.svg import Chart, Panel

MAX_GROUPS = 20
MAX_LABEL_CHARS = 32
NUM_LENGTH_BINS = 32
QUOTA_ROOM = 1.3  # of the longest bar: quotas further right are not drawn
NO_REDUNDANCY = "Each pick stands on its own score, so a group may be picked far beyond its use."


def plot_mix(mix: Sequence[MixRow], group_name: str, *, ranks_by_score: bool = False) -> Chart:
    """Draw the share of each group in the subset (bar) beside its share in the pool (tick)."""
    pool, subset = mix_shares(mix)
    if len(mix) < 2:
        only = f"all examples come from one {group_name}." if mix else "no group was recorded."
        return Chart("mix", f"Mix by {group_name}", missing=only)
    order = np.argsort(-np.abs(subset - pool), kind="stable")
    shown, rest = order[:MAX_GROUPS], order[MAX_GROUPS:]
    shown = shown[np.lexsort((pool[shown], subset[shown]))]  # largest at the top of the picture
    labels = [shorten_middle(clean_text(mix[i].group), MAX_LABEL_CHARS) for i in shown]
    others = ""
    if len(rest):  # as a bar they would dwarf the rest
        shares = (format_percent(float(part[rest].sum())) for part in (subset, pool))
        others = " The other {} hold {} of the subset and {} of the pool.".format(
            len(rest), *shares
        )
    with svg.theme():
        figure, axes = svg.new_axes(0.75 + 0.22 * len(labels))
        _draw_mix(axes, labels, pool[shown], subset[shown], [mix[i] for i in shown])
        picture = svg.to_svg(figure, "mix", f"Share by {group_name} in pool and subset")
    return Chart(
        "mix",
        _mix_title(mix, pool, subset),
        (Panel(picture),),
        sees=f"each {group_name}'s share of the subset (bar) and of the pool (dark tick), the "
        f"{len(shown)} that moved most; the number is subset over pool."
        + (" Orange marks are quotas." if _has_quotas(mix) else "")
        + others,
        means=f"what grew has higher scores than the pool. {NO_REDUNDANCY}"
        if ranks_by_score
        else "what grew helps more rows than its size says; what shrank repeats what others "
        "already give, or helps few.",
    )


def _mix_title(mix: Sequence[MixRow], pool: F64, subset: F64) -> str:
    change = subset - pool
    up, down = int(np.argmax(change)), int(np.argmin(change))
    if change[up] < 0.005:
        return "The subset keeps the mix of the pool"
    first, second = (shorten_middle(mix[i].group, 28) for i in (up, down))
    return (
        f"“{first}” grows from {format_percent(pool[up])} to {format_percent(subset[up])}, "
        f"“{second}” shrinks from {format_percent(pool[down])} to {format_percent(subset[down])}"
    )


def _has_quotas(mix: Sequence[MixRow]) -> bool:
    return any(row.least or row.most is not None for row in mix)


def _quota_shares(mix: Sequence[MixRow], num_picks: int, limit: float) -> list[list[float]]:
    """Return the quotas of each row as shares of the picks, those that lie in the picture."""
    quotas = [(row.least or None, row.most) for row in mix]
    return [
        [
            quota / num_picks if quota is not None and quota / num_picks <= limit else math.nan
            for quota in pair
        ]
        for pair in quotas
    ]


def _draw_mix(axes: Axes, labels: list[str], pool: F64, subset: F64, mix: Sequence[MixRow]) -> None:
    rows = np.arange(len(labels))
    colours = [svg.BLUE if s >= p else svg.GREY for p, s in zip(pool, subset, strict=True)]
    axes.barh(rows, subset, height=0.62, color=colours)
    axes.vlines(pool, rows - 0.4, rows + 0.4, color=svg.INK, linewidth=2.0)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    span = float(max(pool.max(), subset.max()))
    picks = round(max(sum(row.subset for row in mix) / max(float(subset.sum()), 1e-12), 1.0))
    quotas = np.array(_quota_shares(mix, picks, QUOTA_ROOM * span)).reshape(-1, 2)
    span = float(np.nanmax([span, *quotas.ravel()]))
    axes.set_xlim(0, 1.17 * span)
    for shares, marker in zip(quotas.T, (">", "<"), strict=True):
        axes.plot(shares, rows, marker, color=svg.ORANGE, markersize=5, zorder=5)
    for row, (p, s) in enumerate(zip(pool, subset, strict=True)):
        ratio = f"×{format_number(s / p, 2)}" if p > 0 else "new"
        end = float(np.nanmax([p, s, *quotas[row]]))
        axes.text(end + 0.02 * span, row, ratio, va="center", color=svg.MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    tick = Line2D([], [], color=svg.INK, marker="|", markersize=10, markeredgewidth=2, linestyle="")
    kinds = ((svg.BLUE, "subset, grew"), (svg.GREY, "subset, shrank"))
    marks = [tick]
    if np.isfinite(quotas).any():
        marks.append(
            Line2D([], [], color=svg.ORANGE, marker="<", markersize=5, linestyle="", label="quota")
        )
    patches = [Patch(color=colour, label=label) for colour, label in kinds if colour in colours]
    axes.legend(
        [*patches, *marks],
        [*(str(patch.get_label()) for patch in patches), "pool", "quota"][
            : len(patches) + len(marks)
        ],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=4,
        handlelength=1.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def plot_lengths(pool: Lengths, subset: Lengths) -> Chart:
    """Draw the distribution of lengths (tokens) in pool and subset, on a log axis."""
    title = "Lengths"
    if not len(pool) or not len(subset):
        return Chart("lengths", title, missing="no length was recorded.")
    pool_f, subset_f = (np.maximum(np.asarray(x, dtype=np.float64), 1.0) for x in (pool, subset))
    median_pool, median_subset = float(np.median(pool_f)), float(np.median(subset_f))
    ratio = median_subset / median_pool
    medians = f"median {format_count(median_subset)} against {format_count(median_pool)} tokens"
    title = f"Picks are as long as the pool: {medians}"
    if not 0.95 < ratio < 1.05:
        by = f"{format_number(ratio, 2)} times as long as"
        if ratio < 2:
            by = f"{format_percent(abs(ratio - 1))} {'longer' if ratio > 1 else 'shorter'} than"
        title = f"Picks are {by} the pool: {medians}"
    with svg.theme():
        figure, axes = svg.new_axes(2.75)
        _draw_lengths(axes, pool_f, subset_f)
        picture = svg.to_svg(figure, "lengths", "Histogram of lengths in pool and subset")
    return Chart(
        "lengths",
        title,
        (Panel(picture),),
        sees="the share of examples by length in tokens, prompt and response together.",
        means="a subset much longer than its pool costs more to train on per example: compare "
        "budgets in tokens, not in rows.",
    )


def _draw_lengths(axes: Axes, pool: F64, subset: F64) -> None:
    low, high = pool.min(), max(pool.max(), subset.max())
    edges = np.unique(np.rint(np.geomspace(low, max(high, low + 1) + 1, NUM_LENGTH_BINS + 1)))
    # Steps of one whole token first, wider later: heights are per bin of the log axis.
    width = np.log(edges[1:] / edges[:-1])
    for values, colour, name in ((pool, svg.GREY, "pool"), (subset, svg.BLUE, "subset")):
        counts, _ = np.histogram(values, bins=edges)
        heights = counts / len(values) / width * float(np.median(width))
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
        axes.stairs(heights, edges, color=colour, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.grid(axis="y")
    axes.set_xlabel("tokens")
    axes.legend(loc="best", handlelength=1.2)
