"""The HTML page: one self-contained file, with every text of the corpus escaped."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report import figures
from nncift_ray.report.data import (
    Cell,
    CoveredExample,
    ExampleText,
    ExtraTable,
    Fidelity,
    PickNeighbours,
    ReportData,
    SkippedExample,
    SuspectExample,
    blocks_of,
    cleaning_sentence,
    decisions,
    final_objective,
    format_interval,
    headline_fidelity,
    knowledge_sentence,
    mean_coverage,
    mean_score,
    mix_shares,
    num_picks,
    num_scored_pairs,
    select_block,
    share_of_best,
    total_cost,
    total_seconds,
    two_digits,
    unit_of,
)
from nncift_ray.report.figures import Chart
from nncift_ray.report.text import (
    MISSING,
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
    shorten,
    shorten_middle,
)
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN


def render_page(template: str, values: Mapping[str, object]) -> str:
    """Return a page, safe to encode as UTF-8; the same values give the same text.

    Args:
        template: Name of a template of this room; it extends ``base.html.j2``.
        values: What it names.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": markupsafe.Markup(script), "script_hash": digest}  # noqa: S704
    environment.filters |= {
        "count": format_count,
        "percent": format_percent,
        "seconds": format_seconds,
        "usd": format_usd,
    }
    return clean_text(environment.get_template(template).render(**values))


# The tables of the page, as plain rows of text.

MAX_ERROR_ROWS = 100
MAX_SETTING_CHARS = 300
MODEL_ORDER = (
    "network", "additive_ridge", "cosine", "row_column_mean", "mean", "zero", "random",
)  # fmt: skip
NUMBER, TEXT, KEY = "num", "text", "key"
FIDELITY_METRICS = {
    "scaled_mse": "MSE, labels [0, 1]",
    "mse": "MSE, label unit²",
    "r2": "R²",
    "spearman": "Spearman",
}
PAIR_METRICS = {
    "row_spearman": "Spearman within a row",
    "interaction_correlation": "Interaction correlation",
    "capture": "Capture, best eighth",
    "capture_1pct": "Capture, best 1 %",
}
PAIR_READING = (
    "A row's mean moves all its helpers alike and chooses none, so the last columns look within "
    "rows. Interaction correlation: of labels and predictions that have both lost their row and "
    "column effects, which is all that an additive model has. Capture: the mean label of the "
    "helpers a model likes best in a row, above the row's mean, as a share of what the truly best "
    "ones have; a model that knows which helpers are good for all may capture much. In brackets "
    "95 % intervals, over resampled rows and columns. In Q4 the row + column mean is a constant."
)


@dataclass(frozen=True, slots=True)
class Column:
    """Head of a column and how its cells are set."""

    name: str
    css: str = ""


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table, or the sentence that stands in its place."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]
    reading: str = ""
    missing: str = "Not available because this run did not record it."


def _columns(*names: tuple[str, str] | str) -> tuple[Column, ...]:
    return tuple(Column(n) if isinstance(n, str) else Column(*n) for n in names)


