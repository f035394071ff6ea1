"""What a person is shown of an evaluation: sentences, tables, pictures, one page, the terminal.

The same words stand in the terminal, on the page and in Markdown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.evaluation.methods import DRAWN, FULL, ICL, INITIAL, RANDOM, TUNED, UNTAUGHT
from nncift_ray.evaluation.metrics import LOWER_IS_BETTER, JudgeReport, describe_verdicts
from nncift_ray.evaluation.results import Evaluation
from nncift_ray.recipe.sections import NN_CIFT, SMALL_LM
from nncift_ray.report import figures as svg
from nncift_ray.report import page
from nncift_ray.report.data import (
    KEY,
    MISSING,
    NUMBER,
    PageTable,
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    format_seconds,
    format_tick,
    format_usd,
    make_table,
    shorten_middle,
)
from nncift_ray.report.figures import Chart
from nncift_ray.runtime.schemas import ALL_STEPS, BETTER, NOISE, WORSE

MODE_NAMES = {TUNED: "fine-tuned", ICL: "in context"}  # in the order of the page
MODES = tuple(MODE_NAMES)
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


def costs_of(costs: pa.Table) -> list[dict[str, Any]]:
    """Read the end-to-end costs (COSTS) by size of the corpus, then method."""
    rows = [row for row in costs.to_pylist() if row["step"] == ALL_STEPS]
    return sorted(
        rows,
        key=lambda row: (row["num_candidates"], method_place(row["method"]), row["extrapolated"]),
    )


class Saving(NamedTuple):
    """What a network saves of its teacher's cost, on the same candidates."""

    own: dict[str, Any]  # rows of COSTS
    teacher: dict[str, Any]
    share: float  # of the teacher's seconds that is saved; below 0: it takes longer
    note: str  # "extrapolated" where either of the two was not run

    def __str__(self) -> str:
        """Return it as a clause: "nn_cift+delift takes 93 % less time than delift"."""
        change = f"{format_percent(abs(self.share))} {'less' if self.share >= 0 else 'more'} time"
        note = f" ({self.note})" if self.note else ""
        return f"{self.own['method']} takes {change} than {self.teacher['method']}{note}"


def savings_of(costs: pa.Table) -> list[Saving]:
    """Pair every network's method with its teacher on as many candidates (COSTS).

    Where the teacher was asked about a part only, it is its cost for all of them that is compared.
    """
    rows = {(row["method"], row["num_candidates"]): row for row in costs_of(costs)}
    found: list[Saving] = []
    for (method, num_candidates), own in rows.items():
        prefix, _, name = method.rpartition("+")
        teacher = rows.get((name, num_candidates))
        if prefix == NN_CIFT and teacher is not None and teacher["seconds"] > 0:
            share = 1 - own["seconds"] / teacher["seconds"]
            note = "extrapolated" if own["extrapolated"] or teacher["extrapolated"] else ""
            found.append(Saving(own, teacher, share, note))
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


#: How a metric is written: its name, its unit, and its name within a sentence.
METRICS = {
    "nll": ("NLL", "nats a token", "NLL"),
    "rouge1": ("ROUGE-1 F", "0 to 1", "ROUGE-1 F"),
    "rougeL": ("ROUGE-L F", "0 to 1", "ROUGE-L F"),
    "bge": ("Embedding cosine", "at most 1", "embedding cosine"),
    "exact_match": ("Exact match", "share of rows", "exact match"),
    "judge": ("Judge", "1 to 5", "the judge's grade"),
}


def metric_words(name: str, *, in_sentence: bool = False) -> str:
    """Name a metric; one of another name is written as it is."""
    return METRICS.get(name, (name, "", name))[2 if in_sentence else 0]


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


# Sentences.

MAX_FINDINGS = 3  # methods told of one test set
JUDGE = "judge"
STYLES = {VERDICT_WORDS[BETTER]: "green", VERDICT_WORDS[WORSE]: "red"}
NO_ANSWER = "no answer: it failed, see the errors table of the stage"


