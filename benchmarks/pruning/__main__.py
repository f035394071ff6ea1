"""What pruning finds and saves, on real rows: T0 examples, networks of two teachers.

    python -m benchmarks.pruning --prepare    # embeds 20,000 rows and keeps them: some minutes
    python -m benchmarks.pruning --json       # under four minutes; the last line is one JSON object
    python -m benchmarks.pruning --full       # embeds what is missing, goes to 100,000 mixed rows,
                                              # writes benchmarks/pruning_cpu.md and .json

Without embeddings on disk a plain run embeds 1,500 rows and says so: its figures are of a small
problem. DELIFT labels come from ``--delift-labels``; without it, ``--full`` labels 576 short pairs
with
the packaged model and a plain run leaves DELIFT out. Rows and columns are the same examples
(`within`).

Every pair that is scored exactly counts as scored. Inner products with features, the coarse search
before that, show in seconds. Each way runs on the same threads, compiled beforehand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pruned_path import Problem, PrunedPath
from benchmarks.pruning.measure import (
    TOP_K,
    WANTED_RECALL,
    find_crossover,
    measure_crossover,
    measure_pruning,
    mix_rows,
)
from benchmarks.pruning.networks import train_on_cosines, train_on_delift
from benchmarks.pruning.page import write_page
from benchmarks.t0 import CACHE, DATA, EmbeddingCache, embed_few, read_examples
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.index import draw

WANTED_ROWS, FEWEST_ROWS = 20_000, 1500
SIZES, FULL_SIZES = (1250, 2500, 5000, 10_000, 20_000), (50_000, 100_000)
MAX_SCORED = 0.02  # the goal: share of pairs
PAGE = Path(__file__).parents[1] / "pruning_cpu"


def main() -> None:
    """Measure and print."""
    options = _options()
    console = Console(stderr=options.json)
    started = time.perf_counter()
    rows = read_examples(options.data, options.rows)
    cache = EmbeddingCache.of_packaged_model(options.cache)
    embed_seconds = 0.0
    if options.prepare or options.full:
        embed_seconds = cache.fill(rows, console.print)
    embedding_ND = cache.read(len(rows))
    if len(embedding_ND) < min(FEWEST_ROWS, len(rows)):
        rows = rows[:FEWEST_ROWS]
        embedding_ND = embed_few(rows)
    if len(embedding_ND) < options.rows:
        console.print(f"only {len(embedding_ND):,} of {options.rows:,} rows: see --prepare")
    if options.prepare:
        return
    networks: dict[str, FactoredNetwork] = {"delift_se": train_on_cosines(embedding_ND)}
    if options.delift_labels or options.full:
        networks["delift"] = train_on_delift(options.delift_labels, rows)
    figures = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "rows": len(embedding_ND),
        "top_k": TOP_K,
        "threads": options.threads,
        "delift_labels": options.delift_labels.name
        if options.delift_labels
        else ("made here" if options.full else "none"),
        "embed_seconds": embed_seconds,
    }
    figures |= measure(networks, embedding_ND, options, console.print)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, console)
    if options.full:
        write_page(PAGE, figures, goals(figures))
    if options.json:
        print(json.dumps(figures))
    if options.check and not all(goals(figures).values()):
        sys.exit(1)


def measure(
    networks: Mapping[str, FactoredNetwork],
    embedding_ND: np.ndarray,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the figures of each network, and the hardest of them without a prefix."""
    sizes = [n for n in SIZES if n <= len(embedding_ND)]
    if options.full:
        sizes += FULL_SIZES
    mixed_ND = mix_rows(embedding_ND, max(sizes), options.seed)
    figures: dict[str, Any] = {}
    for name, network in networks.items():
        say(f"{name}: {len(embedding_ND):,} rows")
        compile_all(network, embedding_ND, options.threads)
        problem = Problem.within(network, embedding_ND)
        one = measure_pruning(problem, options.threads, options.seed)
        table = measure_crossover(
            network, mixed_ND, len(embedding_ND), sizes, options.threads, options.seed
        )
        one |= {"by_rows": table, "crossover_rows": find_crossover(table)}
        figures |= {f"{name}_{key}": value for key, value in one.items()}
    return figures | hardest(figures, list(networks))


def hardest(figures: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Return each figure of the network on which it is worst, under its own name."""

    def of_all(key: str) -> list[Any]:
        return [figures[f"{name}_{key}"] for name in names]

    worst: dict[str, Any] = {}
    worst["recall_at_64"] = min(of_all("recall_at_64"))
    for key in ("scored_fraction", "exact_seconds", "pruned_seconds"):
        worst[key] = max(of_all(key))
    crossings = of_all("crossover_rows")
    worst["crossover_rows"] = None if None in crossings else max(crossings)
    worst["exact_over_pruned"] = min(of_all("exact_over_pruned"))
    return worst


def goals(figures: Mapping[str, Any]) -> dict[str, bool]:
    """Return what was wanted and whether it was met."""
    return {
        f"rows >= {WANTED_ROWS:,}": figures["rows"] >= WANTED_ROWS,
        f"recall@{TOP_K} >= {WANTED_RECALL}": figures["recall_at_64"] >= WANTED_RECALL,
        f"scores <= {MAX_SCORED:.0%} of pairs": figures["scored_fraction"] <= MAX_SCORED,
        "pruned is faster from some number of rows": figures["crossover_rows"] is not None,
    }


def compile_all(network: FactoredNetwork, embedding_ND: np.ndarray, num_threads: int) -> None:
    """Run everything once, small."""
    problem = Problem.within(network, embedding_ND[:1000])
    rows = draw(np.random.default_rng(0), len(problem.a_IH), 32)
    exact_IK = problem.exact(rows, TOP_K, num_threads)
    path = PrunedPath.build(problem, seed=0, num_threads=num_threads)
    path.search(rows, path.tune(rows, exact_IK, WANTED_RECALL).best, TOP_K)


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    table = Table("figure", "value", title="pruning")
    for name, value in figures.items():
        if not isinstance(value, list | dict):
            table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    for name, value in figures.items():
        if isinstance(value, list) and value:
            sizes = Table(*value[0], title=name)
            for row in value:
                sizes.add_row(
                    *(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values())
                )
            console.print(sizes)
    met = goals(figures)
    console.print("; ".join(f"{goal}: {'met' if good else 'missed'}" for goal, good in met.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of kept embeddings")
    parser.add_argument("--rows", type=int, default=WANTED_ROWS, help="real rows")
    parser.add_argument("--delift-labels", type=Path, help="file of measured pairs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", action="store_true", help="only embed what is missing")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument(
        "--full", action="store_true", help="embed, label, more rows, write the page"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
