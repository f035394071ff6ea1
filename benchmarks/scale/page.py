"""The page and the JSON file of a full run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown_table

STEPS = ("project", "index", "tune", "search")
NETWORKS = {
    "paper": "the paper's network",
    "pair": "the pair network",
    "cosine": "the plain cosine",
}


def write_page(path: Path, figures: Mapping[str, Any], goals: Mapping[str, bool]) -> None:
    """Write `path`.md and `path`.json."""
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    met = [f"- {goal}: {'met' if good else '**missed**'}" for goal, good in goals.items()]
    lines = [
        f"# {path.name}",
        "",
        "From embeddings of 384 numbers to the table of every row's top 64, by the pruned path,"
        f" {NETWORKS[figures['network']]},"
        f" {figures['threads']} threads.",
        f"Machine: {figures['machine']}. Commit {figures['commit']}. {figures['seconds']:,} s in"
        " all.",
        "",
        "```bash",
        f"python -m benchmarks.scale --json --full --network {figures['network']}",
        "```",
        "",
        *met,
        "",
        f"Seconds grow as rows to the power {figures['growth_exponent']:.2f}; exact scoring,"
        f" predicted from 1,024 rows, as {figures['exact_growth_exponent']:.2f}."
        f" At {figures['largest_rows']:,} rows: {figures['pruned_seconds']:.4g} s against"
        f" {figures['exact_seconds_predicted']:.4g} s.",
        "",
        f"## Clustered: {figures['clusters']}",
        "",
        *_sizes(figures["by_rows"]),
        "",
        f"## Harder: {figures['harder_clusters']}",
        "",
        *_sizes(figures["harder_by_rows"]),
        "",
        HOW_TO_READ,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["Not measured."]
    names = ["figure", *(f"{row['rows']:,} rows" for row in rows)]
    steps = [f"{step}_seconds" for step in STEPS]
    others = [
        "peak_gb", *(f"{step}_gb" for step in STEPS), "recall_at_64", "recall_of_worst_percent",
        "scored_fraction", "cells", "probes", "candidates", "settings_tried", "query_us_per_row",
        "probe_us_per_row", "list_us_per_row", "score_us_per_row", "exact_seconds_predicted",
        "exact_seconds",
    ]  # fmt: skip
    keys = ["pruned_seconds", *steps, *others]
    return [
        markdown_table(
            names, [[key.replace("_", " "), *(row[key] for row in rows)] for key in keys]
        )
    ]


HOW_TO_READ = """How to read it.

- "pruned seconds" are wall time of project, index, tune and search. Drawing the embeddings,
  compiling and checking are not counted.
- Memory is the largest of the process by the end of a step, libraries included. Embeddings are
  projected a tile at a time and not kept, as the project stage does.
- Recall is of 1,024 rows that the search was not tuned on, against their exact lists.
- "exact seconds predicted" are those of 1,024 rows times rows / 1,024; where "exact seconds" are
  given every pair was scored.
- The network can only follow what it was trained on: cosines of clustered vectors. Recall depends
  on how sharply clusters are told apart, hence the harder setting."""
