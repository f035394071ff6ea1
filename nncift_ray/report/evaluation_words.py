"""Names, units and verdicts of an evaluation in words: the same in terminal, page and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nncift_ray.core.evaluation.comparison import LOWER_IS_BETTER
from nncift_ray.report.evaluation_data import (
    FULL,
    ICL,
    INITIAL,
    JUDGE,
    TUNED,
    Result,
)
from nncift_ray.report.formatting import MISSING, format_number
from nncift_ray.storage.evaluation_schemas import BETTER, NOISE, WORSE

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
