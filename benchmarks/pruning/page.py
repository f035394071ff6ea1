"""The page and the JSON file of a full run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown_table
from benchmarks.pruned_path import STEPS


def write_page(path: Path, figures: Mapping[str, Any], goals: Mapping[str, bool]) -> None:
    """Write `path`.md and `path`.json."""
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    names = [name for name in ("delift_se", "delift") if f"{name}_exact_seconds" in figures]
    parts = [_head(figures, goals)]
    for name in names:
        parts += [_network(name, figures), _sizes(figures[f"{name}_by_rows"])]
    parts.append(HOW_TO_READ)
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(figures: Mapping[str, Any], goals: Mapping[str, bool]) -> str:
    met = [f"- {goal}: {'met' if good else '**missed**'}" for goal, good in goals.items()]
    crossing = figures["crossover_rows"]
    return "\n".join(
        [
            "# pruning_cpu",
            "",
            f"The top {figures['top_k']} of every row among all columns, {figures['rows']:,} real"
            f" T0 examples, {figures['threads']} threads.",
            f"Machine: {figures['machine']}. Commit {figures['commit']}."
            f" {figures['seconds']:,} s in all, of which embedding"
            f" {figures['embed_seconds']:.0f} s.",
            f"DELIFT labels: {figures['delift_labels']}.",
            "",
            "```bash",
            "python -m benchmarks.pruning --json --full",
            "```",
            "",
            *met,
            "",
            f"Pruned is faster than exact from {crossing:,} rows on, on every network here and at"
            " every larger number of rows measured."
            if crossing
            else "At the largest number of rows measured pruned is not faster on every network.",
        ]
    )


def _network(name: str, figures: Mapping[str, Any]) -> str:
    one = {key.removeprefix(f"{name}_"): value for key, value in figures.items()
           if key.startswith(f"{name}_")}  # fmt: skip
    keys = (
        "recall_at_64", "recall_of_worst_percent", "scored_fraction", "build_seconds",
        "search_seconds", *(f"{step}_us_per_row" for step in STEPS),
    )  # fmt: skip
    rows = [[key.replace("_", " "), one[key]] for key in keys]
    return "\n".join(
        [
            f"## Network trained on {name}",
            "",
            f"{one['num_cells']:,} cells, {one['probes']} probed, {one['candidates']} candidates"
            " listed. Exact scoring of all rows:"
            f" {one['exact_seconds']:.3g} s ({one['exact_us_per_row_and_core']:.3g} us a row and"
            f" core); pruned: {one['pruned_seconds']:.3g} s, index included:"
            f" {one['exact_over_pruned']:.3g} times as fast"
            f" ({one['exact_over_pruned_without_build']:.3g} without building the index).",
            "",
            markdown_table(["figure", "value"], rows),
        ]
    )


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [key.replace("_", " ") for key in rows[0]]
    return markdown_table(names, [list(row.values()) for row in rows])


HOW_TO_READ = """How to read it.

- Recall is measured on rows that the search was not tuned on, against the exact lists of the same
  rows; a column that ties with the last of a list is as good as it.
- The share of pairs scored counts every pair whose score was computed exactly. Inner products with
  features, the coarse search before that, show in "list us per row".
- Microseconds a row are of one thread. Seconds are wall time on all threads; of more than 20,000
  rows that many were searched and the seconds scaled, for both ways alike.
- Building the index counts the fit and the making of features, k-means, and packing.
- Rows beyond the real ones are mixtures of a real row with one of its twenty nearest and some
  noise: they keep the shape of the corpus and are easier than new examples."""
