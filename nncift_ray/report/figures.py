"""The pictures of the reports: matplotlib figures as inline SVG, each with a title and its reading.

A ``Chart`` says what it found in its title, what the reader sees, and what that means; where there
is nothing to draw it says why.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET  # noqa: S405 - reads only what matplotlib just wrote
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from nncift_ray.report.data import (
    ADDITIVE_RIDGE,
    COSINE,
    F64,
    NETWORK,
    Lengths,
    MixRow,
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    format_tick,
    metric,
    mix_shares,
    numbers,
    shorten_middle,
    splits_of,
)
from nncift_ray.runtime.schemas import POINTS

INK, MUTED, GRID, CARD = "#1b2533", "#5f6b7c", "#e3e7ee", "#fffffe"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0b6bcb", "#b24508", "#0a7458", "#a04c9c", "#7a8698"
# Page variable of each colour; style.css.j2 gives them a value in the light and in the dark theme.
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    CARD: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    GREY: "--grey",
}
FONT_SIZE = 9.0
FIGURE_WIDTH = 4.4  # inches: half of a desktop page, all of a phone, letters legible on both
PANEL_WIDTH = 2.6  # inches: a small multiple

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nncift",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so layout is the same everywhere
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # corpus text may hold dollar signs
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelsize": FONT_SIZE,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": FONT_SIZE - 0.5,
    "ytick.labelsize": FONT_SIZE - 0.5,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font:\s*([\d.]+px)[^;]*")


@dataclass(frozen=True, slots=True)
class Panel:
    """One SVG and the short line above it (empty where the chart's title is enough)."""

    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and its reading, or the reason why there is none."""

    name: str
    title: str  # states the finding where one can be computed
    panels: tuple[Panel, ...] = ()
    sees: str = ""  # what the reader sees
    means: str = ""  # what it means for them
    missing: str = ""  # why there is no picture

    @property
    def available(self) -> bool:
        """Whether there is a picture."""
        return bool(self.panels)


def draw(
    name: str, label: str, size: tuple[float, float], fill: Callable[[Figure], Any],
    caption: str = "",
) -> Panel:  # fmt: skip
    """Return one picture that ``fill`` draws, in the report's look.

    Args:
        name: Unique on the page; prefixes every id, since ids are shared by all inline pictures.
        label: What a screen reader says.
        size: Height and width, inches.
        fill: Draws into the figure.
        caption: The line above it.
    """
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # The browser picks a font that has the glyph; matplotlib's need not have it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        height, width = size
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        fill(figure)
        return Panel(_to_svg(figure, name, label), caption)


def _to_svg(figure: Figure, name: str, label: str) -> str:
    """Return an ``<svg>`` element without XML head, name spaces, fixed size, date or style."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - see import
    for element in root.iter():
        element.tag = _local(element.tag)
        # Metadata hold dates and addresses; a style sheet would hold for the whole page.
        for child in [x for x in element if _local(x.tag) in {"metadata", "style"}]:
            element.remove(child)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        _rewrite_attributes(element.attrib, name)
    view_box = root.attrib["viewBox"]
    root.attrib = {"viewBox": view_box, "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rewrite_attributes(attributes: dict[str, str], name: str) -> None:
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    for key in ("style", "clip-path", "fill", "stroke"):
        if key in attributes:
            value = attributes[key].replace("url(#", f"url(#{name}-")
            value = _FONT.sub(r"font-size: \1", value)
            attributes[key] = _COLOUR.sub(_to_variable, value)
    # A presentation attribute knows no var(): move such colours into the style.
    for key in ("fill", "stroke"):
        if "var(" in attributes.get(key, ""):
            moved = f"{key}: {attributes.pop(key)}"
            attributes["style"] = "; ".join(filter(None, [attributes.get("style", ""), moved]))


def _to_variable(match: re.Match[str]) -> str:
    variable = CSS_VARIABLES.get(match[0])
    return f"var({variable}, {match[0]})" if variable else match[0]


# What the charts share.

#: How the number at a tick is written, and at most how many ticks there are or where they are.
Ticks = tuple[Callable[[float], str], Locator | int | None]
Draw = Callable[[Axes], None]
PLAIN: Ticks = (format_tick, None)
PERCENT: Ticks = (format_percent_tick, None)
ABOVE: dict[str, Any] = {
    "loc": "lower center",
    "bbox_to_anchor": (0.4, 1.0),
    "borderaxespad": 0.2,
}


def chart_of_one(
    name: str, title: str, height: float, fill: Draw, *, sees: str, means: str
) -> Chart:
    """Return a chart of a single picture as wide as the column."""
    panel = draw(name, title, (height, FIGURE_WIDTH), lambda figure: fill(figure.subplots()))
    return Chart(name, title, (panel,), sees, means)


def style(
    axes: Axes,
    *,
    x: str = "",
    y: str = "",
    xticks: Ticks | None = None,
    yticks: Ticks | None = None,
    grid: Literal["x", "y", "both"] | None = "y",
) -> None:
    """Set the labels, ticks and grid of a picture; call after the scales are set."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if grid:
        axes.grid(axis=grid)
    for axis, ticks in ((axes.xaxis, xticks), (axes.yaxis, yticks)):
        if ticks is not None:
            write, where = ticks
            if where is not None:
                axis.set_major_locator(MaxNLocator(where) if isinstance(where, int) else where)
            axis.set_major_formatter(FuncFormatter(lambda value, _, write=write: write(value)))
            axis.set_minor_formatter(NullFormatter())


def whole_numbers() -> Ticks:
    """Return the ticks of an axis that counts."""
    return format_compact, MaxNLocator(6, integer=True)


def name_rows(axes: Axes, labels: Iterable[str]) -> F64:
    """Name horizontal bars from the top, without an axis line; return their places."""
    labels = list(labels)
    rows = np.arange(len(labels))[::-1].astype(np.float64)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    return rows


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    *,
    coords: Any = "data",
    side: str = "left",
    colour: str = INK,
) -> None:
    """Write a short text beside a point; ``offset`` in printer's points."""
    axes.annotate(
        text, at, offset, xycoords=coords, textcoords="offset points", ha=side, color=colour
    )


def write_on_line(
    axes: Axes, level: float, text: str, *, right: bool, above: bool, colour: str = ORANGE
) -> None:
    """Draw a dashed horizontal line with its meaning written at one end."""
    axes.axhline(level, color=colour, linewidth=1.4, linestyle=(0, (4, 3)))
    at, offset = (1 if right else 0, level), (-4 if right else 8, 5 if above else -12)
    side, coords = "right" if right else "left", ("axes fraction", "data")
    note(axes, text, at, offset, coords=coords, side=side, colour=colour)


# The selection: gain curve, scores of the picks, coverage.

MAX_CURVE_POINTS = 400
LOG_GAIN_RATIO = 30.0  # above it small gains would lie on the axis of a linear scale
NUM_COVERAGE_BINS = 25
MAX_BOUND_SHOWN = 2.0  # of the final value: above it the curve would be squeezed
KNEE = 0.9  # share of the final value whose first pick is marked
FLAT_SHARE = 0.1  # of the best pick's lead over a random one that the last pick must have lost


def thin_curve(num_points: int, max_points: int = MAX_CURVE_POINTS) -> np.ndarray:
    """Return the points [P] of a long curve to draw: both ends, and dense at the steep start."""
    if num_points <= max_points:
        return np.arange(num_points)
    half = max_points // 2
    even = np.linspace(0, num_points - 1, half)
    early = np.geomspace(1, num_points, max_points - half) - 1
    return np.unique(np.rint(np.concatenate([even, early])).astype(np.int64))


def _draw_by_rank(axes: Axes, values: F64, colour: str, width: float) -> None:
    keep = thin_curve(len(values))
    marker = "o" if len(keep) < 20 else ""
    axes.plot(keep + 1, values[keep], color=colour, linewidth=width, marker=marker, markersize=4)


def plot_gain_curve(
    ranking: pa.Table, random_objective: float | None = None, *, upper_bound: float | None = None
) -> Chart:
    """Draw the objective after each pick and the gain of each pick (RANKING).

    Args:
        ranking: The picks.
        random_objective: Value of a random subset of the same size.
        upper_bound: A value that no subset within the budget exceeds.
    """
    objective, gain = numbers(ranking, "objective"), numbers(ranking, "gain")
    final = float(objective[-1]) if len(objective) else math.nan
    if not (math.isfinite(final) and final > 0):
        reason = "there is no pick, or the objective has no positive final value to scale by."
        return Chart("gain", "Gain curve", missing=reason)
    share = objective / final
    knee = int(np.flatnonzero(share >= KNEE - 1e-12)[0]) + 1
    level = math.nan if random_objective is None else random_objective / final
    bound = upper_bound / final if upper_bound is not None and upper_bound >= final else math.nan
    title = "One pick makes the whole objective"
    if len(share) > 1:
        title = (
            f"90 % of the objective is reached after {format_count(knee)} picks, "
            f"{format_percent(knee / len(share))} of the budget"
        )

    def fill(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
        _draw_objective(top, share, knee, level, bound)
        wide = gain.min() > 0 and gain.max() > LOG_GAIN_RATIO * gain.min()
        if wide:
            bottom.set_yscale("log")
        where = LogLocator(numticks=4) if wide else 3
        style(bottom, x="number of picks", y="gain of pick", yticks=(format_tick, where))
        _draw_by_rank(bottom, gain, GREEN, 1.6)
        figure.align_ylabels()

    return Chart(
        "gain",
        title,
        (draw("gain", title, (3.75, FIGURE_WIDTH), fill),),
        sees="the value of the subset after each pick, as a share of its final value (above), and "
        "what each pick added when it was made (below).",
        means=_gain_meaning(share, level, bound),
    )


def _gain_meaning(share: F64, random_share: float, bound: float) -> str:
    last_tenth = 1 - (float(share[-1 - max(len(share) // 10, 1)]) if len(share) > 1 else 0.0)
    text = f"the last tenth of the picks adds {format_percent(last_tenth)} of the value"
    text += (
        "; a smaller budget would lose little."
        if last_tenth < 0.03
        else "; the curve still rises, so a larger budget would still pay."
    )
    if math.isfinite(random_share):
        reached = format_percent(random_share)
        text += f" A random subset of the same size reaches {reached} of it."
    if math.isfinite(bound):
        least = math.floor(1000 / bound) / 10  # a promise is rounded down
        text += (
            f" No subset within the budget can be worth more than the green line: this one has at "
            f"least {least:g} % of the best possible value."
        )
    return text


def _draw_objective(axes: Axes, share: F64, knee: int, random_share: float, bound: float) -> None:
    keep = thin_curve(len(share))
    picks, values = np.r_[0, keep + 1], np.r_[0.0, share[keep]]  # the empty subset is worth nothing
    axes.fill_between(picks, values, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(picks, values, color=BLUE, linewidth=2.2, solid_capstyle="round")
    top = max(1.06, 1.13 * min(bound, MAX_BOUND_SHOWN)) if math.isfinite(bound) else 1.06
    axes.set(xlim=(0, len(share)), ylim=(min(0.0, float(values.min())), top))
    style(axes, y="objective, share of final", xticks=whole_numbers(), yticks=PERCENT)
    if len(share) > 1:
        at, early = (knee, share[knee - 1]), knee < 0.35 * len(share)
        axes.plot(*at, "o", color=BLUE, markeredgecolor=CARD)
        offset, side = ((8, -13), "left") if early else ((-7, 5), "right")
        note(axes, f"90 % at {format_count(knee)}", at, offset, side=side)
    if math.isfinite(random_share):
        write_on_line(axes, random_share, "random subset, same size", right=True, above=False)
    if bound <= MAX_BOUND_SHOWN:
        text = f"no subset exceeds {format_percent(bound)}"
        write_on_line(axes, bound, text, right=False, above=True, colour=GREEN)


def plot_scores(ranking: pa.Table, random_objective: float | None = None) -> Chart:
    """Draw the score of each pick by rank (RANKING), beside a random example's."""
    score, title = numbers(ranking, "gain"), "Scores of the picks"
    if not len(score):
        return Chart("scores", title, missing="there is no pick.")
    random_score = math.nan if random_objective is None else random_objective / len(score)
    if len(score) > 1:
        first, last = (format_number(float(value), 3) for value in (score[0], score[-1]))
        title = f"Scores fall from {first} at the first pick to {last} at the last"
    means = "where the curve is flat the order of the picks says little."
    if math.isfinite(random_score):
        means = f"{means[:-1]}; a random example scores {format_number(random_score)}."
        lead, lost = float(score[0]) - random_score, float(score[0] - score[-1])
        if lost >= (1 - FLAT_SHARE) * lead:
            means += " The last picks are hardly better than that: a smaller budget loses little."

    def fill(axes: Axes) -> None:
        _draw_by_rank(axes, score, BLUE, 2.2)
        axes.set_xlim(1, max(len(score), 2))
        axes.margins(y=0.12)
        x, y = "rank of the pick", "score"
        style(axes, x=x, y=y, xticks=whole_numbers(), yticks=PLAIN)
        if math.isfinite(random_score):
            above = random_score <= float(np.median(score))
            write_on_line(axes, random_score, "random example", right=True, above=above)

    return chart_of_one(
        "scores",
        title,
        3.0,
        fill,
        sees="the score of each pick by rank, scaled so that 0 is the lowest and 1 the highest of "
        "all scores.",
        means=means,
    )


def plot_coverage(coverage: pa.Table, ground_set: str) -> Chart:
    """Draw how well the rows of the ground set are covered by their best pick (COVERAGE)."""
    values = numbers(coverage, "coverage")
    covered = values[coverage["covered_by"].is_valid().to_numpy() & np.isfinite(values)]
    if not len(values):
        return Chart("coverage", "Coverage", missing="the coverage table has no row.")
    num_rows, left = len(values), len(values) - len(covered)
    median = float(np.median(covered)) if len(covered) else math.nan
    title = f"No pick stands in the list of any of the {format_count(num_rows)} {ground_set}"
    if len(covered):
        title = f"Half of the covered {ground_set} reach {format_number(median, 2)} or better"
        title += f"; {format_percent(left / num_rows)} have no pick in their list" if left else ""
    means = f"{ground_set} far to the left are those the subset does not speak to."
    if left:
        means += (
            f" {format_count(left)} of them have no pick among their best "
            "helpers: a longer helper list or a larger budget would reach them."
        )

    def fill(axes: Axes) -> None:
        low = 0.0
        if len(covered) and float(covered.min()) > 0.5:
            low = math.floor(float(covered.min()) * 20) / 20  # all the detail lies on the right
        edges = np.linspace(low, 1.0, NUM_COVERAGE_BINS + 1)
        counts, _ = np.histogram(np.clip(covered, low, 1.0), bins=edges)
        axes.bar(edges[:-1], counts / num_rows, np.diff(edges) * 0.9, align="edge", color=BLUE)
        axes.set_xlim(low, 1.0)
        x, y = "coverage: scaled influence of the best pick", f"share of {ground_set}"
        style(axes, x=x, y=y, yticks=(format_percent_tick, 5))
        if math.isfinite(median):
            right = median < low + 0.6 * (1 - low)
            axes.axvline(median, color=INK, linewidth=1.4)
            axes.margins(y=0.16)
            text, offset = f"median {format_number(median, 2)}", (5 if right else -5, -9)
            coords, side = ("data", "axes fraction"), "left" if right else "right"
            note(axes, text, (median, 1), offset, coords=coords, side=side)

    return chart_of_one(
        "coverage",
        title,
        2.75,
        fill,
        sees=f"for each of the {format_count(num_rows)} {ground_set}, the influence of its best "
        "pick (0: the lowest of all scores, 1: the highest).",
        means=means,
    )


# Pool and subset side by side: the mix of sources or tasks, the lengths.

MAX_GROUPS = 20
MAX_LABEL_CHARS = 32
NUM_LENGTH_BINS = 32
QUOTA_ROOM = 1.3  # of the longest bar: quotas further right are not drawn


def plot_mix(mix: Sequence[MixRow], group_name: str, *, ranks_by_score: bool = False) -> Chart:
    """Draw the share of each of several groups in the subset (bar) beside the pool's (tick)."""
    pool, subset = mix_shares(mix)
    order = np.argsort(-np.abs(subset - pool), kind="stable")
    shown, rest = order[:MAX_GROUPS], order[MAX_GROUPS:]
    shown = shown[np.lexsort((pool[shown], subset[shown]))][::-1]  # the largest first
    sees = (
        f"each {group_name}'s share of the subset (bar) and of the pool (dark tick), the "
        f"{len(shown)} that moved most; the number is subset over pool."
    )
    if any(row.least or row.most is not None for row in mix):
        sees += " Orange marks are quotas."
    if len(rest):  # as a bar they would dwarf the rest
        held, had = (format_percent(float(part[rest].sum())) for part in (subset, pool))
        sees += f" The other {len(rest)} hold {held} of the subset and {had} of the pool."
    return chart_of_one(
        "mix",
        _mix_title(mix, pool, subset),
        0.75 + 0.22 * len(shown),
        partial(_draw_mix, pool=pool[shown], subset=subset[shown], mix=[mix[i] for i in shown]),
        sees=sees,
        means="what grew has higher scores than the pool. Each pick stands on its own score, so a "
        "group may be picked far beyond its use."
        if ranks_by_score
        else "what grew helps more rows than its size says; what shrank repeats what others "
        "already give, or helps few.",
    )


def _mix_title(mix: Sequence[MixRow], pool: F64, subset: F64) -> str:
    change = subset - pool
    up, down = int(np.argmax(change)), int(np.argmin(change))
    if change[up] < 0.005:
        return "The subset keeps the mix of the pool"
    first, second = (shorten_middle(mix[i].group, 28) for i in (up, down))
    return (
        f"“{first}” grows from {format_percent(pool[up])} to {format_percent(subset[up])}, "
        f"“{second}” shrinks from {format_percent(pool[down])} to {format_percent(subset[down])}"
    )


def _draw_mix(axes: Axes, pool: F64, subset: F64, mix: Sequence[MixRow]) -> None:
    rows = name_rows(axes, (shorten_middle(clean_text(row.group), MAX_LABEL_CHARS) for row in mix))
    grew = subset >= pool
    axes.barh(rows, subset, height=0.62, color=np.where(grew, BLUE, GREY))
    axes.vlines(pool, rows - 0.4, rows + 0.4, color=INK, linewidth=2.0)
    num_picks = max(sum(row.subset for row in mix) / max(float(subset.sum()), 1e-12), 1.0)
    bounds = [[row.least or math.nan, math.nan if row.most is None else row.most] for row in mix]
    quotas = np.array(bounds) / round(num_picks)
    span = float(max(pool.max(), subset.max()))
    quotas[quotas > QUOTA_ROOM * span] = math.nan
    ends = np.fmax(np.fmax(pool, subset), np.fmax(*quotas.T))
    span = float(ends.max())
    for shares, marker in zip(quotas.T, (">", "<"), strict=True):
        axes.plot(shares, rows, marker, color=ORANGE, markersize=5, zorder=5)
    for row, end, p, s in zip(rows, ends, pool, subset, strict=True):
        ratio = f"×{format_number(s / p, 2)}" if p > 0 else "new"
        axes.text(end + 0.02 * span, row, ratio, va="center", color=MUTED)
    axes.set(xlim=(0, 1.17 * span), ylim=(-0.6, len(mix) - 0.4))
    style(axes, xticks=(format_percent_tick, 5), grid="x")
    marks: list[Any] = []
    if grew.any():
        marks.append(Patch(color=BLUE, label="subset, grew"))
    if not grew.all():
        marks.append(Patch(color=GREY, label="subset, shrank"))
    tick: dict[str, Any] = {"marker": "|", "markersize": 10, "markeredgewidth": 2}
    marks.append(Line2D([], [], color=INK, linestyle="", label="pool", **tick))
    if np.isfinite(quotas).any():
        tick = {"marker": "<", "markersize": 5}
        marks.append(Line2D([], [], color=ORANGE, linestyle="", label="quota", **tick))
    axes.legend(handles=marks, ncols=4, handlelength=1.2, columnspacing=1.4, **ABOVE)


def plot_lengths(pool: Lengths, subset: Lengths) -> Chart:
    """Draw the distribution of lengths (tokens) in pool and subset, on a log axis."""
    if not len(pool) or not len(subset):
        return Chart("lengths", "Lengths", missing="no length was recorded.")
    pool_f, subset_f = (np.maximum(np.asarray(x, dtype=np.float64), 1.0) for x in (pool, subset))
    median_pool, median_subset = float(np.median(pool_f)), float(np.median(subset_f))
    ratio = median_subset / median_pool
    by = f"{format_number(ratio, 2)} times as long as"
    if 0.95 < ratio < 1.05:
        by = "as long as"
    elif ratio < 2:
        by = f"{format_percent(abs(ratio - 1))} {'longer' if ratio > 1 else 'shorter'} than"
    medians = f"median {format_count(median_subset)} against {format_count(median_pool)} tokens"

    def fill(axes: Axes) -> None:
        low, high = pool_f.min(), max(pool_f.max(), subset_f.max())
        edges = np.unique(np.rint(np.geomspace(low, max(high, low + 1) + 1, NUM_LENGTH_BINS + 1)))
        # Steps of one whole token first, wider later: heights are per bin of the log axis.
        width = np.log(edges[1:] / edges[:-1])
        for values, colour, name in ((pool_f, GREY, "pool"), (subset_f, BLUE, "subset")):
            counts, _ = np.histogram(values, bins=edges)
            heights = counts / len(values) / width * float(np.median(width))
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            axes.stairs(heights, edges, color=colour, linewidth=1.8, label=name)
        axes.set(xscale="log", xlim=(edges[0], edges[-1]))
        where = LogLocator(subs=(1.0, 2.0, 5.0), numticks=12)
        style(axes, x="tokens", xticks=(format_compact, where), yticks=(format_percent_tick, 4))
        axes.legend(loc="best", handlelength=1.2)

    return chart_of_one(
        "lengths",
        f"Picks are {by} the pool: {medians}",
        2.75,
        fill,
        sees="the share of examples by length in tokens, prompt and response together.",
        means="a subset much longer than its pool costs more to train on per example: compare "
        "budgets in tokens, not in rows.",
    )


# The network beside its teacher: the order of held-out labels.

# The models that have an order of their own: what selection rests on, and its rivals.
ORDERED = {
    NETWORK: ("network", BLUE),
    ADDITIVE_RIDGE: ("additive ridge", ORANGE),
    COSINE: ("cosine", GREEN),
}
FOLLOWS = 0.3  # correlation from which on an order is followed
LOWEST_DRAWN = -0.5  # a bar below it is cut; its number still stands there
#: Column of FIDELITY, to its caption and the label under the axis.
ORDER_MEASURES = {
    "spearman": ("Order of all pairs", "Spearman's rank correlation"),
    "interaction_correlation": ("Beyond averages", "correlation"),
    "capture": ("Best helpers found", "share of their worth"),
}


def plot_order(fidelity: pa.Table, block: str) -> Chart:
    """Draw network, ridge and cosine by split, of all pairs and of each row (FIDELITY, one block).

    Examples on their own have no rows of pairs: one panel, of the network alone.
    """
    name, points, splits = f"order-{block}", block == POINTS, splits_of(fidelity)
    models = (NETWORK, ADDITIVE_RIDGE) if points else tuple(ORDERED)
    labels = [f"{split}, not seen" for split in splits] if points else splits
    size = 1.2 + 0.22 * len(models) * len(splits), FIGURE_WIDTH if points else PANEL_WIDTH

    def read(model: str, column: str) -> F64:
        return np.array([metric(fidelity, split, model, column) for split in splits])

    panels: list[Panel] = []
    for column, (caption, label) in list(ORDER_MEASURES.items())[: 1 if points else None]:
        shown = {model: read(model, column) for model in models}
        if column == "interaction_correlation":
            del shown[ADDITIVE_RIDGE]  # it has none by design
        if any(np.isfinite(values).any() for values in shown.values()):
            limits = [
                {model: read(model, f"{column}{end}") for model in shown}
                for end in ("_low", "_high")
            ]
            fill = partial(_draw_order, labels=labels, shown=shown, x=label, limits=limits)
            above = "" if points else caption
            panels.append(draw(f"{name}-{column}", f"{caption} by split", size, fill, above))
    title = "Order of held-out labels"
    if not panels:
        missing = "no correlation is defined: labels or predictions do not vary."
        return Chart(name, title, missing=missing)
    columns = ("spearman",) if points else ("interaction_correlation", "spearman")
    title = _order_finding(splits, {x: read(NETWORK, x) for x in columns}) or title
    sees = (
        "how well the order of the predictions follows the order of the teacher's labels (1: the "
        "same order, 0: none)."
    )
    means = "selection compares scores, so order matters more to it than error."
    if not points:
        sees += (
            " Beyond averages: the same once the mean of each row and of each helper is taken "
            "away, which is all that an additive model knows. Best helpers found: how much better "
            "than its mean the helpers are that a model puts first in a row, as a share of what "
            "its truly best eighth is. Lines: 95 % intervals."
        )
        means = (
            "the first panel can look good by telling rows apart, the last by helpers that are "
            "good for all. Only what stands clear of the ridge and of the cosine was learnt of "
            "pairs."
        )
    return Chart(name, title, tuple(panels), sees, means)


def _order_finding(splits: list[str], found: Mapping[str, F64]) -> str:
    """Say of the hardest split that has one whether the network follows the teacher's order."""
    for column, values in found.items():
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            value, split = float(values[known[-1]]), splits[known[-1]]
            verb = "follows" if value >= FOLLOWS else "barely follows"
            verb = verb if value > 0 else "does not follow"
            place = " beyond averages" if column.startswith("inter") else ""
            return f"In {split} the network {verb} the teacher's order{place}: {value:.2f}"
    return ""


def _draw_order(
    figure: Figure,
    labels: list[str],
    shown: dict[str, F64],
    x: str,
    limits: Sequence[Mapping[str, F64]],
) -> None:
    axes = figure.subplots()
    rows = name_rows(axes, labels)
    height = 0.76 / len(shown)
    offsets = height * (np.arange(len(shown))[::-1] - (len(shown) - 1) / 2)
    lowest = min(0.0, *(float(np.nan_to_num(values).min()) for values in shown.values()))
    lowest = max(lowest * 1.05, LOWEST_DRAWN)
    for offset, (model, values) in zip(offsets, shown.items(), strict=True):
        label, colour = ORDERED[model]
        bars = np.maximum(np.nan_to_num(values), lowest)
        axes.barh(rows + offset, bars, height=0.9 * height, color=colour, label=label)
        for place, (row, value) in enumerate(zip(rows + offset, values, strict=True)):
            text = f"{value:.2f}" if math.isfinite(value) else "not defined"
            ends = [value, *(limit[model][place] for limit in limits)]
            at = max(0.0, *(float(np.nan_to_num(end)) for end in ends))
            axes.text(at + 0.012, row, text, va="center", color=INK)
            axes.plot(ends[1:], [row, row], color=INK, linewidth=1.2)
    axes.set_xlim(lowest, 1.0)
    axes.axvline(0, color=GREY, linewidth=1)
    style(axes, x=x, grid="x")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), handlelength=1.2, borderaxespad=0.2)
