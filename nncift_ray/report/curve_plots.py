"""Picture of learning curves: what a metric does as subsets grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from nncift_ray.core.evaluation.comparison import LOWER_IS_BETTER
from nncift_ray.report import svg
from nncift_ray.report.evaluation_data import FULL, INITIAL, RANDOM, Result
from nncift_ray.report.evaluation_plots import Setting, colour_of
from nncift_ray.report.evaluation_words import metric_of, mode_words
from nncift_ray.report.formatting import format_percent_tick, format_tick
from nncift_ray.report.svg import Chart, Panel

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
Dashes = Literal["-", "--", "-.", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":")
LEVELS = {INITIAL: (0, (1, 1.5)), FULL: (0, (5, 2))}  # a line each: they have one size only


def plot_curves(results: Sequence[Result], test: str, metric: str) -> Chart | None:
    """Draw a metric by budget for the methods that have several; None where none has."""
    rows = tuple(row for row in results if row.test == test and row.metric == metric)
    budgets = {row.method: set[float]() for row in rows}
    for row in rows:
        if row.is_measured:
            budgets[row.method].add(row.budget)
    curves = {method for method, sizes in budgets.items() if len(sizes) > 1}
    if not curves:
        return None
    name = f"curve-{test}-{metric}"
    better = "less" if metric in LOWER_IS_BETTER else "more"
    title = f"{metric_of(metric).name} on {test} by size of the subset ({better} is better)"
    setting = Setting(test, metric, tuple(
        row for row in rows if row.method in curves or row.method in LEVELS
    ))  # fmt: skip
    drawn = [method for method in setting.methods if method in curves]
    with svg.theme():
        figure, _ = svg.new_axes(3.1)
        figure.clear()
        grid = figure.subplots(1, len(setting.modes), sharey=True, squeeze=False)[0]
        for axes, mode in zip(grid, setting.modes, strict=True):
            axes.set_title(mode_words(mode), loc="left", color=svg.INK, fontsize=svg.FONT_SIZE)
            _draw_panel(axes, setting, drawn, mode)
        figure.supxlabel("size of the subset, share of the candidates (log)",
                         fontsize=svg.FONT_SIZE, color=svg.MUTED)  # fmt: skip
        grid[0].set_ylabel(metric_of(metric).name)
        figure.legend(handles=_legend(setting, drawn), loc="outside upper left", ncols=2,
                      handlelength=2.2)  # fmt: skip
        picture = svg.to_svg(figure, name, title)
    return Chart(
        name,
        title,
        (Panel(picture),),
        sees="the mean over the test rows by the size of the subset, with its interval; for random "
        "a band of one standard deviation of its subsets. Lines across: the model taught with "
        "nothing, and with all candidates.",
        means="a curve that is flat from some size on says that more examples of this corpus teach "
        "nothing more.",
    )


def _draw_panel(axes: Axes, setting: Setting, drawn: Sequence[str], mode: str) -> None:
    for number, method in enumerate(drawn):
        rows = sorted(
            (row for row in setting.results
             if row.method == method and row.mode == mode and row.is_measured),
            key=lambda row: row.budget,
        )  # fmt: skip
        size = np.array([row.budget for row in rows])
        mean = np.array([row.mean for row in rows])
        if method == RANDOM:
            spread = np.array([row.seed_deviation for row in rows])
            axes.fill_between(size, mean - spread, mean + spread, color=svg.ORANGE, alpha=0.18,
                              linewidth=0)  # fmt: skip
        # Sizes are the same for all methods: a small shift keeps their intervals apart.
        shifted = size * 1.02 ** (number - (len(drawn) - 1) / 2)
        ends = [[row.mean - row.low for row in rows], [row.high - row.mean for row in rows]]
        axes.errorbar(shifted, mean, yerr=np.nan_to_num(np.maximum(ends, 0.0)),
                      color=colour_of(method), linewidth=1.7, elinewidth=1.1,
                      linestyle=_dashes(drawn, method),
                      marker=_marker(number), markersize=5)  # fmt: skip
    for method, dashes in LEVELS.items():
        row = setting.find(method, mode)
        if row is not None and math.isfinite(row.mean):
            axes.axhline(row.mean, color=colour_of(method), linewidth=1.3, linestyle=dashes)
    _label_sizes(axes, setting)


def _label_sizes(axes: Axes, setting: Setting) -> None:
    sizes = sorted({row.budget for row in setting.results if row.method not in LEVELS})
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    axes.set_xticks(sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.grid(axis="y")


def _dashes(drawn: Sequence[str], method: str) -> Dashes:
    """Return a line style that tells methods of one colour apart."""
    alike = [name for name in drawn if colour_of(name) == colour_of(method)]
    return DASHES[alike.index(method) % len(DASHES)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _legend(setting: Setting, drawn: Sequence[str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=colour_of(method), marker=_marker(number), markersize=5,
               linewidth=1.7, linestyle=_dashes(drawn, method), label=method)
        for number, method in enumerate(drawn)
    ]  # fmt: skip
    there = [method for method in LEVELS if method in setting.methods]
    return lines + [
        Line2D([], [], color=colour_of(method), linewidth=1.3, linestyle=LEVELS[method],
               label=method)
        for method in there
    ]  # fmt: skip
