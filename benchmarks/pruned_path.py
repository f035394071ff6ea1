"""The pruned path in one process: build an index over all columns, search it on threads, time it.

Suffixes: I rows, J columns, X activations or embeddings, F features, C candidates, K kept columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import (
    CpuThreads,
    PackedColumns,
    RescoredTopK,
    pack_columns,
    rescore_rows,
    run_parts,
)
from nncift_ray.scores.index import (
    AnchorGenerator,
    CandidateGenerator,
    CosineGenerator,
    QuadraticGenerator,
    SearchSettings,
    Tuning,
    listing_schedule,
    tune,
)
from nncift_ray.scores.neighbours import NeighbourIndex, sample_size

GENERATORS: Mapping[str, type[CandidateGenerator]] = {
    "anchor": AnchorGenerator,
    "quadratic": QuadraticGenerator,
    "cosine": CosineGenerator,
}
FIT_SAMPLE = 4096  # rows, and columns, that a generator is fitted on
TILE = 16_384  # columns turned into features at once
BLOCK = 4096  # rows searched at once by a thread
STEPS = ("query", "probe", "list", "score")


@dataclass(frozen=True, eq=False)
class Problem:
    """All rows and columns of a block: activations, and the embeddings they come from."""

    network: FactoredNetwork
    a_IH: np.ndarray
    b_JH: np.ndarray
    row_ID: np.ndarray | None = None  # read by the cosine generator only
    column_JD: np.ndarray | None = None

    @classmethod
    def within(cls, network: FactoredNetwork, embedding_ND: np.ndarray) -> Problem:
        """Return the problem in which every example is a row and a column."""
        row_NH = network.project_rows(embedding_ND)
        column_NH = network.project_columns(embedding_ND)
        return cls(network, row_NH, column_NH, embedding_ND, embedding_ND)

    def exact(self, rows: np.ndarray | slice, k: int, num_threads: int) -> np.ndarray:
        """Return the scores [I, K] of the true best columns of some rows."""
        top = CpuThreads(num_threads).top_k_rows(
            np.ascontiguousarray(self.a_IH[rows]), self.b_JH, self.network.w_H, self.network.bias, k
        )
        return top.score_IK

    def inputs(self, generator: CandidateGenerator) -> tuple[np.ndarray, np.ndarray]:
        """Return what a generator reads of rows and of columns."""
        if generator.reads == "activations":
            return self.a_IH, self.b_JH
        if self.row_ID is None or self.column_JD is None:
            raise ValueError("this problem has no embeddings")
        return self.row_ID, self.column_JD


@dataclass(eq=False)
class PrunedPath:
    """An index over all columns, and how long everything took."""

    problem: Problem
    generator: CandidateGenerator
    index: NeighbourIndex
    columns: PackedColumns
    num_threads: int
    build_seconds: dict[str, float]
    row_seconds: dict[str, float] = field(default_factory=dict)  # summed over threads

    @classmethod
    def build(cls, problem: Problem, name: str, *, seed: int, num_threads: int) -> PrunedPath:
        """Fit the generator, make features, fill the index, pack the columns."""
        seconds: dict[str, float] = {}
        network, random = problem.network, np.random.default_rng(seed)
        with _timed(seconds, "fit"):
            rows = draw(random, len(problem.a_IH), FIT_SAMPLE)
            columns = draw(random, len(problem.b_JH), FIT_SAMPLE)
            generator = GENERATORS[name].fit(
                network, problem.a_IH[rows], problem.b_JH[columns], seed=seed
            )
        column_JX = problem.inputs(generator)[1]
        with _timed(seconds, "features"):
            feature_JF = _features(generator, column_JX, num_threads)
        with _timed(seconds, "index"):
            sampled = draw(random, len(feature_JF), sample_size(len(feature_JF)))
            index = NeighbourIndex.build(
                "ivf", feature_JF[sampled], len(feature_JF), seed=seed, num_threads=num_threads
            )
            index.add(feature_JF)
        with _timed(seconds, "pack"):
            packed = pack_columns(problem.b_JH, network.w_H, network.bias)
            index.search(feature_JF[:1], 1)  # the first search packs the features
        return cls(problem, generator, index, packed, num_threads, seconds)

    def search(self, rows: np.ndarray | slice, settings: SearchSettings, k: int) -> RescoredTopK:
        """Return the best columns found of some rows, blocks of them on threads."""
        a_IH, row_IX = (
            np.ascontiguousarray(part[rows])
            for part in (self.problem.a_IH, self.problem.inputs(self.generator)[0])
        )
        share = max(8, min(BLOCK, -(-len(a_IH) // self.num_threads)))
        blocks = [slice(start, start + share) for start in range(0, len(a_IH), share)]
        with ThreadPoolExecutor(self.num_threads) as pool:
            found = list(
                pool.map(
                    lambda block: self._search(a_IH[block], row_IX[block], settings, k), blocks
                )
            )
        self.row_seconds = {
            step: sum(seconds[step] for _, seconds in found) / max(len(a_IH), 1) for step in STEPS
        }
        return RescoredTopK(
            *(
                np.concatenate([getattr(top, name) for top, _ in found])
                for name in ("index_IK", "score_IK", "num_pairs_I")
            )
        )

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
        self, a_IH: np.ndarray, row_IX: np.ndarray, settings: SearchSettings, k: int
    ) -> tuple[RescoredTopK, dict[str, float]]:
        seconds: dict[str, float] = {}
        with _timed(seconds, "query"):
            query_IF = self.generator.row_queries(row_IX)
        with _timed(seconds, "probe"):
            cell_IP = self.index.probe(query_IF, settings.num_probes)
        with _timed(seconds, "list"):
            listed_IC = self.index.search_cells(query_IF, cell_IP, settings.num_candidates or k)
        with _timed(seconds, "score"):
            return rescore_rows(a_IH, self.columns, listed_IC, k), seconds


def draw(random: np.random.Generator, num_rows: int, count: int) -> np.ndarray:
    """Return up to so many distinct row numbers, ascending."""
    return np.sort(random.permutation(num_rows)[:count])


def wall_seconds(task: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _features(generator: CandidateGenerator, column_JX: np.ndarray, num_threads: int) -> np.ndarray:
    def run(columns: slice) -> np.ndarray:
        starts = range(columns.start, columns.stop, TILE)
        stop = columns.stop
        return np.concatenate(
            [generator.column_features(column_JX[n : min(n + TILE, stop)]) for n in starts]
        )

    return np.concatenate(run_parts(len(column_JX), num_threads, run))


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = time.perf_counter() - started
