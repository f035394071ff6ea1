"""The page of an evaluation: one self-contained file, no script, every text of a corpus escaped."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.evaluate.figures import (
    INITIAL,
    JUDGE,
    RANDOM,
    UNTAUGHT,
    Cost,
    EvaluationData,
    Result,
    budget_words,
    costs_of,
    first_budget,
    gain_words,
    interval_words,
    judge_report,
    list_words,
    mean_words,
    method_place,
    metric_of,
    metric_words,
    mode_place,
    mode_words,
    names_of,
    plot_costs,
    plot_curves,
    plot_gains,
    plot_means,
    plot_verdicts,
    results_of,
    saving_words,
    savings_of,
    setting_of,
    verdict_notices,
    verdict_words,
    verdicts_of,
)
from nncift_ray.evaluate.statistics import LOWER_IS_BETTER
from nncift_ray.recipe.sections import NN_CIFT
from nncift_ray.report.data import blocks_of, select_block
from nncift_ray.report.figures import Chart, plot_errors
from nncift_ray.report.page import (
    GOOD,
    KEY,
    NUMBER,
    WARN,
    Card,
    Column,
    PageTable,
    render_page,
    settings_table,
)
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
)
from nncift_ray.runtime.schemas import BETTER, NOISE, WORSE

MAX_FINDINGS = 3  # methods told of one test set
NOTHING = "No method can be told from a random subset of the same size."


def headline(data: EvaluationData) -> list[str]:
    """Say in a sentence a test set which methods beat random, by how much; or that none does.

    Of a method the surest result is told, at the size that most methods have if there is one, and
    how many more results say the same. Methods that are worse are told too. Of a judge that
    cannot be read nothing is told.
    """
    results = results_of(data.summary)
    judged = judged_results(data)
    if not judged:
        return [_why_no_verdict(results)]
    if all(row.verdict == NOISE for row in judged):
        return [NOTHING]
    tests = list(dict.fromkeys(row.test for row in judged))
    main = first_budget(results)
    judged.sort(key=lambda row: (row.budget != main, row.adjusted_p_value))
    return [_finding(test, [row for row in judged if row.test == test]) for test in tests]


def judged_results(data: EvaluationData) -> list[Result]:
    """Return the results with a verdict, those of a judge that cannot be read left out."""
    report = judge_report(verdicts_of(data.scores))
    babbles = report is not None and report.kind == "unreadable"
    return [
        row for row in results_of(data.summary)
        if row.verdict is not None and not (babbles and row.metric == JUDGE)
    ]  # fmt: skip


def _why_no_verdict(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing has been measured yet."
    seeds = max((row.num_seeds for row in results if row.method == RANDOM), default=0)
    if not seeds:
        return "There is no random subset to compare with, so nobody knows what choosing is worth."
    if seeds == 1:
        return (
            "There is one random subset only, so nobody can say how much of a difference is luck: "
            "set evaluation.random_seeds to 3 or more."
        )
    if any(row.verdict for row in results):
        return "The judge cannot be read, and no other metric was measured: nothing can be said."
    return "No method has values on the same rows as a random subset of its size."


def _finding(test: str, judged: Sequence[Result]) -> str:
    better = _by_method([row for row in judged if row.verdict == BETTER])
    worse = _by_method([row for row in judged if row.verdict == WORSE])
    if not better and not worse:
        return f"On {test} no method can be told from random."
    both = [name for name in better if name in worse]  # by one metric or use this, by another that
    parts: list[str] = []
    if names := _told(better, both):
        rest = len(names) - MAX_FINDINGS
        told = names[:MAX_FINDINGS] + ([f"{rest} more"] if rest > 0 else [])
        parts.append(f"{list_words(told)} {'beat' if len(names) > 1 else 'beats'} random")
    if names := _told(worse, both):
        parts.append(f"{list_words(names)} {'do' if len(names) > 1 else 'does'} worse than random")
    parts += [
        f"{name} does both, better ({_how(better[name])}) and worse ({_how(worse[name])})"
        for name in both
    ]
    if not better:
        parts.append("no method beats random")
    return f"On {test} {'; '.join(parts)}."


def _told(found: Mapping[str, Sequence[Result]], without: Sequence[str]) -> list[str]:
    """Return methods with by how much, each in a few words."""
    return [f"{name} ({_how(rows)})" for name, rows in found.items() if name not in without]


def _by_method(rows: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    return found


def _how(rows: Sequence[Result]) -> str:
    """Say by how much in the surest comparison: "NLL 0.05 lower, fine-tuned, 10 %"."""
    surest = rows[0]  # they are sorted so
    more = f", and in {len(rows) - 1} more" if len(rows) > 1 else ""
    place = f"{mode_words(surest.mode)}, {budget_words(surest.budget)}"
    return f"{metric_words(surest.metric)} {gain_words(surest)}, {place}{more}"


def count_verdicts(data: EvaluationData) -> Counter[str]:
    """Count better, worse and noise."""
    return Counter(row.verdict or "" for row in judged_results(data))


def verdict_sentence(data: EvaluationData) -> str:
    """Say how many comparisons there are and what they say, and how many may err."""
    counts = count_verdicts(data)
    number = counts[BETTER] + counts[WORSE] + counts[NOISE]
    if not number:
        return ""
    groups = {
        (row.test, row.metric, row.mode, row.budget)
        for row in judged_results(data)
    }  # fmt: skip
    tables = "comparison" if len(groups) == 1 else "comparisons"
    return (
        f"Of {format_count(number)} results beside random, {counts[BETTER]} are better, "
        f"{counts[WORSE]} worse and {counts[NOISE]} within noise. They stand in {len(groups)} "
        f"{tables} of methods (one test set, metric, use and size each); in each the chance of any "
        f"false verdict is at most {format_percent(1 - data.confidence)}."
    )


def evaluation_cards(data: EvaluationData) -> list[Card]:
    """Make the cards at the head of the page."""
    counts = count_verdicts(data)
    number = counts[BETTER] + counts[WORSE] + counts[NOISE]
    cards: list[Card] = []
    if number:
        tone = GOOD if counts[BETTER] and not counts[WORSE] else WARN if counts[WORSE] else ""
        note = f"of {number} results; {counts[WORSE]} worse, {counts[NOISE]} within noise"
        cards.append(Card("Better than random", str(counts[BETTER]), note, tone))
    for saving in savings_of(data.costs)[:2]:
        if math.isfinite(saving.share):
            way = "less" if saving.share >= 0 else "more"
            marked = ", extrapolated" if saving.extrapolated else ""
            cards.append(Card(
                f"Time of {saving.own.method}", f"{format_percent(abs(saving.share))} {way}",
                f"than {saving.teacher.method}, "
                f"{format_count(saving.own.num_candidates)} candidates{marked}",
                GOOD if saving.share > 0 else WARN,
            ))  # fmt: skip
    cards += _agreement_cards(data)
    missing = sum(row.num_missing for row in results_of(data.summary))
    note = "failed or unreadable; counted, never replaced"
    cards.append(Card("Values missing", format_count(missing), note, WARN if missing else ""))
    return cards


def _agreement_cards(data: EvaluationData) -> list[Card]:
    return [
        Card(f"Picks of {row['method']}", f"{format_percent(row['overlap'])} shared",
             f"with {row['teacher']} at {budget_words(row['budget'])}; by chance "
             f"{format_percent(row['chance_overlap'])}")
        for row in data.agreement.to_pylist()[:2]
    ]  # fmt: skip


def evaluation_notices(data: EvaluationData) -> list[str]:
    """Say what makes results weaker than they look, most serious first."""
    results = results_of(data.summary)
    notices = verdict_notices(verdicts_of(data.scores))
    missing = [row for row in results if row.num_missing and row.metric != JUDGE]
    if missing:
        worst = max(missing, key=lambda row: row.num_missing)
        number = sum(row.num_missing for row in missing)
        notices.append(
            f"{format_count(number)} values are missing (answers or likelihoods that failed), most "
            f"for {worst.method} in {metric_words(worst.metric)} on {worst.test}: "
            f"{format_count(worst.num_missing)}. They count for no method; the tables show them."
        )
    return [*notices, *_teaching_notices(results), *data.notices]


def _teaching_notices(results: Sequence[Result]) -> list[str]:
    """Say where random subsets taught the model nothing that the metric sees.

    Where that is so, a metric can hardly tell subsets apart either.
    """
    initial = {(row.test, row.metric): row for row in results
               if row.method == INITIAL and row.mode == UNTAUGHT}  # fmt: skip
    flat: dict[tuple[str, str], list[str]] = {}
    for row in results:
        before = initial.get((row.test, row.metric))
        if row.method != RANDOM or before is None or not (row.is_measured and before.is_measured):
            continue
        if before.low <= row.high and row.low <= before.high:
            key = row.test, f"{mode_words(row.mode)}, {budget_words(row.budget)}"
            flat.setdefault(key, []).append(metric_words(row.metric))
    return [
        f"On {test} ({how}) random subsets leave {list_words(names)} about where the untaught "
        "model is (intervals overlap): expect little difference between subsets there."
        for (test, how), names in flat.items()
    ]


def cost_sentence(data: EvaluationData) -> str:
    """Say what networks save on the corpus that was run; "" where there is no pair."""
    savings = savings_of(data.costs)
    measured = min((one.own.num_candidates for one in savings), default=0)
    parts = [saving_words(one) for one in savings if one.own.num_candidates == measured]
    return f"{list_words(parts)}." if parts else ""


def direction_words(metrics: Sequence[str]) -> str:
    """Say of which metrics less is better; "" of none."""
    less = [metric_of(name).name for name in metrics if name in LOWER_IS_BETTER]
    return f"Of {list_words(less)} less is better, of all others more." if less else ""


# The tables of an evaluation as rows of text: for the terminal, the page and Markdown alike.

COST_HEADS = ("method", "candidates", "time", "GPU time", "CPU time", "tokens", "price", "note")
AGREEMENT_HEADS = (
    "method", "teacher", "size", "picks shared", "by chance", "value of its picks",
    "of the teacher's", "of random ones",
)  # fmt: skip
RESULT_HEADS = (
    "metric", "use", "size", "method", "mean", "difference to random", "verdict", "p", "rows",
    "missing",
)  # fmt: skip
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
MODELS = ("network", "row_column_mean", "mean", "zero", "random")


def result_lines(results: Sequence[Result]) -> list[dict[str, Result]]:
    """Bring the results of one test set together by method, size and mode: a result a metric."""
    lines: dict[tuple[str, str, float], dict[str, Result]] = {}
    for row in results:
        lines.setdefault((row.method, row.mode, row.budget), {})[row.metric] = row
    return list(lines.values())


def result_table(data: EvaluationData, test: str) -> PageTable:
    """List every result of a test set, with its difference to random."""
    rows = [
        (
            metric_of(row.metric).name, mode_words(row.mode), budget_words(row.budget, row.method),
            row.method if row.num_seeds < 2 else f"{row.method} (mean of {row.num_seeds})",
            mean_words(row), interval_words(row), verdict_words(row),
            _p_words(row.adjusted_p_value), format_count(row.num_rows),
            format_count(row.num_missing),
        )
        for row in results_of(data.summary) if row.test == test
    ]  # fmt: skip
    reading = (
        f"Mean ± half its {format_percent(data.confidence)} interval; the difference is the "
        "method's value minus random's, row by row, with its interval. Verdicts go by p, which is "
        "adjusted for the number of methods (Holm), so an interval may leave zero out and "
        "the verdict still be ≈ random. Missing: values that failed or could not be read."
    )
    return PageTable(f"All results on {test}", _columns(RESULT_HEADS, 4), rows, reading,
                     missing="Nothing was measured on this test set.")  # fmt: skip


def _columns(heads: Sequence[str], num_keys: int) -> tuple[Column, ...]:
    """Set the first columns as names, the others as numbers."""
    return tuple(
        Column(
            name if name == "p" else name[0].upper() + name[1:], KEY if at < num_keys else NUMBER
        )
        for at, name in enumerate(heads)
    )


def _p_words(p_value: float) -> str:
    if p_value != p_value:
        return MISSING
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def cost_rows(costs: pa.Table) -> list[tuple[str, ...]]:
    """Write what the whole way of every method cost (COST_HEADS)."""
    return [
        (row.method, format_count(row.num_candidates), *_cost_cells(row), _cost_note(row))
        for row in costs_of(costs) if row.is_whole
    ]  # fmt: skip


def _cost_cells(row: Cost) -> tuple[str, ...]:
    return (
        format_seconds(row.seconds),
        format_seconds(row.accelerator_seconds) if row.accelerator_seconds else MISSING,
        format_seconds(row.cpu_seconds),
        MISSING if row.num_tokens is None else format_compact(row.num_tokens),
        format_usd(row.price),
    )  # fmt: skip


def _cost_note(row: Cost) -> str:
    """Say what is not as it looks: numbers that were not measured, a teacher asked about a part."""
    notes: list[str] = []
    if row.extrapolated:
        notes.append("extrapolated")
    if row.labelled_fraction is not None and not row.extrapolated and _asks_all(row.method):
        if row.labelled_fraction < 1:
            notes.append(f"asked about {format_percent(row.labelled_fraction)} of the pairs")
    if row.shared and not row.is_whole:
        notes.append("shared")
    return ", ".join(notes)


def _asks_all(method: str) -> bool:
    """Whether a method is one whose teacher is meant to label every pair."""
    return not method.startswith(f"{NN_CIFT}+")


def step_table(data: EvaluationData) -> PageTable:
    """List what each step of every method cost."""
    rows = [
        (row.method, row.step, format_count(row.num_candidates), *_cost_cells(row),
         _cost_note(row))
        for row in costs_of(data.costs)
    ]  # fmt: skip
    heads = ("method", "step", *COST_HEADS[1:])
    reading = (
        "Steps marked shared are work that other methods rest on too; every one of them is charged "
        "in full, as if it were alone, so the methods do not add up. Embeddings are charged to "
        "what reads vectors: networks, and DELIFT (SE). GPU and CPU time are summed over workers; "
        "time on the clock includes their start. Tokens are those that a language model had to "
        "compute for labels; LESS's training and gradients are in its time alone."
    )
    return PageTable("Costs by step", _columns(heads, 2), rows, reading,
                     missing="No cost was recorded.")  # fmt: skip


def saving_table(data: EvaluationData) -> PageTable:
    """List what networks save of their teachers' cost."""
    rows = [
        (
            one.own.method, one.teacher.method, format_count(one.own.num_candidates),
            format_seconds(one.teacher.seconds), format_seconds(one.own.seconds),
            format_percent(one.share), format_usd(one.teacher.price), format_usd(one.own.price),
            "extrapolated" if one.extrapolated else "measured",
        )
        for one in savings_of(data.costs)
    ]  # fmt: skip
    heads = ("method", "teacher", "candidates", "teacher's time", "its time", "time saved",
             "teacher's price", "its price", "how known")  # fmt: skip
    return PageTable("What the network saves", _columns(heads, 2), rows,
                     missing="No method with a network stands beside its teacher.")  # fmt: skip


