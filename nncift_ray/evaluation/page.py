"""What a person is shown of an evaluation: sentences, tables, one HTML page, the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.evaluation.figures import (
    VERDICT_WORDS,
    Cost,
    Result,
    budget_words,
    costs_of,
    first_budget,
    gain_words,
    interval_words,
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
    results_of,
    savings_of,
    verdict_words,
)
from nncift_ray.evaluation.methods import FULL, INITIAL, RANDOM
from nncift_ray.evaluation.metrics import (
    LOWER_IS_BETTER,
    MANY_UNREADABLE,
    VerdictReport,
    describe_verdicts,
)
from nncift_ray.evaluation.results import Evaluation
from nncift_ray.recipe.sections import NN_CIFT
from nncift_ray.report.figures import Chart
from nncift_ray.report.page import (
    KEY,
    NUMBER,
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
JUDGE = "judge"
STYLES = {VERDICT_WORDS[BETTER]: "green", VERDICT_WORDS[WORSE]: "red"}
MAX_PROMPT_CHARS, MAX_ANSWER_CHARS = 700, 420
NO_ANSWER = "no answer: it failed, see the errors table of the stage"

# Sentences.


def headline(data: Evaluation) -> list[str]:
    """Say in a sentence a test set which methods beat random, by how much; or that none does.

    Of a method the surest result is told, at the size that most methods have if there is one, and
    how many more results say the same. Methods that are worse, or both, are told too. Of a judge
    that cannot be read nothing is told.
    """
    results, judged = results_of(data.summary), judged_results(data)
    if not judged:
        return [_why_no_verdict(results)]
    if all(row.verdict == NOISE for row in judged):
        return ["No method can be told from a random subset of the same size."]
    tests, main = names_of(judged, "test"), first_budget(results)
    judged.sort(key=lambda row: (row.budget != main, row.adjusted_p_value))
    return [_finding(test, [row for row in judged if row.test == test]) for test in tests]


def judged_results(data: Evaluation) -> list[Result]:
    """Return the results with a verdict, those of a judge that cannot be read left out."""
    report = judge_report(data)
    babbles = report is not None and report.kind == "unreadable"
    return [
        row for row in results_of(data.summary)
        if row.verdict is not None and not (babbles and row.metric == JUDGE)
    ]  # fmt: skip


def judge_report(data: Evaluation) -> VerdictReport | None:
    """Say what a judge is worth, over all its verdicts; None where there is none."""
    values = data.scores.filter(pc.field("metric") == JUDGE)["value"].to_pylist()
    grades = [None if value is None or math.isnan(value) else round(value) for value in values]
    return describe_verdicts(grades) if grades else None


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
    better, worse = (_by_method(judged, verdict) for verdict in (BETTER, WORSE))
    if not better and not worse:
        return f"On {test} no method can be told from random."
    parts: list[str] = []
    if names := [f"{name} ({how})" for name, how in better.items() if name not in worse]:
        rest = len(names) - MAX_FINDINGS
        told = names[:MAX_FINDINGS] + ([f"{rest} more"] if rest > 0 else [])
        parts.append(f"{list_words(told)} {'beat' if len(names) > 1 else 'beats'} random")
    if names := [f"{name} ({how})" for name, how in worse.items() if name not in better]:
        parts.append(f"{list_words(names)} {'do' if len(names) > 1 else 'does'} worse than random")
    parts += [
        f"{name} does both, better ({better[name]}) and worse ({worse[name]})"
        for name in better
        if name in worse
    ]
    if not better:
        parts.append("no method beats random")
    return f"On {test} {'; '.join(parts)}."


def _by_method(judged: Sequence[Result], verdict: str) -> dict[str, str]:
    """Say by how much each method differs in its surest result: they come sorted so."""
    found: dict[str, list[Result]] = {}
    for row in judged:
        if row.verdict == verdict:
            found.setdefault(row.method, []).append(row)
    return {
        method: f"{metric_words(rows[0].metric)} {gain_words(rows[0])}, "
        f"{mode_words(rows[0].mode)}, {budget_words(rows[0].budget)}"
        + (f", and in {len(rows) - 1} more" if len(rows) > 1 else "")
        for method, rows in found.items()
    }


def verdict_sentence(data: Evaluation) -> str:
    """Say how many comparisons there are and what they say, and how many may err."""
    judged = judged_results(data)
    if not judged:
        return ""
    counts = {verdict: sum(row.verdict == verdict for row in judged) for verdict in VERDICT_WORDS}
    groups = len({(row.test, row.metric, row.mode, row.budget) for row in judged})
    return (
        f"Of {format_count(len(judged))} results beside random, {counts[BETTER]} are better, "
        f"{counts[WORSE]} worse and {counts[NOISE]} within noise. They stand in {groups} "
        f"{'comparison' if groups == 1 else 'comparisons'} of methods (one test set, metric, use "
        "and size each); in each the chance of any false verdict is at most "
        f"{format_percent(1 - data.facts.confidence)}."
    )


def evaluation_notices(data: Evaluation) -> list[str]:
    """Say what makes results weaker than they look, most serious first."""
    notices, report = list[str](), judge_report(data)
    if report is not None:
        if report.kind != "usable" or report.num_unreadable > MANY_UNREADABLE * report.num_verdicts:
            notices.append(f"Judge: {report.sentence}")
        elif report.num_unreadable:
            notices.append(
                f"Judge: {format_count(report.num_unreadable)} of "
                f"{format_count(report.num_verdicts)} verdicts could not be read or are missing; "
                "they are not in the means."
            )
    missing = [row for row in results_of(data.summary) if row.num_missing and row.metric != JUDGE]
    if missing:
        worst = max(missing, key=lambda row: row.num_missing)
        number = sum(row.num_missing for row in missing)
        notices.append(
            f"{format_count(number)} values are missing (answers or likelihoods that failed), most "
            f"for {worst.method} in {metric_words(worst.metric)} on {worst.test}: "
            f"{format_count(worst.num_missing)}. They count for no method; the tables show them."
        )
    return [*notices, *data.facts.notices]


def cost_sentence(data: Evaluation) -> str:
    """Say what networks save on the corpus that was run; "" where there is no pair."""
    savings = savings_of(data.costs)
    measured = min((one.own.num_candidates for one in savings), default=0)
    parts = [str(one) for one in savings if one.own.num_candidates == measured]
    return f"{list_words(parts)}." if parts else ""


def direction_words(metrics: Sequence[str]) -> str:
    """Say of which metrics less is better; "" of none."""
    less = [metric_of(name).name for name in metrics if name in LOWER_IS_BETTER]
    return f"Of {list_words(less)} less is better, of all others more." if less else ""


# Tables as rows of text: for the terminal, the page and Markdown alike.


def _table(
    title: str,
    heads: Sequence[str],
    num_keys: int,
    rows: Sequence[tuple[str, ...]],
    reading: str = "",
    missing: str = "Nothing was recorded.",
) -> PageTable:
    """Make a table whose first columns are names, and the others numbers."""
    columns = tuple(Column(head, KEY if at < num_keys else NUMBER) for at, head in enumerate(heads))
    return PageTable(title, columns, rows, reading, missing)


def _method_words(row: Result) -> str:
    return f"{row.method} (mean of {row.num_seeds})" if row.num_seeds > 1 else row.method


def means_table(data: Evaluation, test: str) -> PageTable:
    """List a row a method, size and use, and a column a metric; words of a cell in lines."""
    results = [row for row in results_of(data.summary) if row.test == test]
    metrics = names_of(results, "metric")
    lines: dict[tuple[str, str, float], dict[str, Result]] = {}
    for row in results:
        lines.setdefault((row.method, row.mode, row.budget), {})[row.metric] = row
    rows = [
        (_method_words(next(iter(line.values()))), budget_words(budget, method), mode_words(mode),
         *(_mean_cell(line.get(metric)) for metric in metrics))
        for (method, mode, budget), line in lines.items()
    ]  # fmt: skip
    heads = ("method", "size", "use", *(metric_of(metric).name for metric in metrics))
    most = max((row.num_rows for row in results), default=0)
    return _table(f"{test} (up to {format_count(most)} rows)", heads, 3, rows)


def _mean_cell(row: Result | None) -> str:
    if row is None:
        return "not measured"
    missing = f"({format_count(row.num_missing)} missing)" if row.num_missing else ""
    return "\n".join(filter(None, (mean_words(row), verdict_words(row), missing)))


def result_table(data: Evaluation, test: str) -> PageTable:
    """List every result of a test set, with its difference to random."""
    heads = ("metric", "use", "size", "method", "mean", "difference to random", "verdict", "p",
             "rows", "missing")  # fmt: skip
    rows = [
        (
            metric_of(row.metric).name, mode_words(row.mode), budget_words(row.budget, row.method),
            _method_words(row), mean_words(row), interval_words(row), verdict_words(row),
            _p_words(row.adjusted_p_value), format_count(row.num_rows),
            format_count(row.num_missing),
        )
        for row in results_of(data.summary) if row.test == test
    ]  # fmt: skip
    reading = (
        f"Mean ± half its {format_percent(data.facts.confidence)} interval; the difference is the "
        "method's value minus random's, row by row, with its interval. Verdicts go by p, which is "
        "adjusted for the number of methods (Holm), so an interval may leave zero out and "
        "the verdict still be ≈ random. Missing: values that failed or could not be read."
    )
    return _table(f"All results on {test}", heads, 4, rows, reading)


def _p_words(p_value: float) -> str:
    if math.isnan(p_value):
        return MISSING
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


COST_HEADS = ("candidates", "time", "GPU time", "CPU time", "tokens", "price", "note")


def _cost_cells(row: Cost) -> tuple[str, ...]:
    """Write a cost (COST_HEADS), and what is not as it looks."""
    notes = ["extrapolated"] if row.extrapolated else []
    part = row.labelled_fraction
    if part is not None and part < 1 and not row.method.startswith(f"{NN_CIFT}+"):
        notes.append(f"asked about {format_percent(part)} of the pairs")
    return (
        format_count(row.num_candidates),
        format_seconds(row.seconds),
        format_seconds(row.accelerator_seconds) if row.accelerator_seconds else MISSING,
        format_seconds(row.cpu_seconds),
        MISSING if row.num_tokens is None else format_compact(row.num_tokens),
        format_usd(row.price),
        ", ".join(notes),
    )


def cost_table(data: Evaluation) -> PageTable:
    """List what the whole way of every method cost, and what networks save of their teachers'."""
    rows = [(row.method, *_cost_cells(row)) for row in costs_of(data.costs) if row.is_whole]
    rows += [
        (f"{one.own.method} saves", format_count(one.own.num_candidates),
         format_percent(one.share), "", "", "",
         format_usd(one.teacher.price - one.own.price)
         if one.own.price <= one.teacher.price else "none",
         "extrapolated" if one.extrapolated else "")
        for one in savings_of(data.costs)
    ]  # fmt: skip
    title = "What the choice costs, from the corpus to the subset"
    return _table(title, ("method", *COST_HEADS), 1, rows, missing="No cost was recorded.")