def headline(data: Evaluation) -> list[str]:
    """Say in a sentence a test set which methods beat random, by how much; or that none does.

    Of a method the surest result is told, at the size that most methods have if there is one, and
    how many more results say the same. Methods that are worse, or both, are told too. Of a judge
    that cannot be read nothing is told.
    """
    results, judged = results_of(data.summary), judged_results(data)
    if not judged:
        return [_why_no_verdict(results)]
    if all(row.verdict == NOISE for row in judged):
        return ["No method can be told from a random subset of the same size."]
    tests, main = names_of(judged, "test"), first_budget(results)
    judged.sort(key=lambda row: (row.budget != main, row.adjusted_p_value))
    return [_finding(test, [row for row in judged if row.test == test]) for test in tests]


def judged_results(data: Evaluation) -> list[Result]:
    """Return the results with a verdict, those of a judge that cannot be read left out."""
    can_judge = judge_report(data).is_readable
    return [
        row for row in results_of(data.summary)
        if row.verdict is not None and (can_judge or row.metric != JUDGE)
    ]  # fmt: skip


def judge_report(data: Evaluation) -> JudgeReport:
    """Say what a judge is worth, over all its verdicts; where there is none, nothing."""
    values = data.scores.filter(pc.field("metric") == JUDGE)["value"].to_pylist()
    grades = [None if value is None or math.isnan(value) else round(value) for value in values]
    return describe_verdicts(grades) if grades else JudgeReport(True, "")


