"""Score pairs: the network's influence for the pairs of a block, and what is kept of it.

Either every row's best K helpers, for objectives that cover rows, or the sums of every column by
subtask, for top_k; of a pointwise network the score of every candidate. Of data that the model has
already, what they do for every row, for conditional gains. Rows are sharded; columns stream through
every shard tile by tile, or are looked up in the index of the ``index`` stage where that decided
so. Nothing of size rows x columns is held, nor written unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.errors import ConfigError, StageError
from nncift_ray.stages.driving.atoms import RowAtoms, RowSpan, RowStage, merge_spans
from nncift_ray.stages.driving.stage import Shard, Worker
from nncift_ray.stages.pairs.column_index import CALL_ROWS, GENERATORS, index_files
from nncift_ray.stages.pairs.existing_scorer import ExistingScorer
from nncift_ray.stages.pairs.pair_devices import make_backend, num_threads_of
from nncift_ray.stages.pairs.pair_scorers import ColumnTiles, ListScorer, PointScorer, SumScorer
from nncift_ray.stages.pairs.pruned_scorers import HeldOutScorer, IndexReader, PrunedScorer
from nncift_ray.stages.pairs.pruning_decision import (
    PRUNED,
    BlockDecision,
    HeldOutRows,
    index_digests,
    read_decisions,
)
from nncift_ray.stages.pairs.score_memory import FLOAT_BYTES, PairMemory, peak_bytes
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS, POINTS
from nncift_ray.storage.subtasks import Subtasks, read_subtasks

ATOM_ROWS = CALL_ROWS
DEFAULT_SHARD_ROWS = 4096  # a thread
GPU_SHARD_ROWS = 65_536
HELD_OUT = ":held_out"

Scorer = Callable[[RowSpan, Sink], None]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How pairs are scored; only ``half`` and ``dense`` show in what is written.

    Attributes:
        column_tile: Columns held at a time.
        shard_rows: Rows of a shard; None: as many as suit a worker's threads, or its GPU.
        max_worker_bytes: Memory that a worker may take.
        half: Half precision, on a GPU.
        dense: Also write all scores.
        max_dense_bytes: Largest size of those.
    """

    column_tile: int = 65_536
    shard_rows: int | None = None
    max_worker_bytes: int = 4 * 10**9
    half: bool = False
    dense: bool = False
    max_dense_bytes: int = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Pruning:
    """The index stage's work, and which rows check it.

    Attributes:
        index: Its output.
        embeddings: Of the embed stage, for generators that compare embeddings.
        recall_rows: Rows that recall is measured on, other rows than those tuned on.
        seed: That the index stage drew its rows with.
    """

    index: StageOutput
    embeddings: StageOutput
    recall_rows: int
    seed: int


