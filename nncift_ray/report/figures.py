"""Pictures of the selection: gain curve and coverage."""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET  # noqa: S405 - reads only what matplotlib just wrote
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from nncift_ray.report.data import ExtraTable, Lengths, MixRow, ReportData, StageSummary, unit_of
from nncift_ray.report.text import (
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_percent_tick,
    format_seconds,
    format_tick,
    shorten_middle,
)
from nncift_ray.runtime.schemas import POINTS
from nncift_ray.scores.kernel import bin_edges, spread_counts

INK, MUTED, GRID, CARD = "#1b2533", "#5f6b7c", "#e3e7ee", "#fffffe"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0b6bcb", "#d9580d", "#0f8a6b", "#a04c9c", "#9aa5b5"
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
FONT_SIZE = 9.5
FIGURE_WIDTH = 5.3  # inches: half of a desktop page, all of a phone
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
    "axes.unicode_minus": True,
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
_URL = re.compile(r"url\(#")


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
        """Say whether there is a picture."""
        return bool(self.panels)


@contextmanager
def theme() -> Generator[None]:
    """Draw in the report's look, leaving matplotlib's global settings as they were."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # The browser picks a font that has the glyph; matplotlib's need not have it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def new_axes(height: float, width: float = FIGURE_WIDTH) -> tuple[Figure, Axes]:
    """Make a figure (inches) with one pair of axes; call inside ``theme()``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Write a figure as an ``<svg>`` element for inline use; call inside ``theme()``.

    Args:
        figure: The drawn figure.
        name: Unique on the page; prefixes every id, since ids are shared by all inline pictures.
        label: What a screen reader says.

    Returns:
        The element without XML head, name spaces, fixed size, date or style sheet.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - see import
    _strip_elements(root)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        _rewrite_attributes(element.attrib, name)
    view_box = root.attrib["viewBox"]
    root.attrib = {"viewBox": view_box, "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _strip_elements(root: ET.Element) -> None:
    """Drop metadata (dates, addresses) and style sheets (they would hold for the whole page)."""
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)


def _rewrite_attributes(attributes: dict[str, str], name: str) -> None:
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    for key in ("style", "clip-path", "fill", "stroke"):
        if key in attributes:
            value = _URL.sub(f"url(#{name}-", attributes[key])
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


# The few numbers a reader should leave with; page and terminal take them from here.

F64 = npt.NDArray[np.float64]
NETWORK, MEAN, ROW_COLUMN_MEAN = "network", "mean", "row_column_mean"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How the network does on one split, beside the baseline that means something."""

    block: str
    split: str
    num_pairs: int
    scaled_mse: float  # labels scaled to [0, 1]
    spearman: float
    r2: float
    baseline: str  # the model beside it: row mean + column mean, or the mean of single examples
    baseline_mse: float  # scaled; nan where it was not measured

    @property
    def error_ratio(self) -> float:
        """Network's error as a share of the baseline's; below 1 the network is better."""
        return self.scaled_mse / self.baseline_mse if self.baseline_mse > 0 else math.nan


def numbers(table: pa.Table, name: str) -> F64:
    """Read a numeric column as float64, nulls as nan."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def num_picks(data: ReportData) -> int:
    """Count the selected examples."""
    return data.ranking.num_rows if data.ranking is not None else 0


def num_scored_pairs(data: ReportData) -> int | None:
    """Count the pairs that were scored, over all blocks."""
    if data.score_statistics is None or not data.score_statistics.num_rows:
        return None
    return int(numbers(data.score_statistics, "num_scored").sum())


def final_objective(data: ReportData) -> float:
    """Return the objective after the last pick, nan without picks."""
    if not num_picks(data) or data.ranking is None:
        return math.nan
    return float(numbers(data.ranking, "objective")[-1])


def share_of_best(data: ReportData) -> float:
    """Return the least share of the best possible value that was reached; nan where unknown."""
    final, bound = final_objective(data), data.upper_bound
    if bound is None or not (math.isfinite(final) and bound > 0):
        return math.nan
    return min(final / bound, 1.0)


def mean_coverage(data: ReportData) -> float:
    """Return the mean coverage (0..1) over the ground set, nan where it was not recorded."""
    if data.coverage is None or not data.coverage.num_rows:
        return math.nan
    values = numbers(data.coverage, "coverage")
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def total_seconds(data: ReportData) -> float:
    """Return the seconds of all stages together."""
    return float(sum(stage.seconds for stage in data.stages))


def total_cost(data: ReportData) -> float | None:
    """Return the price of all stages that have one, None where none has."""
    costs = [stage.cost_usd for stage in data.stages if stage.cost_usd is not None]
    return sum(costs) if costs else None


def splits_of(table: pa.Table) -> list[str]:
    """List the held-out splits of a FIDELITY or PREDICTIONS table: quadrants where it has any."""
    names = sorted(str(name) for name in table["split"].unique().to_pylist())
    quadrants = [name for name in names if name.startswith("Q")]
    return quadrants or [name for name in names if name != "train"]


def blocks_of(table: pa.Table | None) -> list[str]:
    """List the blocks of a table in order of first appearance."""
    return [] if table is None else [str(name) for name in table["block"].unique().to_pylist()]


def select_block(table: pa.Table, block: str) -> pa.Table:
    """Keep the rows of one block."""
    return table.filter(pc.field("block") == block)


def metric(table: pa.Table, split: str, model: str, name: str) -> float:
    """Look one metric up in the FIDELITY rows of one block; nan where it is absent or null."""
    hits = table.filter((pc.field("split") == split) & (pc.field("model") == model))
    return float(numbers(hits, name)[0]) if hits.num_rows else math.nan


def best_baseline(block: str) -> str:
    """Name the model of a block that knows most without knowing pairs (or examples)."""
    return MEAN if block == POINTS else ROW_COLUMN_MEAN


def mean_score(data: ReportData) -> float:
    """Return the mean scaled score of the picks, nan without picks."""
    return final_objective(data) / num_picks(data) if num_picks(data) else math.nan


def headline_fidelity(data: ReportData) -> Fidelity | None:
    """Judge the network where it matters most: the main block, the hardest split measured."""
    blocks = blocks_of(data.fidelity)
    if data.fidelity is None or not blocks:
        return None
    block = data.main_block if data.main_block in blocks else blocks[0]
    table = select_block(data.fidelity, block)
    measured = [
        split
        for split in splits_of(table)
        if math.isfinite(metric(table, split, NETWORK, "scaled_mse"))
    ]
    if not measured:
        return None
    split = measured[-1]
    return Fidelity(
        block=block,
        split=split,
        num_pairs=int(metric(table, split, NETWORK, "num_pairs")),
        scaled_mse=metric(table, split, NETWORK, "scaled_mse"),
        spearman=metric(table, split, NETWORK, "spearman"),
        r2=metric(table, split, NETWORK, "r2"),
        baseline=best_baseline(block),
        baseline_mse=metric(table, split, best_baseline(block), "scaled_mse"),
    )