def _why_no_verdict(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing has been measured yet."
    seeds = max((row.num_seeds for row in results if row.method == RANDOM), default=0)
    if not seeds:
        return "There is no random subset to compare with, so nobody knows what choosing is worth."
    if seeds == 1:
        return (
            "There is one random subset only, so nobody can say how much of a difference is luck: "
            "set evaluation.random_seeds to 3 or more."
        )
    if any(row.verdict for row in results):
        return "The judge cannot be read, and no other metric was measured: nothing can be said."
    return "No method has values on the same rows as a random subset of its size."


def _finding(test: str, judged: Sequence[Result]) -> str:
    better, worse = (_by_method(judged, verdict) for verdict in (BETTER, WORSE))
    if not better and not worse:
        return f"On {test} no method can be told from random."
    parts: list[str] = []
    if names := [f"{name} ({how})" for name, how in better.items() if name not in worse]:
        rest = len(names) - MAX_FINDINGS
        told = names[:MAX_FINDINGS] + ([f"{rest} more"] if rest > 0 else [])
        parts.append(f"{list_words(told)} {'beat' if len(names) > 1 else 'beats'} random")
    if names := [f"{name} ({how})" for name, how in worse.items() if name not in better]:
        parts.append(f"{list_words(names)} {'do' if len(names) > 1 else 'does'} worse than random")
    parts += [
        f"{name} does both, better ({better[name]}) and worse ({worse[name]})"
        for name in better
        if name in worse
    ]
    if not better:
        parts.append("no method beats random")
    return f"On {test} {'; '.join(parts)}."


def _by_method(judged: Sequence[Result], verdict: str) -> dict[str, str]:
    """Say by how much each method differs in its surest result: they come sorted so."""
    found: dict[str, list[Result]] = {}
    for row in judged:
        if row.verdict == verdict:
            found.setdefault(row.method, []).append(row)
    return {
        method: f"{metric_words(rows[0].metric, in_sentence=True)} {gain_words(rows[0])}, "
        f"{mode_words(rows[0].mode)}, {budget_words(rows[0].budget)}"
        + (f", and in {len(rows) - 1} more" if len(rows) > 1 else "")
        for method, rows in found.items()
    }


def verdict_sentence(data: Evaluation) -> str:
    """Say how many comparisons there are and what they say, and how many may err."""
    judged = judged_results(data)
    if not judged:
        return ""
    counts = {verdict: sum(row.verdict == verdict for row in judged) for verdict in VERDICT_WORDS}
    groups = len({(row.test, row.metric, row.mode, row.budget) for row in judged})
    return (
        f"Of {format_count(len(judged))} results beside random, {counts[BETTER]} are better, "
        f"{counts[WORSE]} worse and {counts[NOISE]} within noise. They stand in {groups} "
        f"{'comparison' if groups == 1 else 'comparisons'} of methods (one test set, metric, use "
        "and size each); in each the chance of any false verdict is at most "
        f"{format_percent(1 - data.facts.confidence)}."
    )


def evaluation_notices(data: Evaluation) -> list[str]:
    """Say what makes results weaker than they look, most serious first."""
    said = judge_report(data).sentence
    notices = [f"Judge: {said}"] if said else []
    missing = [row for row in results_of(data.summary) if row.num_missing and row.metric != JUDGE]
    if missing:
        worst = max(missing, key=lambda row: row.num_missing)
        number = sum(row.num_missing for row in missing)
        notices.append(
            f"{format_count(number)} values are missing (answers or likelihoods that failed), most "
            f"for {worst.method} in {metric_words(worst.metric, in_sentence=True)} on "
            f"{worst.test}: {format_count(worst.num_missing)}. They count for no method; the "
            "tables show them."
        )
    return [*notices, *data.facts.notices]


def cost_sentence(data: Evaluation) -> str:
    """Say what networks save on the corpus that was run; "" where there is no pair."""
    savings = savings_of(data.costs)
    measured = min((one.own["num_candidates"] for one in savings), default=0)
    parts = [str(one) for one in savings if one.own["num_candidates"] == measured]
    return f"{list_words(parts)}." if parts else ""


def direction_words(metrics: Sequence[str]) -> str:
    """Say of which metrics less is better; "" of none."""
    less = [metric_words(name) for name in metrics if name in LOWER_IS_BETTER]
    return f"Of {list_words(less)} less is better, of all others more." if less else ""


# Tables as rows of text: for the terminal, the page and Markdown alike.


def _table(
    title: str,
    keys: Sequence[str],
    numbers: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    reading: str = "",
    missing: str = "Nothing was recorded.",
) -> PageTable:
    heads = [*((name, KEY) for name in keys), *((name, NUMBER) for name in numbers)]
    return make_table(title, heads, rows, reading, missing)


def _method_words(row: Result) -> str:
    return f"{row.method} (mean of {row.num_seeds})" if row.num_seeds > 1 else row.method


def means_table(data: Evaluation, test: str) -> PageTable:
    """List a row a method, size and use, and a column a metric; words of a cell in lines."""
    results = [row for row in results_of(data.summary) if row.test == test]
    metrics = names_of(results, "metric")
    lines: dict[tuple[str, str, float], dict[str, Result]] = {}
    for row in results:
        lines.setdefault((row.method, row.mode, row.budget), {})[row.metric] = row
    rows = [
        (_method_words(next(iter(line.values()))), budget_words(budget, method), mode_words(mode),
         *(_mean_cell(line.get(metric)) for metric in metrics))
        for (method, mode, budget), line in lines.items()
    ]  # fmt: skip
    most = max((row.num_rows for row in results), default=0)
    title = f"{test} (up to {format_count(most)} rows)"
    return _table(title, ("method", "size", "use"), [*map(metric_words, metrics)], rows)


def _mean_cell(row: Result | None) -> str:
    if row is None:
        return "not measured"
    missing = f"({format_count(row.num_missing)} missing)" if row.num_missing else ""
    return "\n".join(filter(None, (mean_words(row), verdict_words(row), missing)))


def result_table(data: Evaluation, test: str) -> PageTable:
    """List every result of a test set, with its difference to random."""
    keys = ("metric", "use", "size", "method")
    numbers = ("mean", "difference to random", "verdict", "p", "rows", "missing")
    rows = [
        (
            metric_words(row.metric), mode_words(row.mode), budget_words(row.budget, row.method),
            _method_words(row), mean_words(row), interval_words(row), verdict_words(row),
            _p_words(row.adjusted_p_value), format_count(row.num_rows),
            format_count(row.num_missing),
        )
        for row in results_of(data.summary) if row.test == test
    ]  # fmt: skip
    reading = (
        f"Mean ± half its {format_percent(data.facts.confidence)} interval; the difference is the "
        "method's value minus random's, row by row, with its interval. Verdicts go by p, which is "
        "adjusted for the number of methods (Holm), so an interval may leave zero out and "
        "the verdict still be ≈ random. Missing: values that failed or could not be read."
    )
    return _table(f"All results on {test}", keys, numbers, rows, reading)


def _p_words(p_value: float) -> str:
    if math.isnan(p_value):
        return MISSING
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


COST_HEADS = ("candidates", "time", "GPU time", "CPU time", "tokens", "price", "note")


def cost_table(data: Evaluation) -> PageTable:
    """List what every method cost end to end, and what networks save of their teachers'."""
    rows = [_cost_row(row) for row in costs_of(data.costs)]
    for one in savings_of(data.costs):
        saved = one.teacher["price"] - one.own["price"]
        rows.append(
            (f"{one.own['method']} saves", format_count(one.own["num_candidates"]),
             format_percent(one.share), "", "", "", format_usd(saved) if saved >= 0 else "none",
             one.note)
        )  # fmt: skip
    title = "What the choice costs, from the corpus to the subset"
    return _table(title, ("method",), COST_HEADS, rows, missing="No cost was recorded.")


def _cost_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a cost, and what is not as it looks."""
    notes = ["extrapolated"] if row["extrapolated"] else []
    part = row["labelled_fraction"]
    if part is not None and part < 1 and not row["method"].startswith(f"{NN_CIFT}+"):
        notes.append(f"asked about {format_percent(part)} of the pairs")
    return (
        row["method"],
        format_count(row["num_candidates"]),
        format_seconds(row["seconds"]),
        format_seconds(row["accelerator_seconds"]) if row["accelerator_seconds"] else MISSING,
        format_seconds(row["cpu_seconds"]),
        MISSING if row["num_tokens"] is None else format_compact(row["num_tokens"]),
        format_usd(row["price"]),
        ", ".join(notes),
    )


def agreement_table(data: Evaluation) -> PageTable:
    """List how near the subsets come to their teacher's."""
    keys = ("method", "teacher")
    numbers = ("size", "picks shared", "by chance", "value of its picks", "of the teacher's",
               "of random ones")  # fmt: skip
    rows = [
        (row["method"], row["teacher"], budget_words(row["budget"]),
         format_percent(row["overlap"]), format_percent(row["chance_overlap"]),
         *(format_number(row[name], 4)
           for name in ("objective", "teacher_objective", "random_objective")))
        for row in sorted(data.agreement.to_pylist(),
                          key=lambda row: (method_place(row["method"]), row["budget"]))
    ]  # fmt: skip
    reading = (
        "Picks shared: of the method's picks, the share that its teacher picks too. Value: the "
        "objective by the teacher's own labels; a subset may share few picks with the teacher's "
        "and still be worth nearly as much, where many examples teach alike."
    )
    return _table("Subsets against the teacher's", keys, numbers, rows, reading,
                  "No method stands beside its own teacher.")  # fmt: skip


def fidelity_table(data: Evaluation) -> PageTable:
    """List how well every network and its rivals do, by quadrant."""
    rows = [row for row in data.fidelity.to_pylist() if row["split"].startswith("Q")]
    rows.sort(key=lambda row: (method_place(row["method"]), *page.fidelity_place(row)))
    title, keys = "How faithful each network is to its teacher", ("method", "block", "split")
    return page.fidelity_table(title, rows, keys, missing="No method fits a network.")


# Pictures: by how much each method differs from random, and how that moves with the size.

ROW_INCHES = 0.29
MAX_LABEL_CHARS = 26
COLOURS = {INITIAL: svg.GREY, RANDOM: svg.ORANGE, FULL: svg.MUTED}
KIND_COLOURS = (svg.PURPLE, svg.BLUE, svg.GREEN)  # a teacher, a network over it, a small model
MARKERS, DASHES = "osD^vPX", ("-", "--", "-.", ":")


def colour_of(method: str) -> str:
    """Return the colour of a method by what stands behind it; its name is always beside it."""
    if method in COLOURS:
        return COLOURS[method]
    return KIND_COLOURS[min(method_place(method)[2], len(KIND_COLOURS) - 1)]


def _modes_of(results: Sequence[Result]) -> list[str]:
    """Return the modes that any method has; the untaught model stands in each, or alone."""
    found = {row.mode for row in results}
    return [mode for mode in MODES if mode in found] or [UNTAUGHT]


def _draw_by_mode(
    figure: Figure, results: Sequence[Result], draw: Callable[[Axes, Sequence[Result]], None],
    unit: str, *, sharex: bool,
) -> Axes:  # fmt: skip
    """Draw the results of each mode beside those of the other, on the same axes."""
    modes = _modes_of(results)
    grid = figure.subplots(1, len(modes), sharex=sharex, sharey=True, squeeze=False)[0]
    for axes, mode in zip(grid, modes, strict=True):
        axes.set_title(mode_words(mode), loc="left", color=svg.INK, fontsize=svg.FONT_SIZE)
        draw(axes, [row for row in results if row.mode in (mode, UNTAUGHT)])
    figure.supxlabel(unit, fontsize=svg.FONT_SIZE, color=svg.MUTED)
    return grid[0]


def plot_gains(results: Sequence[Result], test: str, metric: str) -> Chart:
    """Draw the difference of every method to random of its size, zero in the middle.

    ``results`` are those of the test set, metric and one size.
    """
    name, words = f"gains-{test}-{metric}", metric_words(metric)
    compared = [row for row in results if row.is_compared]
    if not compared:
        missing = "there is no random subset of the same size beside it."
        if not any(row.is_measured for row in results):
            missing = "no answer has a value of this metric."
        return Chart(name, f"Difference to random: {words} on {test}", missing=missing)
    methods = sorted(names_of(compared, "method"), key=method_place, reverse=True)

    def fill(figure: Figure) -> None:
        def draw(axes: Axes, rows: Sequence[Result]) -> None:
            _draw_gains(axes, {row.method: row for row in rows}, methods)

        way = "lower" if metric in LOWER_IS_BETTER else "higher"
        unit = f"{words}: by how much {way} than random"
        first = _draw_by_mode(figure, compared, draw, unit, sharex=True)
        svg.style(first, xticks=(format_tick, MaxNLocator(2, steps=[1, 2, 3, 4, 5, 10])), grid=None)
        labels = [shorten_middle(method, MAX_LABEL_CHARS) for method in methods]
        first.set_yticks(range(len(methods)), labels)
        first.set_ylim(-0.6, len(methods) - 0.4)

    title, size = _gain_title(compared, test, metric), 1.0 + ROW_INCHES * len(methods)
    return Chart(name, title, (svg.draw(name, title, (size, svg.FIGURE_WIDTH), fill),))


def _draw_gains(axes: Axes, rows: Mapping[str, Result], methods: Sequence[str]) -> None:
    axes.axvline(0.0, color=svg.ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    for place, method in enumerate(methods):
        row, colour = rows.get(method), colour_of(method)
        words = "not measured" if row is None else verdict_words(row)
        axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center",
                  color=svg.INK, fontsize=svg.FONT_SIZE - 1)  # fmt: skip
        if row is not None:
            value, *ends = row.gain
            axes.plot(ends, [place, place], color=colour, linewidth=2)
            face = colour if row.verdict in (BETTER, WORSE) else svg.CARD
            axes.plot([value], [place], "o", color=colour, markersize=6.5, markerfacecolor=face)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _gain_title(compared: Sequence[Result], test: str, metric: str) -> str:
    words = metric_words(metric, in_sentence=True)
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
    name, better = f"curve-{test}-{metric}", "less" if metric in LOWER_IS_BETTER else "more"
    title = f"{metric_words(metric)} on {test} by size of the subset ({better} is better)"

    def fill(figure: Figure) -> None:
        def draw(axes: Axes, rows: Sequence[Result]) -> None:
            _draw_curves(axes, rows, drawn)

        unit = "size of the subset, share of the candidates (log)"
        first = _draw_by_mode(figure, rows, draw, unit, sharex=False)
        first.set_ylabel(metric_words(metric))
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=2.2)

    return Chart(name, title, (svg.draw(name, title, (3.1, svg.FIGURE_WIDTH), fill),))


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
    svg.style(axes, xticks=(format_percent_tick, None), yticks=(format_tick, 5))


