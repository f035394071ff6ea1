"""The figures of the designs as rows, a table and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.sampling_designs.trials import Outcome
from nncift_ray.labels.sample import LAYOUTS, PAPER

FOLDER = Path(__file__).parents[1]
NAME = "sampling_designs_cpu"
MEASURES = ("mse", "mean_mse", "r2", "spearman", "centred_r2", "row_spearman", "top_overlap")
SIZES = ("num_pairs", "num_rows", "num_columns", "cost", "num_epochs")
COLUMNS = (
    ("teacher", "teacher"), ("side", "budget"), ("layout", "design"), ("num_pairs", "pairs"),
    ("num_rows", "rows"), ("num_columns", "helpers"), ("cost", "cost"),
    ("teacher_seconds", "teacher s"), ("mse_ratio", "Q4 MSE / mean's"),
    ("mse_vs_paper", "Q4 MSE / paper's"), ("mse_vs_paper_error", "+-"), ("wins", "wins"),
    ("centred_r2", "centred R2"), ("row_spearman", "rank in rows"),
    ("top_overlap", "top overlap"),
)  # fmt: skip


def summarise(teacher: str, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row a budget and layout: means over seeds, and the error against the square block.

    ``mse_vs_paper`` is the mean over seeds of the ratio, ``mse_vs_paper_error`` its standard error,
    ``wins`` the seeds in which the design had the lower error.
    """
    rows: list[dict[str, Any]] = []
    mine = [one for one in outcomes if one.trial.table == teacher]
    for side in sorted({one.trial.budget for one in mine}):
        paper = {one.trial.seed: one.mse for one in mine
                 if (one.trial.budget, one.trial.layout) == (side, PAPER)}  # fmt: skip
        for layout in LAYOUTS:
            of = [one for one in mine if (one.trial.budget, one.trial.layout) == (side, layout)]
            ratios = np.array([one.mse / paper[one.trial.seed] for one in of])
            error = ratios.std(ddof=1) / np.sqrt(len(ratios)) if len(ratios) > 1 else float("nan")
            rows.append(
                {"teacher": teacher, "side": int(side), "layout": layout}
                | {name: float(np.mean([getattr(one, name) for one in of]))
                   for name in (*SIZES, *MEASURES)}
                | {
                    "mse_ratio": float(np.mean([one.mse / one.mean_mse for one in of])),
                    "mse_vs_paper": float(ratios.mean()),
                    "mse_vs_paper_error": float(error),
                    "wins": int((ratios < 1).sum()),
                    "num_seeds": len(of),
                    "teacher_seconds": 0.0,
                }
            )  # fmt: skip
    return rows


def add_seconds(rows: list[dict[str, Any]], engine: Sequence[dict[str, Any]]) -> None:
    """Turn tokens into seconds at the speed measured over all designs."""
    per_token = sum(one["seconds"] for one in engine) / sum(one["tokens"] for one in engine)
    for row in rows:
        if row["teacher"] == "delift":
            row["teacher_seconds"] = row["cost"] * per_token


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return for each teacher the design of least mean error against the square block's."""
    found: dict[str, Any] = {}
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        of = {layout: [row["mse_vs_paper"] for row in rows
                       if (row["teacher"], row["layout"]) == (teacher, layout)]
              for layout in LAYOUTS}  # fmt: skip
        means = {layout: float(np.mean(ratios)) for layout, ratios in of.items()}
        best = min(means, key=lambda layout: means[layout])
        found |= {f"{teacher}_best_design": best, f"{teacher}_best_mse_vs_paper": means[best]}
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print the figures."""
    table = Table(title=f"Designs on {found['machine']}, commit {found['commit']}")
    for key, name in COLUMNS:
        table.add_column(name, justify="left" if key in ("teacher", "layout") else "right")
    for row in found["rows"]:
        table.add_row(*(_cell(row, key) for key, _ in COLUMNS))
    console.print(table)
    for line in _engine_lines(found.get("engine", [])):
        console.print(line)


def write(found: dict[str, Any]) -> list[Path]:
    """Write the page and its JSON."""
    heads = [name for _, name in COLUMNS]
    lines = [
        f"# {NAME}",
        "",
        f"Machine: {found['machine']}. Commit {found['commit']}. {found['seconds']:.0f} s in all, "
        "the label matrix not counted.",
        "",
        "```bash",
        "python -m benchmarks.sampling_designs.labels FOLDER         # once",
        "python -m benchmarks.sampling_designs --labels FOLDER --full",
        "```",
        "",
        _explanation(found),
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * 3}{' ---: |' * (len(heads) - 3)}",
        *(f"| {' | '.join(_cell(row, key) for key, _ in COLUMNS)} |" for row in found["rows"]),
        "",
        *_engine_lines(found.get("engine", [])),
        "",
    ]
    page, figures = FOLDER / f"{NAME}.md", FOLDER / f"{NAME}.json"
    page.write_text("\n".join(lines))
    figures.write_text(json.dumps(found, indent=1) + "\n")
    return [page, figures]


def _explanation(found: dict[str, Any]) -> str:
    text = (
        'Means over seeds (as many as "wins" names), each with its own pool and its own Q4: rows '
        'and helpers that no design was offered, the same for all designs. "budget" is the side of '
        "the square block whose cost every design may spend: pairs for delift_se (its labels are "
        "cosines of embeddings that exist anyway, so the teacher's seconds are nothing), computed "
        'tokens for delift. "Q4 MSE / mean\'s" divides by the error of row mean + column mean of '
        "the same labels; \"/ paper's\" by the square block's of the same seed, with the standard "
        "error over seeds beside it and the seeds in which the design had the lower error. "
        '"centred R2" and "rank in rows" are after removing row means and within rows.'
    )
    if "matrix" in found:
        measured, num_rows, num_columns = found["matrix"]
        text += (
            f" DELIFT: {measured:,} measured pairs of {num_rows} helped x {num_columns} helper "
            "short T0 rows on SmolLM2-135M, float32; designs draw from what Q4 leaves, so "
            "`uniform` meets each row several times, which flatters it: in a large corpus every "
            "pair would pay for a row and a helper of its own."
        )
    return text


def _engine_lines(engine: Sequence[dict[str, Any]]) -> list[str]:
    if not engine:
        return []
    parts = [
        f"{one['layout']} {one['tokens']:,} computed, {one['expected_tokens']:,.0f} worked out, "
        f"{one['num_pairs']} pairs of {one['num_rows']} rows and {one['num_columns']} helpers in "
        f"{one['seconds']:.1f} s ({one['tokens'] / one['seconds']:.0f} tokens/s)"
        for one in engine
    ]
    return ["Costs checked on the engine, a part of each design: " + "; ".join(parts) + "."]


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if key == "wins":
        return "" if row["layout"] == PAPER else f"{value} of {row['num_seeds']}"
    if key == "mse_vs_paper_error" and row["layout"] == PAPER:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if key in SIZES or key == "teacher_seconds" else f"{value:.3f}"
    return str(value)
