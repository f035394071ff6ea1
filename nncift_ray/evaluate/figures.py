"""What the pages and tables of an evaluation show: one frozen record of its tables.

Everything here lies in the files of a finished evaluation, so its pages can be written anew without
computing anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from nncift_ray.evaluate.metrics import MANY_UNREADABLE, VerdictReport, describe_verdicts
from nncift_ray.evaluate.statistics import LOWER_IS_BETTER
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
from nncift_ray.runtime import schemas
from nncift_ray.runtime.schemas import BETTER, NOISE, WORSE

INITIAL, RANDOM, FULL = "initial", "random", "full"
TUNED, ICL, UNTAUGHT = "tuned", "icl", "none"
MODES = (TUNED, ICL)  # in the order of the page
JUDGE = "judge"
_KINDS = ("", NN_CIFT, SMALL_LM)  # of a teacher's method, in the order of the page


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Everything the report of one evaluation needs, in memory.

    Tables follow ``storage/evaluation_schemas.py``; any of them may have no row, and its place then
    says so. Nothing is read from the clock or the machine, so the same data give the same bytes.
    """

    name: str
    summary: pa.Table  # SUMMARY
    scores: pa.Table = field(default_factory=schemas.SCORES.empty_table)
    costs: pa.Table = field(default_factory=schemas.COSTS.empty_table)
    agreement: pa.Table = field(default_factory=schemas.AGREEMENT.empty_table)
    fidelity: pa.Table = field(default_factory=schemas.NETWORK_FIDELITY.empty_table)
    answers: pa.Table = field(default_factory=schemas.ANSWERS.empty_table)
    confidence: float = 0.95
    num_candidates: int = 0
    model: str = ""  # that was taught
    judge: str = ""  # model that graded answers
    created: str = ""  # shown as it stands, e.g. "2026-11-20 14:03 UTC"
    version: str = ""
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    environment: Mapping[str, object] = field(default_factory=dict[str, object])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])  # label -> path
    notices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One row of SUMMARY; NaN where it is null."""

    method: str
    budget: float
    num_examples: int
    mode: str
    test: str
    metric: str
    num_seeds: int
    num_rows: int
    num_missing: int
    mean: float
    low: float
    high: float
    seed_deviation: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    adjusted_p_value: float
    verdict: str | None

    @property
    def is_measured(self) -> bool:
        """Whether any row has a value."""
        return math.isfinite(self.mean)

    @property
    def is_compared(self) -> bool:
        """Whether there is a random subset of the same size to compare with."""
        return math.isfinite(self.difference)

    @property
    def gain(self) -> float:
        """By how much it is better than random; below 0: worse, whichever way the metric counts."""
        return -self.difference if self.metric in LOWER_IS_BETTER else self.difference

    @property
    def gain_interval(self) -> tuple[float, float]:
        """Interval of ``gain``."""
        if self.metric in LOWER_IS_BETTER:
            return -self.difference_high, -self.difference_low
        return self.difference_low, self.difference_high


@dataclass(frozen=True, slots=True)
class Cost:
    """One row of COSTS."""

    method: str
    step: str
    num_candidates: int
    seconds: float
    accelerator_seconds: float
    cpu_seconds: float
    num_tokens: int | None
    price: float
    extrapolated: bool
    shared: bool
    labelled_fraction: float | None

    @property
    def is_whole(self) -> bool:
        """Whether it is a method's whole way, and not one of its steps."""
        return self.step == schemas.ALL_STEPS


def costs_of(costs: pa.Table) -> list[Cost]:
    """Read COSTS by size of the corpus, then methods in the order of the page."""
    rows = [Cost(**row) for row in costs.to_pylist()]
    return sorted(rows, key=lambda row: (
        row.num_candidates, method_place(row.method), row.extrapolated
    ))  # fmt: skip