def extra_table(table: ExtraTable) -> PageTable:
    """Return a run's own table; columns that hold numbers are aligned right."""
    is_number = [
        bool(column) and all(isinstance(cell, int | float) or cell is None for cell in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.columns)
    heads = zip(table.columns, is_number, strict=True)
    columns = tuple(Column(name, NUMBER if number else "") for name, number in heads)
    rows = [tuple(_cell(cell) for cell in row) for row in table.rows]
    return PageTable(table.title, columns, rows, table.reading, missing="It has no row.")


def _cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return format_number(cell)
    if isinstance(cell, int):
        return format_count(cell)
    return MISSING if cell is None else cell


def fidelity_table(data: ReportData) -> PageTable:
    """Return every metric of every split and model (FIDELITY)."""
    metrics = FIDELITY_METRICS | ({} if data.pointwise else PAIR_METRICS)
    counts = {"num_pairs": data.unit.capitalize()}
    if not data.pointwise:
        counts |= {"num_rows": "Rows ranked"}
    heads = ((name, NUMBER) for name in (*counts.values(), *metrics.values()))
    rows = data.fidelity.to_pylist() if data.fidelity is not None else []
    places = {model: place for place, model in enumerate(MODEL_ORDER)}

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        place = places.get(row["model"], len(places))
        return row["block"] != data.main_block, row["block"], row["split"], place, row["model"]

    reason = data.why_missing("fidelity", NOT_RECORDED)
    return PageTable(
        "All metrics",
        _columns("Block", "Split", ("Model", KEY), *heads),
        [
            (
                row["block"],
                row["split"],
                row["model"].replace("_", " "),
                *(format_count(row[name]) for name in counts),
                *(_metric_cell(row, name) for name in metrics),
            )
            for row in sorted(rows, key=order)
        ],
        reading="" if data.pointwise else PAIR_READING,
        missing=f"Not available because {reason}",
    )


def _metric_cell(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (format_number(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    return value if low == MISSING else f"{value} [{low}, {high}]"


def stage_table(data: ReportData) -> PageTable:
    """Return what each stage made, in what time and at what price."""
    names = ("Rows", "Shards", "Time", "Rows/s", "Failed", "Cost")
    rows = [
        (
            stage.name,
            format_count(stage.rows),
            format_count(stage.shards),
            format_seconds(stage.seconds),
            format_number(stage.rows / stage.seconds) if stage.seconds > 0 else MISSING,
            format_count(stage.failures),
            format_usd(stage.cost_usd),
        )
        for stage in data.stages
    ]
    columns = _columns("Stage", *((name, NUMBER) for name in names))
    return PageTable("Stages", columns, rows, missing="No stage was recorded.")


def reason_table(data: ReportData) -> PageTable:
    """Return how many rows were set aside by stage and reason (ERRORS)."""
    missing, counts = "No row was set aside.", Counter[tuple[str, str]]()
    if data.errors is None:
        reason = data.why_missing("errors", "this run did not record its errors.")
        missing = f"Not available because {reason}"
    else:
        names = (data.errors[column].to_pylist() for column in ("stage", "reason"))
        counts.update((str(stage), str(reason)) for stage, reason in zip(*names, strict=True))
    rows = [
        (stage, reason.replace("_", " "), format_count(count))
        for (stage, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    columns = _columns("Stage", "Reason", ("Rows", NUMBER))
    return PageTable("Rows set aside, by reason", columns, rows, missing=missing)


def error_table(data: ReportData) -> PageTable:
    """Return the first rows set aside, with file and line (ERRORS)."""
    errors = data.errors
    shown = errors.slice(0, MAX_ERROR_ROWS).to_pylist() if errors is not None else []
    rows = [
        (
            row["stage"],
            _place(row["source"], row["line"]) or row["example_id"] or MISSING,
            row["reason"].replace("_", " "),
            row["message"],
            row["excerpt"] if row["excerpt"] is not None else MISSING,
        )
        for row in shown
    ]
    total = errors.num_rows if errors is not None else 0
    title = "All rows set aside"
    if total > len(rows):
        title = f"The first {len(rows)} of {format_count(total)} rows set aside"
    heads = ("Stage", ("Where", TEXT), ("Reason", KEY), ("Message", TEXT), ("Excerpt", TEXT))
    return PageTable(title, _columns(*heads), rows)


def _place(source: str | None, line: int | None) -> str:
    return f"{source}:{line}" if source and line is not None else source or ""


def _pairs_table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> PageTable:
    return PageTable(title, _columns((heads[0], KEY), (heads[1], TEXT)), rows)


def settings_table(title: str, settings: Mapping[str, object]) -> PageTable:
    """Return nested settings under dotted keys."""
    rows = [(key, shorten(value, MAX_SETTING_CHARS)) for key, value in _flatten(settings)]
    return _pairs_table(title, ("Key", "Value"), rows)


def _flatten(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{path}.")
        elif isinstance(value, list | tuple):
            yield path, ", ".join(str(item) for item in value) or "(empty)"
        else:
            yield path, "(not set)" if value is None or value == {} else str(value)


# The cards at the head of the page: one number each, with what it is to be compared to.

GOOD, WARN = "good", "warn"
MOSTLY_DECIDED = 0.9  # of the picks
MANY_ERRORS = 0.02  # share of all rows read


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number."""

    name: str
    value: str
    note: str
    tone: str = ""  # "", "good" or "warn"


def make_cards(data: ReportData) -> list[Card]:
    """Return the cards that this run has numbers for, the most important first."""
    picks = num_picks(data)
    share = format_percent(picks / data.num_candidates if data.num_candidates else math.nan)
    of = f"{share} of {format_count(data.num_candidates)} candidates"
    cards = [Card("Examples selected", format_count(picks), of)]
    cards += [
        *_decision_cards(data),
        *_value_cards(data),
        *_fidelity_cards(data),
        *_quality_cards(data),
        *_label_cards(data),
        *_drift_cards(data),
    ]
    if data.stages:
        cost = total_cost(data)
        note = f"{len(data.stages)} stages" + ("" if cost is None else f", {format_usd(cost)}")
        cards.append(Card("Time", format_seconds(total_seconds(data)), note))
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    note = f"rows set aside; {format_count(data.num_duplicates)} exact duplicates collapsed"
    tone = WARN if data.num_errors > MANY_ERRORS * rows else ""
    return [*cards, Card("Unusable rows", format_count(data.num_errors), note, tone)]


def _decision_cards(data: ReportData) -> Iterator[Card]:
    """How many picks the objective decided, where that is its business and not a draw's."""
    counts = decisions(data)
    if data.ranking is None or not counts or "random" in counts:
        return
    rest = ", ".join(f"{format_count(count)} by {name}" for name, count in counts.items())
    decided = counts.get("objective", 0)
    of = f"{format_count(decided)} of {format_count(num_picks(data))}"
    tone = WARN if decided < MOSTLY_DECIDED * num_picks(data) else ""
    yield Card("Picks decided by the objective", of, rest, tone)


def _quality_cards(data: ReportData) -> Iterator[Card]:
    """How many answers look wrong, and what the selection made of it."""
    if data.num_suspects is None:
        return
    share = data.num_suspects / data.num_candidates if data.num_candidates else math.nan
    made = "their quality lowered their worth" if data.uses_quality else "not weighed"
    yield Card(
        "Answers that look wrong",
        format_count(data.num_suspects),
        f"{format_percent(share)} of the candidates; {made}",
    )


def _value_cards(data: ReportData) -> Iterator[Card]:
    final, coverage, score = final_objective(data), mean_coverage(data), mean_score(data)
    ratio = final / data.random_objective if data.random_objective else math.nan
    beside = f"; {format_number(ratio)} × a random subset's" if math.isfinite(ratio) else ""
    if data.ranks_by_score:
        if math.isfinite(score):
            yield Card("Score", format_number(score), f"mean over the picks{beside}")
        return
    if math.isfinite(coverage) and data.coverage is not None:
        note = f"mean over {format_count(data.coverage.num_rows)} {data.ground_set}"
        note += f"{beside} objective" if beside else ""
        yield Card("Coverage (0 to 1)", format_number(coverage), note)
    elif math.isfinite(final):
        yield Card("Objective", format_number(final, 4), "after the last pick")
    share = share_of_best(data)
    if math.isfinite(share):
        name = "Share of the optimum (lower bound)"
        value = f"{math.floor(1000 * share) / 10:g} %"  # a promise is rounded down
        note = "of what any subset within the budget could be worth"
        yield Card(name, value, f"{note}; the optimiser's own bound, not a measure of the data")


def _fidelity_cards(data: ReportData) -> Iterator[Card]:
    found = headline_fidelity(data)
    if found is None:
        return
    place = (
        f"{found.split} of {found.block}, {format_count(found.num_pairs)} {unit_of(found.block)}"
    )
    if found.block == POINTS:
        yield from _rating_cards(found, place)
        return
    beyond, best = found.interaction, found.capture
    yield Card(
        "Knowledge of pairs",
        format_interval(beyond, two_digits),
        f"correlation beyond row and column effects, {place}; additive ridge 0, cosine "
        f"{two_digits(beyond.cosine)}",
        GOOD if beyond.beats_rivals else "" if beyond.low > 0 else WARN,
    )
    yield Card(
        "Best helpers captured",
        format_interval(best, format_percent),
        f"of what each row's best eighth is worth; additive ridge {format_percent(best.ridge)}, "
        f"cosine {format_percent(best.cosine)}",
        GOOD if best.beats_rivals else WARN if best.high < best.rival else "",
    )


def _rating_cards(found: Fidelity, place: str) -> Iterator[Card]:
    if math.isfinite(found.spearman):
        tone = GOOD if found.spearman >= 0.5 else WARN if found.spearman < 0.2 else ""
        yield Card("Order agrees with teacher", f"{found.spearman:.2f}", f"Spearman, {place}", tone)
    ratio = found.error_ratio
    note = f"MSE {format_number(found.scaled_mse)} on labels scaled to [0,\u00a01], {found.split}"
    if not math.isfinite(ratio):
        yield Card("Network error", format_number(found.scaled_mse), note)
        return
    value = f"{format_percent(abs(1 - ratio))} {'below' if ratio <= 1 else 'above'}"
    if ratio > 2:
        value = f"{format_number(ratio, 2)} ×"
    tone = GOOD if ratio < 0.9 else WARN if ratio > 1.02 else ""
    yield Card("Error against ridge", value, note, tone)


def _label_cards(data: ReportData) -> Iterator[Card]:
    scored, labelled, unit = num_scored_pairs(data), data.num_labelled_pairs, data.unit.capitalize()
    if labelled is None:
        return
    if data.by_teacher or not scored:
        note = "by the teacher" + ("; no score is predicted" if data.by_teacher else "")
        yield Card(f"{unit} labelled", format_compact(labelled), note)
        return
    note = f"{format_count(labelled)} labelled of {format_compact(scored)} scored"
    yield Card(f"{unit} the teacher saw", format_percent(labelled / scored), note)


def _drift_cards(data: ReportData) -> Iterator[Card]:
    if data.drift is None:
        return
    due, distance = bool(data.drift["due"]), data.drift.get("distance")
    note = f"{format_count(data.drift['num_new'])} new candidates"
    if distance is not None:
        note += f"; farther from the labels than the labelled corpus in {distance['farther']:.0%}"
    yield Card("New labels", "due" if due else "not due", note, WARN if due else GOOD)


def drift_table(facts: Mapping[str, Any]) -> ExtraTable:
    """Return what was measured of new data, beside what it is judged against."""
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
    heads = ("measure", "new", "corpus")
    return ExtraTable("New data beside the labelled corpus", reading, heads, tuple(rows))


# The page; its sentences stand in ``page.html.j2``.

MAX_PROMPT_CHARS = 420
MAX_RESPONSE_CHARS = 300
MAX_COVERED_CHARS = 220
MAX_NEAR_CHARS = 120
NOT_RECORDED = "this run did not record it."
BLOCK_NAMES = {
    CROSS: "Targets × candidates",
    WITHIN: "Candidates × candidates",
    POINTS: "Candidates",
}


def render_report(data: ReportData) -> str:
    """Return the report of one run as one HTML page that loads nothing.

    Its one script, which searches and sorts the list of picks, is named in its policy by its hash.

    Parts of ``data`` that are ``None`` or empty are replaced by a sentence saying why.
    """
    chips = {
        "Teacher": data.teacher,
        "Objective": data.objective,
        "Budget": data.budget,
        "Finished": data.created,
    }
    stages = [(stage.name, stage.fingerprint) for stage in data.stages]
    paths = [("Run directory", data.run_dir)] if data.run_dir else []
    values = {
        "data": data,
        "run_name": data.run_name,
        "num_picks": num_picks(data),
        "total_seconds": total_seconds(data),
        "total_cost": total_cost(data),
        "chips": [(name, value) for name, value in chips.items() if value],
        "cards": make_cards(data),
        "cleaning": cleaning_sentence(data),
        "knowledge": knowledge_sentence(data),
        "picks": None if data.picks is None else extra_table(data.picks),
        "notices": list(data.notices),
        "selection_left": [_value_chart(data), _lengths_chart(data)],
        "selection_right": [_mix_chart(data), *_coverage_charts(data)],
        "neighbours": [_pick(item, data) for item in data.neighbours],
        "skipped": [_skipped(item) for item in data.skipped],
        "suspects": [_suspect(item) for item in data.suspects],
        "neighbours_missing": data.why_missing("neighbours", "no pick was sampled."),
        "fidelity_blocks": _fidelity_blocks(data),
        "drift": _drift(data),
        "training": _chart(data, "training_history", "Training", figures.plot_training),
        "influence": _chart(data, "score_statistics", "Influence scores", figures.plot_influence),
        "histogram": _chart(
            data,
            "score_histogram",
            "Distribution of scores",
            lambda table: figures.plot_histogram(table, of_labels=data.by_teacher),
        ),
        "recall": _recall_chart(data),
        "scoring": None if data.scoring is None else extra_table(data.scoring),
        "left_out_tables": [extra_table(table) for table in data.left_out],
        "fidelity_table": fidelity_table(data),
        "stage_chart": figures.plot_stage_seconds(data.stages),
        "stage_table": stage_table(data),
        "reason_table": reason_table(data),
        "error_table": error_table(data),
        "output_table": _pairs_table("Files", ("What", "Path"), [*paths, *data.outputs.items()]),
        "fingerprint_table": _pairs_table("Stage fingerprints", ("Stage", "Fingerprint"), stages),
        "config_table": settings_table("Configuration", data.config),
        "environment_table": settings_table("Environment", data.environment),
    }
    return render_page("page.html.j2", values)


def _chart(
    data: ReportData,
    part: str,
    title: str,
    draw: Callable[[pa.Table], Chart],
    reason: str = NOT_RECORDED,
) -> Chart:
    """Return the picture of a table of the run, or why there is none."""
    table = getattr(data, part)
    return (
        Chart(part, title, missing=data.why_missing(part, reason)) if table is None else draw(table)
    )


def _drift(data: ReportData) -> dict[str, object] | None:
    """Return the section on new data, of a run that goes on from another."""
    if data.drift is None or data.drift_distances is None:
        return None
    chart, table = figures.plot_drift(data.drift_distances), drift_table(data.drift)
    return {"facts": data.drift, "chart": chart, "table": extra_table(table)}


def _value_chart(data: ReportData) -> Chart:
    """Return what the picks are worth: the gain curve, or the scores where each stands alone."""
    reason, random = "nothing was selected.", data.random_objective
    if data.ranks_by_score:
        return _chart(
            data,
            "ranking",
            "Scores of the picks",
            lambda table: figures.plot_scores(table, random),
            reason,
        )
    return _chart(
        data,
        "ranking",
        "Gain curve",
        lambda table: figures.plot_gain_curve(table, random, upper_bound=data.upper_bound),
        reason,
    )


def _coverage_charts(data: ReportData) -> list[Chart]:
    """Return the coverage of the ground set; nothing where the objective covers no row."""
    if data.ranks_by_score:
        return []
    return [
        _chart(
            data,
            "coverage",
            "Coverage",
            lambda table: figures.plot_coverage(table, data.ground_set),
            "this objective keeps no best pick for a row.",
        )
    ]


def _recall_chart(data: ReportData) -> Chart | None:
    """Return what pruning found; nothing where nobody asked for it."""
    if data.recall is None or data.final_recall is None or data.min_recall is None:
        return None
    return figures.plot_recall(data.recall, data.final_recall, data.min_recall)


def _mix_chart(data: ReportData) -> Chart:
    if not data.mix and "mix" in data.unavailable:
        return Chart("mix", f"Mix by {data.mix_name}", missing=data.unavailable["mix"])
    return figures.plot_mix(data.mix, data.mix_name, ranks_by_score=data.ranks_by_score)


def _lengths_chart(data: ReportData) -> Chart:
    if data.pool_lengths is None or data.subset_lengths is None:
        reason = data.why_missing("pool_lengths", NOT_RECORDED)
        return Chart("lengths", "Lengths", missing=reason)
    return figures.plot_lengths(data.pool_lengths, data.subset_lengths)


def _fidelity_blocks(data: ReportData) -> list[dict[str, Chart | str]]:
    """Return scatter, error and correlation of each block, the one selection rests on first."""
    blocks = sorted(
        {*blocks_of(data.fidelity), *blocks_of(data.predictions)},
        key=lambda block: (block != data.main_block, block),
    ) or [data.main_block]
    drawn: list[dict[str, Chart | str]] = []
    for block in blocks:

        def chart(
            part: str, title: str, draw: Callable[[pa.Table, str], Chart], block: str = block
        ) -> Chart:
            return _chart(data, part, title, lambda table: draw(select_block(table, block), block))

        scatter = chart("predictions", "Predicted against teacher", figures.plot_predictions)
        errors = chart("fidelity", "Error on held-out labels", figures.plot_errors)
        order = chart("fidelity", "Rank correlation on held-out labels", figures.plot_order)
        kicker = BLOCK_NAMES.get(block, block) if len(blocks) > 1 else ""
        drawn.append({"kicker": kicker, "scatter": scatter, "errors": errors, "order": order})
    return drawn


def _pick(item: PickNeighbours, data: ReportData) -> dict[str, object]:
    meta: list[str] = []
    if not data.ranks_by_score:
        rows = "row" if item.num_covered == 1 else "rows"
        meta.append(f"best for {format_count(item.num_covered)} {rows}")
    if item.gain is not None:
        meta.append(f"{'score' if data.ranks_by_score else 'gain'} {format_number(item.gain)}")
    meta.append(_place(item.pick.source, item.pick.line))
    return {
        "rank": format_count(item.rank),
        "meta": " · ".join(filter(None, meta)),
        "pick": _example(item.pick, MAX_PROMPT_CHARS, MAX_RESPONSE_CHARS),
        "covered": [_covered(row) for row in item.covered],
    }


def _skipped(item: SkippedExample) -> dict[str, object]:
    place = f" · {item.example.source}:{item.example.line}" if item.example.source else ""
    return {
        "meta": f"worth {format_number(item.alone_gain)} alone, "
        f"{format_number(max(item.final_gain, 0.0))} beside the picks{place}",
        "example": _example(item.example, MAX_COVERED_CHARS, MAX_COVERED_CHARS),
        "rank": format_count(item.pick_rank),
        "why": f"gives {format_percent(item.redundant_share)} of it; cosine "
        f"{format_number(item.cosine, 2)}",
        "pick": _example(item.pick, MAX_COVERED_CHARS, MAX_COVERED_CHARS),
    }


def _suspect(item: SuspectExample) -> dict[str, object]:
    parts = [f"suspicion {format_number(item.suspicion, 2)}"]
    if item.consistency is not None:
        parts.append(f"consistency {format_number(item.consistency, 2)}")
    if item.example.source:
        parts.append(_place(item.example.source, item.example.line))
    return {
        "fate": "not picked" if item.rank is None else f"picked, #{format_count(item.rank)}",
        "meta": " · ".join(parts),
        "example": _example(item.example, MAX_COVERED_CHARS, MAX_COVERED_CHARS),
        "near": [_example(one, MAX_NEAR_CHARS, MAX_NEAR_CHARS) for one in item.near],
    }


def _example(example: ExampleText, prompt_chars: int, response_chars: int) -> dict[str, str]:
    """Return an excerpt, which has no room for blank lines."""
    prompt, response = (
        "\n".join(line for line in text.strip().splitlines() if line.strip())
        for text in (example.prompt, example.response)
    )
    return {
        "prompt": shorten(prompt, prompt_chars) or MISSING,
        "response": shorten(response, response_chars) or MISSING,
    }


def _covered(row: CoveredExample) -> dict[str, object]:
    value = row.coverage if row.coverage is not None and math.isfinite(row.coverage) else None
    return {
        "prompt": shorten(" ".join(row.example.prompt.split()), MAX_COVERED_CHARS) or MISSING,
        "response": shorten(" ".join(row.example.response.split()), MAX_COVERED_CHARS) or MISSING,
        "score": format_number(value, 2),
        "width": f"{100 * min(max(value or 0.0, 0.0), 1.0):.1f}",
    }


# The short table a run ends with in a terminal.

NUM_GROUPS = 3
MAX_GROUP_CHARS = 40


def summary_table(data: ReportData) -> RenderableType:
    """Return the short table of a run: picks, objective, top groups, fidelity, time and paths.

    Corpus texts and paths enter as plain text, so square brackets in them are not read as markup.
    """
    table = Table(title=Text(clean_text(data.run_name)), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for card in make_cards(data):
        table.add_row(card.name, Text(card.value, "yellow" if card.tone == WARN else ""), card.note)
    final = final_objective(data)
    if math.isfinite(final):
        table.add_row("Objective", format_number(final, 4), Text(data.objective))
    if len(data.mix) > 1 and num_picks(data):
        pool, subset = mix_shares(data.mix)
        for place, i in enumerate(np.argsort(-subset, kind="stable")[:NUM_GROUPS]):
            name = shorten_middle(clean_text(data.mix[i].group), MAX_GROUP_CHARS)
            note = f"{name} ({format_percent(float(pool[i]))} of the pool)"
            head = f"Top by {data.mix_name}" if place == 0 else ""
            table.add_row(Text(head), format_percent(float(subset[i])), Text(note))
    for label, path in data.outputs.items():
        table.add_row(Text(label), "", Text(clean_text(path)))
    return table