def agreement_table(data: Evaluation) -> PageTable:
    """List how near the subsets come to their teacher's."""
    heads = ("method", "teacher", "size", "picks shared", "by chance", "value of its picks",
             "of the teacher's", "of random ones")  # fmt: skip
    rows = [
        (row["method"], row["teacher"], budget_words(row["budget"]),
         format_percent(row["overlap"]), format_percent(row["chance_overlap"]),
         *(format_number(row[name], 4)
           for name in ("objective", "teacher_objective", "random_objective")))
        for row in sorted(data.agreement.to_pylist(),
                          key=lambda row: (method_place(row["method"]), row["budget"]))
    ]  # fmt: skip
    reading = (
        "Picks shared: of the method's picks, the share that its teacher picks too. Value: the "
        "objective by the teacher's own labels; a subset may share few picks with the teacher's "
        "and still be worth nearly as much, where many examples teach alike."
    )
    return _table("Subsets against the teacher's", heads, 2, rows, reading,
                  "No method stands beside its own teacher.")  # fmt: skip


def fidelity_table(data: Evaluation) -> PageTable:
    """List the error of every network and of what knows less, by quadrant."""
    models = {"network": "network", "additive_ridge": "additive ridge", "mean": "mean",
              "zero": "always zero", "random": "random"}  # fmt: skip
    measures = {"spearman": "Spearman", "interaction_correlation": "interaction",
                "capture": "capture"}  # fmt: skip
    errors: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in data.fidelity.to_pylist():
        if row["split"].startswith("Q"):
            key = row["method"], row["block"], row["split"]
            errors.setdefault(key, {})[row["model"]] = row
    rows = [
        (
            *key, format_count(of.get("network", {}).get("num_pairs")),
            *(format_number(of.get(model, {}).get("scaled_mse")) for model in models),
            *(format_number(of.get("network", {}).get(name), 2) for name in measures),
            *(format_number(of.get(model, {}).get("capture"), 2)
              for model in ("additive_ridge", "cosine")),
        )
        for key, of in sorted(errors.items(), key=lambda item: (method_place(item[0][0]), item[0]))
    ]  # fmt: skip
    heads = ("method", "block", "quadrant", "pairs", *models.values(), *measures.values(),
             "ridge's capture", "cosine's capture")  # fmt: skip
    reading = (
        "Mean squared error on labels scaled to [0, 1], and of the network also the rank "
        "correlation, the correlation beyond row and column effects, and how much of what a row's "
        "best eighth of helpers is worth it finds. Q1: both examples seen in training, Q4: "
        "neither, which is where nearly all scored pairs lie. Beating zero, random or the mean "
        "says nothing of pairs: an additive ridge ranks helpers alike for every row."
    )
    return _table("How faithful each network is to its teacher", heads, 3, rows, reading,
                  "No method fits a network.")  # fmt: skip


