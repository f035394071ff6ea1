"""The tables of an evaluation as rows of text: for the terminal, the page and Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa

from nncift_ray.config.evaluation import NN_CIFT
from nncift_ray.report.cost_plots import savings_of
from nncift_ray.report.evaluation_data import (
    Cost,
    EvaluationData,
    Result,
    costs_of,
    method_place,
    results_of,
)
from nncift_ray.report.evaluation_words import (
    budget_words,
    interval_words,
    mean_words,
    metric_of,
    mode_words,
    verdict_words,
)
from nncift_ray.report.formatting import (
    MISSING,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
)
from nncift_ray.report.tables import KEY, NUMBER, Column, PageTable

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
