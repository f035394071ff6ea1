"""Select: lists of helpers or sums of columns to a ranked subset, greedily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.selection.column_source import ColumnSource
from nncift_ray.core.selection.objectives import Objective, Problem, coverage
from nncift_ray.core.selection.search import Ranking
from nncift_ray.core.selection.standing import (
    Standing,
    StandingInParts,
    stand,
    stand_in_parts,
)
from nncift_ray.errors import StageError
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.selection.optimizing import Search
from nncift_ray.stages.selection.saved_picks import (
    SAVE_SECONDS,
    SavedPicks,
    describe_picks,
    read_picks,
)
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.stages.selection.selection_limits import (
    describe_quotas,
    find_rows,
    read_constraints,
)
from nncift_ray.stages.selection.selection_objectives import build_objective, source_of_parts
from nncift_ray.stages.selection.selection_plan import PARTITIONED, RANDOM, SelectionPlan
from nncift_ray.stages.selection.selection_tables import (
    coverage_table,
    random_objective,
    ranking_table,
    skipped_table,
)
from nncift_ray.storage import schemas
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import POINTS, TABLE_OF_ROLE, helped_role

ID_COLUMNS = ["row_index", "example_id", "num_tokens"]


class SelectStage(Stage):
    """Write the ``ranking``, who covers every row (``coverage``), and who was ``skipped``."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 2
    unit: ClassVar[str] = "rankings"

    def __init__(
        self,
        scores: StageOutput,
        embeddings: StageOutput,
        plan: SelectionPlan,
        *,
        examples: StageOutput | None = None,
        parts: StageOutput | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """Select from scored pairs.

        Args:
            scores: Of the score stage.
            embeddings: They hold ids and token counts.
            plan: What to select.
            examples: Of the deduplicate stage; needed where the plan has quotas.
            parts: Of the select_partitions stage, where the search is partitioned.
            save_seconds: Least time between two savings of the picks so far; changes no row.
        """
        self._scores, self._embeddings, self._plan = scores, embeddings, plan
        self._save_seconds, self._parts = save_seconds, parts
        if (parts is None) == (plan.optimizer == PARTITIONED):
            raise StageError("a partitioned search, and no other, merges the picks of its parts")
        self._examples = examples if plan.reads_examples else None
        if plan.reads_examples and examples is None:
            raise StageError("selection.quotas needs the examples, whose records name the groups")

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Ranking, coverage and skipped candidates."""
        return {
            "ranking": schemas.RANKING,
            "coverage": schemas.COVERAGE,
            "skipped": schemas.SKIPPED,
        }

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Scores and ids; with quotas, the records that name groups."""
        inputs = {"scores": self._scores, "embeddings": self._embeddings}
        more = {"examples": self._examples, "parts": self._parts}
        return inputs | {name: output for name, output in more.items() if output is not None}

    def settings(self) -> dict[str, Any]:
        """The plan."""
        return self._plan.settings()

    def num_items(self) -> int:
        """One ranking."""
        return 1

    def progress(self, folder: Location) -> str:
        """Say how many picks there are so far."""
        return describe_picks(read_picks(folder))

    def make_worker(self) -> Worker:
        """Return the selection."""

        def select(shard: Shard, sink: Sink) -> None:
            names = self._embeddings.read("candidates", ID_COLUMNS)
            ids_J = np.asarray(names["example_id"].to_pylist())
            rank_J = np.argsort(np.argsort(ids_J, kind="stable"), kind="stable")
            tables = ScoreTables.open(self._scores, names.num_rows)
            num_existing = self._embeddings.num_rows("existing")
            source: ColumnSource | None = None
            if self._in_parts:
                objective, source = source_of_parts(self._plan, tables, num_existing)
            else:
                objective = build_objective(self._plan, tables, num_existing)
            search = self._search(objective, source, tables, names, ids_J, rank_J, sink.folder)
            ranking = search.run()
            source = source or objective.problem()
            self._write(ranking, objective, source, tables, names, ids_J, rank_J, sink)

        return select

    def _search(
        self,
        objective: Objective,
        source: ColumnSource | None,
        tables: ScoreTables,
        names: pa.Table,
        ids_J: np.ndarray,
        rank_J: np.ndarray,
        folder: Location,
    ) -> Search:
        saved = SavedPicks(folder, self._save_seconds)
        tokens = names["num_tokens"].to_numpy().astype(np.float64)
        return Search(
            plan=self._plan,
            objective=objective,
            budget=self._plan.budget(names.num_rows),
            costs_J=tokens if self._plan.tokens is not None else None,
            tie_rank_J=rank_J,
            constraints=read_constraints(self._plan, ids_J, self._examples, tables.unranked()),
            on_progress=saved.save,
            prefixes=saved.prefixes(),
            parts=self._parts,
            source=source,
        )

    def _write(
        self,
        ranking: Ranking,
        objective: Objective,
        source: ColumnSource,
        tables: ScoreTables,
        names: pa.Table,
        ids_J: np.ndarray,
        rank_J: np.ndarray,
        sink: Sink,
    ) -> None:
        plan = self._plan
        best_I, value_I = coverage(objective, ranking.order)
        standing = self._stand(source, ranking, best_I)
        unranked = tables.unranked()
        excluded = np.union1d(find_rows(ids_J, plan.exclude, "selection.exclude"), unranked)
        sink.facts.update(
            scale_min=tables.scale.min,
            scale_max=tables.scale.max,
            random_objective=random_objective(source, len(ranking.order), unranked),
            upper_bound=ranking.upper_bound,
            share_of_best=ranking.share_of_best,
            stopped_by=ranking.stopped_by,
            ranked_by=ranking.rule,
            optimizer=plan.optimizer,
            num_parts=plan.num_partitions(len(ids_J)) if self._in_parts else None,
            num_rounds=plan.rounds,
            num_tokens=int(names["num_tokens"].to_numpy()[ranking.order].sum()),
            covers=self._covers(),
            quotas=describe_quotas(self._plan, len(ids_J), self._examples),
        )
        sink.write("ranking", ranking_table(ranking, names, best_I))
        sink.write("coverage", coverage_table(best_I, value_I))
        sink.write("skipped", skipped_table(standing, names, rank_J, self._embeddings, excluded))

    @property
    def _in_parts(self) -> bool:
        """Whether no machine is to hold all lists; a random ranking has no parts to merge."""
        return self._plan.optimizer == PARTITIONED and self._plan.objective != RANDOM

    def _stand(
        self, source: ColumnSource, ranking: Ranking, best_I: np.ndarray
    ) -> Standing | StandingInParts:
        if isinstance(source, Problem):
            return stand(source, ranking.order, best_I)
        num_parts = self._plan.num_partitions(source.num_columns)
        return stand_in_parts(source, ranking.order, best_I, num_parts)

    def _covers(self) -> str:
        """Name the table whose examples the rows of ``coverage`` are."""
        block = self._plan.ground_block
        return "" if block == POINTS else TABLE_OF_ROLE[helped_role(block)]