# The page: one self-contained file, no script, every text of a corpus escaped.


def render_evaluation(data: Evaluation) -> str:
    """Return the report of an evaluation as one HTML page; the same data give the same text.

    What is not there is replaced by a sentence saying so.
    """
    facts, results = data.facts, results_of(data.summary)
    budget = first_budget(results)
    sizes = [row.num_examples for row in results if row.budget == budget]
    chips = {
        "Model": facts.model,
        "Subsets": f"{format_count(sizes[0])} examples, {budget_words(budget)}" if sizes else "",
        "Candidates": format_count(facts.num_candidates) if facts.num_candidates else "",
        "Judge": facts.judge,
        "Finished": facts.created,
    }
    return page.render_page(
        "evaluation.html.j2",
        {
            "run_name": facts.name,
            "lead": [*({"text": f"{line}\n", "strong": True} for line in headline(data)),
                     {"text": verdict_sentence(data), "strong": False}],
            "chips": [chip for chip in chips.items() if chip[1]],
            "cards": [],
            "notices": evaluation_notices(data),
            "confidence": format_percent(facts.confidence),
            "directions": direction_words(names_of(results, "metric")),
            "tests": [_test(data, results, test, budget) for test in names_of(results, "test")],
            "answers": _answers(data),
            "cost_lead": cost_sentence(data) or "What each method's choice costs.",
            "cost_table": cost_table(data),
            "agreement_table": agreement_table(data),
            "fidelity_table": fidelity_table(data),
            "config_table": page.settings_table("Configuration", facts.config),
            "environment_table": page.settings_table("Environment", facts.environment),
            "footer": f"Written by nncift_ray {facts.version}, {facts.created}.",
        },
    )  # fmt: skip


