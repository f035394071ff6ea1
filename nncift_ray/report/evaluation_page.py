"""The page of an evaluation: one self-contained file, no script, every text of a corpus escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.report.cost_plots import plot_costs
from nncift_ray.report.curve_plots import plot_curves
from nncift_ray.report.evaluation_data import (
    JUDGE,
    EvaluationData,
    Result,
    first_budget,
    method_place,
    mode_place,
    names_of,
    results_of,
)
from nncift_ray.report.evaluation_headline import (
    cost_sentence,
    direction_words,
    evaluation_cards,
    evaluation_notices,
    headline,
    verdict_sentence,
)
from nncift_ray.report.evaluation_plots import plot_gains, plot_means, setting_of
from nncift_ray.report.evaluation_tables import (
    agreement_table,
    fidelity_table,
    result_table,
    saving_table,
    step_table,
)
from nncift_ray.report.evaluation_words import budget_words, mode_words
from nncift_ray.report.fidelity_plots import plot_errors
from nncift_ray.report.formatting import MISSING, format_count, format_percent, shorten
from nncift_ray.report.headline import blocks_of, select_block
from nncift_ray.report.svg import Chart
from nncift_ray.report.tables import Column, PageTable, settings_table
from nncift_ray.report.templates import render_page
from nncift_ray.report.verdict_plots import plot_verdicts

MAX_PROMPT_CHARS = 700
MAX_ANSWER_CHARS = 420
NO_ANSWER = "no answer: it failed, see the errors table of the stage"


def render_evaluation(data: EvaluationData) -> str:
    """Render the report of an evaluation as one HTML page.

    Args:
        data: What to show; what is not there is replaced by a sentence saying so.

    Returns:
        The page, free of scripts and of anything loaded from elsewhere, safe to encode as UTF-8.
        The same data give the same text.
    """
    return render_page("evaluation.html.j2", _page_values(data))


def _page_values(data: EvaluationData) -> dict[str, object]:
    results = results_of(data.summary)
    budget = first_budget(results)
    return {
        "run_name": data.name,
        "lead": [*({"text": f"{line}\n", "strong": True} for line in headline(data)),
                 {"text": verdict_sentence(data), "strong": False}],
        "chips": _chips(data, results, budget),
        "cards": evaluation_cards(data),
        "notices": evaluation_notices(data),
        "results_lead": _results_lead(data, results),
        "tests": [_test(data, results, test, budget) for test in names_of(results, "test")],
        "answers_lead": "The same held-out rows, answered by the model after each method; drawn "
        "with the seed, not chosen.",
        "answers": _answers(data),
        "cost_lead": cost_sentence(data) or "What each method's choice costs.",
        "cost_chart": plot_costs(data.costs),
        "saving_table": saving_table(data),
        "step_table": step_table(data),
        "agreement_table": agreement_table(data),
        "fidelity_charts": _fidelity_charts(data),
        "fidelity_table": fidelity_table(data),
        "output_table": _output_table(data),
        "config_table": settings_table("Configuration", data.config),
        "environment_table": settings_table("Environment", data.environment),
        "footer": _footer(data),
    }  # fmt: skip


def _chips(data: EvaluationData, results: Sequence[Result], budget: float) -> list[tuple[str, str]]:
    sizes = [row.num_examples for row in results if row.budget == budget]
    size = f"{format_count(sizes[0])} examples, {budget_words(budget)}" if sizes else ""
    chips = [
        ("Model", data.model),
        ("Subsets", size),
        ("Candidates", format_count(data.num_candidates) if data.num_candidates else ""),
        ("Judge", data.judge),
        ("Finished", data.created),
    ]
    return [(name, value) for name, value in chips if value]


def _results_lead(data: EvaluationData, results: Sequence[Result]) -> str:
    directions = direction_words(names_of(results, "metric"))
    text = (
        "Every method chose a subset, a model was taught with it, and held-out rows were answered. "
        f"Whiskers are {format_percent(data.confidence)} intervals of the mean. What does not "
        "differ from random subsets of the same size by more than chance is marked ≈ random. "
    )
    return f"{text}{directions}".strip()


def _test(
    data: EvaluationData, results: Sequence[Result], test: str, budget: float
) -> dict[str, object]:
    """Make the part of one test set: two pictures a metric, curves, the judge, the whole table."""
    metrics = names_of([row for row in results if row.test == test], "metric")
    settings = [setting_of(results, test, metric, budget) for metric in metrics]
    means = _explained_once([plot_means(setting) for setting in settings])
    gains = _explained_once([plot_gains(setting) for setting in settings])
    curves = [plot_curves(results, test, metric) for metric in metrics]
    return {
        "name": test,
        "pairs": list(zip(means, gains, strict=True)),
        "curves": _explained_once([chart for chart in curves if chart is not None]),
        "verdicts": plot_verdicts(data.scores, test, budget) if JUDGE in metrics else None,
        "table": result_table(data, test),
    }


def _explained_once(charts: Sequence[Chart]) -> list[Chart]:
    """Keep the reading of the first picture only, where several are read alike."""
    first = next((at for at, chart in enumerate(charts) if chart.available), 0)
    return [
        chart if at == first else replace(chart, sees="", means="")
        for at, chart in enumerate(charts)
    ]


def _answers(data: EvaluationData) -> list[dict[str, object]]:
    """Bring the answers to one row together: the question once, then what each method answered."""
    questions: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in data.answers.to_pylist():
        questions.setdefault((row["test"], row["row_index"]), []).append(row)
    return [
        {
            "meta": f"{test}, row {format_count(row_index)}",
            "prompt": _squeeze(rows[0]["prompt"], MAX_PROMPT_CHARS),
            "reference": _squeeze(rows[0]["reference"], MAX_ANSWER_CHARS),
            "answers": [_answer(row) for row in sorted(rows, key=_answer_place)],
        }
        for (test, row_index), rows in questions.items()
    ]


def _answer_place(row: dict[str, Any]) -> tuple[object, ...]:
    return mode_place(row["mode"]), method_place(row["method"]), row["budget"], row["seed"]


def _answer(row: dict[str, Any]) -> dict[str, str]:
    how = [] if not row["budget"] else [budget_words(row["budget"], row["method"])]
    how.append(mode_words(row["mode"]))
    if row["verdict"] is not None:
        how.append(f"judge: {row['verdict']}")
    response = row["response"]
    return {
        "method": row["method"],
        "how": ", ".join(how),
        "text": NO_ANSWER if response is None else _squeeze(response, MAX_ANSWER_CHARS),
    }


def _squeeze(text: str, max_chars: int) -> str:
    """Drop blank lines and cut: a sample has no room for more."""
    lines = "\n".join(line for line in text.strip().splitlines() if line.strip())
    return shorten(lines, max_chars) or MISSING


def _fidelity_charts(data: EvaluationData) -> list[tuple[str, Chart]]:
    """Draw the error of every network by quadrant, with the method's name above."""
    charts: list[tuple[str, Chart]] = []
    methods = sorted({str(name) for name in data.fidelity["method"].to_pylist()}, key=method_place)
    for method in methods:
        table: pa.Table = data.fidelity.filter(pc.field("method") == method)
        for block in blocks_of(table):
            owner = f"-{re.sub(r'[^A-Za-z0-9]', '-', method)}"
            charts.append((method, plot_errors(select_block(table, block), block, owner)))
    return charts


def _output_table(data: EvaluationData) -> PageTable:
    columns = (Column("What", "key"), Column("Path", "text"))
    return PageTable("Files", columns, list(data.outputs.items()), missing="No file was recorded.")


def _footer(data: EvaluationData) -> str:
    version = f" {data.version}" if data.version else ""
    made = f", {data.created}" if data.created else ""
    return f"Written by nncift_ray{version}{made}."
