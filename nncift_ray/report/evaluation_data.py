"""What the pages and tables of an evaluation show: one frozen record of its tables.

Everything here lies in the files of a finished evaluation, so its pages can be written anew without
computing anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nncift_ray.config.evaluation import NN_CIFT, SMALL_LM
from nncift_ray.core.evaluation.comparison import LOWER_IS_BETTER
from nncift_ray.storage import evaluation_schemas as schemas

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