def mix_shares(mix: Sequence[MixRow]) -> tuple[F64, F64]:
    """Return each group's share (0..1) of the pool and of the subset, in the order of ``mix``."""
    pool = np.array([row.pool for row in mix], dtype=np.float64)
    subset = np.array([row.subset for row in mix], dtype=np.float64)
    return pool / max(pool.sum(), 1.0), subset / max(subset.sum(), 1.0)


# Pictures of the selection: gain curve and coverage.

MAX_CURVE_POINTS = 400
LOG_GAIN_RATIO = 30.0  # above it small gains would lie on the axis of a linear scale
NUM_COVERAGE_BINS = 25
MAX_BOUND_SHOWN = 2.0  # of the final value: above it the curve would be squeezed


def thin_curve(num_points: int, max_points: int = MAX_CURVE_POINTS) -> np.ndarray:
    """Choose which points of a long curve to draw: first and last, dense at the steep start.

    Returns:
        Ascending distinct indices [P], P <= max_points.
    """
    if num_points <= max_points:
        return np.arange(num_points)
    half = max_points // 2
    even = np.linspace(0, num_points - 1, half)
    early = np.geomspace(1, num_points, max_points - half) - 1
    return np.unique(np.rint(np.concatenate([even, early])).astype(np.int64))


def plot_gain_curve(
    ranking: pa.Table,
    random_objective: float | None = None,
    *,
    upper_bound: float | None = None,
    log_x: bool = False,
) -> Chart:
    """Draw the objective after each pick and the gain of each pick (a RANKING table).

    ``upper_bound`` is a value that no subset within the budget exceeds.
    """
    title = "Gain curve"
    objective, gain = numbers(ranking, "objective"), numbers(ranking, "gain")
    final = float(objective[-1]) if len(objective) else math.nan
    if not (math.isfinite(final) and final > 0):
        reason = "there is no pick, or the objective has no positive final value to scale by."
        return Chart("gain", title, missing=reason)
    share = objective / final
    knee = _first_at(share, 0.9)
    with theme():
        figure, _ = new_axes(3.75)
        figure.clear()
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
        _draw_objective(top, share, knee, random_objective, final, log_x=log_x)
        _draw_bound(top, upper_bound, final)
        _draw_gains(bottom, gain)
        figure.align_ylabels()
        picture = to_svg(figure, "gain", "Objective and gain by number of picks")
    return Chart(
        "gain",
        _gain_title(share, knee),
        (Panel(picture),),
        sees="the value of the subset after each pick, as a share of its final value (above), and "
        "what each pick added when it was made (below).",
        means=_gain_meaning(share, random_objective, final) + _bound_meaning(upper_bound, final),
    )


def _first_at(share: F64, level: float) -> int:
    """Return the 1-based pick at which the curve first reaches ``level``."""
    reached = np.flatnonzero(share >= level - 1e-12)
    return int(reached[0]) + 1 if len(reached) else len(share)


def _gain_title(share: F64, knee: int) -> str:
    num_picks = len(share)
    if num_picks == 1:
        return "One pick makes the whole objective"
    part = format_percent(knee / num_picks)
    return (
        f"90 % of the objective is reached after {format_count(knee)} picks, {part} of the budget"
    )


