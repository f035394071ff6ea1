"""Scorers of a pruned block: lists from an index's candidates, and what held-out rows say of them.

Suffixes: I rows, J columns, K list places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from nncift_ray.core.candidates.recall import recall_at_k
from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.pair_scores import ScoreTotal
from nncift_ray.core.pairs.rescoring import RescoredTopK
from nncift_ray.core.pairs.score_histogram import CountedRows
from nncift_ray.stages.driving.atoms import RowSpan
from nncift_ray.stages.pairs.column_index import ColumnIndex, read_columns, read_index, read_rows
from nncift_ray.stages.pairs.pair_scorers import (
    ListScorer,
    bad_activations,
    top_helpers_table,
    write_histogram,
    write_statistics,
)
from nncift_ray.stages.pairs.pruning_decision import BlockDecision
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import helped_role


@dataclass(frozen=True)
class IndexReader:
    """Reads a block's index when it is first needed, once for all scorers of a worker."""

    index: StageOutput
    activations: StageOutput
    embeddings: StageOutput | None  # where the generator reads them
    block: str
    decision: BlockDecision
    network: FactoredNetwork
    num_threads: int

    @cached_property
    def columns(self) -> ColumnIndex:
        """The index, its columns packed.

        Raises:
            DataError: If an activation is not finite; the message names the first such row.
        """
        b_JH, _ = read_columns(self.activations, None, self.block)
        generator = self.decision.generator
        try:
            return read_index(
                self.index, self.block, generator, self.network, b_JH, self.num_threads
            )
        except ValueError as error:
            none = b_JH[:0]
            raise bad_activations(self.block, 0, none, 0, b_JH, error) from error

    def search(self, a_IH: np.ndarray, row_IX: np.ndarray, k: int) -> RescoredTopK:
        """Find the best columns of some rows as widely as was decided."""
        return self.columns.search(a_IH, row_IX, self.decision.search, k)


@dataclass(frozen=True)
class PrunedScorer:
    """Keeps the best helpers of every row, among those that the index proposes."""

    reader: IndexReader
    top_k: int

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score the candidates of some rows.

        Raises:
            DataError: If an activation is not finite; the message names the first such row.
        """
        a_IH = column_matrix(rows["activation"])
        row_IX = a_IH
        if self.reader.embeddings is not None:
            role = f"{helped_role(span.name)}s"
            vectors = self.reader.embeddings.read_range(role, span.start, span.stop, ["embedding"])
            row_IX = column_matrix(vectors["embedding"])
        try:
            found = self.reader.search(a_IH, row_IX, self.top_k)
        except ValueError as error:
            none = a_IH[:0]
            raise bad_activations(span.name, span.start, a_IH, 0, none, error) from error
        lists = top_helpers_table(rows["row_index"], found.index_IK, found.score_IK)
        sink.write(f"{span.name}_top_helpers", lists)
        kept = found.score_IK[found.index_IK >= 0]
        # No pair is counted here: what an index proposes is not a sample of all pairs.
        extremes = ScoreTotal(
            0, float(kept.min(initial=np.inf)), float(kept.max(initial=-np.inf)), 0.0, 0.0
        )
        write_statistics(sink, span.name, extremes, num_scored=int(found.num_pairs_I.sum()))


@dataclass(frozen=True)
class HeldOutScorer:
    """Scores held-out rows both ways: recall of the lists, and statistics over every column."""

    reader: IndexReader
    exact: ListScorer
    row_index: np.ndarray  # all rows held out, ascending

    def __call__(self, span: RowSpan, sink: Sink) -> None:
        """Do the held-out rows [start, stop)."""
        block, reader = self.reader.block, self.reader
        chosen = self.row_index[span.start : span.stop]
        a_IH, row_IX = read_rows(reader.activations, reader.embeddings, block, chosen)
        counted = CountedRows.of_range(0, len(chosen), len(chosen))
        exact, _ = self.exact.score(RowSpan(block, span.start, span.stop), a_IH, counted)
        if exact is None:
            return
        found = reader.search(a_IH, row_IX, self.exact.top_k)
        num_columns = reader.columns.num_columns
        columns = {
            "block": pa.array([block] * len(chosen), pa.string()),
            "row_index": pa.array(chosen, pa.int64()),
            "recall": pa.array(recall_at_k(found.score_IK, exact.score_IK), pa.float64()),
            "scored_fraction": pa.array(found.num_pairs_I / num_columns, pa.float64()),
        }
        sink.write("recall", pa.table(columns, schema=schemas.ROW_RECALL))
        write_statistics(sink, block, exact.statistics.total(), num_scored=0)
        write_histogram(sink, block, counted.count_B)
