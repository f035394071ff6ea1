"""Selection: against other libraries, at a million rows, in parts, on short lists.

    python -m benchmarks.selection --json          # under four minutes; last line: one JSON object
    python -m benchmarks.selection --json --full   # more sizes; writes selection_cpu.md and .json

Seconds are of the processor, in one thread: the machine is shared. The other libraries run in a
venv of their own, made from peers.txt the first time (a minute), each on the same matrix in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.selection.instances import KINDS, draw_lists, draw_matrix
from benchmarks.selection.page import write_page
from benchmarks.selection.peers import PeerMissingError, run_peer
from benchmarks.selection.sparsity import measure_sparsity
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import Ranking, evaluate, lazy_greedy
from nncift_ray.selection.objectives import facility_location
from nncift_ray.selection.partitioned import greedi
from nncift_ray.selection.problem import DenseScores, Objective

PER_ROW = 64
SPARSE_ROWS, DENSE_ROWS, PARTS_ROWS = 10_000, 3_000, 50_000
MILLION = (1_000_000, PER_ROW, 100_000)
NUM_PARTS = 8
SPARSITY_ROWS = 5_000
FULL_SPARSE_ROWS, FULL_DENSE_ROWS = (3_000, 30_000), (1_000, 6_000)
ROUNDS = 3


def main() -> None:
    """Measure, print, and with --full write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="more sizes, and the page")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    started = time.perf_counter()
    figures: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    figures |= measure(full=options.full, say=console.print)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, console)
    if options.full:
        write_page(figures)
    if options.json:
        print(json.dumps(figures))


def measure(*, full: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures; tables where `full`."""
    say("against apricot and submodlib")
    sparse = [sparse_row(kind, SPARSE_ROWS) for kind in KINDS]
    dense = [dense_row(kind, DENSE_ROWS) for kind in KINDS]
    say("in parts")
    parts = [in_parts(kind, PARTS_ROWS) for kind in KINDS]
    say("a million lists")
    million = {kind: run_million(kind) for kind in KINDS}
    say("short lists")
    runs = [*sparse, *dense]
    ratios = [run["objective_ratio"] for run in runs if "objective_ratio" in run]
    figures: dict[str, Any] = {
        "sparse_vs_apricot": _least_times(sparse),
        "dense_vs_submodlib": _least_times(dense),
        "reason": next((run["reason"] for run in runs if "reason" in run), None),
        "objective_ratio": min(ratios),
        "million_seconds": max(run["seconds"] for run in million.values()),
        "million_peak_gb": max(run["peak_gb"] for run in million.values()),
        "partitioned_ratio": min(run["greedi"] for run in parts),
        "sparse": sparse,
        "dense": dense,
        "parts": parts,
        "million": million,
        "short_lists": measure_sparsity(SPARSITY_ROWS),
    }
    if full:
        say("other sizes")
        figures["by_size"] = [sparse_row("hub", rows) for rows in FULL_SPARSE_ROWS]
        figures["by_size"] += [dense_row("hub", rows) for rows in FULL_DENSE_ROWS]
    return figures


def against(name: str, objective: Objective, matrix: Any, budget: int) -> dict[str, Any]:
    """Compare with another library: times faster, and our value over its value."""
    ours, seconds = timed(lambda: lazy_greedy(objective, Budget(max_count=budget)))
    figures: dict[str, Any] = {
        "peer": name,
        "rows": objective.scores.num_rows,
        "budget": budget,
        "seconds": round(seconds, 4),
        "share_of_best": ours.share_of_best,
    }
    try:
        peer = run_peer(name, matrix, budget)
    except PeerMissingError as error:
        return figures | {"reason": f"{name} could not run: {error}"}
    value = float(evaluate(objective, peer.picks)[-1])
    return figures | {
        "peer_seconds": round(peer.cpu_seconds, 3),
        "peer_wall_seconds": round(peer.wall_seconds, 3),
        "times": round(peer.cpu_seconds / seconds, 1),
        "objective_ratio": ours.value / value,
        "same_picks": float((peer.picks == ours.order).mean()),
    }


def in_parts(kind: str, rows: int) -> dict[str, Any]:
    """Compare the search in parts with the one in one piece."""
    objective = facility_location(draw_lists(kind, rows, PER_ROW))
    budget = Budget(max_count=rows // 10)
    merged = greedi(objective, budget, num_parts=NUM_PARTS).value
    return {
        "lists": kind,
        "rows": rows,
        "parts": NUM_PARTS,
        "greedi": merged / lazy_greedy(objective, budget).value,
    }


def run_million(kind: str) -> dict[str, Any]:
    """Select from a million lists in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selection.million", kind, *map(str, MILLION)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1])


def timed(search: Callable[[], Ranking], rounds: int = ROUNDS) -> tuple[Ranking, float]:
    """Return the ranking and the least processor seconds of some rounds, one before them uncounted.

    The first compiles.
    """
    ranking, seconds = search(), []
    for _ in range(rounds):
        started = time.thread_time()
        ranking = search()
        seconds.append(time.thread_time() - started)
    return ranking, min(seconds)


def sparse_row(kind: str, rows: int) -> dict[str, Any]:
    """Compare with apricot on lists, budget a tenth."""
    lists = draw_lists(kind, rows, PER_ROW)
    return {"matrix": kind} | against("apricot", facility_location(lists), lists, rows // 10)


def dense_row(kind: str, rows: int) -> dict[str, Any]:
    """Compare with submodlib on all pairs, budget three tenths."""
    matrix = draw_matrix(kind, rows)
    objective = facility_location(DenseScores(matrix))
    return {"matrix": kind} | against("submodlib", objective, matrix, 3 * rows // 10)


def _least_times(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return by how much we are faster where that is least; None if a library could not run."""
    times = [run.get("times") for run in runs]
    return None if None in times else min(time for time in times if time is not None)


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the figures."""
    table = Table("figure", "value", title="selection")
    for name, value in figures.items():
        if not isinstance(value, list):
            table.add_row(name, str(value))
    console.print(table)
    tables = (figures["sparse"], figures["dense"], figures["parts"])
    for row in [*sum(tables, []), *(figures["short_lists"] or []), *figures.get("by_size", [])]:
        console.print(row)


if __name__ == "__main__":
    main()