def results_of(summary: pa.Table) -> list[Result]:
    """Read SUMMARY in the order of the page: tests as they come, metrics, budgets, methods."""
    rows = [Result(**_filled(row)) for row in summary.to_pylist()]
    tests, metrics = (list(dict.fromkeys(names)) for names in
                      ((row.test for row in rows), (row.metric for row in rows)))  # fmt: skip
    return sorted(rows, key=lambda row: (
        tests.index(row.test), metrics.index(row.metric), mode_place(row.mode),
        row.budget, method_place(row.method),
    ))  # fmt: skip


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: math.nan if value is None and name != "verdict" else value
        for name, value in row.items()
    }


def mode_place(mode: str) -> int:
    """Place a mode in the order of the page; the untaught model comes first."""
    return MODES.index(mode) + 1 if mode in MODES else 0


def method_place(name: str) -> tuple[int, str, int]:
    """Place a method in the order of the page: a teacher, and what stands in for it, together."""
    if name in (INITIAL, RANDOM):
        return (INITIAL, RANDOM).index(name), "", 0
    if name == FULL:
        return 3, "", 0
    prefix, _, teacher = name.rpartition("+")
    return 2, teacher, _KINDS.index(prefix) if prefix in _KINDS else len(_KINDS)


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


# Names, units and verdicts of an evaluation in words: the same in terminal, page and Markdown.

MODE_NAMES = {TUNED: "fine-tuned", ICL: "in context"}
#: A result within noise is printed as what it is.
VERDICT_WORDS = {BETTER: "better", WORSE: "worse", NOISE: "≈ random"}
#: Of a comparison with one random subset, or of one row.
NO_VERDICT = "no verdict"
MAX_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is written."""

    name: str
    unit: str = ""
    sentence: str = ""  # its name within a sentence; "": the same
    lowest: float = 0.0  # where its axis begins


METRICS = {
    "nll": Metric("NLL", "nats a token"),
    "rouge1": Metric("ROUGE-1 F", "0 to 1"),
    "rougeL": Metric("ROUGE-L F", "0 to 1"),
    "bge": Metric("Embedding cosine", "at most 1", "embedding cosine"),
    "exact_match": Metric("Exact match", "share of rows", "exact match"),
    JUDGE: Metric("Judge", "1 to 5", "the judge's grade", lowest=1.0),
}


def metric_of(name: str) -> Metric:
    """Return how a metric is written; one of another name is written as it is."""
    return METRICS.get(name, Metric(name))


def metric_words(name: str) -> str:
    """Name a metric within a sentence."""
    return metric_of(name).sentence or metric_of(name).name


def axis_label(name: str) -> str:
    """Name a metric, its unit, and which way is better."""
    metric = metric_of(name)
    better = "less is better" if name in LOWER_IS_BETTER else "more is better"
    return f"{metric.name} ({', '.join(filter(None, (metric.unit, better)))})"


def gain_label(name: str) -> str:
    """Name the axis of a difference to random that points right where it is better."""
    metric = metric_of(name)
    way = "lower" if name in LOWER_IS_BETTER else "higher"
    return f"{metric.name}: by how much {way} than random"


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
    """Write by how much a result differs from random, with its interval, in the metric's unit."""
    low, high = row.gain_interval
    half = (high - low) / 2
    decimals = decimals_for(half)
    way = row.metric in LOWER_IS_BETTER
    word = ("lower" if way else "higher") if row.gain >= 0 else ("higher" if way else "lower")
    text = f"{abs(row.gain):,.{decimals}f}"
    return f"{text} {word}" if math.isfinite(row.gain) else MISSING


def interval_words(row: Result) -> str:
    """Write the difference to random as the table has it: "-0.05 [-0.08, -0.02]"."""
    if not row.is_compared or not math.isfinite(row.difference):
        return MISSING
    decimals = decimals_for((row.difference_high - row.difference_low) / 2)
    low, high = row.difference_low, row.difference_high
    ends = f" [{low:+.{decimals}f}, {high:+.{decimals}f}]" if math.isfinite(low + high) else ""
    return f"{row.difference:+,.{decimals}f}{ends}".replace("-", "−")


