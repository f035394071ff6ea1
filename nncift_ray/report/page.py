"""The HTML page: one self-contained file without scripts, with every text of the corpus escaped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report import figures
from nncift_ray.report.data import (
    MEAN,
    ROW_COLUMN_MEAN,
    Cell,
    CoveredExample,
    ExampleText,
    ExtraTable,
    PickNeighbours,
    ReportData,
    SkippedExample,
    blocks_of,
    final_objective,
    headline_fidelity,
    mean_coverage,
    mean_score,
    mix_shares,
    num_picks,
    num_scored_pairs,
    select_block,
    share_of_best,
    total_cost,
    total_seconds,
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
    """Fill a template of this room.

    Args:
        template: Name of its file; it extends ``base.html.j2``.
        values: What it names.

    Returns:
        The page, safe to encode as UTF-8. The same values give the same text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return clean_text(environment.get_template(template).render(**values))


# The tables of the page, as plain rows of text.

MAX_ERROR_ROWS = 100
MAX_SETTING_CHARS = 300
MODEL_ORDER = ("network", "row_column_mean", "mean", "zero", "random")
NUMBER, TEXT, KEY = "num", "text", "key"
FIDELITY_METRICS = {
    "scaled_mse": "MSE, labels [0, 1]",
    "mse": "MSE, label unit²",
    "r2": "R²",
    "spearman": "Spearman",
}
WITHIN_ROW_METRICS = {
    "centred_r2": "R², rows centred",
    "centred_spearman": "Spearman, rows centred",
    "row_spearman": "Spearman within a row",
    "top_overlap": "Best helpers found",
    "chance_overlap": "By chance",
}
WITHIN_ROW_READING = (
    "A row's mean moves all its helpers alike and chooses none, so the last columns look within "
    "rows. Centred: each row's mean is taken away on both sides. Best helpers found: of the "
    "quarter of a row's held-out helpers that the teacher likes best, the share that the model "
    "likes best too."
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
    """Set a run's own table: columns that hold numbers are aligned right."""
    is_number = [
        bool(column) and all(isinstance(cell, int | float) or cell is None for cell in column)
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.columns)
    columns = tuple(
        Column(name, NUMBER if number else "")
        for name, number in zip(table.columns, is_number, strict=True)
    )
    rows = [tuple(_cell(cell) for cell in row) for row in table.rows]
    return PageTable(table.title, columns, rows, table.reading, missing="It has no row.")


def _cell(cell: Cell) -> str:
    if isinstance(cell, float):
        return format_number(cell)
    if isinstance(cell, int):
        return format_count(cell)
    return MISSING if cell is None else cell


def fidelity_table(data: ReportData) -> PageTable:
    """List every metric of every split and model (FIDELITY)."""
    metrics = FIDELITY_METRICS | ({} if data.pointwise else WITHIN_ROW_METRICS)
    counts = {"num_pairs": data.unit.capitalize()}
    if not data.pointwise:
        counts |= {"num_rows": "Rows ranked"}
    columns = _columns(
        "Block",
        "Split",
        ("Model", KEY),
        *((name, NUMBER) for name in (*counts.values(), *metrics.values())),
    )
    rows = data.fidelity.to_pylist() if data.fidelity is not None else []
    rows.sort(
        key=lambda row: (
            (row["block"] != data.main_block, row["block"], row["split"]),
            (_model_place(row["model"]), row["model"]),
        )
    )
    reason = data.why_missing("fidelity", "this run did not record it.")
    return PageTable(
        "All metrics",
        columns,
        [
            (
                row["block"],
                row["split"],
                row["model"].replace("_", " "),
                *(format_count(row[name]) for name in counts),
                *(format_number(row[name]) for name in metrics),
            )
            for row in rows
        ],
        reading="" if data.pointwise else WITHIN_ROW_READING,
        missing=f"Not available because {reason}",
    )


def _model_place(model: str) -> int:
    return MODEL_ORDER.index(model) if model in MODEL_ORDER else len(MODEL_ORDER)


def stage_table(data: ReportData) -> PageTable:
    """List what each stage made, in what time and at what price."""
    names = ("Rows", "Shards", "Time", "Rows/s", "Failed", "Cost")
    columns = _columns("Stage", *((n, NUMBER) for n in names))
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
    return PageTable("Stages", columns, rows, missing="No stage was recorded.")


def reason_table(data: ReportData) -> PageTable:
    """Count the rows set aside by stage and reason (ERRORS)."""
    errors = data.errors
    counts: Counter[tuple[str, str]] = Counter()
    if errors is not None:
        pairs = zip(errors["stage"].to_pylist(), errors["reason"].to_pylist(), strict=True)
        counts.update((str(stage), str(reason)) for stage, reason in pairs)
    rows = [
        (stage, reason.replace("_", " "), format_count(count))
        for (stage, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    missing = "No row was set aside."
    if errors is None:
        reason = data.why_missing("errors", "this run did not record its errors.")
        missing = f"Not available because {reason}"
    columns = _columns("Stage", "Reason", ("Rows", NUMBER))
    return PageTable("Rows set aside, by reason", columns, rows, missing=missing)


def error_table(data: ReportData) -> PageTable:
    """List the first rows set aside, with file and line (ERRORS)."""
    errors = data.errors
    shown = errors.slice(0, MAX_ERROR_ROWS).to_pylist() if errors is not None else []
    rows = [
        (
            row["stage"],
            _place(row["source"], row["line"], row["example_id"]),
            row["reason"].replace("_", " "),
            row["message"],
            row["excerpt"] if row["excerpt"] is not None else MISSING,
        )
        for row in shown
    ]
    total = errors.num_rows if errors is not None else 0
    title = (
        f"The first {len(rows)} of {format_count(total)} rows set aside"
        if total > len(rows)
        else "All rows set aside"
    )
    columns = _columns(
        "Stage", ("Where", TEXT), ("Reason", KEY), ("Message", TEXT), ("Excerpt", TEXT)
    )
    return PageTable(title, columns, rows)


def _place(source: str | None, line: int | None, example_id: str | None) -> str:
    if source is not None:
        return f"{source}:{line}" if line is not None else source
    return example_id or MISSING


def output_table(data: ReportData) -> PageTable:
    """List the files the run left behind."""
    rows = [(label, path) for label, path in data.outputs.items()]
    if data.run_dir:
        rows.insert(0, ("Run directory", data.run_dir))
    columns = _columns(("What", KEY), ("Path", TEXT))
    return PageTable("Files", columns, rows, missing="No output path was recorded.")


def fingerprint_table(data: ReportData) -> PageTable:
    """List the fingerprint of each stage's output: equal fingerprints, equal results."""
    rows = [(stage.name, stage.fingerprint) for stage in data.stages]
    columns = _columns(("Stage", KEY), ("Fingerprint", TEXT))
    return PageTable("Stage fingerprints", columns, rows, missing="No stage was recorded.")


def settings_table(title: str, settings: Mapping[str, object]) -> PageTable:
    """List nested settings under dotted keys."""
    rows = [(key, shorten(value, MAX_SETTING_CHARS)) for key, value in _flatten(settings)]
    return PageTable(title, _columns(("Key", KEY), ("Value", TEXT)), rows)


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
GOOD_SHARE = 0.9  # of the best possible value
MANY_ERRORS = 0.02  # share of all rows read
BASELINE_NAMES = {ROW_COLUMN_MEAN: "row + column mean", MEAN: "the mean label"}


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number."""

    name: str
    value: str
    note: str
    tone: str = ""  # "", "good" or "warn"


def make_cards(data: ReportData) -> list[Card]:
    """Make the cards that this run has numbers for, the most important first."""
    makers = (
        _picks,
        _value_cards,
        _optimum,
        _correlation,
        _error,
        _labels,
        _drift_cards,
        _time,
        _health,
    )
    return [card for card in (make(data) for make in makers) if card is not None]


def _picks(data: ReportData) -> Card:
    picks = num_picks(data)
    share = picks / data.num_candidates if data.num_candidates else math.nan
    note = f"{format_percent(share)} of {format_count(data.num_candidates)} candidates"
    return Card("Examples selected", format_count(picks), note)


def _value_cards(data: ReportData) -> Card | None:
    if data.ranks_by_score:
        return _score(data)
    coverage = mean_coverage(data)
    final = final_objective(data)
    if math.isfinite(coverage):
        note = (
            f"mean over {format_count(data.coverage.num_rows if data.coverage is not None else 0)} "
            f"{data.ground_set}"
        )
        if data.random_objective and math.isfinite(final):
            note += (
                f"; {format_number(final / data.random_objective, 3)} × a random subset's objective"
            )
        return Card("Coverage (0 to 1)", format_number(coverage), note)
    if math.isfinite(final):
        return Card("Objective", format_number(final, 4), "after the last pick")
    return None


def _optimum(data: ReportData) -> Card | None:
    share = share_of_best(data)
    if data.ranks_by_score or not math.isfinite(share):
        return None
    note = "of what any subset within the budget could be worth"
    # Rounded down: the bound is a promise.
    return Card(
        "Share of the optimum (lower bound)",
        f"{math.floor(1000 * share) / 10:g} %",
        note,
        GOOD if share > 0.9 else "",
    )


def _score(data: ReportData) -> Card | None:
    mean = mean_score(data)
    if not math.isfinite(mean):
        return None
    note = "mean over the picks"
    if data.random_objective:
        ratio = format_number(final_objective(data) / data.random_objective, 3)
        note += f"; {ratio} × a random subset's"
    return Card("Score (0 to 1)", format_number(mean), note)


def _correlation(data: ReportData) -> Card | None:
    found = headline_fidelity(data)
    if found is None or not math.isfinite(found.spearman):
        return None
    count = f"{format_count(found.num_pairs)} {unit_of(found.block)}"
    note = f"Spearman, {found.split} of {found.block}, {count}"
    tone = GOOD if found.spearman >= 0.5 else WARN if found.spearman < 0.2 else ""
    return Card("Order agrees with teacher", f"{found.spearman:.2f}", note, tone)


def _error(data: ReportData) -> Card | None:
    found = headline_fidelity(data)
    if found is None:
        return None
    ratio = found.error_ratio
    note = f"MSE {format_number(found.scaled_mse)} on labels scaled to [0,\u00a01], {found.split}"
    if not math.isfinite(ratio):
        return Card("Network error", format_number(found.scaled_mse), note)
    value = f"{format_percent(abs(1 - ratio))} {'below' if ratio <= 1 else 'above'}"
    if ratio > 2:
        value = f"{format_number(ratio, 2)} ×"
    tone = GOOD if ratio < 0.9 else WARN if ratio > 1.02 else ""
    return Card(f"Error against {BASELINE_NAMES[found.baseline]}", value, note, tone)


def _labels(data: ReportData) -> Card | None:
    scored, labelled = num_scored_pairs(data), data.num_labelled_pairs
    unit = data.unit.capitalize()
    if labelled is None:
        return None
    if data.by_teacher:
        note = "by the teacher; no score is predicted"
        return Card(f"{unit} labelled", format_compact(labelled), note)
    if not scored:
        return Card(f"{unit} labelled", format_compact(labelled), "by the teacher")
    note = f"{format_count(labelled)} labelled of {format_compact(scored)} scored"
    return Card(f"{unit} the teacher saw", format_percent(labelled / scored), note)


def _drift_cards(data: ReportData) -> Card | None:
    if data.drift is None:
        return None
    due = bool(data.drift["due"])
    note = f"{format_count(data.drift['num_new'])} new candidates"
    distance = data.drift.get("distance")
    if distance is not None:
        note += f"; farther from the labels than the labelled corpus in {distance['farther']:.0%}"
    return Card("New labels", "due" if due else "not due", note, WARN if due else GOOD)


def _time(data: ReportData) -> Card | None:
    if not data.stages:
        return None
    cost = total_cost(data)
    note = f"{len(data.stages)} stages"
    if cost is not None:
        note += f", {format_usd(cost)}"
    return Card("Time", format_seconds(total_seconds(data)), note)


def _health(data: ReportData) -> Card:
    note = f"rows set aside; {format_count(data.num_duplicates)} exact duplicates collapsed"
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    tone = WARN if data.num_errors > MANY_ERRORS * rows else ""
    return Card("Unusable rows", format_count(data.num_errors), note, tone)


# The sentences of the page: what was done here and how to read it.


def head_lead(data: ReportData) -> list[dict[str, object]]:
    """Say in one sentence what was selected, in parts: text and whether it is set strong."""
    picks = format_count(num_picks(data))
    parts = [
        (f"{picks} of {format_count(data.num_candidates)} examples", True),
        (" selected ", False),
    ]
    if data.pointwise:
        parts.append(("for what they score on their own", False))
    elif data.num_targets:
        parts += [
            ("for what they teach about ", False),
            (f"{format_count(data.num_targets)} targets", True),
        ]
    else:
        parts.append(("for what they teach about all the others", False))
    if data.teacher:
        told = f"{'scores' if data.pointwise else 'influence'} learnt from"
        if data.by_teacher:
            told = f"the {'ratings' if data.pointwise else 'labels'} of"
        parts += [
            (f", by {told} a ", False),
            (data.teacher, True),
            (" teacher", False),
        ]
    return [{"text": text, "strong": strong} for text, strong in [*parts, (".", False)]]


def selection_lead(data: ReportData) -> str:
    """Say how the picks were made."""
    picks = num_picks(data)
    if not picks:
        return "Nothing was selected."
    if data.ranks_by_score:
        return f"The {format_count(picks)} candidates with the highest score: {_score_of(data)}"
    if data.objective == "random":
        return (
            f"A seeded random choice of {format_count(picks)} candidates, to compare others with; "
            "its value is what they would be worth under facility location."
        )
    objective = data.objective or "the objective"
    return (
        f"{objective[0].upper()}{objective[1:]} was maximised over "
        f"{format_count(data.num_candidates)} candidates: "
        "each pick is the example that adds most to what the earlier picks already give the "
        f"{data.ground_set}.{_search(data)}{_limits(data)}{_end(data)}"
    )


def _search(data: ReportData) -> str:
    """Say how the picks were searched for."""
    parts = f"in {data.num_parts} parts" if data.num_parts else "in parts"
    way = {
        "lazy": "by lazy greedy",
        "cost_benefit": "by lazy greedy twice, by gain a token and by gain; this is the better of "
        "the two",
        "partitioned": f"by lazy greedy {parts}, then among what the parts picked",
    }.get(data.optimizer)
    return f" Searched {way}." if way else ""


def _limits(data: ReportData) -> str:
    return f" Quotas by {data.mix_name} bound the choice." if data.has_quotas else ""


def _end(data: ReportData) -> str:
    """Say why the picks end where they do, where it is not the budget."""
    ends = {
        "stop_gain": " It stopped before the budget was full: a further pick would have added less "
        "than selection.stop_gain.",
        "exhausted": " It stopped before the budget was full: no candidate was left that may be "
        "picked.",
    }
    return ends.get(data.stopped_by, "")


def skipped_lead(data: ReportData) -> str:
    """Say what the skipped examples are."""
    worth = "score" if data.ranks_by_score else "gain"
    return (
        f"Not selected although each has a high {worth} alone: most of it is already covered by "
        "selected examples. Shown with the pick that covers most of it; the nearer their "
        "embeddings, the more they are copies of each other."
    )


def _score_of(data: ReportData) -> str:
    """Say what a candidate's score is, and what ranking by it leaves out."""
    alone = "Each is judged alone: two picks may teach the same."
    if data.pointwise and data.by_teacher:
        return f"what the teacher says of each. {alone}"
    if data.pointwise:
        return f"what the network predicts the teacher would say of each. {alone}"
    rows = "targets" if data.num_targets else "candidates"
    best = " of the subtask that it helps most" if data.has_subtasks else ""
    does = "is measured to do" if data.by_teacher else "is predicted to do"
    return f"the mean of what each {does} for the {rows}{best}. {alone}"


def neighbours_lead(data: ReportData) -> str:
    """Say in what order sample picks stand, and what stands below each."""
    if data.ranks_by_score:
        return "From the highest score to the lowest that was picked."
    return (
        "From the first pick to the last. Below each pick stand rows for which no other pick is "
        "better, with their coverage (0 to 1)."
    )


def fidelity_lead(data: ReportData) -> str:
    """Say what the network learnt from and what the splits are, or why there is no network."""
    if data.by_teacher:
        return (
            "The scores are the teacher's own labels: no network was trained, so there is no "
            "prediction to hold against the teacher, and no error, correlation or training curve "
            f"to show. {_labelled(data)}"
        )
    if data.pointwise:
        text = (
            "The teacher rates a sample of examples, a small network learns the ratings and "
            "predicts the rest. Q4 are held-out examples that were not in training."
        )
        return f"{text} {_labelled(data)}".rstrip()
    text = (
        "The teacher labels a sample of pairs, a small network learns them and predicts the rest. "
        "Q1 to Q4 are held-out pairs: in Q1 both examples had other labelled pairs in training, in "
        "Q4 neither had."
    )
    return f"{text} {_labelled(data)}".rstrip()


def _labelled(data: ReportData) -> str:
    """Say how much the teacher labelled, where that is known."""
    if data.num_labelled_pairs is None:
        return ""
    did = "rated" if data.pointwise else "labelled"
    return f"The teacher {did} {format_count(data.num_labelled_pairs)} {data.unit} here."


def cost_lead(data: ReportData) -> str:
    """Say what the stages took together."""
    if not data.stages:
        return "No stage was recorded."
    text = f"{len(data.stages)} stages took {format_seconds(total_seconds(data))} together"
    cost = total_cost(data)
    return f"{text}, for {format_usd(cost)}." if cost is not None else f"{text}."


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


def health_lead(data: ReportData) -> str:
    """Say how many rows were left out."""
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    share = data.num_errors / rows if rows else math.nan
    return (
        f"{format_count(data.num_errors)} rows were set aside as unusable "
        f"({format_percent(share)}) and {format_count(data.num_duplicates)} exact duplicates were "
        "collapsed into the first of their kind; neither were scored."
    )


def footer(data: ReportData) -> str:
    """Say what wrote the page."""
    version = f" {data.version}" if data.version else ""
    made = f", {data.created}" if data.created else ""
    axes = "" if data.pointwise else " Row = helped example, column = helper example."
    return f"Written by nncift_ray{version}{made}.{axes}"


# The HTML page: one self-contained file without scripts, with every text of the corpus escaped.

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
        "lead": head_lead(data),
        "chips": _chips(data),
        "cards": make_cards(data),
        "notices": list(data.notices),
        "selection_lead": selection_lead(data),
        "selection_left": [_value(data), _lengths(data)],
        "selection_right": [_mix(data), *_coverage(data)],
        "extra_tables": [extra_table(table) for table in data.extra_tables],
        "neighbours_title": "Sample picks"
        if data.ranks_by_score
        else "Sample picks and the rows they help",
        "neighbours_lead": neighbours_lead(data),
        "neighbours": [_pick(item, data) for item in data.neighbours],
        "skipped_title": f"High-{'scoring' if data.ranks_by_score else 'gain'} candidates that are "
        "redundant with selected ones",
        "skipped_lead": skipped_lead(data),
        "skipped": [_skipped(item) for item in data.skipped],
        "neighbours_missing": data.why_missing("neighbours", "no pick was sampled."),
        "by_teacher": data.by_teacher,
        "fidelity_lead": fidelity_lead(data),
        "fidelity_blocks": fidelity_charts,
        "drift": _drift(data),
        "training": _chart(
            "training",
            "Training",
            data.training_history,
            data.why_missing("training_history", NOT_RECORDED),
            figures.plot_training,
        ),
        "influence": _chart(
            "influence",
            "Influence scores",
            data.score_statistics,
            data.why_missing("score_statistics", NOT_RECORDED),
            figures.plot_influence,
        ),
        "histogram": _chart(
            "histogram",
            "Distribution of scores",
            data.score_histogram,
            data.why_missing("score_histogram", NOT_RECORDED),
            partial(figures.plot_histogram, of_labels=data.by_teacher),
        ),
        "recall": _recall(data),
        "scoring": None if data.scoring is None else extra_table(data.scoring),
        "fidelity_table": fidelity_table(data),
        "cost_lead": cost_lead(data),
        "stage_chart": figures.plot_stage_seconds(data.stages),
        "stage_table": stage_table(data),
        "health_lead": health_lead(data),
        "reason_table": reason_table(data),
        "error_table": error_table(data),
        "output_table": output_table(data),
        "fingerprint_table": fingerprint_table(data),
        "config_table": settings_table("Configuration", data.config),
        "environment_table": settings_table("Environment", data.environment),
        "footer": footer(data),
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
        "lead": drift_lead(data.drift),
        "chart": figures.plot_drift(data.drift_distances),
        "table": extra_table(drift_table(data.drift)),
    }


def _value(data: ReportData) -> Chart:
    """Draw what the picks are worth: the gain curve, or the scores where each stands alone."""
    return _chart(
        "scores" if data.ranks_by_score else "gain",
        "Scores of the picks" if data.ranks_by_score else "Gain curve",
        data.ranking,
        data.why_missing("ranking", "nothing was selected."),
        lambda table: (
            figures.plot_scores(table, data.random_objective)
            if data.ranks_by_score
            else figures.plot_gain_curve(table, data.random_objective, upper_bound=data.upper_bound)
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
        lambda table: figures.plot_coverage(table, data.ground_set),
    )
    return [chart]


def _recall(data: ReportData) -> Chart | None:
    """Draw what pruning found; nothing where nobody asked for it."""
    if data.recall is None or data.final_recall is None or data.min_recall is None:
        return None
    return figures.plot_recall(data.recall, data.final_recall, data.min_recall)


def _mix(data: ReportData) -> Chart:
    if not data.mix and "mix" in data.unavailable:
        return Chart("mix", f"Mix by {data.mix_name}", missing=data.unavailable["mix"])
    return figures.plot_mix(data.mix, data.mix_name, ranks_by_score=data.ranks_by_score)


def _lengths(data: ReportData) -> Chart:
    if data.pool_lengths is None or data.subset_lengths is None:
        reason = data.why_missing("pool_lengths", NOT_RECORDED)
        return Chart("lengths", "Lengths", missing=reason)
    return figures.plot_lengths(data.pool_lengths, data.subset_lengths)


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
        "scatter": (figures.plot_predictions, "Predicted against teacher"),
        "errors": (figures.plot_errors, "Error on held-out labels"),
        "order": (figures.plot_order, "Rank correlation on held-out labels"),
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


# The short table a run ends with in a terminal.

NUM_GROUPS = 3
MAX_GROUP_CHARS = 40


def summary_table(data: ReportData) -> RenderableType:
    """Make the short table of a run: picks, objective, top groups, fidelity, time and paths.

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
    _add_groups(table, data)
    for label, path in data.outputs.items():
        table.add_row(Text(label), "", Text(clean_text(path)))
    return table


def _add_groups(table: Table, data: ReportData) -> None:
    """Add the groups with the largest share of the subset."""
    if len(data.mix) < 2 or not num_picks(data):
        return
    pool, subset = mix_shares(data.mix)
    for place, i in enumerate(np.argsort(-subset, kind="stable")[:NUM_GROUPS]):
        name = shorten_middle(clean_text(data.mix[i].group), MAX_GROUP_CHARS)
        note = f"{name} ({format_percent(float(pool[i]))} of the pool)"
        head = f"Top by {data.mix_name}" if place == 0 else ""
        table.add_row(Text(head), format_percent(float(subset[i])), Text(note))