# The page: one self-contained file, no script, every text of a corpus escaped.


def render_evaluation(data: Evaluation) -> str:
    """Return the report of an evaluation as one HTML page; the same data give the same text.

    What is not there is replaced by a sentence saying so.
    """
    facts, results = data.facts, results_of(data.summary)
    budget = first_budget(results)
    sizes = [row.num_examples for row in results if row.budget == budget]
    chips = {
        "Model": facts.model,
        "Subsets": f"{format_count(sizes[0])} examples, {budget_words(budget)}" if sizes else "",
        "Candidates": format_count(facts.num_candidates) if facts.num_candidates else "",
        "Judge": facts.judge,
        "Finished": facts.created,
    }
    return render_page(
        "evaluation.html.j2",
        {
            "run_name": facts.name,
            "lead": [*({"text": f"{line}\n", "strong": True} for line in headline(data)),
                     {"text": verdict_sentence(data), "strong": False}],
            "chips": [chip for chip in chips.items() if chip[1]],
            "cards": [],
            "notices": evaluation_notices(data),
            "confidence": format_percent(facts.confidence),
            "directions": direction_words(names_of(results, "metric")),
            "tests": [_test(data, results, test, budget) for test in names_of(results, "test")],
            "answers": _answers(data),
            "cost_lead": cost_sentence(data) or "What each method's choice costs.",
            "cost_chart": plot_costs(data.costs),
            "cost_table": cost_table(data),
            "agreement_table": agreement_table(data),
            "fidelity_table": fidelity_table(data),
            "config_table": settings_table("Configuration", facts.config),
            "environment_table": settings_table("Environment", facts.environment),
            "footer": f"Written by nncift_ray {facts.version}, {facts.created}.",
        },
    )  # fmt: skip


