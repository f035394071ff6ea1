"""Pictures of results: how good each method is, and by how much it differs from random.

One picture is one metric on one test set, a panel a mode; methods are the rows of all panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nncift_ray.report import svg
from nncift_ray.report.evaluation_data import (
    FULL,
    INITIAL,
    MODES,
    RANDOM,
    UNTAUGHT,
    Result,
    method_place,
    names_of,
)
from nncift_ray.report.evaluation_words import (
    axis_label,
    decimals_for,
    gain_label,
    list_words,
    metric_of,
    metric_words,
    mode_words,
    verdict_words,
)
from nncift_ray.report.formatting import format_count, format_tick, shorten_middle
from nncift_ray.report.svg import Chart, Panel
from nncift_ray.storage.evaluation_schemas import BETTER, NOISE, WORSE

ROW_INCHES = 0.29
MAX_LABEL_CHARS = 26
COLOURS = {INITIAL: svg.GREY, RANDOM: svg.ORANGE, FULL: svg.MUTED}
TEACHER_COLOUR, NETWORK_COLOUR, SMALL_COLOUR = svg.PURPLE, svg.BLUE, svg.GREEN
MAX_TICKS = 3  # intervals: half a picture is narrow
ROOM_FOR_TEXT = 0.5  # of the widest bar, for the number behind it


def colour_of(method: str) -> str:
    """Return the colour of a method by what stands behind it; its name is always beside it."""
    if method in COLOURS:
        return COLOURS[method]
    kinds = (TEACHER_COLOUR, NETWORK_COLOUR, SMALL_COLOUR)
    return kinds[min(method_place(method)[2], len(kinds) - 1)]


@dataclass(frozen=True, slots=True)
class Setting:
    """The results of one metric on one test set, and the modes and methods to draw them by."""

    test: str
    metric: str
    results: tuple[Result, ...]

    @property
    def modes(self) -> list[str]:
        """Modes that any method has; the untaught model stands in each, or alone."""
        found = {row.mode for row in self.results}
        return [mode for mode in MODES if mode in found] or [UNTAUGHT]

    @property
    def methods(self) -> list[str]:
        """Methods, in the order of the page."""
        return sorted(names_of(self.results, "method"), key=method_place)

    def find(self, method: str, mode: str) -> Result | None:
        """Return the result of a method in a mode; of the untaught model there is one for all."""
        for row in self.results:
            if row.method == method and row.mode in (mode, UNTAUGHT):
                return row
        return None


def setting_of(results: Sequence[Result], test: str, metric: str, budget: float) -> Setting:
    """Choose the results of a metric and test set: of a budget, and those that have none."""
    return Setting(test, metric, tuple(
        row for row in results
        if row.test == test and row.metric == metric
        and (row.budget == budget or row.method in (INITIAL, FULL))
    ))  # fmt: skip


def plot_means(setting: Setting) -> Chart:
    """Draw the mean of every method with its interval, and random's spread as a band."""
    name = f"means-{setting.test}-{setting.metric}"
    title = f"{metric_of(setting.metric).name} on {setting.test}"
    if not any(row.is_measured for row in setting.results):
        return Chart(name, title, missing="no answer has a value of this metric.")
    return Chart(
        name,
        title,
        (Panel(_draw(name, title, setting, _draw_means, axis_label(setting.metric))),),
        sees="the mean over the test rows of every method, with its interval. The orange line is "
        "the mean of the random subsets, the band one standard deviation of their means to each "
        "side.",
        means="bars inside the band do what luck does. Intervals of two methods may overlap "
        "although they differ: the rows are the same, so the next picture compares row by row.",
    )


def plot_gains(setting: Setting) -> Chart:
    """Draw the difference of every method to random of its size, zero in the middle."""
    name = f"gains-{setting.test}-{setting.metric}"
    title = f"Difference to random: {metric_of(setting.metric).name} on {setting.test}"
    compared = tuple(row for row in setting.results if row.is_compared)
    if not compared:
        return Chart(name, title, missing="there is no random subset of the same size beside it.")
    shown = Setting(setting.test, setting.metric, compared)
    return Chart(
        name,
        _gain_title(shown),
        (Panel(_draw(name, title, shown, _draw_gains, gain_label(setting.metric))),),
        sees="the mean difference to random subsets of the same size, row by row, with its "
        "interval. Right of the line is better.",
        means="what is marked ≈ random is within what another random subset might have given. The "
        "more methods stand side by side, the more it takes, so an interval may leave the line out "
        "and still be marked so.",
    )


def _gain_title(shown: Setting) -> str:
    metric = metric_words(shown.metric)
    better: dict[str, list[str]] = {}
    for row in shown.results:
        if row.verdict == BETTER:
            better.setdefault(row.method, []).append(mode_words(row.mode))
    if better:
        several = len(shown.modes) > 1
        names = [f"{name} ({list_words(modes)})" if several else name
                 for name, modes in better.items()]  # fmt: skip
        verb = "beat" if len(better) > 1 else "beats"
        return f"{list_words(names)} {verb} random on {shown.test} in {metric}"
    if all(row.verdict == NOISE for row in shown.results):
        return f"No method differs from random on {shown.test} in {metric}"
    if all(row.verdict is None for row in shown.results):
        return f"Difference to random on {shown.test} in {metric}; no verdict is possible"
    return f"No method beats random on {shown.test} in {metric}"


