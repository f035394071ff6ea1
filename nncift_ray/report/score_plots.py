"""Picture of picks that stand each on their own score."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nncift_ray.report import svg
from nncift_ray.report.formatting import format_compact, format_number, format_tick
from nncift_ray.report.headline import F64, numbers
from nncift_ray.report.plots import thin_curve
from nncift_ray.report.svg import Chart, Panel

FLAT_SHARE = 0.1  # of the best pick's lead over a random one that the last pick must have lost


def plot_scores(ranking: pa.Table, random_objective: float | None = None) -> Chart:
    """Draw the scaled score of each pick by rank (a RANKING table), beside a random pick's."""
    title = "Scores of the picks"
    score = numbers(ranking, "gain")
    if not len(score):
        return Chart("scores", title, missing="there is no pick.")
    random_score = math.nan if random_objective is None else random_objective / len(score)
    with svg.theme():
        figure, axes = svg.new_axes(3.0)
        _draw_scores(axes, score, random_score)
        picture = svg.to_svg(figure, "scores", "Score by rank")
    first, last = (format_number(float(value), 3) for value in (score[0], score[-1]))
    if len(score) > 1:
        title = f"Scores fall from {first} at the first pick to {last} at the last"
    return Chart(
        "scores",
        title,
        (Panel(picture),),
        sees="the score of each pick by rank, scaled so that 0 is the lowest and 1 the highest of "
        "all scores.",
        means=_meaning(score, random_score),
    )


def _meaning(score: F64, random_score: float) -> str:
    text = "where the curve is flat the order of the picks says little"
    if not math.isfinite(random_score):
        return f"{text}."
    text += f"; a random example scores {format_number(random_score)}."
    lead, lost = float(score[0]) - random_score, float(score[0] - score[-1])
    if lost >= (1 - FLAT_SHARE) * lead:
        return f"{text} The last picks are hardly better than that: a smaller budget loses little."
    return text


def _draw_scores(axes: Axes, score: F64, random_score: float) -> None:
    keep = thin_curve(len(score))
    marker = "o" if len(keep) < 20 else ""
    axes.plot(keep + 1, score[keep], color=svg.BLUE, linewidth=2.2, marker=marker, markersize=4)
    axes.grid(axis="y")
    axes.set_xlim(1, max(len(score), 2))
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.set_xlabel("rank of the pick")
    axes.set_ylabel("score (0 to 1)")
    if math.isfinite(random_score):
        axes.axhline(random_score, color=svg.ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
        above = random_score <= float(np.median(score))
        axes.annotate(
            "random example",
            (1, random_score),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 5 if above else -12),
            textcoords="offset points",
            ha="right",
            color=svg.ORANGE,
        )
