"""Select: lists of helpers to a ranked subset, greedily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from nncift_ray.core.greedy import Budget, Ranking, lazy_greedy
from nncift_ray.core.objectives import (
    FacilityLocation,
    FacilityLocationMutualInformation,
    FacilityLocationQueryMutualInformation,
    InfluenceScale,
    Objective,
    SparseScores,
    coverage,
)
from nncift_ray.stages.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS, WITHIN

#: Which blocks of pairs an objective reads, and which of them its rows are.
BLOCKS_OF_OBJECTIVE: dict[str, tuple[str, ...]] = {
    "facility_location": (WITHIN,),
    "facility_location_mutual_information": (WITHIN, CROSS),
    "facility_location_query_mutual_information": (CROSS,),
}
ID_COLUMNS = ["row_index", "example_id", "num_tokens"]


@dataclass(frozen=True)
class SelectionPlan:
    """What to select: an objective of ``BLOCKS_OF_OBJECTIVE`` and one of three budgets."""

    objective: str
    eta: float
    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None

    def budget(self, num_candidates: int) -> Budget:
        """Return the budget for a number of candidates; a fraction is rounded, to at least 1."""
        if self.tokens is not None:
            return Budget(max_cost=float(self.tokens))
        if self.count is not None:
            return Budget(max_count=min(self.count, num_candidates))
        count = max(1, round((self.fraction or 0.0) * num_candidates))
        return Budget(max_count=min(count, num_candidates))


class SelectStage(Stage):
    """Write the ``ranking`` and, for every row of the ground set, its ``coverage``."""

    name: ClassVar[str] = "select"
    unit: ClassVar[str] = "rankings"

    def __init__(self, scores: StageOutput, embeddings: StageOutput, plan: SelectionPlan) -> None:
        """Select from scored pairs; the embeddings hold ids and token counts."""
        self._scores, self._embeddings, self._plan = scores, embeddings, plan

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Ranking and coverage."""
        return {"ranking": schemas.RANKING, "coverage": schemas.COVERAGE}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Scores and ids."""
        return {"scores": self._scores, "embeddings": self._embeddings}

    def settings(self) -> dict[str, Any]:
        """Objective and budget."""
        return dict(self._plan.__dict__)

    def num_items(self) -> int:
        """One ranking."""
        return 1

    def make_worker(self) -> Worker:
        """Return the selection."""

        def select(shard: Shard, sink: Sink) -> None:
            names = self._embeddings.read("candidates", ID_COLUMNS)
            scale = read_scale(self._scores, BLOCKS_OF_OBJECTIVE[self._plan.objective])
            objective = build_objective(self._scores, self._plan, names.num_rows, scale)
            ids = np.asarray(names["example_id"].to_pylist())
            tokens = names["num_tokens"].to_numpy().astype(np.float64)
            ranking = lazy_greedy(
                objective,
                self._plan.budget(names.num_rows),
                costs=tokens if self._plan.tokens is not None else None,
                tie_rank=np.argsort(np.argsort(ids, kind="stable"), kind="stable"),
            )
            best, value = coverage(objective, ranking.order)
            sink.facts.update(scale_min=scale.min, scale_max=scale.max)
            sink.facts["random_objective"] = random_objective(objective, len(ranking.order))
            sink.write("ranking", ranking_table(ranking, names, best))
            sink.write("coverage", coverage_table(best, value))

        return select


def read_scale(scores: StageOutput, blocks: tuple[str, ...]) -> InfluenceScale:
    """Return the one scale of all blocks an objective mixes: over every pair, not only the kept."""
    rows = scores.read("statistics", schema=schemas.SCORE_STATISTICS).to_pylist()
    used = [row for row in rows if row["block"] in blocks]
    return InfluenceScale(min(row["min"] for row in used), max(row["max"] for row in used))


def build_objective(
    scores: StageOutput, plan: SelectionPlan, num_candidates: int, scale: InfluenceScale
) -> Objective:
    """Build the objective of a plan from the score stage's tables."""
    if plan.objective == "facility_location":
        return FacilityLocation(read_lists(scores, WITHIN, num_candidates, scale))
    target_J = read_column_max(scores, num_candidates, scale)
    if plan.objective == "facility_location_mutual_information":
        within = read_lists(scores, WITHIN, num_candidates, scale)
        return FacilityLocationMutualInformation(within, target_J, plan.eta)
    cross = read_lists(scores, CROSS, num_candidates, scale)
    return FacilityLocationQueryMutualInformation(cross, target_J, plan.eta)


def read_lists(
    scores: StageOutput, block: str, num_candidates: int, scale: InfluenceScale
) -> SparseScores:
    """Read a block's top-K lists as scaled sparse rows."""
    indptr = [np.zeros(1, np.int64)]
    indices: list[np.ndarray] = []
    data: list[np.ndarray] = []
    for batch in scores.iter_batches(f"{block}_top_helpers", ["helper_index", "influence"]):
        helper = cast("pa.ListArray[Any]", batch.column(0))
        influence = cast("pa.ListArray[Any]", batch.column(1))
        lengths = np.asarray(helper.value_lengths().to_numpy(), np.int64)
        indptr.append(indptr[-1][-1] + np.cumsum(lengths))
        indices.append(helper.flatten().to_numpy())
        data.append(scale.apply(influence.flatten().to_numpy()))
    return SparseScores(
        np.concatenate(indptr), np.concatenate(indices), np.concatenate(data), num_candidates
    )


def read_column_max(scores: StageOutput, num_candidates: int, scale: InfluenceScale) -> np.ndarray:
    """Return max_q s_qj over all targets for every candidate j, scaled: [J] float32."""
    largest = np.full(num_candidates, -np.inf, np.float32)
    for batch in scores.iter_batches("column_max", ["helper_index", "max_influence"]):
        np.maximum.at(largest, batch.column(0).to_numpy(), batch.column(1).to_numpy())
    return scale.apply(largest)


def random_objective(objective: Objective, size: int) -> float:
    """Return the objective of a seeded random subset of the same size, to compare with."""
    problem = objective.problem()
    order = np.random.default_rng(0).permutation(problem.num_columns)[:size]
    cover_I = np.zeros(problem.num_rows, np.float64)
    for j in order:
        part = slice(problem.indptr[j], problem.indptr[j + 1])
        rows = problem.rows[part]
        cover_I[rows] = np.maximum(cover_I[rows], problem.values[part])
    return float(cover_I.sum() + problem.modular_J[order].sum())


def ranking_table(ranking: Ranking, names: pa.Table, best: np.ndarray) -> pa.Table:
    """Write the ranking with ids and how many rows each pick covers best."""
    picked = names.take(pa.array(ranking.order, pa.int64()))
    num_covered = np.bincount(best[best >= 0], minlength=names.num_rows)[ranking.order]
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


def coverage_table(best: np.ndarray, value: np.ndarray) -> pa.Table:
    """Write each ground-set row's best pick; null where no pick is in its list."""
    return pa.table(
        {
            "row_index": pa.array(np.arange(len(best)), pa.int64()),
            "covered_by": pa.array(best, pa.int64(), mask=best < 0),
            "coverage": pa.array(value, pa.float32()),
        },
        schema=schemas.COVERAGE,
    )
