"""Pictures of the selection: gain curve and coverage."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from nncift_ray.report import svg
from nncift_ray.report.formatting import (
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    format_tick,
)
from nncift_ray.report.headline import F64, numbers
from nncift_ray.report.svg import Chart, Panel

MAX_CURVE_POINTS = 400
LOG_GAIN_RATIO = 30.0  # above it small gains would lie on the axis of a linear scale
NUM_COVERAGE_BINS = 25
MAX_BOUND_SHOWN = 2.0  # of the final value: above it the curve would be squeezed


def thin_curve(num_points: int, max_points: int = MAX_CURVE_POINTS) -> np.ndarray:
    """Choose which points of a long curve to draw: first and last, dense at the steep start.

    Returns:
        Ascending distinct indices [P], P <= max_points.
    """
    if num_points <= max_points:
        return np.arange(num_points)
    half = max_points // 2
    even = np.linspace(0, num_points - 1, half)
    early = np.geomspace(1, num_points, max_points - half) - 1
    return np.unique(np.rint(np.concatenate([even, early])).astype(np.int64))


def plot_gain_curve(
    ranking: pa.Table,
    random_objective: float | None = None,
    *,
    upper_bound: float | None = None,
    log_x: bool = False,
) -> Chart:
    """Draw the objective after each pick and the gain of each pick (a RANKING table).

    ``upper_bound`` is a value that no subset within the budget exceeds.
    """
    title = "Gain curve"
    objective, gain = numbers(ranking, "objective"), numbers(ranking, "gain")
    final = float(objective[-1]) if len(objective) else math.nan
    if not (math.isfinite(final) and final > 0):
        reason = "there is no pick, or the objective has no positive final value to scale by."
        return Chart("gain", title, missing=reason)
    share = objective / final
    knee = _first_at(share, 0.9)
    with svg.theme():
        figure, _ = svg.new_axes(3.75)
        figure.clear()
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
        _draw_objective(top, share, knee, random_objective, final, log_x=log_x)
        _draw_bound(top, upper_bound, final)
        _draw_gains(bottom, gain)
        figure.align_ylabels()
        picture = svg.to_svg(figure, "gain", "Objective and gain by number of picks")
    return Chart(
        "gain",
        _gain_title(share, knee),
        (Panel(picture),),
        sees="the value of the subset after each pick, as a share of its final value (above), and "
        "what each pick added when it was made (below).",
        means=_gain_meaning(share, random_objective, final) + _bound_meaning(upper_bound, final),
    )


def _first_at(share: F64, level: float) -> int:
    """Return the 1-based pick at which the curve first reaches ``level``."""
    reached = np.flatnonzero(share >= level - 1e-12)
    return int(reached[0]) + 1 if len(reached) else len(share)


def _gain_title(share: F64, knee: int) -> str:
    num_picks = len(share)
    if num_picks == 1:
        return "One pick makes the whole objective"
    part = format_percent(knee / num_picks)
    return (
        f"90 % of the objective is reached after {format_count(knee)} picks, {part} of the budget"
    )


def _gain_meaning(share: F64, random_objective: float | None, final: float) -> str:
    num_picks = len(share)
    before = float(share[-1 - max(num_picks // 10, 1)]) if num_picks > 1 else 0.0
    last = 1 - before
    text = f"the last tenth of the picks adds {format_percent(last)} of the value"
    text += (
        "; a smaller budget would lose little."
        if last < 0.03
        else "; the curve still rises, so a larger budget would still pay."
    )
    if random_objective is not None and math.isfinite(random_objective):
        random_share = format_percent(random_objective / final)
        text += f" A random subset of the same size reaches {random_share} of it."
    return text


def _bound_meaning(upper_bound: float | None, final: float) -> str:
    if upper_bound is None or upper_bound < final:
        return ""
    least = math.floor(1000 * final / upper_bound) / 10  # a promise is rounded down
    return (
        f" No subset within the budget can be worth more than the green line: this one has at "
        f"least {least:g} % of the best possible value."
    )


def _draw_bound(axes: Axes, upper_bound: float | None, final: float) -> None:
    """Draw the line that no subset within the budget exceeds."""
    if upper_bound is None or upper_bound < final:
        return
    level = upper_bound / final
    axes.set_ylim(axes.get_ylim()[0], max(1.06, 1.13 * min(level, MAX_BOUND_SHOWN)))
    if level > MAX_BOUND_SHOWN:
        return
    axes.axhline(level, color=svg.GREEN, linewidth=1.4, linestyle=(0, (1, 1.5)))
    axes.annotate(
        f"no subset exceeds {format_percent(level)}",
        (0, level),
        xycoords=("axes fraction", "data"),
        xytext=(8, 4),
        textcoords="offset points",
        color=svg.GREEN,
    )


def _draw_objective(
    axes: Axes,
    share: F64,
    knee: int,
    random_objective: float | None,
    final: float,
    *,
    log_x: bool,
) -> None:
    keep = thin_curve(len(share))
    picks = keep + 1
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:  # the empty subset is worth nothing
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        keep_share = np.concatenate([[0.0], share[keep]])
        picks = np.concatenate([[0], picks])
    values = share[keep] if log_x else keep_share
    axes.fill_between(picks, values, color=svg.BLUE, alpha=0.12, linewidth=0)
    axes.plot(picks, values, color=svg.BLUE, linewidth=2.2, solid_capstyle="round")
    axes.grid(axis="y")
    axes.set_ylim(min(0.0, float(values.min())), 1.06)
    axes.set_xlim(1 if log_x else 0, max(len(share), 2 if log_x else 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.set_ylabel("objective, share of final")
    if len(share) > 1:
        axes.plot([knee], [share[knee - 1]], "o", color=svg.BLUE, markeredgecolor=svg.CARD)
        side = "left" if knee < 0.6 * len(share) else "right"
        axes.annotate(
            f"90 % at {format_count(knee)}",
            (knee, share[knee - 1]),
            xytext=(8 if side == "left" else -8, -13),
            textcoords="offset points",
            ha=side,
        )
    if random_objective is not None and math.isfinite(random_objective):
        level = random_objective / final
        axes.axhline(level, color=svg.ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
        # The half of the line that the 90 % mark leaves free.
        at_right = knee < 0.5 * len(share)
        axes.annotate(
            "random subset, same size",
            (1 if at_right else 0, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4 if at_right else 8, -12),
            textcoords="offset points",
            ha="right" if at_right else "left",
            color=svg.ORANGE,
        )


def _draw_gains(axes: Axes, gain: F64) -> None:
    keep = thin_curve(len(gain))
    values = gain[keep]
    positive = values[values > 0]
    if len(positive) == len(values) and positive.max() > LOG_GAIN_RATIO * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    marker = "o" if len(values) < 20 else ""
    axes.plot(keep + 1, values, color=svg.GREEN, linewidth=1.6, marker=marker, markersize=4)
    axes.grid(axis="y")
    axes.set_ylabel("gain of pick")
    axes.set_xlabel("number of picks")


def plot_coverage(coverage: pa.Table, ground_set: str) -> Chart:
    """Draw how well the rows of the ground set are covered by their best pick (COVERAGE)."""
    values = numbers(coverage, "coverage")
    covered = coverage["covered_by"].is_valid().to_numpy() & np.isfinite(values)
    if not len(values):
        return Chart("coverage", "Coverage", missing="the coverage table has no row.")
    num_rows, num_covered = len(values), int(covered.sum())
    median = float(np.median(values[covered])) if num_covered else math.nan
    with svg.theme():
        figure, axes = svg.new_axes(2.75)
        _draw_coverage(axes, values[covered], num_rows, median)
        axes.set_ylabel(f"share of {ground_set}")
        picture = svg.to_svg(figure, "coverage", "Histogram of coverage")
    left_out = 1 - num_covered / num_rows
    title = f"Half of the covered {ground_set} reach {format_number(median, 2)} or better"
    if not num_covered:
        title = f"No pick stands in the list of any of the {format_count(num_rows)} {ground_set}"
    elif left_out > 0:
        title += f"; {format_percent(left_out)} have no pick in their list"
    means = f"{ground_set} far to the left are those the subset does not speak to."
    if left_out > 0:
        means += (
            f" {format_count(num_rows - num_covered)} of them have no pick among their best "
            "helpers: a longer helper list or a larger budget would reach them."
        )
    return Chart(
        "coverage",
        title,
        (Panel(picture),),
        sees=f"for each of the {format_count(num_rows)} {ground_set}, the influence of its best "
        "pick (0: the lowest of all scores, 1: the highest).",
        means=means,
    )


def _draw_coverage(axes: Axes, values: F64, num_rows: int, median: float) -> None:
    low = 0.0
    if len(values) and float(values.min()) > 0.5:
        low = math.floor(float(values.min()) * 20) / 20  # all the detail lies on the right
    edges = np.linspace(low, 1.0, NUM_COVERAGE_BINS + 1)
    counts, _ = np.histogram(np.clip(values, low, 1.0), bins=edges)
    heights = counts / num_rows
    axes.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color=svg.BLUE)
    axes.set_xlim(low, 1.0)
    axes.grid(axis="y")
    axes.set_xlabel("coverage: scaled influence of the best pick")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    if math.isfinite(median):
        right = median < low + 0.6 * (1 - low)
        axes.axvline(median, color=svg.INK, linewidth=1.4)
        axes.margins(y=0.16)
        axes.annotate(
            f"median {format_number(median, 2)}",
            (median, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5 if right else -5, -9),
            textcoords="offset points",
            ha="left" if right else "right",
        )
