"""The HTML page, one self-contained file, and the card of the data set: all texts are escaped."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import yaml
from huggingface_hub import DatasetCardData
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report import figures
from nncift_ray.report.data import (
    KEY,
    MISSING,
    NUMBER,
    TEXT,
    PageTable,
    ReportData,
    blocks_of,
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
    knowledge_words,
    make_table,
    mix_shares,
    select_block,
    shorten,
    shorten_middle,
    two_digits,
)
from nncift_ray.report.figures import Chart
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN


def render_page(template: str, values: Mapping[str, object]) -> str:
    """Return a page, safe to encode as UTF-8; the same values give the same text.

    Args:
        template: Name of a template of this room.
        values: What it names.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        autoescape=jinja2.select_autoescape(("html.j2", "css.j2")),  # "md" escapes in Markdown
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
        "number": format_number,
        "percent": format_percent,
        "seconds": format_seconds,
        "usd": format_usd,
        "md": escape,
        "excerpt": lambda text, most: (
            shorten("\n".join(filter(str.strip, text.strip().splitlines())), most) or MISSING
        ),
        "line": lambda text, most: shorten(" ".join(text.split()), most) or MISSING,
    }
    return clean_text(environment.get_template(template).render(**values))


# The tables of the page, as plain rows of text.

MAX_ERROR_ROWS = 100
MAX_SETTING_CHARS = 300
MODEL_ORDER = (
    "network", "additive_ridge", "cosine", "row_column_mean", "mean", "zero", "random",
)  # fmt: skip
FIDELITY_METRICS = {
    "scaled_mse": "MSE, labels [0, 1]",
    "mse": "MSE, label unit²",
    "r2": "R²",
    "spearman": "Spearman",
}
PAIR_METRICS = {
    "row_spearman": "Spearman within a row",
    "interaction_correlation": "Beyond averages",
    "capture": "Best eighth found",
    "capture_1pct": "Best 1 % found",
}
PAIR_READING = (
    "A row is a helped example; its mean moves all its helpers alike and chooses none, so the last "
    "columns look within rows. Beyond averages: correlation of labels and predictions that have "
    "both lost the means of their row and helper, which is all that an additive model has. Best "
    "eighth found: the mean label of the helpers a model likes best in a row, above the row's "
    "mean, as a share of what the truly best ones have; a model that knows which helpers are good "
    "for all may find much. In brackets 95 % intervals, over resampled rows and columns."
)


def fidelity_table(
    title: str, found: Iterable[Mapping[str, Any]], keys: Sequence[str], *, pointwise: bool = False,
    missing: str = "",
) -> PageTable:  # fmt: skip
    """Return every metric of some rows of FIDELITY, after what tells them apart (``keys``)."""
    counts, metrics = {"num_pairs": "Examples"}, FIDELITY_METRICS
    if not pointwise:
        counts = {"num_pairs": "Pairs", "num_rows": "Rows ranked"}
        metrics = FIDELITY_METRICS | PAIR_METRICS
    heads = ((name, NUMBER) for name in (*counts.values(), *metrics.values()))
    rows = [
        (
            *(row[key] for key in keys),
            row["model"].replace("_", " "),
            *(row[name] for name in counts),
            *(_metric_cell(row, name) for name in metrics),
        )
        for row in found
    ]
    heads = (*map(str.capitalize, keys), ("Model", KEY), *heads)
    return make_table(title, heads, rows, "" if pointwise else PAIR_READING, missing)


def fidelity_place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """Place a row of FIDELITY by block, split and model: what knows most first."""
    return row["block"], row["split"], MODEL_ORDER.index(row["model"])


