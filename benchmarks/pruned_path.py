"""The pruned path in one process: build an index over all columns, search it on threads, time it.

Suffixes: I rows, J columns, F features, C candidates, K kept columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import RescoredTopK, rescore_rows, top_k_rows
from nncift_ray.scores.index import (
    CALL_ROWS,
    FIT_SAMPLE,
    ColumnIndex,
    SearchSettings,
    Tuning,
    draw,
    list_columns,
    listing_schedule,
    tune,
)

STEPS = ("query", "probe", "list", "score")


@dataclass(frozen=True, eq=False)
class Problem:
    """The activations of all rows and columns of a block."""

    network: FactoredNetwork
    a_IH: np.ndarray
    b_JH: np.ndarray

    @classmethod
    def within(cls, network: FactoredNetwork, embedding_ND: np.ndarray) -> Problem:
        """Return the problem in which every example is a row and a column."""
        return cls(
            network, network.project_rows(embedding_ND), network.project_columns(embedding_ND)
        )

    def exact(self, rows: np.ndarray | slice, k: int, num_threads: int) -> np.ndarray:
        """Return the scores [I, K] of the true best columns of some rows."""
        a_IH, network = np.ascontiguousarray(self.a_IH[rows]), self.network
        top = top_k_rows(a_IH, self.b_JH, network.w_H, network.bias, k, num_threads=num_threads)
        return top.score_IK


@dataclass(eq=False)
class PrunedPath:
    """An index over all columns, and how long everything took."""

    problem: Problem
    index: ColumnIndex
    build_seconds: float
    row_seconds: dict[str, float] = field(default_factory=dict)  # summed over threads

    @classmethod
    def build(cls, problem: Problem, *, seed: int, num_threads: int) -> PrunedPath:
        """Index the columns for rows like a sample of the problem's."""
        started = time.perf_counter()
        rows = draw(np.random.default_rng(seed), len(problem.a_IH), FIT_SAMPLE)
        index = ColumnIndex.build(
            problem.network, problem.a_IH[rows], problem.b_JH, seed=seed, num_threads=num_threads
        )
        return cls(problem, index, time.perf_counter() - started)

    def search(self, rows: np.ndarray | slice, settings: SearchSettings, k: int) -> RescoredTopK:
        """Return the best columns found of some rows, blocks of them on threads."""
        a_IH, num_threads = np.ascontiguousarray(self.problem.a_IH[rows]), self.index.num_threads
        share = max(8, min(CALL_ROWS, -(-len(a_IH) // num_threads)))
        blocks = [slice(start, start + share) for start in range(0, len(a_IH), share)]
        with ThreadPoolExecutor(num_threads) as pool:
            found = list(pool.map(lambda block: self._search(a_IH[block], settings, k), blocks))
        self.row_seconds = {
            step: sum(seconds[step] for _, seconds in found) / max(len(a_IH), 1) for step in STEPS
        }
        parts = zip(*(top for top, _ in found), strict=True)
        return RescoredTopK(*(np.concatenate(part) for part in parts))

    def tune(self, rows: np.ndarray, exact_IK: np.ndarray, wanted_recall: float) -> Tuning:
        """Return the cheapest search that finds enough of the true lists of some rows."""
        k, num_columns = exact_IK.shape[1], len(self.problem.b_JH)
        return tune(
            lambda settings: self.search(rows, settings, k),
            exact_IK,
            num_columns,
            listing_schedule(k, num_columns, self.index.num_cells),
            wanted_recall,
        )

    def _search(
        self, a_IH: np.ndarray, settings: SearchSettings, k: int
    ) -> tuple[RescoredTopK, dict[str, float]]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "query"):
            query_IF = self.index.features.queries(a_IH)
        with _timed(seconds, "probe"):
            cell_IP = self.index.probe(query_IF, settings.num_probes)
        with _timed(seconds, "list"):
            num_listed = settings.num_candidates
            listed_IC = list_columns(query_IF, self.index.cells, cell_IP, num_listed)
        with _timed(seconds, "score"):
            return rescore_rows(a_IH, self.index.columns, listed_IC, k), seconds


def wall_seconds(task: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = time.perf_counter() - started