class ScorePairsStage(RowStage):
    """Write ``<block>_top_helpers`` and ``column_max``, or ``column_sums``; and statistics.

    Where there are existing data, ``<block>_existing_influence`` too.
    """

    name: ClassVar[str] = "score_pairs"
    version: ClassVar[int] = 2
    memory_advice: ClassVar[str] = (
        "lower pair_scores.max_worker_bytes or pair_scores.column_tile, or give its actors more "
        "memory"
    )

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        top_k: int | None,
        *,
        examples: StageOutput | None = None,
        subtask_by: str | None = None,
        pruning: Pruning | None = None,
        options: ScoreOptions | None = None,
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
            pruning: The index stage's work; blocks that it decided to score exactly, and those
                that it did not look at, are scored exactly. None: all are.
            options: How.

        Raises:
            ConfigError: If a bound on memory or on the dense table does not hold.
        """
        self._activations, self._networks = activations, networks
        self._blocks, self._top_k = tuple(blocks), top_k
        self._examples, self._subtask_by = examples, subtask_by
        if subtask_by is not None and examples is None:
            raise StageError("data.subtask_by needs the examples, whose records name the subtasks")
        self._options = options or ScoreOptions()
        self._keeps_sums = top_k is None or POINTS in self._blocks
        self._pruning = pruning
        decisions = read_decisions(None if pruning is None else pruning.index)
        self._pruned: dict[str, BlockDecision] = {
            block: decision
            for block, decision in decisions.items()
            if decision.mode == PRUNED and block in self._blocks
        }
        self._held_out = {
            block: HeldOutRows.draw(self._num_rows(block), pruning.recall_rows, pruning.seed).final
            for block in self._pruned
            if pruning is not None
        }
        ranges = [(block, self._num_rows(block)) for block in self._blocks]
        ranges += [(f"{block}{HELD_OUT}", len(rows)) for block, rows in self._held_out.items()]
        self._atoms = RowAtoms(tuple(ranges), ATOM_ROWS)
        for block in self._blocks:
            self._check_bounds(block)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, and sums or lists with column maxima."""
        tables = {
            "statistics": schemas.SCORE_STATISTICS,
            "histogram": schemas.SCORE_HISTOGRAM,
        }
        for block in self._blocks_with_existing:
            tables[f"{block}_existing_influence"] = schemas.EXISTING_INFLUENCE
        if self._keeps_sums:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        tables = lists | tables | {"column_max": schemas.COLUMN_MAX}
        if self._pruned:
            tables["recall"] = schemas.ROW_RECALL
        if self._options.dense:
            tables |= {
                f"{block}_dense": schemas.dense_schema(self._num_columns(block))
                for block in self._blocks
            }
        return tables

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations, the networks' output weights, and the records that name subtasks.

        The index, where it is used, counts by what it holds (``settings``), not by how it came to
        be: so it is none of them.
        """
        inputs = {"activations": self._activations, "networks": self._networks}
        if self._subtask_by is not None and self._examples is not None:
            inputs["examples"] = self._examples
        return inputs

    def settings(self) -> dict[str, Any]:
        """What is kept and what is scored; tiles, shards and threads change nothing."""
        kept: dict[str, Any] = {"subtask_by": self._subtask_by}
        if not self._keeps_sums:
            kept = {"top_k": self._top_k, "dense": self._options.dense}
        if self._options.half:
            kept["half"] = True
        return {"blocks": list(self._blocks), "mode": "exact", **kept, **self._pruned_settings()}

    def _pruned_settings(self) -> dict[str, Any]:
        if self._pruning is None or not self._pruned:
            return {}
        searches = {
            block: {
                "generator": decision.generator,
                "index": decision.index,
                "num_probes": decision.num_probes,
                "num_candidates": decision.num_candidates,
                "files": index_digests(self._pruning.index, index_files(block)),
            }
            for block, decision in self._pruned.items()
        }
        held_out = {"recall_rows": self._pruning.recall_rows, "seed": self._pruning.seed}
        return {"mode": PRUNED, "searches": searches, "held_out": held_out}

    @property
    def shard_items(self) -> int:
        """Whole atoms a shard: as many rows as keep a worker busy for some seconds."""
        rows = self._options.shard_rows
        if rows is None:
            on_gpu = self.resources.num_gpus > 0
            rows = GPU_SHARD_ROWS if on_gpu else DEFAULT_SHARD_ROWS * num_threads_of(self.resources)
        return self._atoms.items_per_shard(rows)

    def make_worker(self) -> Worker:
        """Load the networks and subtasks; columns are read as they are needed."""
        scorers: dict[str, Scorer] = {}
        for block in self._blocks:
            scorers |= self._make_scorers(block)
        existing = {block: self._existing_scorer(block) for block in self._blocks_with_existing}

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                scorers[span.name](span, sink)
                if span.name in existing:
                    existing[span.name](span, sink)
            sink.facts["peak_bytes"] = peak_bytes()

        return score_shard

    @property
    def _blocks_with_existing(self) -> tuple[str, ...]:
        """The blocks whose rows existing data are scored for."""
        return tuple(b for b in self._blocks if self._activations.num_rows(f"{b}_existing"))

    def _existing_scorer(self, block: str) -> Scorer:
        existing = ColumnTiles(
            self._activations, f"{block}_existing", self._options.column_tile, keep=False
        )
        return self._of_rows(ExistingScorer(read_network(self._networks, block), existing))

    def _make_scorers(self, block: str) -> dict[str, Scorer]:
        """Return what scores rows of a block, and its held-out rows, and writes what is kept."""
        network, options = read_network(self._networks, block), self._options
        if block == POINTS:
            return {block: self._of_rows(PointScorer(network))}
        columns = ColumnTiles(
            self._activations,
            f"{block}_columns",
            options.column_tile,
            keep=self._memory(block).keeps_columns(options.max_worker_bytes),
        )
        num_threads, num_rows = num_threads_of(self.resources), self._num_rows(block)
        if self._top_k is None:
            subtasks = Subtasks.one(num_rows)
            if block == CROSS and self._subtask_by is not None and self._examples is not None:
                subtasks = read_subtasks(self._examples, self._subtask_by)
            return {
                block: self._of_rows(SumScorer(network, columns, subtasks, num_rows, num_threads))
            }
        num_threads, score_rows = make_backend(self.resources, half=options.half)
        lists = ListScorer(
            network, columns, self._top_k, score_rows, num_rows, num_threads, options.dense
        )
        pruning, decision = self._pruning, self._pruned.get(block)
        if pruning is None or decision is None:
            return {block: self._of_rows(lists)}
        reads_embeddings = GENERATORS[decision.generator].reads == "embeddings"
        reader = IndexReader(
            pruning.index,
            self._activations,
            pruning.embeddings if reads_embeddings else None,
            block,
            decision,
            network,
            num_threads,
        )
        return {
            block: self._of_rows(PrunedScorer(reader, self._top_k)),
            f"{block}{HELD_OUT}": HeldOutScorer(reader, lists, self._held_out[block]),
        }

    def _of_rows(self, score: Callable[[RowSpan, pa.Table, Sink], None]) -> Scorer:
        """Hand a scorer the activations of its rows."""

        def read_and_score(span: RowSpan, sink: Sink) -> None:
            rows = self._activations.read_range(f"{span.name}_rows", span.start, span.stop)
            score(span, rows, sink)

        return read_and_score

    def _num_rows(self, block: str) -> int:
        return self._activations.num_rows(f"{block}_rows")

    def _num_columns(self, block: str) -> int:
        return self._activations.num_rows(f"{block}_columns")

    def _memory(self, block: str) -> PairMemory:
        return PairMemory(
            self._num_columns(block),
            read_network(self._networks, block).num_hidden,
            shard_rows=min(self.shard_items * ATOM_ROWS, self._num_rows(block)),
            top_k=self._top_k or 0,
            column_tile=self._options.column_tile,
        )

    def _check_bounds(self, block: str) -> None:
        self._memory(block).check_streamed(block, self._options.max_worker_bytes)
        size = self._num_rows(block) * self._num_columns(block) * FLOAT_BYTES
        if self._options.dense and size > self._options.max_dense_bytes:
            raise ConfigError(
                f"pair_scores.dense: all scores of block '{block}' are "
                f"{self._num_rows(block):,} x {self._num_columns(block):,} numbers, {size:,} "
                "bytes, more than pair_scores.max_dense_bytes = "
                f"{self._options.max_dense_bytes:,}: raise it, or leave dense out"
            )
