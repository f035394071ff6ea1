"""Score new pairs: what a run that goes on from another has to score, and nothing that is scored.

Old rows meet the new columns, and what is best among them enters the lists that the parent kept;
new rows meet all columns. Every pair's score has the bits it has in a run over everything, and a
list is the best K of them, ties by smaller column; so the lists, column maxima and sums, read
behind the parent's, are those of such a run.

New pairs are all scored, however the parent chose its own. Where it pruned, old rows miss what it
missed, no more; recall of the joined lists is measured again on the rows it was measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import StageError
from nncift_ray.network.factored import read_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import WHOLE_TABLES, Sink, StageOutput, column_matrix, root_of
from nncift_ray.runtime.schemas import CROSS, POINTS
from nncift_ray.runtime.step import RowAtoms, RowSpan, RowStage, Shard, Worker, merge_spans
from nncift_ray.scores.backend import PairMemory, make_backend, num_threads_of, peak_bytes
from nncift_ray.scores.exact import TopKState, state_of_lists
from nncift_ray.scores.index import recall_at_k
from nncift_ray.scores.kernel import CountedRows
from nncift_ray.scores.step import ColumnTiles, ExistingScorer, ListScorer, PointScorer, SumScorer

ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 4096  # a thread
#: Rows of a block; the blocks' names follow. The last are those that recall is measured on.
OLD, NEW, HELD_OUT = "old ", "new ", "held out "

Scorer = Callable[[RowSpan, Sink], None]


class ScoreNewPairsStage(RowStage):
    """Write ``<block>_top_helpers`` whole, and what is new of the other tables of score_pairs."""

    name: ClassVar[str] = "score_pairs"
    version: ClassVar[int] = 2  # that of score_pairs, whose tables it goes on with
    memory_advice: ClassVar[str] = (
        "lower pair_scores.max_worker_bytes or pair_scores.column_tile, or give its actors more "
        "memory"
    )

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        parent_activations: StageOutput,
        parent_scores: StageOutput,
        *,
        examples: StageOutput | None = None,
        column_tile: int = 65_536,
        shard_rows: int | None = None,
        max_worker_bytes: int = 4 * 10**9,
    ) -> None:
        """Score what is in the activations and not in the parent's.

        Args:
            activations: Of the union, the parent's rows first.
            networks: The parent's networks.
            parent_activations: Their tables tell how many rows and columns are scored.
            parent_scores: What of the scores was kept; blocks, K and subtasks are as there.
            examples: The union's examples; read only where the parent's sums are by subtask.
            column_tile: Columns held at a time; changes no bit.
            shard_rows: Rows of a shard; None: as many as suit a worker's threads.
            max_worker_bytes: Memory that a worker may take.
        """
        self._activations, self._networks = activations, networks
        self._parent_activations, self._parent_scores = parent_activations, parent_scores
        self._examples, self._column_tile = examples, column_tile
        self._max_worker_bytes, self._shard_rows_wanted = max_worker_bytes, shard_rows
        settings = parent_scores.manifest.settings
        self._blocks = tuple(settings["blocks"])
        self._top_k: int | None = settings.get("top_k")
        self._subtask_by: str | None = settings.get("subtask_by")
        self._half = bool(settings.get("half", False))
        self._held_out = _held_out_rows(parent_scores)
        ranges: list[tuple[str, int]] = []
        first: dict[str, int] = {}
        for block in self._blocks:
            done = parent_activations.num_rows(f"{block}_rows")
            if block != POINTS:
                ranges.append((f"{OLD}{block}", done))
            ranges.append((f"{NEW}{block}", activations.num_rows(f"{block}_rows") - done))
            first[f"{NEW}{block}"] = done
        ranges += [(f"{HELD_OUT}{block}", len(rows)) for block, rows in self._held_out.items()]
        self._atoms = RowAtoms(tuple(ranges), ATOM_ROWS, first_rows=first)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """The tables of score_pairs."""
        tables = {"statistics": schemas.SCORE_STATISTICS, "histogram": schemas.SCORE_HISTOGRAM}
        for block in self._blocks_with_existing:
            tables[f"{block}_existing_influence"] = schemas.EXISTING_INFLUENCE
        if self._top_k is None:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        if self._held_out:
            tables["recall"] = schemas.ROW_RECALL
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        return lists | tables | {"column_max": schemas.COLUMN_MAX}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations, networks, the parent's work, and the records that name subtasks."""
        inputs = {
            "activations": self._activations,
            "networks": self._networks,
            "parent_activations": self._parent_activations,
            "parent": self._parent_scores,
        }
        if self._subtask_by is not None and self._examples is not None:
            inputs["examples"] = self._examples
        return inputs

    def settings(self) -> dict[str, Any]:
        """As the parent's, but that new pairs are all scored, and the dense table is left out."""
        tables = ("top_helpers", "dense") if self._top_k else ()
        whole = [f"{block}_{table}" for block in self._blocks for table in tables]
        kept = {"top_k": self._top_k} if self._top_k else {"subtask_by": self._subtask_by}
        return {
            "blocks": list(self._blocks),
            "mode": "exact",
            **kept,
            **({"half": True} if self._half else {}),
            WHOLE_TABLES: [*whole, "recall"],
        }

    @property
    def shard_items(self) -> int:
        """Whole atoms a shard: as many rows as keep a worker busy for some seconds."""
        rows = self._shard_rows_wanted or DEFAULT_SHARD_ROWS * num_threads_of(self.resources)
        return self._atoms.items_per_shard(rows)

    def make_worker(self) -> Worker:
        """Load the networks and subtasks; columns are read as they are needed."""
        scorers = {name: self._make_scorer(name) for name, count in self._atoms.ranges if count}

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                scorers[span.name](span, sink)
            sink.facts["peak_bytes"] = peak_bytes()

        return score_shard

    @property
    def _blocks_with_existing(self) -> tuple[str, ...]:
        """The blocks whose new rows existing data are scored for."""
        return tuple(b for b in self._blocks if self._activations.num_rows(f"{b}_existing"))

    def _make_scorer(self, name: str) -> Scorer:
        """Return what scores rows of a block against the columns that they lack."""
        block = _block_of(name)
        if name.startswith(HELD_OUT):
            return self._recall_scorer(block)
        is_old = name.startswith(OLD)
        keeps: list[Callable[[RowSpan, pa.Table, Sink], None]]
        if block == POINTS:
            keeps = [PointScorer(read_network(self._networks, block))]
        elif self._top_k is None:
            keeps = [self._sum_scorer(block, is_old=is_old)]
        elif is_old and not self._num_new_columns(block):
            return self._copy_lists
        else:
            keeps = [self._list_scorer(block, self._lists_of_range if is_old else None)]
        if not is_old and block in self._blocks_with_existing:
            keeps.append(self._existing_scorer(block))

        def read_and_score(span: RowSpan, sink: Sink) -> None:
            rows = self._activations.read_range(f"{block}_rows", span.start, span.stop)
            for keep in keeps:
                keep(RowSpan(block, span.start, span.stop), rows, sink)

        return read_and_score

    def _columns(self, block: str, *, new_only: bool) -> ColumnTiles:
        table = f"{block}_columns"
        first = self._parent_activations.num_rows(table) if new_only else 0
        memory = PairMemory(
            self._activations.num_rows(table) - first,
            read_network(self._networks, block).num_hidden,
            shard_rows=self.shard_items * ATOM_ROWS,
            top_k=self._top_k or 0,
            column_tile=self._column_tile,
        )
        keep = memory.keeps_columns(self._max_worker_bytes)
        return ColumnTiles(self._activations, table, self._column_tile, keep=keep, first=first)

    def _num_new_columns(self, block: str) -> int:
        table = f"{block}_columns"
        return self._activations.num_rows(table) - self._parent_activations.num_rows(table)

    def _num_counted_as(self, block: str) -> int:
        """Return the rows by which every n-th is counted: those of the first run of the chain.

        A run over everything may count other rows of a large block; here all parts of a chain count
        the same ones.
        """
        return root_of(self._parent_activations).num_rows(f"{block}_rows")

    def _list_scorer(self, block: str, resume: Callable[[RowSpan], TopKState] | None) -> ListScorer:
        num_threads, score_rows = make_backend(self.resources, half=self._half)
        return ListScorer(
            read_network(self._networks, block),
            self._columns(block, new_only=resume is not None),
            self._top_k or 0,
            score_rows,
            self._num_counted_as(block),
            num_threads,
            resume=resume,
        )

    def _sum_scorer(self, block: str, *, is_old: bool) -> SumScorer:
        subtasks = Subtasks.one(self._activations.num_rows(f"{block}_rows"))
        if self._subtask_by is not None:
            if block != CROSS or self._examples is None:
                raise StageError("sums by subtask are of targets, whose examples name the subtasks")
            subtasks = read_subtasks(self._examples, self._subtask_by)
        return SumScorer(
            read_network(self._networks, block),
            self._columns(block, new_only=is_old),
            subtasks,
            self._num_counted_as(block),
            num_threads_of(self.resources),
        )

    def _existing_scorer(self, block: str) -> ExistingScorer:
        table = f"{block}_existing"
        tiles = ColumnTiles(self._activations, table, self._column_tile, keep=False)
        return ExistingScorer(read_network(self._networks, block), tiles)

    def _recall_scorer(self, block: str) -> Scorer:
        """Return what compares held-out rows' joined lists with their true ones."""
        everything = self._list_scorer(block, None)
        joined = self._list_scorer(
            block, lambda span: self._lists_of(block, self._held_out[block][_slice(span)])
        )
        num_columns = self._activations.num_rows(f"{block}_columns")

        def measure(span: RowSpan, sink: Sink) -> None:
            rows = self._held_out[block][_slice(span)]
            table = self._activations.take_rows(f"{block}_rows", rows, ["activation"])
            activation, none = column_matrix(table["activation"]), CountedRows.none(len(rows))
            true, _ = everything.score(span, activation, none)
            found, _ = joined.score(span, activation, none)
            if true is None or found is None:
                return
            share = self._num_new_columns(block) / num_columns  # of its columns, in this run
            columns = {
                "block": pa.array([block] * len(rows), pa.string()),
                "row_index": pa.array(rows, pa.int64()),
                "recall": pa.array(recall_at_k(found.score_IK, true.score_IK), pa.float64()),
                "scored_fraction": pa.array([share] * len(rows), pa.float64()),
            }
            sink.write("recall", pa.table(columns, schema=schemas.ROW_RECALL))

        return measure

    def _lists_of_range(self, span: RowSpan) -> TopKState:
        table = f"{span.name}_top_helpers"
        return self._state_of(self._parent_scores.read_range(table, span.start, span.stop))

    def _lists_of(self, block: str, rows: np.ndarray) -> TopKState:
        return self._state_of(self._parent_scores.take_rows(f"{block}_top_helpers", rows))

    def _state_of(self, lists: pa.Table) -> TopKState:
        """Read the parent's lists of some rows as what further columns are added to."""
        shape = (lists.num_rows, self._top_k or 0)
        index_IK = np.full(shape, -1, np.int32)
        score_IK = np.full(shape, -np.inf, np.float32)
        helper = cast("Any", lists["helper_index"].combine_chunks())
        influence = cast("Any", lists["influence"].combine_chunks())
        length_I = helper.value_lengths().to_numpy()
        kept_IK = np.arange(shape[1]) < length_I[:, None]
        index_IK[kept_IK] = helper.flatten().to_numpy()
        score_IK[kept_IK] = influence.flatten().to_numpy()
        return state_of_lists(index_IK, score_IK)

    def _copy_lists(self, span: RowSpan, sink: Sink) -> None:
        """Write the parent's lists as they are, where there is no new column."""
        table = f"{_block_of(span.name)}_top_helpers"
        lists = self._parent_scores.read_range(table, span.start, span.stop)
        sink.write(table, lists.cast(schemas.TOP_HELPERS))


def _block_of(name: str) -> str:
    return name.removeprefix(OLD).removeprefix(NEW).removeprefix(HELD_OUT)


def _slice(span: RowSpan) -> slice:
    return slice(span.start, span.stop)


def _held_out_rows(scores: StageOutput) -> dict[str, np.ndarray]:
    """Return the rows of each pruned block that the parent measured recall on."""
    table = scores.read("recall", ["block", "row_index"], schemas.ROW_RECALL)
    return {
        str(block): np.sort(table.filter(pc.field("block") == block)["row_index"].to_numpy())
        for block in table["block"].unique().to_pylist()
    }