def list_words(parts: Sequence[str]) -> str:
    """Join parts as a sentence does: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


# Pictures of results: how good each method is, and by how much it differs from random.

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


# Picture of what a selection costs: a teacher beside what stands in for it.

PREFIX = f"{NN_CIFT}+"
#: Where a time axis has marks, in seconds.
TIME_MARKS = {
    0.01: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s", 60.0: "1 min", 600.0: "10 min",
    3600.0: "1 h", 3.6e4: "10 h", 3.6e5: "100 h", 3.6e6: "1,000 h", 3.6e7: "10,000 h",
    3.6e8: "100,000 h", 3.6e9: "1,000,000 h",
}  # fmt: skip


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
        seconds = self.teacher.seconds
        return 1 - self.own.seconds / seconds if seconds > 0 else math.nan


def savings_of(costs: pa.Table) -> list[Saving]:
    """Pair every network's method with its teacher on as many candidates (COSTS).

    Where the teacher was asked about a part only, it is its cost for all of them that is compared.
    """
    rows: dict[tuple[str, int], Cost] = {}
    for row in whole_ways(costs):  # extrapolated ones come last
        rows[row.method, row.num_candidates] = row
    found: list[Saving] = []
    for (method, num_candidates), own in rows.items():
        teacher = rows.get((method.removeprefix(PREFIX), num_candidates))
        if method.startswith(PREFIX) and teacher is not None:
            found.append(Saving(own, teacher))
    return found


def whole_ways(costs: pa.Table) -> list[Cost]:
    """Return what the whole way of every method cost."""
    return [row for row in costs_of(costs) if row.is_whole]


def saving_words(saving: Saving) -> str:
    """Say in one clause what a network saves: "nn_cift+delift takes 93 % less time than delift"."""
    if not math.isfinite(saving.share):
        return f"{saving.own.method}: its teacher's time is not known"
    way = "less" if saving.share >= 0 else "more"
    words = f"{format_percent(abs(saving.share))} {way} time than {saving.teacher.method}"
    return f"{saving.own.method} takes {words}{' (extrapolated)' if saving.extrapolated else ''}"


def plot_costs(costs: pa.Table) -> Chart:
    """Draw the seconds of every method on a log axis, a panel a size of the corpus."""
    rows = [row for row in whole_ways(costs) if row.seconds > 0]
    if not rows:
        return Chart("costs", "What the choice costs", missing="no stage has recorded its time.")
    sizes = sorted({row.num_candidates for row in rows})
    panels: list[Panel] = []
    with svg.theme():
        for size in sizes:
            here = [row for row in rows if row.num_candidates == size]
            methods = sorted({row.method for row in here}, key=method_place)
            figure, axes = svg.new_axes(0.75 + ROW_INCHES * len(methods))
            _draw_cost_plots(axes, here, methods)
            label = f"Seconds of every method on {size} candidates"
            marked = " (extrapolated)" if all(row.extrapolated for row in here) else ""
            panels.append(Panel(svg.to_svg(figure, f"costs-{size}", label),
                                f"{format_count(size)} candidates{marked}"))  # fmt: skip
    return Chart(
        "costs",
        "Time of every method, from the corpus to its subset",
        tuple(panels),
        sees="the time each method's whole way took, from reading the corpus to its subset, on a "
        "log scale: each mark is six or ten times the one before. Hollow: not run, worked out from "
        "what was.",
        means="every method is charged with all it rests on, so work that several share is counted "
        "for each of them.",
    )


def _draw_cost_plots(axes: Axes, rows: Sequence[Cost], methods: Sequence[str]) -> None:
    marks = _marks_around([row.seconds for row in rows])
    words = {method: "; ".join(_words(row) for row in rows if row.method == method)
             for method in methods}  # fmt: skip
    axes.set_xscale("log")
    # Room for the words behind the last mark: as much of the axis as the longest of them takes.
    room = (marks[-1] / marks[0]) ** (0.03 * max(map(len, words.values())))
    axes.set_xlim(marks[0], marks[-1] * room)
    for place, method in enumerate(reversed(methods)):
        own = sorted((row for row in rows if row.method == method),
                     key=lambda row: row.seconds)  # fmt: skip
        axes.hlines(place, marks[0], own[-1].seconds, color=svg.GRID, linewidth=1.4, zorder=0)
        for row in own:
            fill = svg.CARD if row.extrapolated else colour_of(method)
            axes.plot([row.seconds], [place], "o", color=colour_of(method), markersize=8,
                      markerfacecolor=fill)  # fmt: skip
        axes.annotate(words[method], (own[-1].seconds, place), (9, 0), textcoords="offset points",
                      va="center", color=svg.INK, fontsize=svg.FONT_SIZE - 1)  # fmt: skip
    labels = [shorten_middle(method, MAX_LABEL_CHARS) for method in reversed(methods)]
    axes.set_yticks(range(len(methods)), labels)
    axes.set_ylim(-0.6, len(methods) - 0.4)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(marks, [TIME_MARKS[mark] for mark in marks])
    axes.grid(axis="x")
    axes.set_xlabel("time (log)")


def _marks_around(seconds: Sequence[float]) -> list[float]:
    """Return the marks of a time axis from the last below all times to the first above them."""
    below = [mark for mark in TIME_MARKS if mark <= min(seconds)]
    above = [mark for mark in TIME_MARKS if mark >= max(seconds)]
    first = max(below, default=min(TIME_MARKS))
    last = min(above, default=max(TIME_MARKS))
    return [mark for mark in TIME_MARKS if first <= mark <= last]


def _words(row: Cost) -> str:
    return format_seconds(row.seconds) + (" extrapolated" if row.extrapolated else "")


# Picture of learning curves: what a metric does as subsets grow.

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


# Picture of what a judge said: how often each grade, and how often nothing that could be read.

GRADES = (1, 2, 3, 4, 5)
UNREADABLE = None
LEAST_TO_WRITE = 0.07  # share of a bar that holds a number


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of a judge on the answers of one method."""

    test: str
    mode: str
    method: str
    budget: float
    counts: Mapping[int | None, int]  # by grade; None: unreadable or missing

    @property
    def total(self) -> int:
        """All answers, those without a readable verdict included."""
        return sum(self.counts.values())

    def share(self, grade: int | None) -> float:
        """Return the share of all answers with a grade; None: without one."""
        return self.counts.get(grade, 0) / self.total if self.total else 0.0


