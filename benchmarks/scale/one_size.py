"""One size in a process of its own: from embeddings to the top-K table, seconds and memory a step.

    python -m benchmarks.scale.one_size clustered 100000 network.npz

Prints one JSON object. Memory is the largest that the process has had by the end of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pruned_path import STEPS, Problem, PrunedPath, wall_seconds
from benchmarks.scale.data import SETTINGS, Clusters, read_network
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import run_parts
from nncift_ray.scores.index import CALL_ROWS, SearchSettings, draw, recall_at_k

TOP_K = 64
WANTED_RECALL, MARGIN = 0.98, 0.004
TUNED_ON, CHECKED_ON = 256, 1024
COMPILE_ROWS = 2000


class Steps:
    """Seconds of each step, and the memory of the process by its end."""

    def __init__(self) -> None:
        """Start with none."""
        self.seconds: dict[str, float] = {}
        self.peak_gb: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.peak_gb[name] = peak_memory()


def main() -> None:
    """Measure one size and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.one_size")
    parser.add_argument("setting", choices=sorted(SETTINGS))
    parser.add_argument("rows", type=int)
    parser.add_argument("network", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true", help="also score every pair")
    options = parser.parse_args()
    network, clusters = read_network(options.network), SETTINGS[options.setting]
    compile_all(network, clusters, options.threads)
    figures = measure(network, clusters, options.rows, options.threads, options.exact)
    print(json.dumps(figures))


def measure(
    network: FactoredNetwork, clusters: Clusters, num_rows: int, num_threads: int, exact: bool
) -> dict[str, Any]:
    """Project, index, tune, search, check."""
    steps = Steps()
    problem = project(network, clusters, num_rows, num_threads, steps)
    with steps("index"):
        path = PrunedPath.build(problem, seed=0, num_threads=num_threads)
    random = np.random.default_rng(1)
    held_out = random.permutation(num_rows)[: TUNED_ON + CHECKED_ON]
    tuned, checked = np.sort(held_out[:TUNED_ON]), np.sort(held_out[TUNED_ON:])
    with steps("tune"):
        exact_IK = problem.exact(tuned, TOP_K, num_threads)
        tuning = path.tune(tuned, exact_IK, WANTED_RECALL + MARGIN)
    settings = tuning.best
    with steps("search"):
        score_IK, num_pairs = search_all(path, settings, num_rows)
    row_seconds = path.row_seconds
    pruned_seconds = sum(steps.seconds.values())
    peak = peak_memory()  # before anything is scored that only the check needs
    started = time.perf_counter()
    exact_IK = problem.exact(checked, TOP_K, num_threads)
    sample_seconds = time.perf_counter() - started
    recall_I = recall_at_k(score_IK[checked], exact_IK)
    return {
        "setting": clusters.name,
        "rows": num_rows,
        "pruned_seconds": pruned_seconds,
        "peak_gb": peak,
        "recall_at_64": float(recall_I.mean()),
        "recall_of_worst_percent": float(np.quantile(recall_I, 0.01)),
        "scored_fraction": num_pairs / num_rows**2,
        "cells": path.index.num_cells,
        "probes": settings.num_probes,
        "candidates": settings.num_candidates,
        "tuned": tuning.chosen is not None,
        "settings_tried": len(tuning.points),
        "exact_seconds_predicted": sample_seconds * num_rows / len(checked),
        "exact_seconds": wall_seconds(lambda: score_all(problem, num_threads)) if exact else None,
        **{f"{name}_seconds": value for name, value in steps.seconds.items()},
        **{f"{name}_gb": value for name, value in steps.peak_gb.items()},
        **{f"{step}_us_per_row": row_seconds[step] * 1e6 for step in STEPS},
    }


def project(
    network: FactoredNetwork, clusters: Clusters, num_rows: int, num_threads: int, steps: Steps
) -> Problem:
    """Project tile by tile, as they are drawn; only activations are kept. Drawing is not timed."""
    shape = (num_rows, network.num_hidden)
    a_IH, b_JH = np.empty(shape, np.float32), np.empty(shape, np.float32)
    seconds, start = 0.0, 0
    for tile_ND in clusters.tiles(num_rows):
        rows = slice(start, start + len(tile_ND))

        def run(part: slice, tile_ND: np.ndarray = tile_ND, start: int = start) -> None:
            place = slice(start + part.start, start + part.stop)
            a_IH[place] = network.project_rows(tile_ND[part])
            b_JH[place] = network.project_columns(tile_ND[part])

        seconds += wall_seconds(lambda: run_parts(len(tile_ND), num_threads, run))  # noqa: B023
        start = rows.stop
    steps.seconds["project"], steps.peak_gb["project"] = seconds, peak_memory()
    return Problem(network, a_IH, b_JH)


def search_all(path: PrunedPath, settings: SearchSettings, num_rows: int) -> tuple[np.ndarray, int]:
    """Return the table of all rows: scores [I, K] (columns are kept and dropped), pairs scored."""
    found = path.search(slice(0, num_rows), settings, TOP_K)
    return found.score_IK, int(found.num_pairs_I.sum())


def score_all(problem: Problem, num_threads: int) -> None:
    """Score every pair, some rows at a time."""
    for start in range(0, len(problem.a_IH), CALL_ROWS * num_threads):
        problem.exact(slice(start, start + CALL_ROWS * num_threads), TOP_K, num_threads)


def compile_all(network: FactoredNetwork, clusters: Clusters, num_threads: int) -> None:
    """Run everything once, small, so that no step waits for a compiler."""
    problem = project(network, clusters, COMPILE_ROWS, num_threads, Steps())
    rows = draw(np.random.default_rng(0), COMPILE_ROWS, 64)
    path = PrunedPath.build(problem, seed=0, num_threads=num_threads)
    path.tune(rows, problem.exact(rows, TOP_K, num_threads), WANTED_RECALL)


def peak_memory() -> float:
    """Return the most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
