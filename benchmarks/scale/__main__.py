"""How time and memory of the pruned path grow with the number of rows.

    python -m benchmarks.scale            # under four minutes: 10,000 to 100,000 rows
    python -m benchmarks.scale --json     # the last line is one JSON object
    python -m benchmarks.scale --full     # to a million, a harder setting, exact up to 100,000;
                                          # writes benchmarks/scale_cpu.md and .json

Embeddings are synthetic, 384 numbers a row, in clusters (see ``--list``); the network is the
paper's, trained on cosines of 20,000 of their pairs; with ``--network pair`` the pair network,
fitted to 14,400 of them (page scale_pair_cpu); with ``--network cosine`` that of the teacher
cosine, of as many numbers as the embedding (page scale_cosine_cpu). Each size runs in a process of
its own, on two threads that share one copy of the columns: project, index, tune the search on 256
rows, search all rows for their top 64. Recall is measured on 1,024 other rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.scale.data import CLUSTERED, HARDER, Clusters, train_network, write_network
from benchmarks.scale.page import write_page

SIZES, FULL_SIZES = (10_000, 30_000, 100_000), (300_000, 1_000_000)
HARDER_SIZES = (10_000, 100_000)
EXACT_SIZES = (10_000, 30_000)
FULL_EXACT_SIZES = (*EXACT_SIZES, 100_000)
MILLION = 1_000_000
MAX_SECONDS, MAX_GB, MIN_RECALL, MAX_EXPONENT = 600, 12, 0.98, 1.2  # the goals, at a million
FOLDER = Path(__file__).parents[1]
PAGES = {
    "paper": FOLDER / "scale_cpu",
    "pair": FOLDER / "scale_pair_cpu",
    "cosine": FOLDER / "scale_cosine_cpu",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", choices=list(PAGES), default="paper")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="up to a million rows; writes the page")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    parser.add_argument("--list", action="store_true", help="say how embeddings are drawn")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    if options.list:
        for clusters in (CLUSTERED, HARDER):
            console.print(f"{clusters.name}: {clusters.describe()}")
        return
    started = time.perf_counter()
    figures: dict[str, Any] = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "threads": options.threads,
        "network": options.network,
    }
    figures |= measure(options.network, options.full, options.threads, console.print)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, console)
    if options.full:
        write_page(PAGES[options.network], figures, goals(figures))
    if options.json:
        print(json.dumps(figures))
    if options.check and not all(goals(figures).values()):
        sys.exit(1)


def measure(kind: str, full: bool, num_threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the table of each setting, growth, and the figures of the largest size."""
    sizes = (*SIZES, *(FULL_SIZES if full else ()))
    exact = FULL_EXACT_SIZES if full else EXACT_SIZES
    table = measure_sizes(kind, CLUSTERED, sizes, exact, num_threads, say)
    harder = measure_sizes(kind, HARDER, HARDER_SIZES, (), num_threads, say) if full else []
    largest = table[-1]
    figures: dict[str, Any] = {
        "largest_rows": largest["rows"],
        "pruned_seconds": largest["pruned_seconds"],
        "peak_gb": max(row["peak_gb"] for row in table),
        "recall_at_64": min(row["recall_at_64"] for row in table),
        "growth_exponent": growth_exponent(table),
        "exact_growth_exponent": growth_exponent(table, "exact_seconds_predicted"),
        "exact_seconds_predicted": largest["exact_seconds_predicted"],
        "exact_over_pruned": largest["exact_seconds_predicted"] / largest["pruned_seconds"],
    }
    if full:
        figures |= {"million_seconds": largest["pruned_seconds"], "million_gb": largest["peak_gb"]}
        figures["harder_recall_at_64"] = min(row["recall_at_64"] for row in harder)
    return figures | {
        "clusters": CLUSTERED.describe(),
        "harder_clusters": HARDER.describe(),
        "by_rows": table,
        "harder_by_rows": harder,
    }


def measure_sizes(
    kind: str,
    clusters: Clusters,
    sizes: Sequence[int],
    exact: Sequence[int],
    num_threads: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train a network and measure each size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        write_network(train_network(clusters, kind), path)
        table: list[dict[str, Any]] = []
        for rows in sizes:
            command = [
                sys.executable, "-m", "benchmarks.scale.one_size", clusters.name, str(rows),
                str(path), "--threads", str(num_threads), *(["--exact"] if rows in exact else []),
            ]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
            table.append(json.loads(done.stdout.splitlines()[-1]))
            one = table[-1]
            say(
                f"{clusters.name}, {rows:,} rows: {one['pruned_seconds']:.1f} s,"
                f" recall {one['recall_at_64']:.4f}, {one['peak_gb']:.1f} GB"
            )
    return table


def growth_exponent(table: Sequence[Mapping[str, Any]], key: str = "pruned_seconds") -> float:
    """Return the slope of log seconds over log rows, least squares over all sizes."""
    rows, seconds = (np.log([row[name] for row in table]) for name in ("rows", key))
    return float(np.polyfit(rows, seconds, 1)[0])


def goals(figures: Mapping[str, Any]) -> dict[str, bool]:
    """Return what was wanted and whether it was met; times and memory at the largest size."""
    return {
        f"a million rows in <= {MAX_SECONDS} s": figures["largest_rows"] < MILLION
        or figures["pruned_seconds"] <= MAX_SECONDS,
        f"memory <= {MAX_GB} GB": figures["peak_gb"] <= MAX_GB,
        f"recall@64 >= {MIN_RECALL} at every size": figures["recall_at_64"] >= MIN_RECALL,
        f"exponent <= {MAX_EXPONENT}": figures["growth_exponent"] <= MAX_EXPONENT,
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    table = Table("figure", "value", title="scale")
    for name, value in figures.items():
        if not isinstance(value, list):
            table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    for name in ("by_rows", "harder_by_rows"):
        rows = figures[name]
        if rows:
            # A line a figure: there are more figures than sizes.
            sizes = Table(name, *(f"{row['rows']:,}" for row in rows))
            for key in rows[0]:
                values = [row[key] for row in rows]
                sizes.add_row(
                    key, *(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in values)
                )
            console.print(sizes)
    met = goals(figures)
    console.print("; ".join(f"{goal}: {'met' if good else 'missed'}" for goal, good in met.items()))


if __name__ == "__main__":
    main()
