"""The mathematics alone: arrays in, arrays out; no files, no models, no Ray.

    lists = influence_network(embeddings, pairs, labels)
    picks, gains = facility_location(lists, budget=0.1)

Suffixes: N examples, D embedding, P labelled pairs, I rows, J columns, K of a list, S picks.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import Inputs
from nncift_ray.network.pair import fit_pair
from nncift_ray.scores.exact import top_k_rows
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import lazy_greedy
from nncift_ray.selection.objectives import facility_location as coverage_of
from nncift_ray.selection.problem import DenseScores, InfluenceScale, SparseScores

Array = npt.NDArray[Any]
#: The best columns of every row [I, K], best first, and their influence [I, K].
Lists = tuple[Array, Array]


def influence_network(
    embeddings: npt.ArrayLike,
    pairs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    top_k: int = 64,
    num_hidden: int = 100,
    seed: int = 0,
) -> Lists:
    """Return the best helpers of every example, by a network fitted to labels of some pairs.

    Args:
        embeddings: Of all examples [N, D], rows of length 1.
        pairs: (helped, helper) example numbers of the labelled pairs [P, 2].
        labels: What each pair is worth [P], in any unit; larger is better.
        top_k: Helpers kept of every example.
        num_hidden: Numbers that an example is compressed to before pairs are scored.
        seed: Of the sample of pairs, where more are labelled than the network is fitted to.

    Returns:
        Helper numbers [N, top_k], best first, and their predicted influence in the labels' unit.

    Raises:
        ShapeError: If the arrays do not belong together.

    Source: NN-CIFT, arXiv 2502.09969, with an inner product in place of the hidden layer.
    """
    raw_ND = np.ascontiguousarray(embeddings, np.float32)
    pair_P2, label_P = np.asarray(pairs, np.int64), np.asarray(labels, np.float64)
    if raw_ND.ndim != 2 or pair_P2.shape != (len(label_P), 2):
        raise ShapeError(f"embeddings {raw_ND.shape}, pairs {pair_P2.shape}, {len(label_P)} labels")
    if len(label_P) and not (0 <= pair_P2.min() and pair_P2.max() < len(raw_ND)):
        raise ShapeError(f"pairs name examples beyond the {len(raw_ND)} embeddings")
    inputs = Inputs.fit(raw_ND, [raw_ND.shape[1]])
    x_ND = inputs.prepare(raw_ND)
    row_P, column_P = np.ascontiguousarray(pair_P2.T)
    network, _ = fit_pair(inputs, x_ND, x_ND, row_P, column_P, label_P, x_ND, num_hidden, seed)
    found = top_k_rows(
        network.project_rows(raw_ND), network.project_columns(raw_ND), network.w_H, network.bias,
        min(top_k, len(raw_ND)), num_threads=os.cpu_count() or 1,
    )  # fmt: skip
    return found.index_IK, found.score_IK


def facility_location(
    lists: Lists | npt.ArrayLike, *, budget: float | int, num_columns: int | None = None
) -> tuple[Array, Array]:
    """Return the picks [S], best first, and what each added [S] to sum_i max_{j in A} s_ij.

    Greedy, so at least 1 - 1/e of the best value there is. Influence is scaled to 0..1 first.

    Args:
        lists: The best columns of every row and their influence, each [I, K] (-1 ends a shorter
            list), or the influence of every pair [I, J].
        budget: A number of picks, or a share of the columns below 1.
        num_columns: Columns J that may be picked; by default I for lists.

    Raises:
        ShapeError: If the arrays do not belong together.
        ValueError: If the budget is not above 0, or an influence is not finite.
    """
    if isinstance(lists, tuple):
        index_IK, raw_IK = np.asarray(lists[0]), np.asarray(lists[1], np.float32)
        if index_IK.shape != raw_IK.shape or index_IK.ndim != 2:
            raise ShapeError(f"lists of columns {index_IK.shape}, of influence {raw_IK.shape}")
        kept_IK = index_IK >= 0
        indptr = np.concatenate([[0], np.cumsum(kept_IK.sum(axis=1))]).astype(np.int64)
        columns, scaled = index_IK[kept_IK].astype(np.int32), _scaled(raw_IK[kept_IK])
        scores = SparseScores(indptr, columns, scaled, num_columns or len(index_IK))
    else:
        scores = DenseScores(_scaled(np.asarray(lists, np.float32)))
    if budget <= 0:
        raise ValueError(f"a budget of {budget} picks nothing: give a share below 1, or a number")
    share = budget < 1
    count = max(1, round(budget * scores.num_columns)) if share else int(budget)
    found = lazy_greedy(coverage_of(scores), Budget(min(count, scores.num_columns)))
    return found.order, found.gain


def _scaled(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return InfluenceScale(float(raw.min()), float(raw.max())).apply(raw)
