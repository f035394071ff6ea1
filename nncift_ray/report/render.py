"""The HTML page: one self-contained file without scripts, with every text of the corpus escaped."""

from __future__ import annotations

import math
from collections.abc import Callable

import jinja2
import pyarrow as pa

from nncift_ray.report import corpus_plots, fidelity_plots, plots, run_plots, tables
from nncift_ray.report.cards import make_cards
from nncift_ray.report.data import CoveredExample, ExampleText, PickNeighbours, ReportData
from nncift_ray.report.formatting import (
    MISSING,
    clean_text,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
    shorten,
)
from nncift_ray.report.headline import (
    blocks_of,
    num_picks,
    select_block,
    total_cost,
    total_seconds,
)
from nncift_ray.report.svg import Chart
from nncift_ray.storage.schemas import CROSS, WITHIN

MAX_PROMPT_CHARS = 420
MAX_RESPONSE_CHARS = 300
MAX_COVERED_CHARS = 220
NOT_RECORDED = "this run did not record it."
BLOCK_NAMES = {CROSS: "Targets × candidates", WITHIN: "Candidates × candidates"}


def render_report(data: ReportData) -> str:
    """Render the report of one run as one HTML page.

    Args:
        data: What to show; parts that are ``None`` or empty are replaced by a sentence saying why.

    Returns:
        The page, free of scripts and of anything loaded from elsewhere, safe to encode as UTF-8.
        The same data gives the same text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("page.html.j2").render(**_page_values(data))
    return clean_text(page)


def _page_values(data: ReportData) -> dict[str, object]:
    fidelity_charts = _fidelity_blocks(data)
    gain = _chart(
        "gain",
        "Gain curve",
        data.ranking,
        data.why_missing("ranking", "nothing was selected."),
        lambda table: plots.plot_gain_curve(table, data.random_objective),
    )
    coverage = _chart(
        "coverage",
        "Coverage",
        data.coverage,
        data.why_missing("coverage", "this objective keeps no best pick for a row."),
        lambda table: plots.plot_coverage(table, data.ground_set),
    )
    return {
        "run_name": data.run_name,
        "lead": _lead(data),
        "chips": _chips(data),
        "cards": make_cards(data),
        "notices": list(data.notices),
        "selection_lead": _selection_lead(data),
        "selection_left": [gain, _lengths(data)],
        "selection_right": [_mix(data), coverage],
        "extra_tables": [tables.extra_table(table) for table in data.extra_tables],
        "neighbours": [_pick(item) for item in data.neighbours],
        "neighbours_missing": data.why_missing("neighbours", "no pick was sampled."),
        "fidelity_lead": _fidelity_lead(data),
        "fidelity_blocks": fidelity_charts,
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
        "fidelity_table": tables.fidelity_table(data),
        "cost_lead": _cost_lead(data),
        "stage_chart": run_plots.plot_stage_seconds(data.stages),
        "stage_table": tables.stage_table(data),
        "health_lead": _health_lead(data),
        "reason_table": tables.reason_table(data),
        "error_table": tables.error_table(data),
        "output_table": tables.output_table(data),
        "fingerprint_table": tables.fingerprint_table(data),
        "config_table": tables.settings_table("Configuration", data.config),
        "environment_table": tables.settings_table("Environment", data.environment),
        "footer": _footer(data),
    }


def _chart(
    name: str, title: str, table: pa.Table | None, reason: str, draw: Callable[[pa.Table], Chart]
) -> Chart:
    """Draw a table, or say why there is none."""
    return Chart(name, title, missing=reason) if table is None else draw(table)


def _mix(data: ReportData) -> Chart:
    if not data.mix and "mix" in data.unavailable:
        return Chart("mix", f"Mix by {data.mix_name}", missing=data.unavailable["mix"])
    return corpus_plots.plot_mix(data.mix, data.mix_name)


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
            "spearman": _block_chart("spearman", data, data.fidelity, block),
        }
        for block in blocks
    ]


def _block_chart(name: str, data: ReportData, table: pa.Table | None, block: str) -> Chart:
    draw, title = {
        "scatter": (fidelity_plots.plot_predictions, "Predicted against teacher"),
        "errors": (fidelity_plots.plot_errors, "Error by quadrant"),
        "spearman": (fidelity_plots.plot_spearman, "Rank correlation by quadrant"),
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


def _lead(data: ReportData) -> list[dict[str, object]]:
    picks = format_count(num_picks(data))
    parts = [
        (f"{picks} of {format_count(data.num_candidates)} examples", True),
        (" selected ", False),
    ]
    if data.num_targets:
        parts += [
            ("for what they teach about ", False),
            (f"{format_count(data.num_targets)} targets", True),
        ]
    else:
        parts.append(("for what they teach about all the others", False))
    if data.teacher:
        parts += [
            (", by influence learnt from a ", False),
            (data.teacher, True),
            (" teacher", False),
        ]
    return [{"text": text, "strong": strong} for text, strong in [*parts, (".", False)]]


def _chips(data: ReportData) -> list[tuple[str, str]]:
    chips = [
        ("Teacher", data.teacher),
        ("Objective", data.objective),
        ("Budget", data.budget),
        ("Finished", data.created),
    ]
    return [(name, value) for name, value in chips if value]


def _selection_lead(data: ReportData) -> str:
    picks = num_picks(data)
    if not picks:
        return "Nothing was selected."
    if data.selection_note:
        return data.selection_note
    objective = data.objective or "the objective"
    return (
        f"{objective[0].upper()}{objective[1:]} was maximised over "
        f"{format_count(data.num_candidates)} candidates: "
        "each pick is the example that adds most to what the earlier picks already give the "
        f"{data.ground_set}."
    )


def _fidelity_lead(data: ReportData) -> str:
    text = (
        "The teacher labels a sample of pairs, a small network learns them and predicts the rest. "
        "Q1 to Q4 are held-out pairs: in Q1 both examples had other labelled pairs in training, in "
        "Q4 neither had."
    )
    if data.num_labelled_pairs is not None:
        text += f" The teacher labelled {format_count(data.num_labelled_pairs)} pairs here."
    return text


def _cost_lead(data: ReportData) -> str:
    if not data.stages:
        return "No stage was recorded."
    text = f"{len(data.stages)} stages took {format_seconds(total_seconds(data))} together"
    cost = total_cost(data)
    return f"{text}, for {format_usd(cost)}." if cost is not None else f"{text}."


def _health_lead(data: ReportData) -> str:
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    share = data.num_errors / rows if rows else math.nan
    return (
        f"{format_count(data.num_errors)} rows were set aside as unusable "
        f"({format_percent(share)}) and {format_count(data.num_duplicates)} exact duplicates were "
        "collapsed into the first of their kind; neither were scored."
    )


def _footer(data: ReportData) -> str:
    version = f" {data.version}" if data.version else ""
    made = f", {data.created}" if data.created else ""
    return f"Written by nncift_ray{version}{made}. Row = helped example, column = helper example."


def _pick(item: PickNeighbours) -> dict[str, object]:
    meta = [
        f"best for {format_count(item.num_covered)} {'row' if item.num_covered == 1 else 'rows'}"
    ]
    if item.gain is not None:
        meta.append(f"gain {format_number(item.gain)}")
    if item.pick.source:
        line = f":{item.pick.line}" if item.pick.line is not None else ""
        meta.append(f"{item.pick.source}{line}")
    return {
        "rank": format_count(item.rank),
        "meta": " · ".join(meta),
        "pick": _example(item.pick, MAX_PROMPT_CHARS, MAX_RESPONSE_CHARS),
        "covered": [_covered(row) for row in item.covered],
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
