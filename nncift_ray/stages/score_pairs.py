"""Score pairs: the network's influence for every pair of a block, and what is kept of it.

Either every row's best K helpers, for objectives that cover rows, or the sums of every column by
subtask, for top_k; of a pointwise network the score of every candidate. Of data that the model has
already, what they do for every row, for conditional gains. Rows are sharded; columns
stream through every shard tile by tile. Nothing of size rows x columns is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.stages.atoms import RowAtoms, RowSpan, RowStage, merge_spans
from nncift_ray.stages.existing_scorer import ExistingScorer
from nncift_ray.stages.pair_scorers import ColumnTiles, ListScorer, PointScorer, SumScorer
from nncift_ray.stages.stage import Shard, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS, POINTS
from nncift_ray.storage.subtasks import Subtasks, read_subtasks

ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 4096


class ScorePairsStage(RowStage):
    """Write ``<block>_top_helpers`` and ``column_max``, or ``column_sums``; and ``statistics``.

    Where there are existing data, ``<block>_existing_influence`` too.
    """

    name: ClassVar[str] = "score_pairs"

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        top_k: int | None,
        *,
        examples: StageOutput | None = None,
        subtask_by: str | None = None,
        column_tile: int = 65_536,
        shard_rows: int | None = None,
    ) -> None:
        """Score the pairs of the given blocks, or the examples of the block "points".

        Args:
            activations: Of the project stage.
            networks: Of the fit stage.
            blocks: What to score.
            top_k: Helpers kept of every row; None: no lists, but the sum of every column, which is
                what the objective top_k reads.
            examples: The deduplicated examples; read only where ``subtask_by`` is given.
            subtask_by: Field of a target's record that names its subtask; None: one for all.
            column_tile: Columns held at a time; changes no bit.
            shard_rows: Rows of a shard.
        """
        self._activations, self._networks = activations, networks
        self._blocks, self._top_k, self._column_tile = tuple(blocks), top_k, column_tile
        self._examples, self._subtask_by = examples, subtask_by
        if subtask_by is not None and examples is None:
            raise StageError("data.subtask_by needs the examples, whose records name the subtasks")
        self._keeps_sums = top_k is None or POINTS in self._blocks
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        ranges = tuple((block, activations.num_rows(f"{block}_rows")) for block in self._blocks)
        self._atoms = RowAtoms(ranges, ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, and sums or lists with column maxima."""
        statistics = {"statistics": schemas.SCORE_STATISTICS}
        for block in self._blocks_with_existing:
            statistics[f"{block}_existing_influence"] = schemas.EXISTING_INFLUENCE
        if self._keeps_sums:
            return statistics | {"column_sums": schemas.COLUMN_SUMS}
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        return lists | statistics | {"column_max": schemas.COLUMN_MAX}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations, the networks' output weights, and the records that name subtasks."""
        inputs = {"activations": self._activations, "networks": self._networks}
        if self._subtask_by is not None and self._examples is not None:
            inputs["examples"] = self._examples
        return inputs

    def settings(self) -> dict[str, Any]:
        """What is kept; tiles and shards change nothing."""
        kept = {"subtask_by": self._subtask_by} if self._keeps_sums else {"top_k": self._top_k}
        return {"blocks": list(self._blocks), "mode": "exact", **kept}

    def make_worker(self) -> Worker:
        """Load the networks and subtasks; columns are read as they are needed."""
        scorers = {block: self._make_scorer(block) for block in self._blocks}
        existing = {block: self._existing_scorer(block) for block in self._blocks_with_existing}

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                rows = self._activations.read_range(f"{span.name}_rows", span.start, span.stop)
                scorers[span.name](span, rows, sink)
                if span.name in existing:
                    existing[span.name](span, rows, sink)

        return score_shard

    @property
    def _blocks_with_existing(self) -> tuple[str, ...]:
        """The blocks whose rows existing data are scored for."""
        return tuple(b for b in self._blocks if self._activations.num_rows(f"{b}_existing"))

    def _existing_scorer(self, block: str) -> ExistingScorer:
        network = read_network(self._networks, block)
        columns = ColumnTiles(
            self._activations, f"{block}_existing", self._column_tile, network.num_hidden
        )
        return ExistingScorer(network, columns)

    def _make_scorer(self, block: str) -> Callable[[RowSpan, pa.Table, Sink], None]:
        """Return what scores some rows of a block and writes what is kept."""
        network = read_network(self._networks, block)
        if block == POINTS:
            return PointScorer(network)
        columns = ColumnTiles(
            self._activations, f"{block}_columns", self._column_tile, network.num_hidden
        )
        if self._top_k is not None:
            return ListScorer(network, columns, self._top_k)
        if block == CROSS and self._subtask_by is not None and self._examples is not None:
            return SumScorer(network, columns, read_subtasks(self._examples, self._subtask_by))
        num_rows = self._activations.num_rows(f"{block}_rows")
        return SumScorer(network, columns, Subtasks.one(num_rows))
