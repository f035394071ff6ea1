"""Write the page of a sweep: its settings, its table and its picture.

    python -m benchmarks.summarise_sweep runs/mine --name sweep_t0_delift_se_cpu --command "..."

Reads the run directory only; nothing is computed anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.sweep import SweepPoint, quadrants_of, sweep_points

FOLDER = Path(__file__).parent


def main() -> None:
    """Read a run's sweep and write its page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.summarise_sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, help="a run directory with a sweep")
    parser.add_argument("--name", required=True, help="of the page: theme, teacher, hardware")
    parser.add_argument("--command", required=True, help="what was run, for the page")
    parser.add_argument("--note", default="", help="a sentence on corpus and models")
    options = parser.parse_args()
    cells = pq.read_table(options.run_dir / "sweep" / "sweep.parquet")
    points = sweep_points(cells)
    seconds = {tuple(row[key] for key in ("block", "fraction", "num_hidden", "seed")):
               row["seconds"] for row in cells.to_pylist()}  # fmt: skip
    figures = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "command": options.command,
        "num_networks": len(seconds),
        "training_seconds": round(sum(seconds.values()), 1),
        "rows": [_figures(point, quadrants_of(points)) for point in points],
    }
    (FOLDER / f"{options.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    shutil.copyfile(options.run_dir / "sweep" / "sweep.png", FOLDER / f"{options.name}.png")
    page = _page(options.name, options.note, figures, points)
    (FOLDER / f"{options.name}.md").write_text(page)


def _figures(point: SweepPoint, quadrants: Sequence[str]) -> dict[str, Any]:
    return {
        "block": point.block, "fraction": point.fraction, "num_hidden": point.num_hidden,
        "num_train_pairs": point.num_train_pairs,
        "q4_gain": describe_gain(point),
        "q4": point.knowledge,
    } | {
        f"{name}_{model}": point.error(name, model)
        for name in quadrants
        for model in ("network", "additive_ridge", "zero", "random")
    }  # fmt: skip


def describe_gain(point: SweepPoint) -> str:
    """Say how far the network's Q4 error lies below that of the additive ridge."""
    if not (np.isfinite(point.error("Q4")) and point.ridge_error > 0):
        return ""
    change = 1 - point.error("Q4") / point.ridge_error
    return f"{abs(change):.0%} {'lower' if change >= 0 else 'higher'}"


def _page(name: str, note: str, figures: dict[str, Any], points: Sequence[SweepPoint]) -> str:
    quadrants = quadrants_of(points)
    heads = ["hidden", "fraction", "train pairs", *quadrants, "Q4, ridge",
             "Q4, network is", *points[0].knowledge]  # fmt: skip
    lines = [
        f"# {name}",
        "",
        f"{note} Machine: {figures['machine']}. Commit {figures['commit']}. "
        f"{figures['num_networks']} networks, {figures['training_seconds']:,.0f} s of training.",
        "",
        "```bash",
        figures["command"],
        "```",
        "",
        f"![Error by training size, a panel a network size]({name}.png)",
        "",
        "Mean squared error on labels scaled to [0, 1], mean over seeds; Q4 is the same pairs in "
        "every row. ridge: the additive ridge on the same features. interaction: correlation "
        "with the labels beyond row and column effects. capture: of what a row's best eighth of "
        "helpers is worth above its mean; the ridge's and the untrained cosine's stand beside it.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' ---: |' * len(heads)}",
    ]
    for row, point in zip(figures["rows"], points, strict=True):
        cells = [str(point.num_hidden), f"{point.fraction:g}",
                 f"{point.num_train_pairs:,}",
                 *(f"{point.error(quadrant):.5f}" for quadrant in quadrants),
                 f"{point.ridge_error:.5f}", row["q4_gain"],
                 *(f"{value:.3f}" for value in point.knowledge.values())]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