def _test(
    data: Evaluation, results: Sequence[Result], test: str, budget: float
) -> dict[str, object]:
    """Make the part of one test set: two pictures a metric, curves, the whole table."""
    pairs: list[tuple[Chart, Chart]] = []
    curves: list[Chart | None] = []
    here = [row for row in results if row.test == test]
    for metric in names_of(here, "metric"):
        rows = [row for row in here if row.metric == metric]
        sized = [row for row in rows if row.budget == budget or row.method in (INITIAL, FULL)]
        pairs.append((plot_means(sized, test, metric), plot_gains(sized, test, metric)))
        curves.append(plot_curves(rows, test, metric))
    table = result_table(data, test)
    return {"name": test, "pairs": pairs, "curves": list(filter(None, curves)), "table": table}


def _answers(data: Evaluation) -> list[dict[str, object]]:
    """Bring the answers to one row together: the question once, then what each method answered."""
    questions: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in data.answers.to_pylist():
        questions.setdefault((row["test"], row["row_index"]), []).append(row)
    return [
        {
            "meta": f"{test}, row {format_count(row_index)}",
            "prompt": _squeeze(rows[0]["prompt"], MAX_PROMPT_CHARS),
            "reference": _squeeze(rows[0]["reference"], MAX_ANSWER_CHARS),
            "answers": [_answer(row) for row in sorted(rows, key=lambda row: (
                mode_place(row["mode"]), method_place(row["method"]), row["budget"]
            ))],
        }
        for (test, row_index), rows in questions.items()
    ]  # fmt: skip