def _test(
    data: Evaluation, results: Sequence[Result], test: str, budget: float
) -> dict[str, object]:
    """Make the part of one test set: a picture a metric, curves, the whole table."""
    here, pairs = [row for row in results if row.test == test], []
    for metric in names_of(here, "metric"):
        rows = [row for row in here if row.metric == metric]
        sized = [row for row in rows if row.budget == budget or row.method in (INITIAL, FULL)]
        pairs.append((plot_gains(sized, test, metric), plot_curves(rows, test, metric)))
    return {"name": test, "pairs": pairs, "table": result_table(data, test)}


def _answers(data: Evaluation) -> list[dict[str, object]]:
    """Bring the answers to one row together: the question once, then what each method answered."""
    questions: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in data.answers.to_pylist():
        questions.setdefault((row["test"], row["row_index"]), []).append(row)
    return [
        {
            "meta": f"{test}, row {format_count(row_index)}",
            "prompt": rows[0]["prompt"],
            "reference": rows[0]["reference"],
            "answers": [_answer(row) for row in sorted(rows, key=lambda row: (
                mode_place(row["mode"]), method_place(row["method"]), row["budget"]
            ))],
        }
        for (test, row_index), rows in questions.items()
    ]  # fmt: skip


def _answer(row: Mapping[str, Any]) -> dict[str, str]:
    how = [budget_words(row["budget"], row["method"])] if row["budget"] else []
    how.append(mode_words(row["mode"]))
    if row["verdict"] is not None:
        how.append(f"judge: {row['verdict']}")
    text = NO_ANSWER if row["response"] is None else row["response"]
    return {"method": row["method"], "how": ", ".join(how), "text": text}