def _metric_cell(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (format_number(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    return value if low == MISSING else f"{value} [{low}, {high}]"


def stage_table(data: ReportData) -> PageTable:
    """Return what each stage made, in what time and at what price."""
    names = ("Rows", "Shards", "Time", "Rows/s", "Failed", "Cost")
    rows = [
        (
            stage.name,
            stage.rows,
            stage.shards,
            format_seconds(stage.seconds),
            stage.rows / stage.seconds if stage.seconds > 0 else None,
            stage.failures,
            format_usd(stage.cost_usd),
        )
        for stage in data.stages
    ]
    return make_table("Stages", ("Stage", *((name, NUMBER) for name in names)), rows)


def reason_table(data: ReportData) -> PageTable:
    """Return how many rows were set aside by stage and reason (ERRORS)."""
    names = (data.errors[column].to_pylist() for column in ("stage", "reason"))
    counts = Counter((str(stage), str(reason)) for stage, reason in zip(*names, strict=True))
    rows = [
        (stage, reason.replace("_", " "), count)
        for (stage, reason), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    missing = "No row was set aside."
    heads = ("Stage", "Reason", ("Rows", NUMBER))
    return make_table("Rows set aside, by reason", heads, rows, missing=missing)


def error_table(data: ReportData) -> PageTable:
    """Return the first rows set aside, with file and line (ERRORS)."""
    rows = [
        (
            row["stage"],
            f"{row['source']}:{row['line']}" if row["source"] else row["example_id"],
            row["reason"].replace("_", " "),
            row["message"],
            row["excerpt"],
        )
        for row in data.errors.slice(0, MAX_ERROR_ROWS).to_pylist()
    ]
    total, title = data.errors.num_rows, "All rows set aside"
    if total > len(rows):
        title = f"The first {len(rows)} of {format_count(total)} rows set aside"
    heads = ("Stage", ("Where", TEXT), ("Reason", KEY), ("Message", TEXT), ("Excerpt", TEXT))
    return make_table(title, heads, rows)


def settings_table(
    title: str, settings: Mapping[str, object], heads: tuple[str, str] = ("Key", "Value")
) -> PageTable:
    """Return nested settings under dotted keys."""
    rows = [(key, shorten(value, MAX_SETTING_CHARS)) for key, value in _flatten(settings)]
    return make_table(title, ((heads[0], KEY), (heads[1], TEXT)), rows)


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
CARDS_SHOWN = 4  # on the page, and those that warn; the terminal has all


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number."""

    name: str
    value: str
    note: str
    tone: str = ""  # "", "good" or "warn"


def make_cards(data: ReportData) -> list[Card]:
    """Return the cards that this run has numbers for, the most important first."""
    picks = data.num_picks
    share = format_percent(picks / data.num_candidates if data.num_candidates else math.nan)
    of = f"{share} of {format_count(data.num_candidates)} candidates"
    seconds, cost = format_seconds(data.total_seconds), format_usd(data.total_cost)
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    note = f"rows set aside; {format_count(data.num_duplicates)} exact duplicates collapsed"
    tone = WARN if data.num_errors > MANY_ERRORS * rows else ""
    return [
        Card("Examples selected", format_count(picks), of),
        *_decision_cards(data),
        *_value_cards(data),
        *_fidelity_cards(data),
        *_label_cards(data),
        *_quality_cards(data),
        *_drift_cards(data),
        Card("Time", seconds, f"{len(data.stages)} stages, {cost}"),
        Card("Unusable rows", format_count(data.num_errors), note, tone),
    ]


def _decision_cards(data: ReportData) -> Iterator[Card]:
    """How many picks the objective decided, where that is its business and not a draw's."""
    counts = data.decisions
    if not counts or "random" in counts:
        return
    rest = [f"{format_count(count)} by {x}" for x, count in counts.items() if x != "objective"]
    decided = counts.get("objective", 0)
    of = f"{format_count(decided)} of {format_count(data.num_picks)}"
    tone = WARN if decided < MOSTLY_DECIDED * data.num_picks else ""
    note = ", ".join(rest) or "none by a quota, a list or a draw"
    yield Card("Picks decided by the objective", of, note, tone)


def _quality_cards(data: ReportData) -> Iterator[Card]:
    """How many answers look wrong, and what the selection made of it."""
    if data.num_suspects is None:
        return
    share = data.num_suspects / data.num_candidates if data.num_candidates else math.nan
    made = "their quality lowered their worth" if data.uses_quality else "not weighed"
    note = f"{format_percent(share)} of the candidates; {made}"
    yield Card("Answers that look wrong", format_count(data.num_suspects), note)


def _value_cards(data: ReportData) -> Iterator[Card]:
    final, coverage = data.final_objective, data.mean_coverage
    score = final / (data.num_picks or math.nan)
    ratio = final / data.random_objective if data.random_objective else math.nan
    beside = f"; {format_number(ratio)} × a random subset's" if math.isfinite(ratio) else ""
    if data.ranks_by_score and math.isfinite(score):
        yield Card("Score", format_number(score), f"mean over the picks{beside}")
    elif math.isfinite(coverage):
        note = f"influence of the best pick, mean of {format_count(data.coverage.num_rows)} "
        note += data.ground_set + (f"{beside} objective" if beside else "")
        yield Card("Coverage (0 to 1)", format_number(coverage), note)
    elif math.isfinite(final):
        yield Card("Objective", format_number(final, 4), "after the last pick")


def _fidelity_cards(data: ReportData) -> Iterator[Card]:
    found = data.headline_fidelity
    if found is None:
        return
    if found.block == POINTS:
        tone = GOOD if found.spearman >= 0.5 else WARN if found.spearman < 0.2 else ""
        note = f"Spearman, {format_count(found.num_pairs)} held-out examples"
        yield Card("Order agrees with teacher", format_number(found.spearman, 2), note, tone)
        return
    yield Card(
        "Knowledge of pairs",
        two_digits(found.beyond),
        knowledge_words(found),
        GOOD if found.beats_cosine else WARN if found.low <= 0 else "",
    )


def _label_cards(data: ReportData) -> Iterator[Card]:
    scored, labelled, unit = data.num_scored, data.num_labelled_pairs, data.unit.capitalize()
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


def drift_table(facts: Mapping[str, Any]) -> PageTable:
    """Return what was measured of new data, beside what it is judged against."""
    rows: list[tuple[str | float, ...]] = []
    distance = facts.get("distance")
    if distance is not None:
        median = facts["median_distance"]
        rows += [
            ("median distance to the nearest label", median["new"], median["reference"]),
            ("chance that a new one is farther", distance["farther"], 0.5),
            ("Kolmogorov-Smirnov distance", distance["ks"], 0.0),
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
    heads = ("Measure", ("New", NUMBER), ("Corpus", NUMBER))
    return make_table("New data beside the labelled corpus", heads, rows, reading)


# The page; its sentences stand in ``page.html.j2``.

BLOCK_NAMES = {
    CROSS: "Targets × candidates",
    WITHIN: "Candidates × candidates",
    POINTS: "Candidates",
}


def render_report(data: ReportData) -> str:
    """Return the report of one run as one HTML page that loads nothing.

    Its one script, which searches and sorts the list of picks, is named in its policy by its hash.
    """
    chips = {
        "Teacher": data.teacher,
        "Objective": data.objective,
        "Budget": data.budget,
        "Finished": data.created,
    }
    cards = make_cards(data)
    fidelity = [] if data.fidelity is None else data.fidelity.to_pylist()
    fidelity.sort(key=lambda row: (row["block"] != data.main_block, *fidelity_place(row)))
    files = {"Run directory": data.run_dir, **data.outputs}
    fingerprints = {stage.name: stage.fingerprint for stage in data.stages}
    values = {
        "data": data,
        "run_name": data.run_name,
        "longest": max(data.stages, key=lambda stage: stage.seconds, default=None),
        "chips": [(name, value) for name, value in chips.items() if value],
        "cards": [*cards[:CARDS_SHOWN], *(x for x in cards[CARDS_SHOWN:] if x.tone == WARN)],
        "notices": data.notices,
        "selection_charts": _selection_charts(data),
        "order_charts": list(_order_charts(data)),
        "drift_table": drift_table(data.drift) if data.drift is not None else None,
        "fidelity_table": fidelity_table(
            "All metrics", fidelity, ("block", "split"), pointwise=data.pointwise
        ),
        "stage_table": stage_table(data),
        "reason_table": reason_table(data),
        "error_table": error_table(data),
        "output_table": settings_table("Files", files, ("What", "Path")),
        "fingerprint_table": settings_table(
            "Stage fingerprints", fingerprints, ("Stage", "Fingerprint")
        ),
        "config_table": settings_table("Configuration", data.config),
        "environment_table": settings_table("Environment", data.environment),
    }
    return render_page("page.html.j2", values)


def _selection_charts(data: ReportData) -> tuple[list[Chart], list[Chart]]:
    """Return what the picks are worth beside the lengths; and the mix beside the coverage."""
    if data.ranks_by_score:
        value = figures.plot_scores(data.ranking, data.random_objective)
    else:
        bound, random = data.upper_bound, data.random_objective
        value = figures.plot_gain_curve(data.ranking, random, upper_bound=bound)
    right: list[Chart] = []
    if len(data.mix) > 1:
        right = [figures.plot_mix(data.mix, data.mix_name, ranks_by_score=data.ranks_by_score)]
    if not data.ranks_by_score:
        right.append(figures.plot_coverage(data.coverage, data.ground_set))
    return [value, figures.plot_lengths(data.pool_lengths, data.subset_lengths)], right


def _order_charts(data: ReportData) -> Iterator[tuple[str, Chart]]:
    """Yield what each block of pairs is called, of several, and its order: the main one first."""
    if data.fidelity is None:
        return
    blocks = sorted(blocks_of(data.fidelity), key=lambda block: (block != data.main_block, block))
    for block in blocks:
        kicker = BLOCK_NAMES.get(block, block) if len(blocks) > 1 else ""
        yield kicker, figures.plot_order(select_block(data.fidelity, block), block)


# The card of an exported subset, in Markdown that Hugging Face reads. Names of files and groups are
# of the corpus: they are escaped, and enter no YAML as they are.

MAX_GROUPS = 30
MAX_NAME_CHARS = 120
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


def render_dataset_card(data: ReportData) -> str:
    """Return the card of a subset: Markdown with a YAML head; equal data give equal texts."""
    size = next((name for top, name in SIZES if data.num_picks < top), "1M<n<10M")
    head = DatasetCardData(
        pretty_name=" ".join(clean_text(data.run_name).split()),
        size_categories=[size],
        tags=["instruction-tuning", "data-selection", "nncift_ray"],
    )
    recipe = _recipe(data)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0))
    values = {
        "head": f"---\n{head.to_yaml()}\n---",
        "data": data,
        "provenance": _provenance(data),
        "groups": [row for row in data.mix if row.subset][:MAX_GROUPS],
        "recipe": recipe,
        "fence": fence,
    }
    return render_page("card.md.j2", values)


def render_export_readme(fingerprint: str, data_file: str) -> str:
    """Return the README of an export folder, which tells ``datasets`` the one file to load.

    ``datasets`` caches by the name of the configuration: the fingerprint keeps runs apart.
    """
    config = {"config_name": f"subset-{fingerprint}", "data_files": data_file}
    head = yaml.safe_dump({"configs": [config]}, sort_keys=False)
    return f"---\n{head}---\n\nThe subset in several forms, the most useful row first.\n"


def escape(text: str) -> str:
    """Return a text of the corpus as it is safe inside a Markdown table: one line, no markup."""
    line = shorten(" ".join(clean_text(text).split()), MAX_NAME_CHARS)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def _provenance(data: ReportData) -> list[tuple[str, str]]:
    share = data.share_of_best
    fidelity, agreement = data.headline_fidelity, data.verdict
    select = next((stage for stage in data.stages if stage.name == "select"), None)
    if fidelity and agreement:
        figure = two_digits(fidelity.beyond)
        agreement = f"{agreement} {figure} in {fidelity.split}: {knowledge_words(fidelity)}"
    elif fidelity:
        correlation = format_number(fidelity.spearman, 2)
        agreement = f"Spearman {correlation} on held-out examples ({fidelity.split})"
    return [
        ("Candidates", format_count(data.num_candidates)),
        ("Targets", format_count(data.num_targets) if data.num_targets else ""),
        ("Teacher", escape(data.teacher)),
        ("Objective", escape(data.objective)),
        ("Budget", escape(data.budget)),
        ("Value", format_number(data.final_objective, 4)),
        ("Share of the best possible value", f"at least {share:.1%}" if share == share else ""),
        ("Network against teacher", agreement),
        ("Selected", escape(data.created)),
        ("Fingerprint of the selection", f"`{select.fingerprint}`" if select else ""),
    ]


def _recipe(data: ReportData) -> str:
    """Return the parts of the recipe that shape the subset, as YAML."""
    shaping = "pair_scores" if data.by_teacher else "network"
    wanted = ("data", "teacher", "selection", "labels", shaping)
    config = {name: _without_pools(data.config[name]) for name in wanted if name in data.config}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""


def _without_pools(value: Any) -> Any:
    """Drop what shapes no row: sizes of actor pools."""
    if isinstance(value, dict):
        return {key: _without_pools(item) for key, item in value.items() if key != "pool"}
    return list(value) if isinstance(value, tuple) else value


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
    final = data.final_objective
    if math.isfinite(final):
        table.add_row("Objective", format_number(final, 4), Text(data.objective))
    if len(data.mix) > 1 and data.num_picks:
        pool, subset = mix_shares(data.mix)
        for place, i in enumerate(np.argsort(-subset, kind="stable")[:NUM_GROUPS]):
            name = shorten_middle(clean_text(data.mix[i].group), MAX_GROUP_CHARS)
            note = f"{name} ({format_percent(float(pool[i]))} of the pool)"
            head = f"Top by {data.mix_name}" if place == 0 else ""
            table.add_row(Text(head), format_percent(float(subset[i])), Text(note))
    for label, path in data.outputs.items():
        table.add_row(Text(label), "", Text(clean_text(path)))
    return table
