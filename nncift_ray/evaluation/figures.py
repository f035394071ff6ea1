"""An evaluation as it is shown: rows of its tables, words for them, and pictures.

The same words stand in the terminal, on the page and in Markdown. Pictures are of means,
differences to random, learning curves, costs and verdicts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from nncift_ray.evaluation.methods import DRAWN, FULL, ICL, INITIAL, RANDOM, TUNED, UNTAUGHT
from nncift_ray.evaluation.metrics import LOWER_IS_BETTER
from nncift_ray.recipe.sections import NN_CIFT, SMALL_LM
from nncift_ray.report import figures as svg
from nncift_ray.report.figures import Chart, Panel
from nncift_ray.report.text import (
    MISSING,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    format_seconds,
    format_tick,
    shorten_middle,
)
from nncift_ray.runtime.schemas import ALL_STEPS, BETTER, NOISE, WORSE

MODES = (TUNED, ICL)  # in the order of the page
MODE_NAMES = {TUNED: "fine-tuned", ICL: "in context"}
_KINDS = ("", NN_CIFT, SMALL_LM)  # of a teacher's method, in the order of the page
VERDICT_WORDS = {BETTER: "better", WORSE: "worse", NOISE: "≈ random"}
#: Of a comparison with one random subset, or of one row.
NO_VERDICT = "no verdict"
MAX_DECIMALS = 6


class Result(SimpleNamespace):
    """One row of SUMMARY, its columns as attributes; NaN where a number is null."""

    @property
    def is_measured(self) -> bool:
        """Whether any row has a value."""
        return math.isfinite(self.mean)

    @property
    def is_compared(self) -> bool:
        """Whether there is a random subset of the same size to compare with."""
        return math.isfinite(self.difference)

    @property
    def gain(self) -> tuple[float, float, float]:
        """By how much it is better than random, whichever way the metric counts; low and high."""
        if self.metric in LOWER_IS_BETTER:
            return -self.difference, -self.difference_high, -self.difference_low
        return self.difference, self.difference_low, self.difference_high


def results_of(summary: pa.Table) -> list[Result]:
    """Read SUMMARY in the order of the page: tests as they come, metrics, budgets, methods."""
    rows = [
        Result(**{n: math.nan if v is None and n != "verdict" else v for n, v in row.items()})
        for row in summary.to_pylist()
    ]
    tests, metrics = names_of(rows, "test"), names_of(rows, "metric")
    return sorted(rows, key=lambda row: (
        tests.index(row.test), metrics.index(row.metric), mode_place(row.mode),
        row.budget, method_place(row.method),
    ))  # fmt: skip


class Cost(SimpleNamespace):
    """One row of COSTS, its columns as attributes."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a method's whole way, and not one of its steps."""
        return self.step == ALL_STEPS


def costs_of(costs: pa.Table) -> list[Cost]:
    """Read COSTS by size of the corpus, then methods in the order of the page."""
    rows = [Cost(**row) for row in costs.to_pylist()]
    return sorted(
        rows, key=lambda row: (row.num_candidates, method_place(row.method), row.extrapolated)
    )


@dataclass(frozen=True, slots=True)
class Saving:
    """What a network saves of its teacher's cost, on the same candidates."""

    own: Cost
    teacher: Cost

    @property
    def extrapolated(self) -> bool:
        """Whether either of the two was not run."""
        return self.own.extrapolated or self.teacher.extrapolated

    @property
    def share(self) -> float:
        """Share of the teacher's seconds that is saved; below 0: it takes longer."""
        return 1 - self.own.seconds / self.teacher.seconds

    def __str__(self) -> str:
        """Return it as a clause: "nn_cift+delift takes 93 % less time than delift"."""
        way = "less" if self.share >= 0 else "more"
        marked = " (extrapolated)" if self.extrapolated else ""
        share = format_percent(abs(self.share))
        return f"{self.own.method} takes {share} {way} time than {self.teacher.method}{marked}"


def savings_of(costs: pa.Table) -> list[Saving]:
    """Pair every network's method with its teacher on as many candidates (COSTS).

    Where the teacher was asked about a part only, it is its cost for all of them that is compared.
    """
    rows = {(row.method, row.num_candidates): row for row in costs_of(costs) if row.is_whole}
    found: list[Saving] = []
    for (method, num_candidates), own in rows.items():
        prefix, _, name = method.rpartition("+")
        teacher = rows.get((name, num_candidates))
        if prefix == NN_CIFT and teacher is not None and teacher.seconds > 0:
            found.append(Saving(own, teacher))
    return found


