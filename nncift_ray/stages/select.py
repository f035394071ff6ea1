"""Select: lists of helpers or sums of columns to a ranked subset, greedily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from nncift_ray.core.pairs.column_sums import best_group_mean, check_sum_range
from nncift_ray.core.selection.greedy import Budget, Ranking, lazy_greedy
from nncift_ray.core.selection.objectives import (
    FacilityLocation,
    FacilityLocationMutualInformation,
    FacilityLocationQueryMutualInformation,
    Objective,
    TopScores,
    coverage,
)
from nncift_ray.core.selection.sparse_scores import InfluenceScale, SparseScores
from nncift_ray.errors import StageError
from nncift_ray.stages.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

TOP_K = "top_k"
#: Which blocks of pairs an objective reads that covers rows, and which of them its rows are.
BLOCKS_OF_OBJECTIVE: dict[str, tuple[str, ...]] = {
    "facility_location": (WITHIN,),
    "facility_location_mutual_information": (WITHIN, CROSS),
    "facility_location_query_mutual_information": (CROSS,),
}
ID_COLUMNS = ["row_index", "example_id", "num_tokens"]


def blocks_of(objective: str, *, pointwise: bool, has_targets: bool) -> tuple[str, ...]:
    """Return the blocks that an objective reads, so what is to be labelled, fitted and scored.

    Args:
        objective: An objective of the recipe.
        pointwise: Whether the teacher scores examples, not pairs.
        has_targets: Whether there are targets.

    Raises:
        ValueError: If the objective covers rows and the teacher has no pairs to cover them with.
    """
    if objective == TOP_K:
        if pointwise:
            return (POINTS,)
        return (CROSS,) if has_targets else (WITHIN,)
    if pointwise:
        raise ValueError(f"a pointwise teacher scores no pairs, which {objective} needs; use top_k")
    return BLOCKS_OF_OBJECTIVE[objective]


@dataclass(frozen=True)
class SelectionPlan:
    """What to select: an objective of the recipe and one of three budgets."""

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
            scale = read_scale(self._scores)
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


def read_scale(scores: StageOutput) -> InfluenceScale:
    """Return the one scale of all blocks scored: over every pair, not only what was kept."""
    rows = scores.read("statistics", schema=schemas.SCORE_STATISTICS).to_pylist()
    return InfluenceScale(min(row["min"] for row in rows), max(row["max"] for row in rows))


def build_objective(
    scores: StageOutput, plan: SelectionPlan, num_candidates: int, scale: InfluenceScale
) -> Objective:
    """Build the objective of a plan from the score stage's tables."""
    if plan.objective == TOP_K:
        return TopScores(scale.apply_to_means(read_scores(scores, num_candidates, scale)))
    if plan.objective == "facility_location":
        return FacilityLocation(read_lists(scores, WITHIN, num_candidates, scale))
    target_J = read_column_max(scores, num_candidates, scale)
    if plan.objective == "facility_location_mutual_information":
        within = read_lists(scores, WITHIN, num_candidates, scale)
        return FacilityLocationMutualInformation(within, target_J, plan.eta)
    cross = read_lists(scores, CROSS, num_candidates, scale)
    return FacilityLocationQueryMutualInformation(cross, target_J, plan.eta)


def read_scores(scores: StageOutput, num_candidates: int, scale: InfluenceScale) -> np.ndarray:
    """Return every candidate's score, raw and signed: [J] float64.

    That is its mean influence on the rows of the subtask where the mean is highest, or what a
    pointwise network says of it. The sums are whole numbers: the order of the shards is no matter.

    Raises:
        StageError: If a sum could pass 64 bits.
    """
    sums: dict[str | None, np.ndarray] = {}
    num_rows: dict[str | None, int] = {}
    for batch in scores.iter_batches("column_sums"):
        subtask = batch.column("subtask").dictionary_encode("encode")
        helper, rows = (batch.column(name).to_numpy() for name in ("helper_index", "num_rows"))
        for code, name in enumerate(subtask.dictionary.to_pylist()):
            at = subtask.indices.to_numpy() == code
            sum_J = sums.setdefault(name, np.zeros(num_candidates, np.int64))
            np.add.at(sum_J, helper[at], batch.column("sum").to_numpy()[at])
            # A shard has one sum of every candidate: those of the first count its rows once.
            num_rows[name] = num_rows.get(name, 0) + int(rows[at & (helper == 0)].sum())
    try:
        check_sum_range(max(num_rows.values()), scale.min, scale.max)
        return best_group_mean(list(sums.values()), list(num_rows.values()))
    except ValueError as error:
        raise StageError(f"objective {TOP_K}: {error}") from error


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
