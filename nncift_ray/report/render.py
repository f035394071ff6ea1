"""The HTML page: one self-contained file without scripts, with every text of the corpus escaped."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyarrow as pa

from nncift_ray.report import (
    corpus_plots,
    drift_plots,
    fidelity_plots,
    leads,
    plots,
    run_plots,
    tables,
)
from nncift_ray.report.cards import make_cards
from nncift_ray.report.data import (
    CoveredExample,
    ExampleText,
    PickNeighbours,
    ReportData,
    SkippedExample,
)
from nncift_ray.report.formatting import (
    MISSING,
    format_count,
    format_number,
    format_percent,
    shorten,
)
from nncift_ray.report.headline import (
    blocks_of,
    select_block,
)
from nncift_ray.report.order_plots import plot_order
from nncift_ray.report.pair_plots import plot_histogram, plot_recall
from nncift_ray.report.prediction_plots import plot_predictions
from nncift_ray.report.score_plots import plot_scores
from nncift_ray.report.svg import Chart
from nncift_ray.report.templates import render_page
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

MAX_PROMPT_CHARS = 420
MAX_RESPONSE_CHARS = 300
MAX_COVERED_CHARS = 220
NOT_RECORDED = "this run did not record it."
BLOCK_NAMES = {
    CROSS: "Targets × candidates",
    WITHIN: "Candidates × candidates",
    POINTS: "Candidates",
}


def render_report(data: ReportData) -> str:
    """Render the report of one run as one HTML page.

    Args:
        data: What to show; parts that are ``None`` or empty are replaced by a sentence saying why.

    Returns:
        The page, free of scripts and of anything loaded from elsewhere, safe to encode as UTF-8.
        The same data gives the same text.
    """
    return render_page("page.html.j2", _page_values(data))


def _page_values(data: ReportData) -> dict[str, object]:
    fidelity_charts = _fidelity_blocks(data)
    return {
        "run_name": data.run_name,
        "lead": leads.head_lead(data),
        "chips": _chips(data),
        "cards": make_cards(data),
        "notices": list(data.notices),
        "selection_lead": leads.selection_lead(data),
        "selection_left": [_value(data), _lengths(data)],
        "selection_right": [_mix(data), *_coverage(data)],
        "extra_tables": [tables.extra_table(table) for table in data.extra_tables],
        "neighbours_title": "Sample picks"
        if data.ranks_by_score
        else "Sample picks and the rows they help",
        "neighbours_lead": leads.neighbours_lead(data),
        "neighbours": [_pick(item, data) for item in data.neighbours],
        "skipped_lead": leads.skipped_lead(data),
        "skipped": [_skipped(item) for item in data.skipped],
        "neighbours_missing": data.why_missing("neighbours", "no pick was sampled."),
        "by_teacher": data.by_teacher,
        "fidelity_lead": leads.fidelity_lead(data),
        "fidelity_blocks": fidelity_charts,
        "drift": _drift(data),
        "training": _chart(
            "training",
            "Training",
            data.training_history,
            data.why_missing("training_history", NOT_RECORDED),
            run_plots.plot_training,
        ),
        "influence": _chart(
            "influence",
            "Influence scores",
            data.score_statistics,
            data.why_missing("score_statistics", NOT_RECORDED),
            run_plots.plot_influence,
        ),
        "histogram": _chart(
            "histogram",
            "Distribution of scores",
            data.score_histogram,
            data.why_missing("score_histogram", NOT_RECORDED),
            partial(plot_histogram, of_labels=data.by_teacher),
        ),
        "recall": _recall(data),
        "scoring": None if data.scoring is None else tables.extra_table(data.scoring),
        "fidelity_table": tables.fidelity_table(data),
        "cost_lead": leads.cost_lead(data),
        "stage_chart": run_plots.plot_stage_seconds(data.stages),
        "stage_table": tables.stage_table(data),
        "health_lead": leads.health_lead(data),
        "reason_table": tables.reason_table(data),
        "error_table": tables.error_table(data),
        "output_table": tables.output_table(data),
        "fingerprint_table": tables.fingerprint_table(data),
        "config_table": tables.settings_table("Configuration", data.config),
        "environment_table": tables.settings_table("Environment", data.environment),
        "footer": leads.footer(data),
    }


def _chart(
    name: str, title: str, table: pa.Table | None, reason: str, draw: Callable[[pa.Table], Chart]
) -> Chart:
    """Draw a table, or say why there is none."""
    return Chart(name, title, missing=reason) if table is None else draw(table)


def _drift(data: ReportData) -> dict[str, object] | None:
    """Make the section on new data, of a run that goes on from another."""
    if data.drift is None or data.drift_distances is None:
        return None
    return {
        "lead": drift_plots.drift_lead(data.drift),
        "chart": drift_plots.plot_drift(data.drift_distances),
        "table": tables.extra_table(drift_plots.drift_table(data.drift)),
    }


def _value(data: ReportData) -> Chart:
    """Draw what the picks are worth: the gain curve, or the scores where each stands alone."""
    return _chart(
        "scores" if data.ranks_by_score else "gain",
        "Scores of the picks" if data.ranks_by_score else "Gain curve",
        data.ranking,
        data.why_missing("ranking", "nothing was selected."),
        lambda table: (
            plot_scores(table, data.random_objective)
            if data.ranks_by_score
            else plots.plot_gain_curve(table, data.random_objective, upper_bound=data.upper_bound)
        ),
    )


def _coverage(data: ReportData) -> list[Chart]:
    """Draw the coverage of the ground set; nothing where the objective covers no row."""
    if data.ranks_by_score:
        return []
    reason = data.why_missing("coverage", "this objective keeps no best pick for a row.")
    chart = _chart(
        "coverage",
        "Coverage",
        data.coverage,
        reason,
        lambda table: plots.plot_coverage(table, data.ground_set),
    )
    return [chart]


def _recall(data: ReportData) -> Chart | None:
    """Draw what pruning found; nothing where nobody asked for it."""
    if data.recall is None or data.final_recall is None or data.min_recall is None:
        return None
    return plot_recall(data.recall, data.final_recall, data.min_recall)


def _mix(data: ReportData) -> Chart:
    if not data.mix and "mix" in data.unavailable:
        return Chart("mix", f"Mix by {data.mix_name}", missing=data.unavailable["mix"])
    return corpus_plots.plot_mix(data.mix, data.mix_name, ranks_by_score=data.ranks_by_score)


def _lengths(data: ReportData) -> Chart:
    if data.pool_lengths is None or data.subset_lengths is None:
        reason = data.why_missing("pool_lengths", NOT_RECORDED)
        return Chart("lengths", "Lengths", missing=reason)
    return corpus_plots.plot_lengths(data.pool_lengths, data.subset_lengths)


def _fidelity_blocks(data: ReportData) -> list[dict[str, Chart | str]]:
    """Draw scatter, error and correlation of each block, the one that selection rests on first."""
    blocks = sorted(
        {*blocks_of(data.fidelity), *blocks_of(data.predictions)},
        key=lambda block: (block != data.main_block, block),
    ) or [data.main_block]
    return [
        {
            "kicker": BLOCK_NAMES.get(block, block) if len(blocks) > 1 else "",
            "scatter": _block_chart("scatter", data, data.predictions, block),
            "errors": _block_chart("errors", data, data.fidelity, block),
            "order": _block_chart("order", data, data.fidelity, block),
        }
        for block in blocks
    ]


def _block_chart(name: str, data: ReportData, table: pa.Table | None, block: str) -> Chart:
    draw, title = {
        "scatter": (plot_predictions, "Predicted against teacher"),
        "errors": (fidelity_plots.plot_errors, "Error on held-out labels"),
        "order": (plot_order, "Rank correlation on held-out labels"),
    }[name]
    part = "predictions" if name == "scatter" else "fidelity"
    reason = data.why_missing(part, NOT_RECORDED)
    return _chart(
        f"{name}-{block}",
        title,
        table,
        reason,
        lambda found: draw(select_block(found, block), block),
    )


def _chips(data: ReportData) -> list[tuple[str, str]]:
    chips = [
        ("Teacher", data.teacher),
        ("Objective", data.objective),
        ("Budget", data.budget),
        ("Finished", data.created),
    ]
    return [(name, value) for name, value in chips if value]


def _pick(item: PickNeighbours, data: ReportData) -> dict[str, object]:
    meta: list[str] = []
    if not data.ranks_by_score:
        rows = "row" if item.num_covered == 1 else "rows"
        meta.append(f"best for {format_count(item.num_covered)} {rows}")
    if item.gain is not None:
        meta.append(f"{'score' if data.ranks_by_score else 'gain'} {format_number(item.gain)}")
    if item.pick.source:
        line = f":{item.pick.line}" if item.pick.line is not None else ""
        meta.append(f"{item.pick.source}{line}")
    return {
        "rank": format_count(item.rank),
        "meta": " · ".join(meta),
        "pick": _example(item.pick, MAX_PROMPT_CHARS, MAX_RESPONSE_CHARS),
        "covered": [_covered(row) for row in item.covered],
    }


def _skipped(item: SkippedExample) -> dict[str, object]:
    place = f" · {item.example.source}:{item.example.line}" if item.example.source else ""
    return {
        "meta": f"worth {format_number(item.alone_gain)} alone, "
        f"{format_number(max(item.final_gain, 0.0))} beside the picks{place}",
        "example": _example(item.example, MAX_COVERED_CHARS, MAX_COVERED_CHARS),
        "rank": format_count(item.taker_rank),
        "why": f"gives {format_percent(item.taken_share)} of it; cosine "
        f"{format_number(item.cosine, 2)}",
        "taker": _example(item.taker, MAX_COVERED_CHARS, MAX_COVERED_CHARS),
    }


def _example(example: ExampleText, prompt_chars: int, response_chars: int) -> dict[str, str]:
    prompt, response = (_squeeze(text) for text in (example.prompt, example.response))
    return {
        "prompt": shorten(prompt, prompt_chars) or MISSING,
        "response": shorten(response, response_chars) or MISSING,
    }


def _squeeze(text: str) -> str:
    """Drop blank lines: an excerpt has no room for them."""
    return "\n".join(line for line in text.strip().splitlines() if line.strip())


def _covered(row: CoveredExample) -> dict[str, object]:
    value = row.coverage if row.coverage is not None and math.isfinite(row.coverage) else None
    return {
        "prompt": shorten(" ".join(row.example.prompt.split()), MAX_COVERED_CHARS) or MISSING,
        "response": shorten(" ".join(row.example.response.split()), MAX_COVERED_CHARS) or MISSING,
        "score": format_number(value, 2),
        "width": f"{100 * min(max(value or 0.0, 0.0), 1.0):.1f}",
    }