def mode_place(mode: str) -> int:
    """Place a mode in the order of the page; the untaught model comes first."""
    return MODES.index(mode) + 1 if mode in MODES else 0


def method_place(name: str) -> tuple[int, str, int]:
    """Place a method in the order of the page: a teacher, and what stands in for it, together."""
    if name in (INITIAL, *DRAWN):
        return (INITIAL, *DRAWN).index(name), "", 0
    if name == FULL:
        return 4, "", 0
    prefix, _, teacher = name.rpartition("+")
    return 3, teacher, _KINDS.index(prefix) if prefix in _KINDS else len(_KINDS)


def first_budget(results: Sequence[Result]) -> float:
    """Return the budget that most methods have; of several the smallest. NaN where none has one."""
    counts: dict[float, set[str]] = {}
    for row in results:
        if row.method not in (INITIAL, FULL):
            counts.setdefault(row.budget, set()).add(row.method)
    most = max((len(methods) for methods in counts.values()), default=0)
    return min((b for b, methods in counts.items() if len(methods) == most), default=math.nan)


def names_of(results: Sequence[Result], column: str) -> list[str]:
    """List what a column of results names, in the order of the page."""
    return list(dict.fromkeys(str(getattr(row, column)) for row in results))


class Metric(NamedTuple):
    """How a metric is written."""

    name: str
    unit: str = ""
    sentence: str = ""  # its name within a sentence; "": the same


METRICS = {
    "nll": Metric("NLL", "nats a token"),
    "rouge1": Metric("ROUGE-1 F", "0 to 1"),
    "rougeL": Metric("ROUGE-L F", "0 to 1"),
    "bge": Metric("Embedding cosine", "at most 1", "embedding cosine"),
    "exact_match": Metric("Exact match", "share of rows", "exact match"),
    "judge": Metric("Judge", "1 to 5", "the judge's grade"),
}


def metric_of(name: str) -> Metric:
    """Return how a metric is written; one of another name is written as it is."""
    return METRICS.get(name, Metric(name))


def metric_words(name: str) -> str:
    """Name a metric within a sentence."""
    return metric_of(name).sentence or metric_of(name).name


def budget_words(budget: float, method: str = "") -> str:
    """Write a budget: a share of the candidates."""
    if method == INITIAL or budget == 0:
        return "no data"
    return "all" if method == FULL or budget == 1 else f"{100 * budget:g} %"


def mode_words(mode: str) -> str:
    """Write how a subset is used."""
    return MODE_NAMES.get(mode, "untaught")


def decimals_for(half: float) -> int:
    """Return the decimals that an interval of this half-width leaves meaning in."""
    if not (math.isfinite(half) and half > 0):
        return 3
    return min(max(1 - math.floor(math.log10(half) + 1e-9), 0), MAX_DECIMALS)


def mean_words(row: Result) -> str:
    """Write a mean and half its interval: "2.31 ± 0.05"; a dash where no row has a value."""
    if not row.is_measured:
        return MISSING
    half = (row.high - row.low) / 2
    if not math.isfinite(half):
        return format_number(row.mean)
    decimals = decimals_for(half)
    return f"{row.mean:,.{decimals}f} ± {half:.{decimals}f}"


def verdict_words(row: Result) -> str:
    """Write what the comparison with random says; "" where there is nothing to compare with."""
    return VERDICT_WORDS.get(row.verdict or "", NO_VERDICT if row.is_compared else "")


def gain_words(row: Result) -> str:
    """Write by how much a result differs from random, in the metric's unit: "0.05 lower"."""
    if not row.is_compared:
        return MISSING
    decimals = decimals_for((row.difference_high - row.difference_low) / 2)
    return f"{abs(row.difference):,.{decimals}f} {'lower' if row.difference < 0 else 'higher'}"