def agreement_rows(agreement: pa.Table) -> list[tuple[str, ...]]:
    """Write how near subsets come to their teacher's (AGREEMENT_HEADS)."""
    rows = sorted(agreement.to_pylist(), key=lambda row: (
        method_place(row["method"]), row["budget"]
    ))  # fmt: skip
    return [
        (
            row["method"], row["teacher"], budget_words(row["budget"]),
            format_percent(row["overlap"]), format_percent(row["chance_overlap"]),
            *(format_number(row[name], 4)
              for name in ("objective", "teacher_objective", "random_objective")),
        )
        for row in rows
    ]  # fmt: skip


def agreement_table(data: EvaluationData) -> PageTable:
    """List how near the subsets come to their teacher's."""
    reading = (
        "Picks shared: of the method's picks, the share that its teacher picks too. Value: the "
        "objective by the teacher's own labels; a subset may share few picks with the teacher's "
        "and still be worth nearly as much, where many examples teach alike."
    )
    return PageTable("Subsets against the teacher's", _columns(AGREEMENT_HEADS, 2),
                     agreement_rows(data.agreement), reading,
                     missing="No method stands beside its own teacher.")  # fmt: skip


def fidelity_table(data: EvaluationData) -> PageTable:
    """List the error of every network and of what knows less, by quadrant."""
    errors: dict[tuple[str, str, str], dict[str, dict[str, object]]] = {}
    for row in data.fidelity.to_pylist():
        key = row["method"], row["block"], row["split"]
        errors.setdefault(key, {})[row["model"]] = row
    rows = [
        (
            method, block, split, format_count(_number(models, MODELS[0], "num_pairs")),
            *(format_number(_number(models, model, "scaled_mse")) for model in MODELS),
            *(format_number(_number(models, MODELS[0], name), 2)
              for name in ("r2", "spearman", "row_spearman")),
        )
        for (method, block, split), models in sorted(
            errors.items(), key=lambda item: (method_place(item[0][0]), item[0][1:])
        )
        if split in QUADRANTS
    ]  # fmt: skip
    heads = ("method", "block", "quadrant", "pairs", "network", "row + column mean", "mean",
             "always zero", "random", "R²", "Spearman", "Spearman in rows")  # fmt: skip
    reading = (
        "Mean squared error on labels scaled to [0, 1], and of the network also R² and rank "
        "correlation. Q1: both examples seen in training, Q4: neither, which is where nearly all "
        "scored pairs lie. Beating zero and random says nothing; beating the row + column mean "
        "does."
    )
    return PageTable("How faithful each network is to its teacher", _columns(heads, 3), rows,
                     reading, missing="No method fits a network.")  # fmt: skip


def _number(models: dict[str, dict[str, object]], model: str, name: str) -> float:
    value = models.get(model, {}).get(name)
    return float(value) if isinstance(value, int | float) else math.nan


# The page of an evaluation: one self-contained file, no script, every text of a corpus escaped.

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


# The tables an evaluation ends with in a terminal; colour only repeats what words say.

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