def _draw(
    name: str, label: str, setting: Setting, draw: Callable[[Axes, Setting, str], None], unit: str
) -> str:
    """Draw a panel a mode, methods as rows of all."""
    modes, methods = setting.modes, setting.methods
    with svg.theme():
        figure, first = svg.new_axes(1.0 + ROW_INCHES * len(methods))
        figure.clear()
        grid = figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
        for axes, mode in zip(grid, modes, strict=True):
            axes.set_title(mode_words(mode), loc="left", color=svg.INK, fontsize=svg.FONT_SIZE)
            draw(axes, setting, mode)
            axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
            axes.grid(axis="x")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
            axes.spines["left"].set_visible(False)
        labels = [shorten_middle(method, MAX_LABEL_CHARS) for method in methods]
        grid[0].set_yticks(_places(methods), labels)
        grid[0].set_ylim(-0.6, len(methods) - 0.4)
        figure.supxlabel(unit, fontsize=svg.FONT_SIZE, color=svg.MUTED)
        return svg.to_svg(figure, name, label)


def _places(methods: Sequence[str]) -> list[int]:
    """Return where methods stand, the first on top."""
    return list(range(len(methods)))[::-1]


def _draw_means(axes: Axes, setting: Setting, mode: str) -> None:
    lowest = min([metric_of(setting.metric).lowest, *_finite(setting, "low")])
    widest = max([*_finite(setting, "high"), *_finite(setting, "mean")])
    width = widest - lowest or 1.0
    for place, method in zip(_places(setting.methods), setting.methods, strict=True):
        row = setting.find(method, mode)
        _write(axes, widest + 0.04 * width, place, _number(row))
        if row is None or not row.is_measured:
            continue
        axes.barh(place, row.mean - lowest, left=lowest, height=0.62, color=colour_of(method),
                  alpha=0.75, linewidth=0)  # fmt: skip
        if math.isfinite(row.low + row.high):
            axes.hlines(place, row.low, row.high, color=svg.INK, linewidth=1.3)
    _draw_band(axes, setting.find(RANDOM, mode))
    axes.set_xlim(lowest, widest + ROOM_FOR_TEXT * width)
    _set_ticks(axes, lowest, widest)


def _write(axes: Axes, x: float, place: int, text: str) -> None:
    """Write a word or number behind a row."""
    axes.text(x, place, text, va="center", color=svg.INK, fontsize=svg.FONT_SIZE - 1)


def _set_ticks(axes: Axes, low: float, high: float) -> None:
    """Put a few short ticks where data are; what lies beyond is room for text."""
    ticks = MaxNLocator(MAX_TICKS, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])


def _number(row: Result | None) -> str:
    """Write a mean, and what is not there."""
    if row is None:
        return "not measured"
    missing = f"{format_count(row.num_missing)} missing" if row.num_missing else ""
    if not row.is_measured:
        return missing
    mean = f"{row.mean:,.{decimals_for((row.high - row.low) / 2)}f}"
    return f"{mean}, {missing}" if missing else mean


def _draw_band(axes: Axes, random: Result | None) -> None:
    """Draw the mean of the random subsets, and how far their means lie apart."""
    if random is None or not random.is_measured:
        return
    axes.axvline(random.mean, color=svg.ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    if random.num_seeds > 1 and math.isfinite(random.seed_deviation):
        low, high = random.mean - random.seed_deviation, random.mean + random.seed_deviation
        axes.axvspan(low, high, color=svg.ORANGE, alpha=0.18, linewidth=0, zorder=0)


def _draw_gains(axes: Axes, setting: Setting, mode: str) -> None:
    ends = np.array([each for row in setting.results for each in (row.gain, *row.gain_interval)])
    reach = float(np.abs(ends[np.isfinite(ends)]).max(initial=0.0)) or 1.0
    axes.axvline(0, color=svg.INK, linewidth=1.2)
    for place, method in zip(_places(setting.methods), setting.methods, strict=True):
        row = setting.find(method, mode)
        there = row is not None and row.is_compared
        _write(axes, 1.1 * reach, place, verdict_words(row) if row and there else "not measured")
        if row is None or not there:
            continue
        low, high = row.gain_interval
        if math.isfinite(low + high):
            axes.hlines(place, low, high, color=colour_of(method), linewidth=2)
        sure = row.verdict in (BETTER, WORSE)
        axes.plot([row.gain], [place], "o", color=colour_of(method), markersize=6.5,
                  markerfacecolor=colour_of(method) if sure else svg.CARD)  # fmt: skip
    axes.set_xlim(-1.06 * reach, (1.1 + 0.95) * reach)
    _set_ticks(axes, -reach, reach)


def _finite(setting: Setting, column: str) -> list[float]:
    values = [float(getattr(row, column)) for row in setting.results]
    return [value for value in values if math.isfinite(value)]