def verdicts_of(scores: pa.Table) -> list[Verdicts]:
    """Count the verdicts of every method, mode, budget and test set (SCORES); seeds together."""
    judged = scores.filter(pc.equal(scores["metric"], pa.scalar(JUDGE)))
    names = ("test", "mode", "method", "budget")
    counts: dict[tuple[str, str, str, float], Counter[int | None]] = {}
    columns = [judged[name].to_pylist() for name in (*names, "value")]
    for test, mode, method, budget, value in zip(*columns, strict=True):
        grade = UNREADABLE if value is None or math.isnan(value) else round(value)
        key = (str(test), str(mode), str(method), float(budget))
        counts.setdefault(key, Counter())[grade] += 1
    found = [Verdicts(*key, counts=each) for key, each in counts.items()]
    return sorted(found, key=lambda one: (
        one.test, mode_place(one.mode), method_place(one.method), one.budget
    ))  # fmt: skip


def judge_report(verdicts: Sequence[Verdicts]) -> VerdictReport | None:
    """Say what a judge is worth, over all its verdicts; None where there is none."""
    total = Counter[int | None]()
    for one in verdicts:
        total.update(one.counts)
    return describe_verdicts(list(total.elements())) if total else None


def verdict_notices(verdicts: Sequence[Verdicts]) -> list[str]:
    """Say what a judge is worth that babbles, or has one answer to all; and what is missing."""
    report = judge_report(verdicts)
    if report is None:
        return []
    if report.kind != "usable" or report.unreadable_fraction > MANY_UNREADABLE:
        return [f"Judge: {report.sentence}"]
    if not report.num_unreadable:
        return []
    return [
        f"Judge: {format_count(report.num_unreadable)} of {format_count(report.num_verdicts)} "
        "verdicts could not be read or are missing; they are not in the means."
    ]