# The terminal; colour only repeats what words say.


def evaluation_tables(data: Evaluation) -> RenderableType:
    """Return what a terminal shows: findings, a table a test set, costs, warnings.

    Names enter as plain text, so square brackets in them are not read as markup.
    """
    results = results_of(data.summary)
    parts: list[RenderableType] = [Text(clean_text(line), "bold") for line in headline(data)]
    for test in names_of(results, "test"):
        parts += ["", _terminal_table(means_table(data, test))]
    if results:
        legend = (
            f"Mean ± half its {format_percent(data.facts.confidence)} interval. better, worse: "
            "than random subsets of the same size; ≈ random: within noise. "
            f"{direction_words(names_of(results, 'metric'))}"
        )
        parts += [Text(legend, "dim"), Text(verdict_sentence(data), "dim")]
    if data.costs.num_rows:
        parts += ["", _terminal_table(cost_table(data)), Text(clean_text(cost_sentence(data)))]
    if data.agreement.num_rows:
        parts += ["", _terminal_table(agreement_table(data))]
    parts += [Text(clean_text(f"note: {each}"), "yellow") for each in evaluation_notices(data)]
    return Group(*parts)


def _terminal_table(made: PageTable) -> Table:
    table = Table(title=Text(clean_text(made.title)), title_justify="left", box=None,
                  padding=(0, 1), header_style="bold")  # fmt: skip
    for name, css in made.columns:
        table.add_column(Text(name), justify="right" if css == NUMBER else "left", overflow="fold")
    for row in made.rows:
        cells = [Text(clean_text(cell)) for cell in row]
        for cell in cells:
            for words, style in STYLES.items():
                cell.highlight_words([words], style)
        table.add_row(*cells)
    return table