def _answer(row: Mapping[str, Any]) -> dict[str, str]:
    how = [budget_words(row["budget"], row["method"])] if row["budget"] else []
    how.append(mode_words(row["mode"]))
    if row["verdict"] is not None:
        how.append(f"judge: {row['verdict']}")
    text = row["response"]
    return {
        "method": row["method"],
        "how": ", ".join(how),
        "text": NO_ANSWER if text is None else _squeeze(text, MAX_ANSWER_CHARS),
    }


def _squeeze(text: str, max_chars: int) -> str:
    """Drop blank lines and cut: a sample has no room for more."""
    lines = "\n".join(line for line in text.strip().splitlines() if line.strip())
    return shorten(lines, max_chars) or MISSING


# The terminal; colour only repeats what words say.


def evaluation_tables(data: Evaluation) -> RenderableType:
    """Return what a terminal shows: findings, a table a test set, costs, warnings.

    Names enter as plain text, so square brackets in them are not read as markup.
    """
    results = results_of(data.summary)
    parts: list[RenderableType] = [Text(clean_text(line), "bold") for line in headline(data)]
    for test in names_of(results, "test"):
        parts += ["", _terminal_table(means_table(data, test))]
    if results:
        legend = (
            f"Mean ± half its {format_percent(data.facts.confidence)} interval. better, worse: "
            "than random subsets of the same size; ≈ random: within noise. "
            f"{direction_words(names_of(results, 'metric'))}"
        )
        parts += [Text(legend, "dim"), Text(verdict_sentence(data), "dim")]
    if data.costs.num_rows:
        parts += ["", _terminal_table(cost_table(data)), Text(clean_text(cost_sentence(data)))]
    if data.agreement.num_rows:
        parts += ["", _terminal_table(agreement_table(data))]
    parts += [Text(clean_text(f"note: {each}"), "yellow") for each in evaluation_notices(data)]
    return Group(*parts)


def _terminal_table(made: PageTable) -> Table:
    table = Table(title=Text(clean_text(made.title)), title_justify="left", box=None,
                  padding=(0, 1), header_style="bold")  # fmt: skip
    for column in made.columns:
        justify = "right" if column.css == NUMBER else "left"
        table.add_column(Text(column.name), justify=justify, overflow="fold")
    for row in made.rows:
        cells = [Text(clean_text(cell)) for cell in row]
        for cell in cells:
            for words, style in STYLES.items():
                cell.highlight_words([words], style)
        table.add_row(*cells)
    return table