def interval_words(row: Result) -> str:
    """Write the difference to random as the table has it: "-0.05 [-0.08, -0.02]"."""
    if not row.is_compared:
        return MISSING
    low, high = row.difference_low, row.difference_high
    decimals = decimals_for((high - low) / 2)
    ends = f" [{low:+.{decimals}f}, {high:+.{decimals}f}]" if math.isfinite(low + high) else ""
    return f"{row.difference:+,.{decimals}f}{ends}".replace("-", "−")


def list_words(parts: Sequence[str]) -> str:
    """Join parts as a sentence does: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


# Pictures.

ROW_INCHES = 0.29
MAX_LABEL_CHARS = 26
COLOURS = {INITIAL: svg.GREY, RANDOM: svg.ORANGE, FULL: svg.MUTED}
KIND_COLOURS = (svg.PURPLE, svg.BLUE, svg.GREEN)  # a teacher, a network over it, a small model
#: Where a time axis has marks, in seconds.
TIME_MARKS = {
    0.01: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 60.0: "1 min", 600.0: "10 min",
    3600.0: "1 h", 3.6e4: "10 h", 3.6e5: "100 h", 3.6e6: "1,000 h", 3.6e7: "10,000 h",
    3.6e8: "100,000 h", 3.6e9: "1,000,000 h",
}  # fmt: skip
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")


def colour_of(method: str) -> str:
    """Return the colour of a method by what stands behind it; its name is always beside it."""
    if method in COLOURS:
        return COLOURS[method]
    return KIND_COLOURS[min(method_place(method)[2], len(KIND_COLOURS) - 1)]


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of a picture: a value with its interval, and words behind it."""

    method: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    words: str = "not measured"
    is_hollow: bool = False


@dataclass(frozen=True, slots=True)
class DotPanel:
    """Rows beside each other's, with a line across and a band around it."""

    title: str
    dots: Sequence[Dot]
    line: float = math.nan
    band: float = math.nan  # to each side of the line


