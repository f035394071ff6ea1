"""The tables of a finished selection: ranking, coverage, and strong candidates that were skipped.

Suffixes: I rows, J candidates.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nncift_ray.core.selection.baseline import evaluate
from nncift_ray.core.selection.column_source import ColumnSource
from nncift_ray.core.selection.search import Ranking
from nncift_ray.core.selection.standing import Standing, StandingInParts
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import StageOutput

SKIPPED_SHOWN = 200


def random_objective(source: ColumnSource, size: int, unranked: np.ndarray) -> float:
    """Return the objective of a seeded random subset of the same size, to compare with.

    Candidates without a score are not drawn: no selection may hold them.
    """
    order = np.random.default_rng(0).permutation(source.num_columns)
    order = order[~np.isin(order, unranked)][:size]
    drawn = source.restricted(order)
    return float(evaluate(drawn, np.arange(len(order)))[-1]) if len(order) else 0.0


def ranking_table(ranking: Ranking, names: pa.Table, best_I: np.ndarray) -> pa.Table:
    """Write the ranking with ids and how many rows each pick covers best."""
    picked = names.take(pa.array(ranking.order, pa.int64()))
    num_covered = np.bincount(best_I[best_I >= 0], minlength=names.num_rows)[ranking.order]
    return pa.Table.from_pydict(
        {
            "rank": pa.array(np.arange(1, len(ranking.order) + 1), pa.int32()),
            "row_index": picked["row_index"],
            "example_id": picked["example_id"],
            "gain": pa.array(ranking.gain, pa.float64()),
            "objective": pa.array(ranking.objective, pa.float64()),
            "num_tokens": picked["num_tokens"].cast(pa.int64()),
            "num_covered": pa.array(num_covered, pa.int32()),
        },
        schema=schemas.RANKING,
    )


def coverage_table(best_I: np.ndarray, value_I: np.ndarray) -> pa.Table:
    """Write each ground-set row's best pick; null where no pick is in its list."""
    return pa.table(
        {
            "row_index": pa.array(np.arange(len(best_I)), pa.int64()),
            "covered_by": pa.array(best_I, pa.int64(), mask=best_I < 0),
            "coverage": pa.array(value_I, pa.float32()),
        },
        schema=schemas.COVERAGE,
    )


def skipped_table(
    standing: Standing | StandingInParts,
    names: pa.Table,
    rank_J: np.ndarray,
    embeddings: StageOutput,
    left_out_J: np.ndarray,
) -> pa.Table:
    """Write the candidates that are worth most alone and were not picked, and who took their place.

    Args:
        standing: How the candidates stand beside the selection.
        names: Id of each candidate.
        rank_J: Ranks among equals.
        embeddings: To say how near each is to the pick that took its place.
        left_out_J: Numbers of candidates that were excluded by wish.
    """
    open_J = standing.rank_J < 0
    open_J[left_out_J] = False
    rows = np.flatnonzero(open_J)
    rows = rows[np.lexsort((rank_J[rows], -standing.alone_J[rows]))][:SKIPPED_SHOWN]
    takers = standing.takers_of(rows)
    pick = np.array([int(picks[0]) if len(picks) else -1 for picks, _ in takers], np.int64)
    amount = np.array([float(taken[0]) if len(picks) else 0.0 for picks, taken in takers])
    found = pick >= 0
    share = np.zeros(len(rows))
    np.divide(amount, standing.alone_J[rows], out=share, where=standing.alone_J[rows] > 0)
    cosine = np.full(len(rows), np.nan)
    cosine[found] = cosines(embeddings, rows[found], pick[found])
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_id": names["example_id"].take(pa.array(rows, pa.int64())),
            "alone_gain": pa.array(standing.alone_J[rows], pa.float64()),
            "final_gain": pa.array(standing.gain_J[rows], pa.float64()),
            "taken_by": pa.array(pick, pa.int64(), mask=~found),
            "taken_by_rank": pa.array(standing.rank_J[pick] + 1, pa.int32(), mask=~found),
            "taken_share": pa.array(share, pa.float64()),
            "cosine": pa.array(cosine, pa.float64(), mask=~found),
        },
        schema=schemas.SKIPPED,
    )


def cosines(embeddings: StageOutput, rows_N: np.ndarray, others_N: np.ndarray) -> np.ndarray:
    """Return the cosine of the embeddings of candidates, pair by pair: [N] float64."""
    if not len(rows_N):
        return np.zeros(0)
    both = np.concatenate([rows_N, others_N])
    vectors = column_matrix(embeddings.take_rows("candidates", both, ["embedding"])["embedding"])
    a_ND, b_ND = (part.astype(np.float64) for part in np.split(vectors, 2))
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return (a_ND * b_ND).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
