"""Select in parts: the first round of a partitioned search, one part of the candidates an item.

Parts are drawn by a hash of the ids' order, so neither shards nor actors nor the order of the files
change a pick; ``select`` merges what they return, in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.selection.partitioned import PartTask, first_tasks, search_part
from nncift_ray.errors import DataError
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.stages.selection.selection_limits import read_constraints
from nncift_ray.stages.selection.selection_objectives import source_of_parts
from nncift_ray.stages.selection.selection_plan import SelectionPlan
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput


@dataclass(frozen=True)
class PartitionInputs:
    """What a part is searched in."""

    scores: StageOutput
    embeddings: StageOutput
    examples: StageOutput | None  # where the plan has quotas


class SelectPartitionsStage(Stage):
    """Write ``part_picks``: what each part of the candidates would pick by itself."""

    name: ClassVar[str] = "select_partitions"
    unit: ClassVar[str] = "parts"
    memory_advice: ClassVar[str] = (
        "raise selection.optimizer.partitions: an actor holds the lists' entries of one part at a "
        "time; or run fewer of its actors (selection.optimizer.pool.num_actors)"
    )

    def __init__(self, inputs: PartitionInputs, plan: SelectionPlan) -> None:
        """Search the parts of a plan."""
        self._inputs, self._plan = inputs, plan

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Picks of each part."""
        return {"part_picks": schemas.PART_PICKS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Scores and ids; with quotas, the records that name groups."""
        found = self._inputs
        inputs = {"scores": found.scores, "embeddings": found.embeddings}
        return inputs if found.examples is None else inputs | {"examples": found.examples}

    def settings(self) -> dict[str, Any]:
        """The plan."""
        return self._plan.settings()

    def num_items(self) -> int:
        """Parts of the first round."""
        return self._plan.num_partitions(self._inputs.embeddings.num_rows("candidates"))

    def make_worker(self) -> Worker:
        """Read what the parts share; each part reads its own entries of the lists."""
        tasks = self._tasks()

        def search_parts(shard: Shard, sink: Sink) -> None:
            for part in range(shard.start, shard.stop):
                # A part that no candidate fell into has no search.
                ranking = search_part(tasks[part]) if part < len(tasks) else None
                order = np.zeros(0, np.int64) if ranking is None else ranking.order
                gain = np.zeros(0) if ranking is None else ranking.gain
                sink.write("part_picks", part_picks_table(part, order, gain))

        return search_parts

    def _tasks(self) -> list[PartTask]:
        plan, names = self._plan, self._inputs.embeddings.read("candidates", ["example_id"])
        ids_J = np.asarray(names["example_id"].to_pylist())
        rank_J = np.argsort(np.argsort(ids_J, kind="stable"), kind="stable")
        tables = ScoreTables.open(self._inputs.scores, len(ids_J))
        num_existing = self._inputs.embeddings.num_rows("existing")
        try:
            _, source = source_of_parts(plan, tables, num_existing)
            return first_tasks(
                source,
                plan.budget(len(ids_J)),
                num_parts=self.num_items(),
                num_rounds=plan.num_rounds,
                seed=plan.seed,
                tie_rank=rank_J,
                constraints=read_constraints(plan, ids_J, self._inputs.examples, tables.unranked()),
                bounding=plan.bounding,
            )
        except ValueError as error:
            raise DataError(f"selection: {error}") from error


def part_picks_table(part: int, order: np.ndarray, gain: np.ndarray) -> pa.Table:
    """Write the picks of a part, best first."""
    return pa.table(
        {
            "part": pa.array(np.full(len(order), part), pa.int32()),
            "row_index": pa.array(order, pa.int64()),
            "gain": pa.array(gain, pa.float64()),
        },
        schema=schemas.PART_PICKS,
    )