def plot_verdicts(scores: pa.Table, test: str, budget: float) -> Chart:
    """Draw the share of every grade as stacked bars, a panel a mode."""
    name, title = f"verdicts-{test}", f"What the judge said on {test}"
    found = [
        one for one in verdicts_of(scores)
        if one.test == test and (one.budget in (budget, 0.0, 1.0))
    ]  # fmt: skip
    if not any(one.total for one in found):
        return Chart(name, title, missing="no answer was judged.")
    modes = [mode for mode in MODES if any(one.mode == mode for one in found)] or [UNTAUGHT]
    panels: list[Panel] = []
    with svg.theme():
        for mode in modes:
            here = [one for one in found if one.mode in (mode, UNTAUGHT)]
            here.sort(key=lambda one: method_place(one.method))
            figure, axes = svg.new_axes(0.95 + ROW_INCHES * len(here))
            _draw_verdict_plots(axes, here)
            label = f"Share of every grade on {test}, {mode_words(mode)}"
            panels.append(Panel(svg.to_svg(figure, f"{name}-{mode}", label), mode_words(mode)))
    return Chart(
        name,
        _title(found, title),
        tuple(panels),
        sees="the share of answers that got each grade; hatched: the verdict could not be read or "
        "is missing.",
        means="a judge that gives everyone the same grade, or cannot be read, measures nothing: "
        "its mean is then no result.",
    )


def _title(found: Sequence[Verdicts], title: str) -> str:
    notices = verdict_notices(found)
    return notices[0].removeprefix("Judge: ") if notices else title


def _draw_verdict_plots(axes: Axes, verdicts: Sequence[Verdicts]) -> None:
    for place, one in enumerate(reversed(verdicts)):
        left = 0.0
        for grade in (*GRADES, UNREADABLE):
            share = one.share(grade)
            if share:
                _segment(axes, place, left, share, grade)
            left += share
        axes.text(1.015, place, f"{format_count(one.total)}", va="center", color=svg.MUTED,
                  fontsize=svg.FONT_SIZE - 1)  # fmt: skip
    # All pictures of a test set show one size, so the methods' names are enough.
    names = [shorten_middle(one.method, MAX_LABEL_CHARS) for one in reversed(verdicts)]
    axes.set_yticks(range(len(verdicts)), names)
    axes.set_ylim(-0.6, len(verdicts) - 0.4)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [format_percent_tick(x / 4) for x in range(5)])
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of answers; behind the bar, their number")
    handles = [Patch(**_style(grade), label=f"{grade}") for grade in GRADES]
    handles.append(Patch(**_style(UNREADABLE), label="unreadable"))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=6,
                handlelength=1.1, columnspacing=1.0, borderaxespad=0.2)  # fmt: skip


def _segment(axes: Axes, place: int, left: float, share: float, grade: int | None) -> None:
    axes.barh(place, share, left=left, height=0.66, **_style(grade))
    if grade is not UNREADABLE and share >= LEAST_TO_WRITE:
        axes.text(left + share / 2, place, f"{grade}", ha="center", va="center", color=svg.INK,
                  fontsize=svg.FONT_SIZE - 1)  # fmt: skip


def _style(grade: int | None) -> dict[str, Any]:
    """Return how a grade's part of a bar looks: darker is better, so it reads without colour."""
    if grade is None:
        return {"facecolor": "none", "edgecolor": svg.GREY, "hatch": "////", "linewidth": 0.8}
    alphas = {1: 0.08, 2: 0.2, 3: 0.34, 4: 0.5, 5: 0.68}
    return {"facecolor": (svg.BLUE, alphas[grade]), "edgecolor": svg.GREY, "linewidth": 0.6}
