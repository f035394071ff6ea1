"""Picture of what a selection costs: a teacher beside what stands in for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nncift_ray.config.evaluation import NN_CIFT
from nncift_ray.report import svg
from nncift_ray.report.evaluation_data import Cost, costs_of, method_place
from nncift_ray.report.evaluation_plots import MAX_LABEL_CHARS, ROW_INCHES, colour_of
from nncift_ray.report.evaluation_words import list_words
from nncift_ray.report.formatting import (
    format_count,
    format_percent,
    format_seconds,
    shorten_middle,
)
from nncift_ray.report.svg import Chart, Panel

PREFIX = f"{NN_CIFT}+"


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
    span = min(row.seconds for row in rows), max(row.seconds for row in rows)
    with svg.theme():
        for size in sizes:
            here = [row for row in rows if row.num_candidates == size]
            methods = sorted({row.method for row in here}, key=method_place)
            figure, axes = svg.new_axes(0.75 + ROW_INCHES * len(methods))
            _draw(axes, here, methods, span)
            label = f"Seconds of every method on {size} candidates"
            marked = " (extrapolated)" if all(row.extrapolated for row in here) else ""
            panels.append(Panel(svg.to_svg(figure, f"costs-{size}", label),
                                f"{format_count(size)} candidates{marked}"))  # fmt: skip
    measured = [one for one in savings_of(costs) if one.own.num_candidates == sizes[0]]
    return Chart(
        "costs",
        list_words([saving_words(one) for one in measured]) or "What the choice costs",
        tuple(panels),
        sees="the time each method's whole way took, from reading the corpus to its subset, on a "
        "log scale: one grid line is ten times the last. Hollow: not run, worked out from what "
        "was.",
        means="every method is charged with all it rests on, so work that several share is counted "
        "for each of them.",
    )


def _draw(
    axes: Axes, rows: Sequence[Cost], methods: Sequence[str], span: tuple[float, float]
) -> None:
    axes.set_xscale("log")
    low, high = span
    axes.set_xlim(low / 1.6, high * max(8.0, (high / low) ** 0.45))  # room for the text
    for place, method in enumerate(reversed(methods)):
        own = sorted((row for row in rows if row.method == method),
                     key=lambda row: row.seconds)  # fmt: skip
        for row in own:
            fill = svg.CARD if row.extrapolated else colour_of(method)
            axes.plot([row.seconds], [place], "o", color=colour_of(method), markersize=8,
                      markerfacecolor=fill)  # fmt: skip
        axes.hlines(place, low / 1.6, own[0].seconds, color=svg.GRID, linewidth=1.2, zorder=0)
        words = "; ".join(_words(row) for row in own)
        axes.annotate(words, (own[-1].seconds, place), (9, 0), textcoords="offset points",
                      va="center", color=svg.INK, fontsize=svg.FONT_SIZE - 1)  # fmt: skip
    labels = [shorten_middle(method, MAX_LABEL_CHARS) for method in reversed(methods)]
    axes.set_yticks(range(len(methods)), labels)
    axes.set_ylim(-0.6, len(methods) - 0.4)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    axes.set_xlabel("seconds (log)")


def _words(row: Cost) -> str:
    return format_seconds(row.seconds) + (" extrapolated" if row.extrapolated else "")