def _gain_meaning(share: F64, random_objective: float | None, final: float) -> str:
    num_picks = len(share)
    before = float(share[-1 - max(num_picks // 10, 1)]) if num_picks > 1 else 0.0
    last = 1 - before
    text = f"the last tenth of the picks adds {format_percent(last)} of the value"
    text += (
        "; a smaller budget would lose little."
        if last < 0.03
        else "; the curve still rises, so a larger budget would still pay."
    )
    if random_objective is not None and math.isfinite(random_objective):
        random_share = format_percent(random_objective / final)
        text += f" A random subset of the same size reaches {random_share} of it."
    return text


def _bound_meaning(upper_bound: float | None, final: float) -> str:
    if upper_bound is None or upper_bound < final:
        return ""
    least = math.floor(1000 * final / upper_bound) / 10  # a promise is rounded down
    return (
        f" No subset within the budget can be worth more than the green line: this one has at "
        f"least {least:g} % of the best possible value."
    )


def _draw_bound(axes: Axes, upper_bound: float | None, final: float) -> None:
    """Draw the line that no subset within the budget exceeds."""
    if upper_bound is None or upper_bound < final:
        return
    level = upper_bound / final
    axes.set_ylim(axes.get_ylim()[0], max(1.06, 1.13 * min(level, MAX_BOUND_SHOWN)))
    if level > MAX_BOUND_SHOWN:
        return
    axes.axhline(level, color=GREEN, linewidth=1.4, linestyle=(0, (1, 1.5)))
    axes.annotate(
        f"no subset exceeds {format_percent(level)}",
        (0, level),
        xycoords=("axes fraction", "data"),
        xytext=(8, 4),
        textcoords="offset points",
        color=GREEN,
    )


def _draw_objective(
    axes: Axes,
    share: F64,
    knee: int,
    random_objective: float | None,
    final: float,
    *,
    log_x: bool,
) -> None:
    keep = thin_curve(len(share))
    picks = keep + 1
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:  # the empty subset is worth nothing
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        keep_share = np.concatenate([[0.0], share[keep]])
        picks = np.concatenate([[0], picks])
    values = share[keep] if log_x else keep_share
    axes.fill_between(picks, values, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(picks, values, color=BLUE, linewidth=2.2, solid_capstyle="round")
    axes.grid(axis="y")
    axes.set_ylim(min(0.0, float(values.min())), 1.06)
    axes.set_xlim(1 if log_x else 0, max(len(share), 2 if log_x else 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.set_ylabel("objective, share of final")
    if len(share) > 1:
        axes.plot([knee], [share[knee - 1]], "o", color=BLUE, markeredgecolor=CARD)
        side = "left" if knee < 0.6 * len(share) else "right"
        axes.annotate(
            f"90 % at {format_count(knee)}",
            (knee, share[knee - 1]),
            xytext=(8 if side == "left" else -8, -13),
            textcoords="offset points",
            ha=side,
        )
    if random_objective is not None and math.isfinite(random_objective):
        level = random_objective / final
        axes.axhline(level, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
        # The half of the line that the 90 % mark leaves free.
        at_right = knee < 0.5 * len(share)
        axes.annotate(
            "random subset, same size",
            (1 if at_right else 0, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4 if at_right else 8, -12),
            textcoords="offset points",
            ha="right" if at_right else "left",
            color=ORANGE,
        )


def _draw_gains(axes: Axes, gain: F64) -> None:
    keep = thin_curve(len(gain))
    values = gain[keep]
    positive = values[values > 0]
    if len(positive) == len(values) and positive.max() > LOG_GAIN_RATIO * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    marker = "o" if len(values) < 20 else ""
    axes.plot(keep + 1, values, color=GREEN, linewidth=1.6, marker=marker, markersize=4)
    axes.grid(axis="y")
    axes.set_ylabel("gain of pick")
    axes.set_xlabel("number of picks")


def plot_coverage(coverage: pa.Table, ground_set: str) -> Chart:
    """Draw how well the rows of the ground set are covered by their best pick (COVERAGE)."""
    values = numbers(coverage, "coverage")
    covered = coverage["covered_by"].is_valid().to_numpy() & np.isfinite(values)
    if not len(values):
        return Chart("coverage", "Coverage", missing="the coverage table has no row.")
    num_rows, num_covered = len(values), int(covered.sum())
    median = float(np.median(values[covered])) if num_covered else math.nan
    with theme():
        figure, axes = new_axes(2.75)
        _draw_coverage(axes, values[covered], num_rows, median)
        axes.set_ylabel(f"share of {ground_set}")
        picture = to_svg(figure, "coverage", "Histogram of coverage")
    left_out = 1 - num_covered / num_rows
    title = f"Half of the covered {ground_set} reach {format_number(median, 2)} or better"
    if not num_covered:
        title = f"No pick stands in the list of any of the {format_count(num_rows)} {ground_set}"
    elif left_out > 0:
        title += f"; {format_percent(left_out)} have no pick in their list"
    means = f"{ground_set} far to the left are those the subset does not speak to."
    if left_out > 0:
        means += (
            f" {format_count(num_rows - num_covered)} of them have no pick among their best "
            "helpers: a longer helper list or a larger budget would reach them."
        )
    return Chart(
        "coverage",
        title,
        (Panel(picture),),
        sees=f"for each of the {format_count(num_rows)} {ground_set}, the influence of its best "
        "pick (0: the lowest of all scores, 1: the highest).",
        means=means,
    )


def _draw_coverage(axes: Axes, values: F64, num_rows: int, median: float) -> None:
    low = 0.0
    if len(values) and float(values.min()) > 0.5:
        low = math.floor(float(values.min()) * 20) / 20  # all the detail lies on the right
    edges = np.linspace(low, 1.0, NUM_COVERAGE_BINS + 1)
    counts, _ = np.histogram(np.clip(values, low, 1.0), bins=edges)
    heights = counts / num_rows
    axes.bar(edges[:-1], heights, np.diff(edges) * 0.9, align="edge", color=BLUE)
    axes.set_xlim(low, 1.0)
    axes.grid(axis="y")
    axes.set_xlabel("coverage: scaled influence of the best pick")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    if math.isfinite(median):
        right = median < low + 0.6 * (1 - low)
        axes.axvline(median, color=INK, linewidth=1.4)
        axes.margins(y=0.16)
        axes.annotate(
            f"median {format_number(median, 2)}",
            (median, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5 if right else -5, -9),
            textcoords="offset points",
            ha="left" if right else "right",
        )


# Pictures of pool and subset side by side: the mix of sources or tasks, the lengths.

MAX_GROUPS = 20
MAX_LABEL_CHARS = 32
NUM_LENGTH_BINS = 32
QUOTA_ROOM = 1.3  # of the longest bar: quotas further right are not drawn
NO_REDUNDANCY = "Each pick stands on its own score, so a group may be picked far beyond its use."


def plot_mix(mix: Sequence[MixRow], group_name: str, *, ranks_by_score: bool = False) -> Chart:
    """Draw the share of each group in the subset (bar) beside its share in the pool (tick)."""
    pool, subset = mix_shares(mix)
    if len(mix) < 2:
        only = f"all examples come from one {group_name}." if mix else "no group was recorded."
        return Chart("mix", f"Mix by {group_name}", missing=only)
    order = np.argsort(-np.abs(subset - pool), kind="stable")
    shown, rest = order[:MAX_GROUPS], order[MAX_GROUPS:]
    shown = shown[np.lexsort((pool[shown], subset[shown]))]  # largest at the top of the picture
    labels = [shorten_middle(clean_text(mix[i].group), MAX_LABEL_CHARS) for i in shown]
    others = ""
    if len(rest):  # as a bar they would dwarf the rest
        shares = (format_percent(float(part[rest].sum())) for part in (subset, pool))
        others = " The other {} hold {} of the subset and {} of the pool.".format(
            len(rest), *shares
        )
    with theme():
        figure, axes = new_axes(0.75 + 0.22 * len(labels))
        _draw_mix(axes, labels, pool[shown], subset[shown], [mix[i] for i in shown])
        picture = to_svg(figure, "mix", f"Share by {group_name} in pool and subset")
    return Chart(
        "mix",
        _mix_title(mix, pool, subset),
        (Panel(picture),),
        sees=f"each {group_name}'s share of the subset (bar) and of the pool (dark tick), the "
        f"{len(shown)} that moved most; the number is subset over pool."
        + (" Orange marks are quotas." if _has_quotas(mix) else "")
        + others,
        means=f"what grew has higher scores than the pool. {NO_REDUNDANCY}"
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


def _has_quotas(mix: Sequence[MixRow]) -> bool:
    return any(row.least or row.most is not None for row in mix)


def _quota_shares(mix: Sequence[MixRow], num_picks: int, limit: float) -> list[list[float]]:
    """Return the quotas of each row as shares of the picks, those that lie in the picture."""
    quotas = [(row.least or None, row.most) for row in mix]
    return [
        [
            quota / num_picks if quota is not None and quota / num_picks <= limit else math.nan
            for quota in pair
        ]
        for pair in quotas
    ]


def _draw_mix(axes: Axes, labels: list[str], pool: F64, subset: F64, mix: Sequence[MixRow]) -> None:
    rows = np.arange(len(labels))
    colours = [BLUE if s >= p else GREY for p, s in zip(pool, subset, strict=True)]
    axes.barh(rows, subset, height=0.62, color=colours)
    axes.vlines(pool, rows - 0.4, rows + 0.4, color=INK, linewidth=2.0)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    span = float(max(pool.max(), subset.max()))
    picks = round(max(sum(row.subset for row in mix) / max(float(subset.sum()), 1e-12), 1.0))
    quotas = np.array(_quota_shares(mix, picks, QUOTA_ROOM * span)).reshape(-1, 2)
    span = float(np.nanmax([span, *quotas.ravel()]))
    axes.set_xlim(0, 1.17 * span)
    for shares, marker in zip(quotas.T, (">", "<"), strict=True):
        axes.plot(shares, rows, marker, color=ORANGE, markersize=5, zorder=5)
    for row, (p, s) in enumerate(zip(pool, subset, strict=True)):
        ratio = f"×{format_number(s / p, 2)}" if p > 0 else "new"
        end = float(np.nanmax([p, s, *quotas[row]]))
        axes.text(end + 0.02 * span, row, ratio, va="center", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    tick = Line2D([], [], color=INK, marker="|", markersize=10, markeredgewidth=2, linestyle="")
    kinds = ((BLUE, "subset, grew"), (GREY, "subset, shrank"))
    marks = [tick]
    if np.isfinite(quotas).any():
        marks.append(
            Line2D([], [], color=ORANGE, marker="<", markersize=5, linestyle="", label="quota")
        )
    patches = [Patch(color=colour, label=label) for colour, label in kinds if colour in colours]
    axes.legend(
        [*patches, *marks],
        [*(str(patch.get_label()) for patch in patches), "pool", "quota"][
            : len(patches) + len(marks)
        ],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=4,
        handlelength=1.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def plot_lengths(pool: Lengths, subset: Lengths) -> Chart:
    """Draw the distribution of lengths (tokens) in pool and subset, on a log axis."""
    title = "Lengths"
    if not len(pool) or not len(subset):
        return Chart("lengths", title, missing="no length was recorded.")
    pool_f, subset_f = (np.maximum(np.asarray(x, dtype=np.float64), 1.0) for x in (pool, subset))
    median_pool, median_subset = float(np.median(pool_f)), float(np.median(subset_f))
    ratio = median_subset / median_pool
    medians = f"median {format_count(median_subset)} against {format_count(median_pool)} tokens"
    title = f"Picks are as long as the pool: {medians}"
    if not 0.95 < ratio < 1.05:
        by = f"{format_number(ratio, 2)} times as long as"
        if ratio < 2:
            by = f"{format_percent(abs(ratio - 1))} {'longer' if ratio > 1 else 'shorter'} than"
        title = f"Picks are {by} the pool: {medians}"
    with theme():
        figure, axes = new_axes(2.75)
        _draw_lengths(axes, pool_f, subset_f)
        picture = to_svg(figure, "lengths", "Histogram of lengths in pool and subset")
    return Chart(
        "lengths",
        title,
        (Panel(picture),),
        sees="the share of examples by length in tokens, prompt and response together.",
        means="a subset much longer than its pool costs more to train on per example: compare "
        "budgets in tokens, not in rows.",
    )


def _draw_lengths(axes: Axes, pool: F64, subset: F64) -> None:
    low, high = pool.min(), max(pool.max(), subset.max())
    edges = np.unique(np.rint(np.geomspace(low, max(high, low + 1) + 1, NUM_LENGTH_BINS + 1)))
    # Steps of one whole token first, wider later: heights are per bin of the log axis.
    width = np.log(edges[1:] / edges[:-1])
    for values, colour, name in ((pool, GREY, "pool"), (subset, BLUE, "subset")):
        counts, _ = np.histogram(values, bins=edges)
        heights = counts / len(values) / width * float(np.median(width))
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
        axes.stairs(heights, edges, color=colour, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.grid(axis="y")
    axes.set_xlabel("tokens")
    axes.legend(loc="best", handlelength=1.2)


# How far the new data of a run that goes on from another lie from its labels.

GROUPS = {
    "new": ("new data", BLUE),
    "reference": ("labelled corpus, not labelled itself", ORANGE),
}
NOTHING_TO_COMPARE = "there is nothing new, or every example of the labelled corpus is labelled."


def plot_drift(distances: pa.Table) -> Chart:
    """Draw how the distances to the nearest labelled example are distributed, group by group."""
    title = "Distance to the labels"
    group = np.asarray(distances["group"].to_pylist())
    found = {name: np.sort(numbers(distances, "distance")[group == name]) for name in GROUPS}
    if not all(len(values) for values in found.values()):
        return Chart("drift", title, missing=NOTHING_TO_COMPARE)
    with theme():
        figure, axes = new_axes(3.0)
        _draw(axes, found)
        picture = to_svg(figure, "drift", "Distribution of distances to labelled examples")
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


# Picture of the network's predictions against the teacher's labels.

MAX_SCATTER_POINTS = 300  # above it points hide each other and the file grows: draw density
SPLIT_MEANING = {
    "Q1": "both seen",
    "Q2": "one seen",
    "Q3": "one seen",
    "Q4": "neither seen",
}


def split_label(split: str, block: str) -> str:
    """Name a split with what the network saw of its pairs (or examples) in training."""
    meaning = "not seen" if block == POINTS else SPLIT_MEANING.get(split)
    return f"{split}, {meaning}" if meaning else split


def plot_predictions(predictions: pa.Table, block: str) -> Chart:
    """Draw prediction against teacher's label, one panel per quadrant (PREDICTIONS, one block)."""
    name, title, unit = f"scatter-{block}", "Predicted against teacher", unit_of(block)
    utility, influence = numbers(predictions, "utility"), numbers(predictions, "influence")
    finite = np.isfinite(utility) & np.isfinite(influence)
    split = np.asarray(predictions["split"].to_pylist(), dtype=object)
    groups = [(s, finite & (split == s)) for s in splits_of(predictions)]
    groups = [(s, mask) for s, mask in groups if mask.any()]
    if not groups:
        return Chart(name, title, missing=f"none of the held-out {unit} was predicted.")
    everything = np.concatenate([v[mask] for _, mask in groups for v in (utility, influence)])
    limits = _padded_range(everything)
    size = (2.5, PANEL_WIDTH) if len(groups) > 1 else (4.0, FIGURE_WIDTH)
    panels, correlations = [], []
    for s, mask in groups:
        correlations.append(rank_correlation(utility[mask], influence[mask]))
        with theme():
            figure, axes = new_axes(*size)
            _draw_scatter(axes, utility[mask], influence[mask], limits, unit)
            picture = to_svg(figure, f"{name}-{s}", f"Predicted against teacher, {s}")
        panels.append(Panel(picture, split_label(s, block)))
    known = [c for c in correlations if math.isfinite(c)]
    if known:
        reach = f"{format_number(min(known), 2)} to {format_number(max(known), 2)}"
        title = (
            f"Rank correlation with the teacher: {reach if len(known) > 1 else reach.split()[0]}"
        )
    return Chart(
        name,
        title,
        tuple(panels),
        sees=_scatter_sees(block),
        means="on the diagonal the network repeats the teacher; a flat cloud means it predicts "
        f"the mean. {groups[-1][0]} is what selection over unseen {unit} rests on.",
    )


def _scatter_sees(block: str) -> str:
    if block == POINTS:
        return (
            "each held-out example by the teacher's label (across) and the network's prediction "
            "(up); stronger colour: more examples."
        )
    return (
        "each held-out pair by the teacher's label (across) and the network's prediction (up) "
        "by what the network had seen of the two examples; stronger colour: more pairs."
    )


def rank_correlation(left: F64, right: F64) -> float:
    """Return Spearman's correlation (mean ranks for ties), nan where either side is constant."""
    ranks = [_mean_ranks(values) for values in (left, right)]
    if len(left) < 2 or any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: F64) -> F64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _padded_range(values: F64) -> tuple[float, float]:
    """Span the bulk of the values: a few outliers must not push the rest into a corner."""
    low, high = (float(v) for v in np.quantile(values, [0.002, 0.998]))
    pad = 0.06 * (high - low) or 0.5
    return low - pad, high + pad


def _draw_scatter(
    axes: Axes, utility: F64, influence: F64, limits: tuple[float, float], unit: str
) -> None:
    axes.axline((limits[0], limits[0]), slope=1, color=GREY, linewidth=1.2)
    inset = 0.03 * (limits[1] - limits[0])  # outliers stand at the edge, whole
    x, y = (np.clip(v, limits[0] + inset, limits[1] - inset) for v in (utility, influence))
    if len(x) <= MAX_SCATTER_POINTS:
        axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.45, markeredgewidth=0)
    else:
        cells = axes.hexbin(x, y, gridsize=24, extent=(*limits, *limits), mincnt=1, linewidths=0)
        counts = np.log1p(np.asarray(cells.get_array(), dtype=np.float64))
        cells.set_array(None)
        # Opacity, not lightness, carries the count: it reads on a light and on a dark page.
        alphas = 0.14 + 0.86 * counts / counts.max()
        cells.set_facecolor([(BLUE, float(alpha)) for alpha in alphas])
        cells.set_edgecolor("none")
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.set_xlabel("teacher")
    axes.set_ylabel("network")
    rho = format_number(rank_correlation(utility, influence), 2)
    text = f"ρ {rho} · {format_count(len(x))} {unit}"
    axes.set_title(text, fontsize=FONT_SIZE, color=INK, loc="left")


# Picture of how far the network is from its teacher: error, beside models that know less.

SAME_ERROR = 0.02  # relative difference that a few hundred pairs do not resolve
# Order, colour and marker of the models; the markers tell them apart without colour.
MODELS = {
    "network": ("network", BLUE, "o"),
    "row_column_mean": ("row + column mean", ORANGE, "D"),
    "mean": ("mean", GREEN, "s"),
    "zero": ("zero", PURPLE, "^"),
    "random": ("random", GREY, "v"),
}
# The two that are compared most stand a little apart, so that equal errors do not hide each other.
ROW_SHIFT = {NETWORK: 0.13, ROW_COLUMN_MEAN: -0.13}


def plot_errors(fidelity: pa.Table, block: str, owner: str = "") -> Chart:
    """Draw the scaled MSE of network and baselines by split, log axis (FIDELITY, one block).

    ``owner`` tells the pictures of several networks on one page apart.
    """
    name, title = f"mse-{block}{owner}", title_of("Error", block)
    splits = splits_of(fidelity)
    table = {
        model: np.array([metric(fidelity, split, model, "scaled_mse") for split in splits])
        for model in MODELS
    }
    known = np.concatenate(list(table.values())) if splits else np.array([])
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return Chart(name, title, missing="no error above zero was measured.")
    with theme():
        figure, axes = new_axes(1.0 + 0.37 * len(splits))
        _draw_errors(axes, [split_label(split, block) for split in splits], table)
        picture = to_svg(figure, name, "Mean squared error by split and model")
    return Chart(
        name,
        _error_title(splits, table, block),
        (Panel(picture),),
        sees="the mean squared error on labels scaled to [0, 1], on a log scale: further left is "
        "better.",
        means=_errors_mean(block),
    )


def title_of(measure: str, block: str) -> str:
    """Name a measure without a finding."""
    return f"{measure} on held-out examples" if block == POINTS else f"{measure} by quadrant"


def _errors_mean(block: str) -> str:
    if block == POINTS:
        return (
            "zero and random never see a label; the mean knows the labels and no example. Only "
            "what the network gains over it is knowledge of examples."
        )
    return (
        "zero and random never see a label; the row + column mean knows how good each "
        "example is on average. Only what the network gains over it is knowledge of pairs."
    )


def _error_title(splits: list[str], table: dict[str, F64], block: str) -> str:
    baseline = best_baseline(block)
    known = f"the {MODELS[baseline][0]}" + (" label" if baseline == MEAN else "")
    ratios = table[NETWORK] / np.where(table[baseline] > 0, table[baseline], np.nan)
    usable = [(s, float(r)) for s, r in zip(splits, ratios, strict=True) if math.isfinite(r)]
    if not usable:
        return title_of("Error", block)
    split, ratio = usable[-1]
    if abs(ratio - 1) < SAME_ERROR:
        return f"In {split} the network does about as well as {known}"
    if ratio > 2:
        times = format_number(ratio, 2)
        return f"In {split} the network's error is {times} times that of {known}"
    word = "below" if ratio < 1 else "above"
    change = format_percent(abs(1 - ratio))
    return f"In {split} the network's error is {change} {word} that of {known}"


def _draw_errors(axes: Axes, labels: list[str], table: dict[str, F64]) -> None:
    rows = np.arange(len(labels))[::-1].astype(np.float64)
    for model, (label, colour, marker) in reversed(
        MODELS.items()
    ):  # the network comes last, on top
        values = np.where(table[model] > 0, table[model], np.nan)
        if np.isfinite(values).any():
            size = 9 if model == NETWORK else 7
            axes.plot(
                values,
                rows + ROW_SHIFT.get(model, 0.0),
                marker,
                color=colour,
                label=label,
                markersize=size,
                markeredgecolor=CARD,
            )
    axes.set_xscale("log")
    _label_log_axis(axes)
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.5, len(labels) - 0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="both")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("mean squared error, labels scaled to [0, 1] (log)")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=len(handles),
        handletextpad=0.1,
        columnspacing=0.9,
        borderaxespad=0.2,
        handlelength=1.4,
    )


def _label_log_axis(axes: Axes) -> None:
    """Label decades, and steps inside them where the axis spans less than two."""
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


# Pictures of how far the network's order is its teacher's: of all pairs, and within rows.

FOLLOWS = 0.3  # correlation from which on an order is followed
LOWEST_DRAWN = -0.5  # a bar below it is cut; its number still stands there
CHANCE = "chance_overlap"


@dataclass(frozen=True)
class _Measure:
    column: str  # of FIDELITY
    caption: str
    label: str  # under the axis, and for a screen reader


ALL_PAIRS = _Measure("spearman", "Order of all pairs", "Spearman's rank correlation")
WITHIN = _Measure("row_spearman", "Order within a row", "Spearman, mean over rows")
MEASURES = (
    ALL_PAIRS,
    WITHIN,
    _Measure("centred_r2", "Values, rows centred", "R² after row means are removed"),
    _Measure("top_overlap", "Best helpers found", "share of the best quarter"),
)


def plot_order(fidelity: pa.Table, block: str) -> Chart:
    """Draw network beside row + column mean by split, raw and within rows (FIDELITY, one block).

    Examples on their own have no rows of pairs: one panel, of the network alone.
    """
    name, title = f"order-{block}", title_of("Rank correlation", block)
    splits = splits_of(fidelity)
    # A constant such as the mean has no order.
    models = (NETWORK,) if block == POINTS else (NETWORK, ROW_COLUMN_MEAN)
    panels: list[Panel] = []
    for measure in MEASURES[:1] if block == POINTS else MEASURES:
        shown = _read(fidelity, splits, models, measure.column)
        if not splits or not np.isfinite(np.concatenate(list(shown.values()))).any():
            continue
        chance = _read(fidelity, splits, (NETWORK,), CHANCE)[NETWORK]
        with theme():
            width = FIGURE_WIDTH if block == POINTS else PANEL_WIDTH
            figure, axes = new_axes(1.2 + 0.44 * len(splits), width)
            labels = [split_label(s, block) for s in splits] if block == POINTS else splits
            _draw_bars(axes, labels, shown, measure.label)
            if measure.column == "top_overlap":
                _draw_chance(axes, chance)
            picture = to_svg(figure, f"{name}-{measure.column}", f"{measure.caption} by split")
        panels.append(Panel(picture, "" if block == POINTS else measure.caption))
    if not panels:
        missing = "no correlation is defined: labels or predictions do not vary."
        return Chart(name, title, missing=missing)
    return Chart(
        name,
        _finding(fidelity, splits, block) or title,
        tuple(panels),
        sees=_sees(block),
        means=_means(block),
    )


def _finding(fidelity: pa.Table, splits: list[str], block: str) -> str:
    """Say of the hardest split that has one whether the network follows the teacher's order."""
    measures = (ALL_PAIRS,) if block == POINTS else (WITHIN, ALL_PAIRS)
    for measure in measures:
        values = _read(fidelity, splits, (NETWORK,), measure.column)[NETWORK]
        known = [i for i in range(len(splits)) if math.isfinite(values[i])]
        if known:
            value, split = float(values[known[-1]]), splits[known[-1]]
            verb = "follows" if value >= FOLLOWS else "barely follows"
            verb = verb if value > 0 else "does not follow"
            place = "within rows" if measure is WITHIN else ""
            order = f"the teacher's order {place}".rstrip()
            return f"In {split} the network {verb} {order}: {value:.2f}"
    return ""


def _sees(block: str) -> str:
    if block == POINTS:
        return (
            "how well the order of the predictions follows the order of the teacher's labels "
            "(1: the same order, 0: none)."
        )
    return (
        "the teacher's order found again (1: wholly, 0: not at all), over all pairs and within "
        "each row, by what the network had seen. Best helpers: of the quarter of a row's helpers "
        "that the teacher likes best, the share that the model does; the tick is chance."
    )


def _means(block: str) -> str:
    if block == POINTS:
        return "selection compares scores, so order matters more to it than error."
    return (
        "which helpers a row should take does not depend on the row's mean, so the first panel can "
        "look good by telling rows apart; the others cannot. The row + column mean knows which "
        "helpers are good for all; in Q2 and Q4 it never saw them."
    )


def _read(
    fidelity: pa.Table, splits: list[str], models: tuple[str, ...], column: str
) -> dict[str, F64]:
    return {
        model: np.array([metric(fidelity, split, model, column) for split in splits])
        for model in models
    }


def _draw_bars(axes: Axes, labels: list[str], shown: dict[str, F64], name: str) -> None:
    rows = _places(len(labels))
    offsets = (0.19, -0.19) if len(shown) > 1 else (0.0,)
    lowest = min(0.0, *(float(np.nan_to_num(values).min()) for values in shown.values()))
    lowest = max(lowest * 1.05, LOWEST_DRAWN)
    for offset, (model, values) in zip(offsets, shown.items(), strict=True):
        label, colour, _ = MODELS[model]
        bars = np.maximum(np.nan_to_num(values), lowest)
        axes.barh(rows + offset, bars, height=0.34, color=colour, label=label)
        for row, value in zip(rows + offset, values, strict=True):
            text = f"{value:.2f}" if math.isfinite(value) else "not defined"
            at = max(float(np.nan_to_num(value)), 0.0)
            axes.text(at + 0.012, row, text, va="center", color=INK)
    axes.set_xlim(lowest, 1.0)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel(name)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), handlelength=1.2, borderaxespad=0.2)


def _draw_chance(axes: Axes, chance: F64) -> None:
    for row, value in zip(_places(len(chance)), chance, strict=True):
        if math.isfinite(value):
            axes.plot([value, value], [row - 0.4, row + 0.4], color=INK, linewidth=1.4)


def _places(count: int) -> F64:
    """Return where splits stand, the first on top."""
    return np.arange(count)[::-1].astype(np.float64)


# Pictures of scoring all pairs: how scores are distributed, and what pruning finds.

NUM_BARS = 48
_COUNTED = (
    "; of more than some thousand rows every n-th was counted, of a pruned block the rows held "
    "out, each with all its columns"
)


def plot_histogram(histogram: pa.Table, *, of_labels: bool = False) -> Chart:
    """Draw how the scores of each block are distributed (SCORE_HISTOGRAM, one row a bin).

    Of labels every one is counted.
    """
    blocks = blocks_of(histogram)
    if not blocks:
        return Chart("histogram", "Distribution of scores", missing="nothing was scored.")
    panels: list[Panel] = []
    for block in blocks:
        with theme():
            size = (2.75,) if len(blocks) == 1 else (2.4, PANEL_WIDTH)
            figure, axes = new_axes(*size)
            _draw_histogram(axes, select_block(histogram, block))
            picture = to_svg(figure, f"histogram-{block}", f"Histogram of scores, {block}")
        panels.append(Panel(picture, block if len(blocks) > 1 else ""))
    counted = int(numbers(histogram, "count").sum())
    unit = unit_of(blocks[0])
    which = "" if of_labels or unit == "examples" else _COUNTED
    return Chart(
        "histogram",
        f"Distribution of {format_compact(counted)} scores",
        tuple(panels),
        sees=f"the share of {unit} by score{which}.",
        means="a long thin tail on the right holds what is worth having; where the right edge is "
        "steep, much is nearly as good as the best.",
    )


def _draw_histogram(axes: Axes, histogram: pa.Table) -> None:
    bins = numbers(histogram, "bin").astype(np.int64)
    counts = numbers(histogram, "count").astype(np.int64)
    low, high = bin_edges(bins)
    # Bars narrower than the bins that were counted in would show the bins' edges as steps.
    widest = float((high - low)[np.argmax(counts)])
    num_bars = int(np.clip((high.max() - low.min()) / (2 * widest), 1, NUM_BARS))
    edges = np.linspace(float(low.min()), float(high.max()), num_bars + 1)
    share = spread_counts(bins, counts, edges) / counts.sum()
    axes.stairs(share, edges, fill=True, color=BLUE, alpha=0.35)
    axes.stairs(share, edges, color=BLUE, linewidth=1.4)
    axes.grid(axis="y")
    axes.set_ylim(0, 1.08 * float(share.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent_tick(value)))
    axes.set_xlabel("score, in the teacher's unit")
    axes.set_ylabel("share")


def plot_recall(tried: pa.Table, final: pa.Table, min_recall: float) -> Chart:
    """Draw recall against the share of pairs scored.

    Args:
        tried: Every setting of the search that was tried (RECALL).
        final: Recall of the lists on other rows (ROW_RECALL); empty if the run went exact.
        min_recall: The share that the recipe asks for.
    """
    title = "Recall of the pruned lists"
    blocks = blocks_of(tried)
    if not blocks:
        reason = "no index was searched: every pair was scored."
        return Chart("recall", title, missing=reason)
    panels: list[Panel] = []
    for block in blocks:
        with theme():
            size = (2.75,) if len(blocks) == 1 else (2.5, PANEL_WIDTH)
            figure, axes = new_axes(*size)
            measured = final.filter(pc.field("block") == block)
            _draw_recall(axes, select_block(tried, block), measured, min_recall)
            picture = to_svg(figure, f"recall-{block}", f"Recall by pairs scored, {block}")
        panels.append(Panel(picture, block if len(blocks) > 1 else ""))
    return Chart(
        "recall",
        _recall_title(final, title),
        tuple(panels),
        sees="for each width of the search the share of the true best helpers that it finds on "
        "held-out rows, with two standard errors (dots), the recall asked for (dashed), and the "
        "recall of this run's own lists on other rows (diamond).",
        means="the narrowest search whose bar lies above the dashed line was taken. To the right "
        "recall costs time; what is missing are mostly helpers near the end of a list.",
    )


def _recall_title(final: pa.Table, otherwise: str) -> str:
    if not final.num_rows:
        return f"{otherwise}: tried, and every pair scored instead"
    recall = float(numbers(final, "recall").mean())
    share = float(numbers(final, "scored_fraction").mean())
    return (
        f"{format_percent(recall)} of the true best helpers found by scoring "
        f"{format_percent(share)} of the pairs"
    )


def _draw_recall(axes: Axes, tried: pa.Table, final: pa.Table, min_recall: float) -> None:
    share, recall = numbers(tried, "scored_fraction"), numbers(tried, "recall")
    error = 2 * numbers(tried, "standard_error")
    order = np.argsort(share, kind="stable")
    axes.errorbar(
        share[order], recall[order], error[order],
        color=BLUE, marker="o", markersize=5, linewidth=1.6, elinewidth=1.0, capsize=2,
    )  # fmt: skip
    axes.axhline(min_recall, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
    lowest = min(float((recall - error).min()), min_recall)
    if final.num_rows:
        values = numbers(final, "recall")
        axes.errorbar(
            [float(numbers(final, "scored_fraction").mean())], [float(values.mean())],
            [2 * float(values.std()) / np.sqrt(len(values))],
            color=GREEN, marker="D", markersize=7, elinewidth=1.4, capsize=3, zorder=5,
        )  # fmt: skip
    room = max(1.0 - lowest, 0.01)
    axes.set_ylim(lowest - 0.12 * room, 1.0 + 0.12 * room)
    axes.set_xscale("log")
    axes.set_xlim(0.3 * float(share.min()), 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.grid(axis="y")
    axes.set_xlabel("share of the pairs scored")
    axes.set_ylabel("recall")
    axes.annotate(
        f"asked for: {format_number(min_recall, 3)}", (1, min_recall),
        xycoords=("axes fraction", "data"), xytext=(-4, -12), textcoords="offset points",
        ha="right", color=ORANGE,
    )  # fmt: skip


# Pictures of the run itself: time by stage, training of the network, range of its scores.

MAX_LABEL_CHARS = 32
LOG_LOSS_RATIO = 10.0  # above it a linear scale hides the end of training


def plot_stage_seconds(stages: Sequence[StageSummary]) -> Chart:
    """Draw the seconds of each stage as horizontal bars, in the order they ran."""
    title = "Time by stage"
    total = sum(stage.seconds for stage in stages)
    if not stages or total <= 0:
        return Chart("stages", title, missing="no stage has recorded its time.")
    longest = max(stages, key=lambda stage: stage.seconds)
    with theme():
        figure, axes = new_axes(0.35 + 0.29 * len(stages))
        _draw_stages(axes, stages, longest)
        picture = to_svg(figure, "stages", "Seconds by stage")
    share = format_percent(longest.seconds / total)
    return Chart(
        "stages",
        f"“{longest.name}” takes {share} of {format_seconds(total)}",
        (Panel(picture),),
        sees="the seconds each stage worked, in the order they ran; work taken over from an "
        "earlier run counts with the seconds it took then.",
        means=f"to make this run shorter, give “{longest.name}” more workers or less to do.",
    )


def _draw_stages(axes: Axes, stages: Sequence[StageSummary], longest: StageSummary) -> None:
    seconds = [stage.seconds for stage in stages]
    rows = np.arange(len(stages))[::-1]
    colours = [BLUE if stage is longest else GREY for stage in stages]
    axes.barh(rows, seconds, height=0.66, color=colours)
    axes.set_yticks(rows, [shorten_middle(clean_text(s.name), MAX_LABEL_CHARS) for s in stages])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlim(0, 1.22 * max(seconds))
    axes.xaxis.set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for row, value in zip(rows, seconds, strict=True):
        axes.text(value + 0.012 * max(seconds), row, format_seconds(value), va="center")


def plot_influence(statistics: pa.Table) -> Chart:
    """Draw range, mean and spread of the raw scores of each block (SCORE_STATISTICS)."""
    title = "Influence scores"
    count = numbers(statistics, "num_pairs")
    low, high = numbers(statistics, "min"), numbers(statistics, "max")
    if not len(count) or not (np.isfinite(low) & np.isfinite(high) & (count > 0)).all():
        return Chart("influence", title, missing="nothing was scored.")
    mean = numbers(statistics, "sum") / count
    variance = numbers(statistics, "sum_of_squares") / count - mean**2
    spread = np.sqrt(np.maximum(variance, 0.0))  # rounding may leave a tiny negative
    blocks = [clean_text(str(name)) for name in statistics["block"].to_pylist()]
    unit = unit_of(blocks[0])
    with theme():
        figure, axes = new_axes(0.75 + 0.5 * len(blocks))
        rows = np.arange(len(blocks))[::-1]
        axes.hlines(rows, low, high, color=GREY, linewidth=2)
        inner = np.maximum(mean - spread, low), np.minimum(mean + spread, high)
        axes.hlines(rows, *inner, color=BLUE, linewidth=9, alpha=0.45)
        axes.plot(mean, rows, "o", color=BLUE, markersize=7, markeredgecolor=CARD)
        box = {"facecolor": CARD, "edgecolor": "none", "pad": 1.0}
        for row, value in zip(rows, mean, strict=True):
            text = f"mean {format_number(float(value), 2)}"
            axes.annotate(
                text, (value, row), (0, 11), textcoords="offset points", ha="center", bbox=box
            )
        if low.min() < 0 < high.max():
            axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(rows, blocks)
        axes.set_ylim(-0.6, len(blocks) - 0.3)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{'influence' if unit == 'pairs' else 'score'}, in the teacher's unit")
        picture = to_svg(figure, "influence", "Range, spread and mean of the scores")
    total = format_compact(float(numbers(statistics, "num_scored").sum()))
    return Chart(
        "influence",
        f"{total} {unit} scored, from {format_number(float(low.min()), 2)} "
        f"to {format_number(float(high.max()), 2)}",
        (Panel(picture),),
        sees=f"for each block of {unit} the lowest and highest score (line), the mean (dot) and "
        "one standard deviation to each side (band).",
        means=f"a narrow band means that few {unit} are told apart, and the choice then rests on "
        "small differences.",
    )


def plot_training(history: pa.Table) -> Chart:
    """Draw train and validation loss by epoch for every block (TRAINING_HISTORY)."""
    title = "Training"
    blocks = [str(name) for name in history["block"].unique().to_pylist()]
    if not blocks:
        return Chart("training", title, missing="no epoch was recorded.")
    panels, findings = [], []
    for block in blocks:
        part = history.filter(pc.field("block") == block)
        epoch, train = numbers(part, "epoch"), numbers(part, "train_loss")
        validation = numbers(part, "validation_loss")
        with theme():
            size = (2.75,) if len(blocks) == 1 else (2.5, PANEL_WIDTH)
            figure, axes = new_axes(*size)
            _draw_losses(axes, epoch, train, validation)
            picture = to_svg(figure, f"training-{block}", f"Loss by epoch, {block}")
        panels.append(Panel(picture, block if len(blocks) > 1 else ""))
        if np.isfinite(validation).any():
            where = f" ({block})" if len(blocks) > 1 else ""
            findings.append(f"epoch {int(epoch[np.nanargmin(validation)])}{where}")
    if findings:
        title = f"Held-out loss is lowest at {' and '.join(findings)}"
    return Chart(
        "training",
        title,
        tuple(panels),
        sees="the loss on training and on held-out labels after each epoch; the dot marks the "
        "epoch that was kept.",
        means="a held-out loss that turns up while the training loss falls is memorising; one that "
        "still falls at the end asks for more epochs.",
    )


def _draw_losses(axes: Axes, epoch: F64, train: F64, validation: F64) -> None:
    for values, colour, name in ((train, GREY, "training"), (validation, BLUE, "held-out")):
        marker = "o" if len(epoch) < 4 else ""
        axes.plot(epoch, values, color=colour, linewidth=2, marker=marker, label=name)
    losses = np.concatenate([train, validation])
    losses = losses[np.isfinite(losses)]
    if len(losses) and losses.min() > 0 and losses.max() > LOG_LOSS_RATIO * losses.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if np.isfinite(validation).any():
        best = int(np.nanargmin(validation))
        axes.plot(
            epoch[best],
            validation[best],
            "o",
            color=BLUE,
            markersize=8,
            markeredgecolor=CARD,
        )
        axes.annotate(
            format_number(float(validation[best]), 2),
            (epoch[best], validation[best]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error")
    axes.legend(loc="upper right", handlelength=1.2)


# Picture of picks that stand each on their own score.

FLAT_SHARE = 0.1  # of the best pick's lead over a random one that the last pick must have lost


def plot_scores(ranking: pa.Table, random_objective: float | None = None) -> Chart:
    """Draw the scaled score of each pick by rank (a RANKING table), beside a random pick's."""
    title = "Scores of the picks"
    score = numbers(ranking, "gain")
    if not len(score):
        return Chart("scores", title, missing="there is no pick.")
    random_score = math.nan if random_objective is None else random_objective / len(score)
    with theme():
        figure, axes = new_axes(3.0)
        _draw_scores(axes, score, random_score)
        picture = to_svg(figure, "scores", "Score by rank")
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
    axes.plot(keep + 1, score[keep], color=BLUE, linewidth=2.2, marker=marker, markersize=4)
    axes.grid(axis="y")
    axes.set_xlim(1, max(len(score), 2))
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_compact(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.set_xlabel("rank of the pick")
    axes.set_ylabel("score (0 to 1)")
    if math.isfinite(random_score):
        axes.axhline(random_score, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)))
        above = random_score <= float(np.median(score))
        axes.annotate(
            "random example",
            (1, random_score),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 5 if above else -12),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
        )
