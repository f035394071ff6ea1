"""What lists of K helpers lose against all pairs, on real embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.t0 import EmbeddingCache
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import score_block
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import evaluate, lazy_greedy, random_ranking
from nncift_ray.selection.objectives import facility_location
from nncift_ray.selection.problem import DenseScores, InfluenceScale, SparseScores

LENGTHS = (16, 32, 64, 128)
FRACTIONS = (0.01, 0.1, 0.3)
LEAST_ROWS = 1000
HIDDEN = 100


def measure_sparsity(num_rows: int) -> list[dict[str, Any]] | None:
    """Return a row a matrix, budget and K; None where no embeddings are cached.

    `kept` is the value on all pairs of what was picked on lists, over that of what was picked on
    all pairs; `reported` the value on the lists, over the same; `random` that of a random subset.
    """
    vector_ND = EmbeddingCache.of_packaged_model().read(num_rows)
    if len(vector_ND) < LEAST_ROWS:
        return None
    table: list[dict[str, Any]] = []
    for name, score_IJ in (("cosine", _cosine(vector_ND)), ("network", _network(vector_ND))):
        scale = InfluenceScale(float(score_IJ.min()), float(score_IJ.max()))
        dense = DenseScores(np.asfortranarray(scale.apply(score_IJ)))
        for fraction in FRACTIONS:
            table += _compare(name, dense, round(fraction * len(vector_ND)))
    return table


def _compare(name: str, dense: DenseScores, count: int) -> list[dict[str, Any]]:
    budget, everything = Budget(max_count=count), facility_location(dense).problem()
    best = lazy_greedy(everything, budget).value
    drawn = random_ranking(everything, budget, seed=0).value / best
    rows: list[dict[str, Any]] = []
    for length in LENGTHS:
        ranking = lazy_greedy(facility_location(_listed(dense.data_IJ, length)), budget)
        kept = float(evaluate(everything, ranking.order)[-1]) / best
        rows.append(
            {
                "matrix": name, "rows": dense.num_rows, "budget": count, "K": length,
                "kept": round(kept, 5), "reported": round(ranking.value / best, 5),
                "random": round(drawn, 5),
            }
        )  # fmt: skip
    return rows


def _listed(score_IJ: np.ndarray, length: int) -> SparseScores:
    """Keep the K best of every row."""
    rows = len(score_IJ)
    index_IK = np.argpartition(-score_IJ, length - 1, axis=1)[:, :length].astype(np.int32)
    data = np.take_along_axis(score_IJ, index_IK.astype(np.int64), axis=1)
    indptr = np.arange(rows + 1, dtype=np.int64) * length
    return SparseScores(indptr, index_IK.reshape(-1), data.reshape(-1), score_IJ.shape[1])


def _cosine(vector_ND: np.ndarray) -> np.ndarray:
    return (vector_ND @ vector_ND.T).astype(np.float32)


def _network(vector_ND: np.ndarray) -> np.ndarray:
    """Score with an InfluenceNetwork of random weights: neither symmetric nor near a cosine."""
    rng, dim = np.random.default_rng(0), vector_ND.shape[1]
    w_row_HD, w_col_HD = (rng.standard_normal((HIDDEN, dim), np.float32) for _ in range(2))
    b_H, w_H = (rng.standard_normal(HIDDEN, np.float32) for _ in range(2))
    network = FactoredNetwork(w_row_HD, b_H, w_col_HD, w_H / np.float32(10), 0.1)
    a_IH, b_JH = network.project_rows(vector_ND), network.project_columns(vector_ND)
    return score_block(a_IH, b_JH, network.w_H, network.bias)
