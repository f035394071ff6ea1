"""Rows of an evaluation's tables, in the order of the page, and how they are written.

The same words stand in the terminal, on the page and in Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pyarrow as pa

from nncift_ray.evaluation.methods import DRAWN, FULL, ICL, INITIAL, TUNED
from nncift_ray.evaluation.metrics import LOWER_IS_BETTER
from nncift_ray.recipe.sections import NN_CIFT, SMALL_LM
from nncift_ray.report.text import MISSING, format_number, format_percent
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
