"""Small random problems of every objective, with the objective's formula in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nncift_ray.selection.greedy import Ranking
from nncift_ray.selection.objectives import (
    facility_location,
    facility_location_conditional_gain,
    facility_location_mutual_information,
    facility_location_query_mutual_information,
    graph_cut,
    graph_cut_conditional_gain,
    graph_cut_mutual_information,
    saturated_coverage,
    top_scores,
)
from nncift_ray.selection.problem import (
    DenseScores,
    InfluenceScale,
    Objective,
    Scores,
    SparseScores,
    StreamedScores,
)
from nncift_ray.selection.ties import TieBreak, directions

ETA, NU, LAMBDA, ALPHA = 0.7, 0.8, 0.4, 0.25
FORMULA_TOLERANCE = 1e-5  # float32 scores, capped or weighted in float32, summed in float64
ALWAYS_MONOTONE = (
    "facility_location",
    "mutual_information",
    "query_mutual_information",
    "conditional_gain",
    "saturated",
    "cut_mutual_information",
)
KINDS = (*ALWAYS_MONOTONE, "cut", "cut_conditional_gain", "top")


def listed(dense: np.ndarray) -> SparseScores:
    """List every entry of a matrix that is not 0."""
    rows, columns = np.nonzero(dense)
    indptr = np.zeros(len(dense) + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=len(dense)), out=indptr[1:])
    data = dense[rows, columns].astype(np.float32)
    return SparseScores(indptr, columns.astype(np.int32), data, dense.shape[1])


def streamed(scores: SparseScores, batch_rows: int) -> StreamedScores:
    """Return lists that are read some rows at a time."""

    def batches() -> Iterator[SparseScores]:
        for start in range(0, scores.num_rows, batch_rows):
            indptr = scores.indptr[start : start + batch_rows + 1]
            at = slice(indptr[0], indptr[-1])
            yield SparseScores(
                indptr - indptr[0], scores.indices[at], scores.data[at], scores.num_columns
            )

    return StreamedScores(scores.num_rows, scores.num_columns, batches)


def from_lists(
    index_IK: np.ndarray, raw_IK: np.ndarray, num_columns: int, scale: InfluenceScale
) -> SparseScores:
    """Make scores of raw lists, index -1 where a list is shorter than K."""
    listed_IK = index_IK >= 0
    indptr = np.concatenate([[0], np.cumsum(listed_IK.sum(axis=1))])
    return SparseScores(
        indptr, index_IK[listed_IK].astype(np.int32), scale.apply(raw_IK[listed_IK]), num_columns
    )


@dataclass(frozen=True)
class Instance:
    """Scaled influence among candidates, on targets and from existing data; columns may repeat."""

    within: np.ndarray
    cross: np.ndarray
    existing: np.ndarray
    score: np.ndarray

    @property
    def size(self) -> int:
        return len(self.within)

    def objective(
        self, kind: str, *, dense: bool = False, batch_rows: int | None = None
    ) -> Objective:
        def scores(matrix: np.ndarray) -> Scores:
            if batch_rows is not None:
                return streamed(listed(matrix), batch_rows)
            return DenseScores(matrix) if dense else listed(matrix)

        within, target = scores(self.within), self.cross.max(axis=0)
        most = self.existing.max(axis=1)
        total = self.existing.sum(axis=1, dtype=np.float64)
        return {
            "facility_location": lambda: facility_location(within),
            "mutual_information": lambda: facility_location_mutual_information(within, target, ETA),
            "query_mutual_information": lambda: facility_location_query_mutual_information(
                scores(self.cross), target, ETA
            ),
            "conditional_gain": lambda: facility_location_conditional_gain(within, most, NU),
            "saturated": lambda: saturated_coverage(within, ALPHA),
            "cut_mutual_information": lambda: graph_cut_mutual_information(
                scores(self.cross), LAMBDA
            ),
            "cut": lambda: graph_cut(within, LAMBDA),
            "cut_conditional_gain": lambda: graph_cut_conditional_gain(within, total, LAMBDA, NU),
            "top": lambda: top_scores(self.score),
        }[kind]()

    def value(self, kind: str, picks: Sequence[int]) -> float:
        """Return the formula's value, entry by entry."""
        s, q, p = (m.astype(float).tolist() for m in (self.within, self.cross, self.existing))
        rows, targets, picks = range(self.size), range(len(q)), [int(j) for j in picks]

        def best(values: Sequence[float]) -> float:
            return max(values, default=0.0)

        def target_best(j: int) -> float:
            return max(q[t][j] for t in targets)

        def cut() -> float:
            inside = sum(s[j][k] for j in picks for k in picks)
            return sum(s[i][j] for i in rows for j in picks) - LAMBDA * inside

        return {
            "facility_location": lambda: sum(best([s[i][j] for j in picks]) for i in rows),
            "mutual_information": lambda: sum(
                min(best([s[i][j] for j in picks]), ETA * target_best(i)) for i in rows
            ),
            "query_mutual_information": lambda: (
                sum(best([q[t][j] for j in picks]) for t in targets)
                + ETA * sum(target_best(j) for j in picks)
            ),
            "conditional_gain": lambda: sum(
                max(best([s[i][j] for j in picks]) - NU * max(p[i]), 0.0) for i in rows
            ),
            "saturated": lambda: sum(
                min(sum(s[i][j] for j in picks), ALPHA * sum(s[i])) for i in rows
            ),
            "cut_mutual_information": lambda: (
                2 * LAMBDA * sum(q[t][j] for t in targets for j in picks)
            ),
            "cut": cut,
            "cut_conditional_gain": lambda: cut() - 2 * LAMBDA * NU * sum(sum(p[j]) for j in picks),
            "top": lambda: sum(float(self.score[j]) for j in picks),
        }[kind]()


def draw_instance(seed: int, size: int) -> Instance:
    """Draw values with many ties and zeros, and now and then a column twice."""
    rng = np.random.default_rng(seed)
    levels = np.array([0, 0, 0, 0.1, 0.1, 0.3, 0.7, 0.85, 1], np.float32)
    within = rng.choice(levels, (size, size))
    cross, existing = rng.choice(levels, (3, size)), rng.choice(levels, (size, 2))
    if size > 2 and rng.random() < 0.5:
        within[:, 1], cross[:, 1] = within[:, 0], cross[:, 0]
    score = rng.choice(np.array([-2.0, -0.5, 0.0, 0.25, 3.0]), size)
    return Instance(within, cross, existing, score)


def draw_tie_break(rng: np.random.Generator, size: int) -> TieBreak:
    """Draw qualities with many equals, and directions of which some come twice."""
    vectors = rng.standard_normal((size, 3), np.float32)[rng.integers(0, size, size)]
    quality = rng.choice(np.array([0.2, 0.97, 1.0, 1.0], np.float32), size)
    return TieBreak(quality, lambda columns: directions(vectors[columns], 3))


def assert_same_ranking(one: Ranking, other: Ranking) -> None:
    """Compare everything, numbers bit by bit."""
    assert one.order.tolist() == other.order.tolist()
    assert one.gain.tobytes() == other.gain.tobytes()
    assert one.objective.tobytes() == other.objective.tobytes()
    assert one.upper_bound == other.upper_bound
    assert one.stopped_by == other.stopped_by
    assert one.rule == other.rule
    assert one.decided.tolist() == other.decided.tolist()