def draw_dots(
    name: str, label: str, unit: str, panels: Sequence[DotPanel], *, times: bool = False
) -> str:
    """Draw methods as rows, a panel beside the other, all on one axis; ``times``: a log axis."""
    methods = [dot.method for dot in panels[0].dots]
    with svg.theme():
        figure, first = svg.new_axes(1.0 + ROW_INCHES * len(methods))
        first.remove()
        grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            axes.set_title(panel.title, loc="left", color=svg.INK, fontsize=svg.FONT_SIZE)
            _draw_panel(axes, panel)
        if times:
            _mark_times(grid[0], [dot.value for panel in panels for dot in panel.dots])
        else:
            grid[0].xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            grid[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
        _name_rows(grid[0], methods)
        figure.supxlabel(unit, fontsize=svg.FONT_SIZE, color=svg.MUTED)
        return svg.to_svg(figure, name, label)


def _draw_panel(axes: Axes, panel: DotPanel) -> None:
    if math.isfinite(panel.line):
        axes.axvline(panel.line, color=svg.ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    if math.isfinite(panel.band):
        axes.axvspan(panel.line - panel.band, panel.line + panel.band, color=svg.ORANGE,
                     alpha=0.18, linewidth=0, zorder=0)  # fmt: skip
    for place, dot in enumerate(reversed(panel.dots)):
        colour = colour_of(dot.method)
        axes.text(1.02, place, dot.words, transform=axes.get_yaxis_transform(), va="center",
                  color=svg.INK, fontsize=svg.FONT_SIZE - 1)  # fmt: skip
        if math.isfinite(dot.low + dot.high):
            axes.hlines(place, dot.low, dot.high, color=colour, linewidth=2)
        axes.plot([dot.value], [place], "o", color=colour, markersize=6.5,
                  markerfacecolor=svg.CARD if dot.is_hollow else colour)  # fmt: skip
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _name_rows(axes: Axes, methods: Sequence[str]) -> None:
    labels = [shorten_middle(method, MAX_LABEL_CHARS) for method in reversed(methods)]
    axes.set_yticks(range(len(methods)), labels)
    axes.set_ylim(-0.6, len(methods) - 0.4)


def _mark_times(axes: Axes, seconds: Sequence[float]) -> None:
    """Put marks from the last below all times to the first above them."""
    low = max((m for m in TIME_MARKS if m <= min(seconds)), default=min(TIME_MARKS))
    high = min((m for m in TIME_MARKS if m >= max(seconds)), default=max(TIME_MARKS))
    marks = [mark for mark in TIME_MARKS if low <= mark <= high]
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 1.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(marks, [TIME_MARKS[mark] for mark in marks])


# Results: how good each method is, and by how much it differs from random.


def _modes_of(results: Sequence[Result]) -> list[str]:
    """Return the modes that any method has; the untaught model stands in each, or alone."""
    found = {row.mode for row in results}
    return [mode for mode in MODES if mode in found] or [UNTAUGHT]


def _find(results: Sequence[Result], method: str, mode: str) -> Result | None:
    """Return a method's result in a mode; of the untaught model there is one for all."""
    hits = (row for row in results if row.method == method and row.mode in (mode, UNTAUGHT))
    return next(hits, None)


def plot_means(results: Sequence[Result], test: str, metric: str) -> Chart:
    """Draw the mean of every method with its interval, and random's spread as a band.

    ``results`` are those of the test set, metric and one size.
    """
    name, title = f"means-{test}-{metric}", f"{metric_of(metric).name} on {test}"
    if not any(row.is_measured for row in results):
        return Chart(name, title, missing="no answer has a value of this metric.")
    panels: list[DotPanel] = []
    for mode in _modes_of(results):
        dots = [
            Dot(method) if row is None
            else Dot(method, row.mean, row.low, row.high, _mean_and_missing(row))
            for method in sorted(names_of(results, "method"), key=method_place)
            for row in [_find(results, method, mode)]
        ]  # fmt: skip
        random = _find(results, RANDOM, mode)
        line, band = (random.mean, random.seed_deviation) if random else (math.nan, math.nan)
        panels.append(DotPanel(mode_words(mode), dots, line, band))
    way = "less is better" if metric in LOWER_IS_BETTER else "more is better"
    unit = ", ".join(filter(None, (metric_of(metric).unit, way)))
    return Chart(
        name,
        title,
        (Panel(draw_dots(name, title, f"{metric_of(metric).name} ({unit})", panels)),),
    )


def _mean_and_missing(row: Result) -> str:
    mean = f"{row.mean:,.{decimals_for((row.high - row.low) / 2)}f}" if row.is_measured else ""
    missing = f"{format_count(row.num_missing)} missing" if row.num_missing else ""
    return ", ".join(filter(None, (mean, missing)))


def plot_gains(results: Sequence[Result], test: str, metric: str) -> Chart:
    """Draw the difference of every method to random of its size, zero in the middle."""
    name = f"gains-{test}-{metric}"
    compared = [row for row in results if row.is_compared]
    if not compared:
        title = f"Difference to random: {metric_of(metric).name} on {test}"
        return Chart(name, title, missing="there is no random subset of the same size beside it.")
    methods = sorted(names_of(compared, "method"), key=method_place)
    panels = [
        DotPanel(
            mode_words(mode),
            [
                Dot(method) if row is None
                else Dot(method, *row.gain, verdict_words(row), row.verdict not in (BETTER, WORSE))
                for method in methods
                for row in [_find(compared, method, mode)]
            ],
            line=0.0,
        )
        for mode in _modes_of(compared)
    ]  # fmt: skip
    way = "lower" if metric in LOWER_IS_BETTER else "higher"
    unit = f"{metric_of(metric).name}: by how much {way} than random"
    title = _gain_title(compared, test, metric)
    return Chart(
        name,
        title,
        (Panel(draw_dots(name, title, unit, panels)),),
    )


def _gain_title(compared: Sequence[Result], test: str, metric: str) -> str:
    words = metric_words(metric)
    better: dict[str, list[str]] = {}
    for row in compared:
        if row.verdict == BETTER:
            better.setdefault(row.method, []).append(mode_words(row.mode))
    if better:
        several = len(_modes_of(compared)) > 1
        names = [f"{name} ({list_words(modes)})" if several else name
                 for name, modes in better.items()]  # fmt: skip
        verb = "beat" if len(better) > 1 else "beats"
        return f"{list_words(names)} {verb} random on {test} in {words}"
    if all(row.verdict == NOISE for row in compared):
        return f"No method differs from random on {test} in {words}"
    if all(row.verdict is None for row in compared):
        return f"Difference to random on {test} in {words}; no verdict is possible"
    return f"No method beats random on {test} in {words}"


def plot_costs(costs: pa.Table) -> Chart:
    """Draw the seconds of every method on a log axis, a picture a size of the corpus."""
    rows = [row for row in costs_of(costs) if row.is_whole and row.seconds > 0]
    if not rows:
        return Chart("costs", "What the choice costs", missing="no stage has recorded its time.")
    panels: list[Panel] = []
    for size in sorted({row.num_candidates for row in rows}):
        here = [row for row in rows if row.num_candidates == size]
        label = f"Seconds of every method on {size} candidates"
        marked = " (extrapolated)" if all(row.extrapolated for row in here) else ""
        dots = DotPanel("", [_cost_dot(row) for row in here])
        picture = draw_dots(f"costs-{size}", label, "time (log)", [dots], times=True)
        panels.append(Panel(picture, f"{format_count(size)} candidates{marked}"))
    return Chart(
        "costs",
        "Time of every method, from the corpus to its subset",
        tuple(panels),
    )


def _cost_dot(row: Cost) -> Dot:
    words = format_seconds(row.seconds) + (" extrapolated" if row.extrapolated else "")
    return Dot(row.method, row.seconds, words=words, is_hollow=row.extrapolated)


# Learning curves: what a metric does as subsets grow.


def plot_curves(results: Sequence[Result], test: str, metric: str) -> Chart | None:
    """Draw a metric by budget for the methods that have several; None where none has.

    ``results`` are those of the test set and metric, of all sizes.
    """
    rows = [row for row in results if row.is_measured]
    budgets = {(row.method, row.budget) for row in rows}
    counts = Counter(method for method, _ in budgets)
    drawn = [method for method in sorted(counts, key=method_place) if counts[method] > 1]
    if not drawn:
        return None
    name, modes = f"curve-{test}-{metric}", _modes_of(rows)
    better = "less" if metric in LOWER_IS_BETTER else "more"
    title = f"{metric_of(metric).name} on {test} by size of the subset ({better} is better)"
    with svg.theme():
        figure, first = svg.new_axes(3.1)
        first.remove()
        grid = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
        for axes, mode in zip(grid, modes, strict=True):
            axes.set_title(mode_words(mode), loc="left", color=svg.INK, fontsize=svg.FONT_SIZE)
            _draw_curves(axes, [row for row in rows if row.mode in (mode, UNTAUGHT)], drawn)
        figure.supxlabel("size of the subset, share of the candidates (log)",
                         fontsize=svg.FONT_SIZE, color=svg.MUTED)  # fmt: skip
        grid[0].set_ylabel(metric_of(metric).name)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=2.2)
        picture = svg.to_svg(figure, name, title)
    return Chart(
        name,
        title,
        (Panel(picture),),
    )


def _draw_curves(axes: Axes, rows: Sequence[Result], drawn: Sequence[str]) -> None:
    for number, method in enumerate(drawn):
        own = [row for row in rows if row.method == method]
        size, mean = (np.array([getattr(row, name) for row in own]) for name in ("budget", "mean"))
        if method == RANDOM:
            spread = np.array([row.seed_deviation for row in own])
            axes.fill_between(size, mean - spread, mean + spread, color=svg.ORANGE, alpha=0.18,
                              linewidth=0)  # fmt: skip
        ends = np.array([[row.mean - row.low, row.high - row.mean] for row in own]).T
        alike = [name for name in drawn[:number] if colour_of(name) == colour_of(method)]
        axes.errorbar(
            # Sizes are the same for all methods: a small shift keeps their intervals apart.
            size * 1.02 ** (number - (len(drawn) - 1) / 2),
            mean, yerr=np.nan_to_num(np.maximum(ends, 0.0)), color=colour_of(method),
            linewidth=1.7, elinewidth=1.1, linestyle=DASHES[len(alike) % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)], markersize=5, label=method,
        )  # fmt: skip
    for row in rows:
        if row.method in (INITIAL, FULL):
            dashes = (0, (1, 1.5)) if row.method == INITIAL else (0, (5, 2))
            axes.axhline(row.mean, color=colour_of(row.method), linewidth=1.3, linestyle=dashes,
                         label=row.method)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.budget for row in rows if row.method in drawn}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.grid(axis="y")
