"""How far the new data of a run that goes on from another lie from its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nncift_ray.report import svg
from nncift_ray.report.data import ExtraTable
from nncift_ray.report.formatting import format_count, format_number, format_percent, format_tick
from nncift_ray.report.headline import F64, numbers
from nncift_ray.report.svg import Chart, Panel

GROUPS = {
    "new": ("new data", svg.BLUE),
    "reference": ("labelled corpus, not labelled itself", svg.ORANGE),
}
NOTHING_TO_COMPARE = "there is nothing new, or every example of the labelled corpus is labelled."


def plot_drift(distances: pa.Table) -> Chart:
    """Draw how the distances to the nearest labelled example are distributed, group by group."""
    title = "Distance to the labels"
    group = np.asarray(distances["group"].to_pylist())
    found = {name: np.sort(numbers(distances, "distance")[group == name]) for name in GROUPS}
    if not all(len(values) for values in found.values()):
        return Chart("drift", title, missing=NOTHING_TO_COMPARE)
    with svg.theme():
        figure, axes = svg.new_axes(3.0)
        _draw(axes, found)
        picture = svg.to_svg(figure, "drift", "Distribution of distances to labelled examples")
    new, reference = (float(np.median(values)) for values in found.values())
    return Chart(
        "drift",
        f"Half of the new data lie within {format_number(new)} of a labelled example",
        (Panel(picture),),
        sees="for every distance the share of examples that have a labelled example nearer than "
        "that: of the new data, and of the corpus that the labels were drawn from.",
        means=f"where the new data's curve lies to the right the network extrapolates; of the "
        f"labelled corpus half lies within {format_number(reference)}.",
    )


def _draw(axes: Axes, found: Mapping[str, F64]) -> None:
    for name, values in found.items():
        label, colour = GROUPS[name]
        share = np.arange(1, len(values) + 1) / len(values)
        keep = np.unique(np.linspace(0, len(values) - 1, 300).astype(int))
        axes.step(
            np.r_[0.0, values[keep]],
            np.r_[0.0, share[keep]],
            where="post",
            color=colour,
            linewidth=2,
            label=f"{label} ({format_count(len(values))})",
        )
    axes.grid(axis="y")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set_xlabel("cosine distance to the nearest labelled example")
    axes.set_ylabel("share of examples")
    axes.legend(loc="lower right")


def drift_table(facts: Mapping[str, Any]) -> ExtraTable:
    """List what was measured, beside what it is judged against."""
    rows: list[tuple[str, str, str]] = []
    distance = facts.get("distance")
    if distance is not None:
        median = facts["median_distance"]
        rows += [
            (
                "median distance to the nearest label",
                format_number(median["new"]),
                format_number(median["reference"]),
            ),
            ("chance that a new one is farther", format_number(distance["farther"]), "0.5"),
            ("Kolmogorov-Smirnov distance", format_number(distance["ks"]), "0"),
        ]
    rows += [
        (
            f"activations out of range, {share['block']} {share['side']}",
            format_percent(share["new"]),
            format_percent(share["reference"]),
        )
        for share in facts["ranges"]
    ]
    reading = "The labelled corpus is measured on its examples that were not labelled."
    return ExtraTable(
        "New data beside the labelled corpus", reading, ("measure", "new", "corpus"), tuple(rows)
    )


def drift_lead(facts: Mapping[str, Any]) -> str:
    """Say the verdict in a sentence or two."""
    count = format_count(facts["num_new"])
    if not facts["num_new"]:
        return "Nothing new came in: the selection is that of the run this one goes on from."
    start = f"{count} new candidates were scored by the network of an earlier run. "
    if facts["due"]:
        return f"{start}Relabelling is due because {'; and '.join(facts['reasons'])}."
    return f"{start}They lie where the labelled corpus does: no new labels are due."
