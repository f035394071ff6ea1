"""Pictures of the run itself: time by stage, training of the network, range of its scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from nncift_ray.report import svg
from nncift_ray.report.data import StageSummary, unit_of
from nncift_ray.report.formatting import (
    clean_text,
    format_compact,
    format_number,
    format_percent,
    format_seconds,
    format_tick,
    shorten_middle,
)
from nncift_ray.report.headline import F64, numbers
from nncift_ray.report.svg import Chart, Panel

MAX_LABEL_CHARS = 32
LOG_LOSS_RATIO = 10.0  # above it a linear scale hides the end of training


def plot_stage_seconds(stages: Sequence[StageSummary]) -> Chart:
    """Draw the seconds of each stage as horizontal bars, in the order they ran."""
    title = "Time by stage"
    total = sum(stage.seconds for stage in stages)
    if not stages or total <= 0:
        return Chart("stages", title, missing="no stage has recorded its time.")
    longest = max(stages, key=lambda stage: stage.seconds)
    with svg.theme():
        figure, axes = svg.new_axes(0.35 + 0.29 * len(stages))
        _draw_stages(axes, stages, longest)
        picture = svg.to_svg(figure, "stages", "Seconds by stage")
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
    colours = [svg.BLUE if stage is longest else svg.GREY for stage in stages]
    axes.barh(rows, seconds, height=0.66, color=colours)
    axes.set_yticks(rows, [shorten_middle(clean_text(s.name), MAX_LABEL_CHARS) for s in stages])
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
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
    with svg.theme():
        figure, axes = svg.new_axes(0.75 + 0.5 * len(blocks))
        rows = np.arange(len(blocks))[::-1]
        axes.hlines(rows, low, high, color=svg.GREY, linewidth=2)
        inner = np.maximum(mean - spread, low), np.minimum(mean + spread, high)
        axes.hlines(rows, *inner, color=svg.BLUE, linewidth=9, alpha=0.45)
        axes.plot(mean, rows, "o", color=svg.BLUE, markersize=7, markeredgecolor=svg.CARD)
        box = {"facecolor": svg.CARD, "edgecolor": "none", "pad": 1.0}
        for row, value in zip(rows, mean, strict=True):
            text = f"mean {format_number(float(value), 2)}"
            axes.annotate(
                text, (value, row), (0, 11), textcoords="offset points", ha="center", bbox=box
            )
        if low.min() < 0 < high.max():
            axes.axvline(0, color=svg.MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set_yticks(rows, blocks)
        axes.set_ylim(-0.6, len(blocks) - 0.3)
        axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{'influence' if unit == 'pairs' else 'score'}, in the teacher's unit")
        picture = svg.to_svg(figure, "influence", "Range, spread and mean of the scores")
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
        with svg.theme():
            size = (2.75,) if len(blocks) == 1 else (2.5, svg.PANEL_WIDTH)
            figure, axes = svg.new_axes(*size)
            _draw_losses(axes, epoch, train, validation)
            picture = svg.to_svg(figure, f"training-{block}", f"Loss by epoch, {block}")
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
    for values, colour, name in ((train, svg.GREY, "training"), (validation, svg.BLUE, "held-out")):
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
            color=svg.BLUE,
            markersize=8,
            markeredgecolor=svg.CARD,
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
