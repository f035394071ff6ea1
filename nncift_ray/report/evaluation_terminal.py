"""The tables an evaluation ends with in a terminal; colour only repeats what words say."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report.cost_plots import savings_of
from nncift_ray.report.evaluation_data import EvaluationData, Result, names_of, results_of
from nncift_ray.report.evaluation_headline import (
    cost_sentence,
    direction_words,
    evaluation_notices,
    headline,
    verdict_sentence,
)
from nncift_ray.report.evaluation_tables import (
    AGREEMENT_HEADS,
    COST_HEADS,
    agreement_rows,
    cost_rows,
    result_lines,
)
from nncift_ray.report.evaluation_words import (
    budget_words,
    mean_words,
    metric_of,
    mode_words,
    verdict_words,
)
from nncift_ray.report.formatting import clean_text, format_count, format_percent
from nncift_ray.storage.evaluation_schemas import BETTER, WORSE

STYLES = {BETTER: "green", WORSE: "red"}
NOT_MEASURED = "not measured"


def evaluation_tables(data: EvaluationData) -> RenderableType:
    """Make what a terminal shows of an evaluation: findings, a table a test set, costs, warnings.

    Names enter as plain text, so square brackets in them are not read as markup.
    """
    results = results_of(data.summary)
    parts: list[RenderableType] = [_sentence(line, "bold") for line in headline(data)]
    for test in names_of(results, "test"):
        parts += [Text(""), _test_table(test, [row for row in results if row.test == test])]
    directions = direction_words(names_of(results, "metric"))
    legend = (
        f"Mean ± half its {format_percent(data.confidence)} interval. better, worse: than random "
        "subsets of the same size; ≈ random: within noise."
    )
    if results:
        parts.append(_sentence(f"{legend} {directions}".strip(), "dim"))
    if verdict_sentence(data):
        parts.append(_sentence(verdict_sentence(data), "dim"))
    if data.costs.num_rows:
        parts += [Text(""), _cost_table(data), _sentence(cost_sentence(data), "")]
    if data.agreement.num_rows:
        parts += [Text(""), _agreement_table(data)]
    parts += [_sentence(f"note: {notice}", "yellow") for notice in evaluation_notices(data)]
    return Group(*parts)


def _sentence(text: str, style: str) -> Text:
    return Text(clean_text(text), style)


def _test_table(test: str, results: Sequence[Result]) -> Table:
    """Make the table of one test set: a row a method, size and use, a column a metric."""
    metrics = names_of(results, "metric")
    rows = max((row.num_rows for row in results), default=0)
    table = Table(title=Text(clean_text(f"{test} (up to {format_count(rows)} rows)")),
                  title_justify="left", box=None, padding=(0, 1), header_style="bold")  # fmt: skip
    for name in ("method", "size", "use"):
        table.add_column(Text(name), no_wrap=name != "method", overflow="fold")
    for metric in metrics:
        table.add_column(Text(metric_of(metric).name), justify="right")
    for line in result_lines(results):
        first = next(iter(line.values()))
        table.add_row(
            Text(clean_text(_named(first))), budget_words(first.budget, first.method),
            mode_words(first.mode),
            *(_cell(line.get(metric)) for metric in metrics),
        )  # fmt: skip
    return table


def _named(row: Result) -> str:
    return f"{row.method} (mean of {row.num_seeds})" if row.num_seeds > 1 else row.method


def _cell(row: Result | None) -> Text:
    if row is None:
        return Text(NOT_MEASURED, "dim")
    text = Text(mean_words(row))
    if verdict_words(row):
        text.append(f"\n{verdict_words(row)}", STYLES.get(row.verdict or "", "dim"))
    if row.num_missing:
        text.append(f"\n{format_count(row.num_missing)} missing", "yellow")
    return text


def _cost_table(data: EvaluationData) -> Table:
    table = Table(title=Text("What the choice costs, from the corpus to the subset"),
                  title_justify="left", box=None, padding=(0, 1), header_style="bold")  # fmt: skip
    for name in COST_HEADS:
        right = name not in ("method", "note")
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in cost_rows(data.costs):
        table.add_row(*(Text(clean_text(cell)) for cell in row))
    for one in savings_of(data.costs):
        table.add_row(
            Text(clean_text(f"{one.own.method} saves")), format_count(one.own.num_candidates),
            Text(format_percent(one.share), "bold"), "", "", "", "",
            "extrapolated" if one.extrapolated else "",
        )  # fmt: skip
    return table


def _agreement_table(data: EvaluationData) -> Table:
    table = Table(title=Text("How near the subsets come to their teacher's"),
                  title_justify="left", box=None, padding=(0, 1), header_style="bold")  # fmt: skip
    for name in AGREEMENT_HEADS:
        table.add_column(Text(name), justify="left" if name in ("method", "teacher") else "right")
    for row in agreement_rows(data.agreement):
        table.add_row(*(Text(clean_text(cell)) for cell in row))
    return table
