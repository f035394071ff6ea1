"""Write the page of an evaluation: its tables as Markdown, its figures as JSON.

    python -m benchmarks.evaluation.page runs/study --out benchmarks/evaluation_cpu.md

Reads ``runs/study/evaluation`` only; nothing is computed anew but the summary.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from nncift_ray.demo.corpus import (
    MEASURES,
    PlantedRow,
    junk_shares,
    read_planted,
    rows_by_id,
    usable_rows,
)
from nncift_ray.evaluation.page import (
    agreement_table,
    budget_words,
    cost_sentence,
    cost_table,
    direction_words,
    evaluation_notices,
    fidelity_table,
    headline,
    means_table,
    names_of,
    result_table,
    results_of,
    verdict_sentence,
)
from nncift_ray.evaluation.results import EVALUATION_FOLDER, SUBSETS_NAME, Evaluation
from nncift_ray.report.data import format_percent
from nncift_ray.report.page import PageTable
from nncift_ray.runtime.files import Location

Faults = dict[str, Any]  # picks (whose), size, and a share by measure


def main() -> None:
    """Read an evaluation and write its page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", help="a run directory with an evaluation")
    parser.add_argument("--out", type=Path, required=True, help="the page; figures go beside it")
    parser.add_argument("--command", default="", help="what was run, for the page")
    parser.add_argument("--note", default="", help="sentences on corpus and models")
    parser.add_argument("--title", help="the page's heading (default: its file's name)")
    parser.add_argument("--planted", type=Path, help="what each row of the corpus is, of .junk")
    given = parser.parse_args()
    folder = Location.of(given.run_dir) / EVALUATION_FOLDER
    data = Evaluation.read(folder)
    about = {"commit": describe_commit(), "machine": describe_machine(),
             "command": given.command, "note": given.note}  # fmt: skip
    planted = read_planted(given.planted) if given.planted else []
    faults = collect_faults(read_picks(folder), planted) if planted else []
    text = write_page(given.title or given.out.stem, data, about, faults)
    given.out.write_text(text, encoding="utf-8")
    figures = collect_figures(data, about) | ({"planted": faults} if faults else {})
    figures = json.dumps(figures, indent=1, allow_nan=False)
    given.out.with_suffix(".json").write_text(f"{figures}\n", encoding="utf-8")


def collect_figures(data: Evaluation, about: dict[str, str]) -> dict[str, Any]:
    """Return the figures of the page; a value that is not there is null."""
    facts = data.facts
    tables = {
        name: [_plain(row) for row in getattr(data, name).to_pylist()]
        for name in ("summary", "costs", "agreement", "fidelity")
    }
    return about | {
        "model": facts.model, "judge": facts.judge, "num_candidates": facts.num_candidates,
        "confidence": facts.confidence, "headline": headline(data),
        "environment": facts.environment, **tables,
    }  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()}  # fmt: skip


def read_picks(folder: Location) -> list[dict[str, Any]]:
    """Read which examples each method picked."""
    return pq.read_table(pa.BufferReader((folder / SUBSETS_NAME).read_bytes())).to_pylist()


def collect_faults(picks: Sequence[dict[str, Any]], planted: Sequence[PlantedRow]) -> list[Faults]:
    """Return the share of each planted fault among a method's picks; of random draws the mean."""
    drawn: dict[tuple[str, float], dict[int, list[str]]] = {}
    for pick in picks:
        draws = drawn.setdefault((pick["method"], pick["budget"]), {})
        draws.setdefault(pick["seed"], []).append(pick["example_id"])
    rows: list[Faults] = [
        {"picks": "the corpus", "size": None, **junk_shares(planted)},
        {"picks": "after ingest", "size": None, **junk_shares(usable_rows(planted))},
    ]
    for (method, budget), draws in drawn.items():
        shares = [junk_shares(rows_by_id(planted, ids)) for ids in draws.values()]
        means = {name: sum(share[name] for share in shares) / len(shares) for name in MEASURES}
        rows.append({"picks": method, "size": budget, **means})
    return rows


def write_page(
    name: str, data: Evaluation, about: dict[str, str], faults: Sequence[Faults] = ()
) -> str:
    """Return the page in Markdown."""
    facts = data.facts
    judge = f" Judge: {facts.judge}." if facts.judge else ""
    parts = [
        f"# {name}",
        " ".join(filter(None, [
            about["note"], f"{facts.num_candidates:,} candidates. Model: {facts.model}.{judge}",
            f"Machine: {about['machine']}. Commit {about['commit']}.",
        ])),
        f"```bash\n{about['command']}\n```" if about["command"] else "",
        *(f"**{line}**" for line in headline(data)),
        verdict_sentence(data),
        *_results(data),
        *_faults(faults),
        *_costs(data),
        *_fidelity(data),
        *_notices(data),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def _results(data: Evaluation) -> list[str]:
    results, parts = results_of(data.summary), list[str]()
    for test in names_of(results, "test"):
        parts += [f"## Results on {test}", _table(means_table(data, test)),
                  _table(result_table(data, test))]  # fmt: skip
    legend = (
        f"Mean ± half its {format_percent(data.facts.confidence)} interval; better, worse: than "
        "random subsets of the same size; ≈ random: within noise. The difference is the method "
        f"minus random, row by row. {direction_words(names_of(results, 'metric'))}"
    )
    return [*parts, legend.strip()] if parts else ["Nothing was measured."]


def _table(table: PageTable) -> str:
    rows = [[cell.replace("\n", " ") for cell in row] for row in table.rows]
    return markdown_table([name for name, _ in table.columns], rows)


def _faults(faults: Sequence[Faults]) -> list[str]:
    if not faults:
        return []
    lines = [
        [row["picks"], "" if row["size"] is None else budget_words(row["size"], row["picks"]),
         *(format_percent(row[measure]) for measure in MEASURES)]
        for row in faults
    ]  # fmt: skip
    return ["## Planted faults among the picks",
            "Share of the rows; a repeat is a row whose question is in the set already, in other "
            "words or in the same.",
            markdown_table(["rows", "size", *MEASURES], lines)]  # fmt: skip


def _costs(data: Evaluation) -> list[str]:
    if not data.costs.num_rows:
        return []
    return ["## What the choice costs", cost_sentence(data), _table(cost_table(data))]


def _fidelity(data: Evaluation) -> list[str]:
    parts: list[str] = []
    if data.agreement.num_rows:
        parts += ["## Subsets against the teacher's", _table(agreement_table(data))]
    table = fidelity_table(data)
    if table.rows:
        parts += ["## Fidelity of the networks", table.reading, _table(table)]
    return parts


def _notices(data: Evaluation) -> list[str]:
    notices = evaluation_notices(data)
    return ["## Worth knowing", "\n".join(f"- {notice}" for notice in notices)] if notices else []


if __name__ == "__main__":
    main()
