"""The tables of the page, as plain rows of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nncift_ray.report.data import Cell, ExtraTable, ReportData
from nncift_ray.report.formatting import (
    MISSING,
    format_count,
    format_number,
    format_seconds,
    format_usd,
    shorten,
)

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
