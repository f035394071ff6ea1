"""Recall, share of pairs scored and seconds of each way to find a row's best columns.

Suffixes: N examples, D embedding, I rows, J columns, K kept columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.pruned_path import STEPS, Problem, PrunedPath, wall_seconds
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.index import SearchSettings, draw, recall_at_k

TOP_K = 64
WANTED_RECALL = 0.99
TUNED_ON = 512  # rows the search is tuned on; recall is measured on others
MARGIN = 0.002  # above the recall wanted, while tuning: four standard errors or so
MOST_ROWS = 20_000  # rows searched; of more, so many are drawn and the seconds scaled
NEAR = 20  # a mixed row lies between a real one and one of so many nearest
NOISE = 0.5  # length of what is added to a mixed row


def measure_pruning(problem: Problem, num_threads: int, seed: int) -> dict[str, Any]:
    """Return the figures of one network: exact scoring, and the cheapest search that finds enough.

    It is tuned on `TUNED_ON` rows; what it finds is measured on others.
    """
    num_rows = len(problem.a_IH)
    random = np.random.default_rng(seed)
    tuned = draw(random, num_rows, min(TUNED_ON, num_rows // 2))
    checked = np.setdiff1d(draw(random, num_rows, MOST_ROWS + TUNED_ON), tuned)
    lists: dict[str, np.ndarray] = {}
    seconds = wall_seconds(lambda: lists.update(exact=problem.exact(checked, TOP_K, num_threads)))
    exact_IK, exact_seconds = lists["exact"], seconds * num_rows / len(checked)
    path = PrunedPath.build(problem, seed=seed, num_threads=num_threads)
    settings = tune_path(path, tuned, num_threads)
    figures = measure_search(path, settings, checked, exact_IK)
    build, search = figures["build_seconds"], figures["search_seconds"]
    return figures | {
        "exact_seconds": exact_seconds,
        "num_cells": path.index.num_cells,
        "probes": settings.num_probes,
        "candidates": settings.num_candidates,
        "pruned_seconds": build + search,
        "exact_over_pruned": exact_seconds / (build + search),
        "exact_over_pruned_without_build": exact_seconds / search,
        "exact_us_per_row_and_core": exact_seconds / num_rows * num_threads * 1e6,
    }


def tune_path(path: PrunedPath, rows: np.ndarray, num_threads: int) -> SearchSettings:
    """Return the cheapest settings that find enough for some rows."""
    exact_IK = path.problem.exact(rows, TOP_K, num_threads)
    return path.tune(rows, exact_IK, WANTED_RECALL + MARGIN).best


def measure_search(
    path: PrunedPath, settings: SearchSettings, rows: np.ndarray, exact_IK: np.ndarray
) -> dict[str, Any]:
    """Return recall, share of pairs scored, and seconds for all rows of the problem."""
    num_rows, num_columns = len(path.problem.a_IH), len(path.problem.b_JH)
    lists: dict[str, Any] = {}
    seconds = wall_seconds(lambda: lists.update(found=path.search(rows, settings, TOP_K)))
    found = lists["found"]
    recall_I = recall_at_k(found.score_IK, exact_IK)
    return {
        "recall_at_64": float(recall_I.mean()),
        "recall_of_worst_percent": float(np.quantile(recall_I, 0.01)),
        "scored_fraction": float(found.num_pairs_I.mean() / num_columns),
        "build_seconds": path.build_seconds,
        "search_seconds": seconds * num_rows / len(rows),
        **{f"{step}_us_per_row": path.row_seconds[step] * 1e6 for step in STEPS},
    }


def measure_crossover(
    network: FactoredNetwork,
    embedding_ND: np.ndarray,
    num_real: int,
    sizes: Sequence[int],
    num_threads: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return seconds of both ways by number of rows, the search tuned anew at each.

    Args:
        network: What scores.
        embedding_ND: Real examples, then mixtures (`mix_rows`).
        num_real: How many are real.
        sizes: Numbers of rows.
        num_threads: Of either way.
        seed: Of samples and k-means.
    """
    table: list[dict[str, Any]] = []
    for num_rows in sizes:
        problem = Problem.within(network, embedding_ND[:num_rows])
        random = np.random.default_rng(seed)
        tuned = draw(random, num_rows, min(TUNED_ON, num_rows // 2))
        checked = np.setdiff1d(draw(random, num_rows, MOST_ROWS + TUNED_ON), tuned)
        path = PrunedPath.build(problem, seed=seed, num_threads=num_threads)
        settings = tune_path(path, tuned, num_threads)
        lists: dict[str, np.ndarray] = {}
        exact = wall_seconds(lambda: lists.update(e=problem.exact(checked, TOP_K, num_threads)))  # noqa: B023
        one = measure_search(path, settings, checked, lists["e"])
        exact_seconds = exact * num_rows / len(checked)
        pruned_seconds = one["build_seconds"] + one["search_seconds"]
        table.append(
            {
                "rows": num_rows,
                "real": min(num_rows, num_real),
                "probes": settings.num_probes,
                "candidates": settings.num_candidates,
                "recall": one["recall_at_64"],
                "scored_fraction": one["scored_fraction"],
                "exact_seconds": exact_seconds,
                "build_seconds": one["build_seconds"],
                "search_seconds": one["search_seconds"],
                "exact_over_pruned": exact_seconds / pruned_seconds,
            }
        )
    return table


def find_crossover(table: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the least measured number of rows from which pruned is always faster, or None."""
    crossing: int | None = None
    for row in reversed(table):
        if row["exact_over_pruned"] <= 1:
            break
        crossing = int(row["rows"])
    return crossing


def mix_rows(embedding_ND: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """Return so many embeddings: real ones, and beyond them mixtures of near real ones.

    A mixture lies on the way from a real row to one of its nearest, with noise: it keeps to the
    shape of the corpus, but is easier than new examples would be, so a size with mixtures is named.
    """
    if num_rows <= len(embedding_ND):
        return embedding_ND[:num_rows]
    random = np.random.default_rng(seed)
    count, dim = num_rows - len(embedding_ND), embedding_ND.shape[1]
    first = random.integers(len(embedding_ND), size=count)
    second = nearest_rows(embedding_ND)[first, random.integers(NEAR, size=count)]
    share = random.uniform(0.3, 0.9, (count, 1)).astype(np.float32)
    mixed_ND = share * embedding_ND[first] + (1 - share) * embedding_ND[second]
    mixed_ND += random.standard_normal((count, dim), np.float32) * np.float32(NOISE / dim**0.5)
    mixed_ND /= np.linalg.norm(mixed_ND, axis=1, keepdims=True)
    return np.concatenate([embedding_ND, mixed_ND])


def nearest_rows(embedding_ND: np.ndarray, at_once: int = 1024) -> np.ndarray:
    """Return the nearest other rows of each row [N, NEAR], in any order."""
    found: list[np.ndarray] = []
    for start in range(0, len(embedding_ND), at_once):
        cosine_IJ = embedding_ND[start : start + at_once] @ embedding_ND.T
        own = np.arange(len(cosine_IJ))
        cosine_IJ[own, start + own] = -np.inf
        found.append(np.argpartition(-cosine_IJ, NEAR, axis=1)[:, :NEAR])
    return np.concatenate(found)
