"""Picture of what a judge said: how often each grade, and how often nothing that could be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from nncift_ray.core.evaluation.judging import (
    MANY_UNREADABLE,
    VerdictReport,
    describe_verdicts,
)
from nncift_ray.report import svg
from nncift_ray.report.evaluation_data import JUDGE, MODES, UNTAUGHT, method_place, mode_place
from nncift_ray.report.evaluation_plots import MAX_LABEL_CHARS, ROW_INCHES
from nncift_ray.report.evaluation_words import mode_words
from nncift_ray.report.formatting import (
    format_count,
    format_percent_tick,
    shorten_middle,
)
from nncift_ray.report.svg import Chart, Panel

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
            _draw(axes, here)
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


def _draw(axes: Axes, verdicts: Sequence[Verdicts]) -> None:
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
