"""Picture of what a selection costs: a teacher beside what stands in for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from nncift_ray.config.evaluation import NN_CIFT
from nncift_ray.report import svg
from nncift_ray.report.evaluation_data import Cost, costs_of, method_place
from nncift_ray.report.evaluation_plots import MAX_LABEL_CHARS, ROW_INCHES, colour_of
from nncift_ray.report.formatting import (
    format_count,
    format_percent,
    format_seconds,
    shorten_middle,
)
from nncift_ray.report.svg import Chart, Panel

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
            _draw(axes, here, methods)
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


def _draw(axes: Axes, rows: Sequence[Cost], methods: Sequence[str]) -> None:
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
