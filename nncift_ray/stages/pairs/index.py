"""Index: find out whether scoring may leave pairs out, and make ready what that takes.

For each block of which only the lists are read: a generator is fitted to the network, FAISS indexes
all columns by it, and the search is widened until held-out rows find the share of their true lists
that the recipe asks for. Rates measured here predict the seconds of both ways; ``auto`` takes the
faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.candidates.recall import Tuning
from nncift_ray.errors import ConfigError
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.pairs.column_index import (
    FIT_SAMPLE,
    GENERATORS,
    ColumnSource,
    draw,
    read_columns,
    read_rows,
    write_index,
)
from nncift_ray.stages.pairs.pair_devices import make_backend
from nncift_ray.stages.pairs.pruned_costs import SAMPLE_ROWS, MeasureRates, RowSample, measure_rates
from nncift_ray.stages.pairs.pruning_decision import (
    EXACT,
    PRUNED,
    BlockDecision,
    HeldOutRows,
    decisions_fact,
)
from nncift_ray.stages.pairs.pruning_trial import BlockData, IndexOptions, PruningTrial
from nncift_ray.stages.pairs.score_memory import MEMORY_KEY, PairMemory, peak_bytes
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import Sink, StageOutput


class IndexStage(Stage):
    """Write each block's generator and index, the ``recall`` of every setting tried, a decision."""

    name: ClassVar[str] = "index"
    unit: ClassVar[str] = "indexes"

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        embeddings: StageOutput,
        blocks: tuple[str, ...],
        top_k: int,
        options: IndexOptions,
        *,
        max_worker_bytes: int,
        half: bool = False,
        measure: MeasureRates = measure_rates,
    ) -> None:
        """Decide how the blocks are scored.

        Args:
            activations: Of the project stage.
            networks: Of the fit stage.
            embeddings: Of the embed stage; read by a generator that compares embeddings.
            blocks: Those of which only lists are read.
            top_k: Helpers kept of every row.
            options: What the recipe says.
            max_worker_bytes: Memory that a worker may take.
            half: Whether a GPU would score in half precision.
            measure: Measures rates.

        Raises:
            ConfigError: If pruning is asked for and an index does not fit into the memory.
        """
        self._activations, self._networks, self._embeddings = activations, networks, embeddings
        self._blocks, self._top_k, self._options = tuple(blocks), top_k, options
        self._max_worker_bytes, self._half, self._measure = max_worker_bytes, half, measure
        self.seed = options.seed
        #: Workers that will score, for the prediction.
        self.num_scoring_workers = 1
        for block in self._blocks if options.mode == PRUNED else ():
            excess = self._excess(block)
            if excess:
                raise ConfigError(
                    f"{MEMORY_KEY}: {excess}; raise it, or set pair_scores.mode=exact"
                )

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Every setting tried."""
        return {"recall": schemas.RECALL}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations and networks; embeddings where the generator reads them."""
        inputs = {"activations": self._activations, "networks": self._networks}
        return {**inputs, "embeddings": self._embeddings} if self._reads_embeddings else inputs

    def settings(self) -> dict[str, Any]:
        """What the recipe says of pruning."""
        return {"blocks": list(self._blocks), "top_k": self._top_k, **asdict(self._options)}

    def num_items(self) -> int:
        """All blocks at once: an index is built with all the cores there are."""
        return 1

    def make_worker(self) -> Worker:
        """Return what decides; columns are read when they are needed."""
        num_threads, score_rows = make_backend(self.resources, half=self._half)

        def decide(shard: Shard, sink: Sink) -> None:
            decisions: dict[str, BlockDecision] = {}
            for block in self._blocks:
                reason = self._why_not(block)
                if reason:
                    options = self._options
                    decisions[block] = BlockDecision(EXACT, reason, options.generator, options.kind)
                    continue
                trial = PruningTrial(
                    block,
                    self._read(block),
                    self._options,
                    score_rows,
                    self._measure,
                    num_threads,
                    self.num_scoring_workers,
                )
                result = trial.run()
                decisions[block] = result.decision
                if result.tuning is not None:
                    num_rows = len(trial.data.tuning.a_IH)
                    sink.write(
                        "recall", recall_table(block, self._options, result.tuning, num_rows)
                    )
                if result.index is not None:
                    write_index(sink, block, result.index)
            sink.facts.update(decisions_fact(decisions), peak_bytes=peak_bytes())

        return decide

    @property
    def _reads_embeddings(self) -> bool:
        return GENERATORS[self._options.generator].reads == "embeddings"

    def _excess(self, block: str) -> str:
        """Say by how much a block's index does not fit; nothing where it does."""
        network = read_network(self._networks, block)
        memory = PairMemory(
            self._activations.num_rows(f"{block}_columns"),
            network.num_hidden,
            shard_rows=SAMPLE_ROWS,
            top_k=self._top_k,
        )
        dim = network.embedding_dim
        needed = memory.pruned(dim if self._reads_embeddings else network.num_hidden + 1)
        if needed <= self._max_worker_bytes:
            return ""
        return (
            f"{self._max_worker_bytes:,} bytes are allowed, and an index of block '{block}' takes "
            f"about {needed:,} a worker"
        )

    def _why_not(self, block: str) -> str:
        """Say why there is nothing to try, or nothing where there is."""
        if not all(self._activations.num_rows(f"{block}_{side}") for side in ("rows", "columns")):
            return "there is no pair to score"
        excess = self._excess(block)
        return f"{MEMORY_KEY}: {excess}" if excess else ""

    def _read(self, block: str) -> BlockData:
        num_rows = self._activations.num_rows(f"{block}_rows")
        seed, embeddings = self._options.seed, self._embeddings if self._reads_embeddings else None
        held_out = HeldOutRows.draw(num_rows, self._options.recall_rows, seed)
        random = np.random.default_rng((seed, 2))

        def sample(rows: np.ndarray) -> RowSample:
            return RowSample(*read_rows(self._activations, embeddings, block, rows))

        b_JH, column_JX = read_columns(self._activations, embeddings, block)
        fit_rows = sample(draw(random, num_rows, FIT_SAMPLE)).row_IX
        return BlockData(
            ColumnSource(read_network(self._networks, block), b_JH, column_JX, fit_rows),
            num_rows,
            tuning=sample(held_out.tuning),
            timing=sample(draw(random, num_rows, SAMPLE_ROWS)),
            top_k=self._top_k,
        )


def recall_table(block: str, options: IndexOptions, tuning: Tuning, num_rows: int) -> pa.Table:
    """Write every setting tried, and which was chosen."""
    rows = [
        {
            "block": block,
            "generator": options.generator,
            "index": options.kind,
            "num_probes": point.settings.num_probes,
            "num_candidates": point.settings.num_candidates,
            "num_rows": num_rows,
            "recall": point.recall,
            "standard_error": point.standard_error,
            "scored_fraction": point.scored_fraction,
            "seconds": point.seconds,
            "chosen": point is tuning.chosen,
        }
        for point in tuning.points
    ]
    return pa.Table.from_pylist(rows, schema=schemas.RECALL)
