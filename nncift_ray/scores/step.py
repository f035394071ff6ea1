"""Project and score pairs: the network's influence for the pairs of a block, what is kept of it.

The first layer reads [e_i ; 0 ; e_j], so it splits into a row part and a column part: ``project``
computes both once an example, and the pair stage never sees an embedding. A pointwise network reads
[e_i] and has rows only.

``score_pairs`` keeps either every row's best K helpers, for objectives that cover rows, or the sums
of every column by subtask, for top_k; of a pointwise network the score of every candidate; and of
data that the model has already, what they do for every row, for conditional gains. Rows are
sharded; columns stream through every shard tile by tile, or are looked up in the index of the
``index`` stage where that decided so. Nothing of size rows x columns is held, nor written unless
asked for.

A run that goes on from another scores its new pairs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import ConfigError, StageError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.recipe.sections import PairScoresConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import (
    WHOLE_TABLES,
    Sink,
    StageOutput,
    column_matrix,
    root_of,
    vectors_to_arrow,
)
from nncift_ray.runtime.schemas import CANDIDATE, CROSS, EXISTING, POINTS, helped_role
from nncift_ray.runtime.step import RowAtoms, RowSpan, RowStage, Shard, Worker, merge_spans
from nncift_ray.scores.backend import (
    FLOAT_BYTES,
    PairMemory,
    make_backend,
    num_threads_of,
    peak_bytes,
)
from nncift_ray.scores.exact import TopKState, add_pairs, start_state
from nncift_ray.scores.index import recall_at_k
from nncift_ray.scores.index_step import (
    PRUNED,
    HeldOutRows,
    index_digest,
    read_decisions,
    read_rows,
)
from nncift_ray.scores.kernel import CountedRows
from nncift_ray.scores.scorers import (
    ColumnTiles,
    ExistingScorer,
    HeldOutScorer,
    IndexReader,
    ListScorer,
    PointScorer,
    PrunedScorer,
    RowScorer,
    SumScorer,
    recall_rows_table,
)

PROJECT_ATOM_ROWS = 1024
PROJECT_SHARD_ROWS = 65_536
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 4096  # a thread
GPU_SHARD_ROWS = 65_536
#: Behind a block's name: its rows on which recall is measured, and those of the parent's run.
HELD_OUT, OLD = ":held_out", ":old"

Scorer = Callable[[RowSpan, Sink], None]


class ProjectStage(RowStage):
    """Write ``<block>_rows``, ``_columns`` and ``_existing``: one activation vector an example.

    Existing data are helpers: they go through the column half of the block's network.
    """

    name: ClassVar[str] = "project"
    title: ClassVar[str] = "project embeddings"

    def __init__(
        self,
        embeddings: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        num_hidden: int,
        *,
        shard_rows: int = PROJECT_SHARD_ROWS,
        parent: StageOutput | None = None,
    ) -> None:
        """Project the embeddings through the networks of the given blocks.

        ``parent`` holds the activations of the first rows, where a run goes on with further data.
        """
        self._embeddings, self._networks, self._parent = embeddings, networks, parent
        self._blocks, self._num_hidden, self._shard_rows = tuple(blocks), num_hidden, shard_rows
        tables: list[str] = []
        for block in self._blocks:
            sides = ("rows",) if block == POINTS else ("rows", "columns", "existing")
            tables += [f"{block}_{side}" for side in sides]
        rows = {table: embeddings.num_rows(_embeddings_of(table)) for table in tables}
        rows = {t: count for t, count in rows.items() if count or not t.endswith(EXISTING)}
        done = {table: parent.num_rows(table) if parent else 0 for table in rows}
        left = tuple((table, count - done[table]) for table, count in rows.items())
        self._atoms = RowAtoms(left, PROJECT_ATOM_ROWS, first_rows=done)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Activations of each block and side."""
        schema = schemas.activations_schema(self._num_hidden)
        return {name: schema for name, _ in self._atoms.ranges}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Embeddings and networks."""
        inputs = {"embeddings": self._embeddings, "networks": self._networks}
        return inputs | ({"parent": self._parent} if self._parent else {})

    def settings(self) -> dict[str, Any]:
        """The blocks; the rest is in the inputs."""
        return {"blocks": list(self._blocks), "atom_rows": PROJECT_ATOM_ROWS}

    def make_worker(self) -> Worker:
        """Load the networks."""
        networks = {block: read_network(self._networks, block) for block in self._blocks}

        def project_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                block = span.name.rpartition("_")[0]
                sink.write(span.name, self._project(span, networks[block]))

        return project_shard

    def _project(self, span: RowSpan, network: FactoredNetwork) -> pa.Table:
        rows = self._embeddings.read_range(
            _embeddings_of(span.name), span.start, span.stop, ["row_index", "embedding"]
        )
        is_rows = span.name.endswith("_rows")
        project = network.project_rows if is_rows else network.project_columns
        activation_NH = project(column_matrix(rows["embedding"]))
        columns = {
            "row_index": rows["row_index"],
            "activation": vectors_to_arrow(activation_NH, "float32"),
        }
        return pa.Table.from_pydict(columns, schema=schemas.activations_schema(self._num_hidden))


def _embeddings_of(table: str) -> str:
    """Return the table of embeddings that a table of activations is made of."""
    block, _, side = table.rpartition("_")
    if side == "rows":
        return schemas.TABLE_OF_ROLE[helped_role(block)]
    return schemas.TABLE_OF_ROLE[EXISTING if side == EXISTING else CANDIDATE]


class ScorePairsStage(RowStage):
    """Write ``<block>_top_helpers`` and ``column_max``, or ``column_sums``; and statistics.

    Where there are existing data, ``<block>_existing_influence`` too.
    """

    name: ClassVar[str] = "score_pairs"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "score pairs"
    single_threaded = False
    memory_advice: ClassVar[str] = (
        "lower pair_scores.max_worker_bytes or pair_scores.column_tile, or give its actors more "
        "memory"
    )

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        config: PairScoresConfig,
        *,
        keeps_lists: bool = True,
        examples: StageOutput | None = None,
        subtask_by: str | None = None,
        index: StageOutput | None = None,
    ) -> None:
        """Score the pairs of the given blocks, or the examples of the block "points".

        Args:
            activations: Of the project stage.
            networks: Of the fit stage.
            blocks: What to score.
            config: The recipe's section.
            keeps_lists: Whether lists of helpers are kept, and not the sum of every column, which
                is what the objective top_k reads.
            examples: The deduplicated examples; read only where ``subtask_by`` is given.
            subtask_by: Field of a target's record that names its subtask; None: one for all.
            index: Output of the index stage; blocks that it decided to score exactly, and those
                that it did not look at, are scored exactly. None: all are.

        Raises:
            ConfigError: If a bound on memory or on the dense table does not hold.
        """
        self._activations, self._networks, self._index = activations, networks, index
        self._blocks, self._config = tuple(blocks), config
        self._examples, self._subtask_by = examples, subtask_by
        if subtask_by is not None and examples is None:
            raise StageError("data.subtask_by needs the examples, whose records name the subtasks")
        self._top_k = config.top_k if keeps_lists and POINTS not in self._blocks else None
        self.can_use_gpu = self._top_k is not None
        decisions = read_decisions(index)
        self._pruned = {b: decisions[b] for b in self._blocks if _is_pruned(decisions.get(b))}
        self._held_out = {
            block: HeldOutRows.draw(self._num_rows(block), config.recall_rows, config.seed).final
            for block in self._pruned
        }
        ranges = [(block, self._num_rows(block)) for block in self._blocks]
        ranges += [(f"{block}{HELD_OUT}", len(rows)) for block, rows in self._held_out.items()]
        self._atoms = RowAtoms(tuple(ranges), ATOM_ROWS)
        for block in self._blocks:
            self._check_bounds(block)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, and sums or lists with column maxima."""
        tables = {"statistics": schemas.SCORE_STATISTICS, "histogram": schemas.SCORE_HISTOGRAM}
        for block in self._blocks:
            if self._has_existing(block):
                tables[f"{block}_existing_influence"] = schemas.EXISTING_INFLUENCE
        if self._top_k is None:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        for block in self._blocks:
            tables[f"{block}_top_helpers"] = schemas.TOP_HELPERS
            if self._config.dense:
                tables[f"{block}_dense"] = schemas.dense_schema(self._num_columns(block))
        if self._held_out:
            tables["recall"] = schemas.ROW_RECALL
        return tables | {"column_max": schemas.COLUMN_MAX}

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
        if self._top_k is not None:
            kept = {"top_k": self._top_k, "dense": self._config.dense}
        return {"blocks": list(self._blocks), "mode": "exact", **kept, **self._pruned_settings()}

    def _pruned_settings(self) -> dict[str, Any]:
        if self._index is None or not self._pruned:
            return {}
        searches = {
            block: {
                "num_probes": decision.num_probes,
                "num_candidates": decision.num_candidates,
                "index": index_digest(self._index, block),
            }
            for block, decision in self._pruned.items()
        }
        held_out = {"recall_rows": self._config.recall_rows, "seed": self._config.seed}
        return {"mode": PRUNED, "searches": searches, "held_out": held_out}

    @property
    def shard_items(self) -> int:
        """Whole atoms a shard: as many rows as keep a worker busy for some seconds."""
        rows = self._config.pool.shard_rows
        if rows is None:
            on_gpu = self.resources.num_gpus > 0
            rows = GPU_SHARD_ROWS if on_gpu else DEFAULT_SHARD_ROWS * num_threads_of(self.resources)
        return self._atoms.items_per_shard(rows)

    def make_worker(self) -> Worker:
        """Load the networks and subtasks; columns are read as they are needed."""
        readers = {
            block: IndexReader(
                self._index, self._activations, block, decision, num_threads_of(self.resources)
            )
            for block, decision in self._pruned.items()
            if self._index is not None
        }
        scorers = {
            name: self._make_scorer(name, readers) for name, count in self._atoms.ranges if count
        }

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                scorers[span.name](span, sink)
            sink.facts["peak_bytes"] = peak_bytes()

        return score_shard

    def _make_scorer(self, name: str, readers: Mapping[str, IndexReader]) -> Scorer:
        """Return what scores a range of rows and writes what is kept."""
        block = name.removesuffix(HELD_OUT)
        if name != block:
            return HeldOutScorer(readers[block], self._list_scorer(block), self._held_out[block])
        scorer: RowScorer
        if block == POINTS:
            scorer = PointScorer(read_network(self._networks, block))
        elif self._top_k is None:
            scorer = self._sum_scorer(block)
        elif block in readers:
            scorer = PrunedScorer(readers[block], self._top_k)
        else:
            scorer = self._list_scorer(block)
        return self._of_rows(block, [scorer, *self._existing_scorers(block)])

    def _of_rows(self, block: str, scorers: Sequence[RowScorer]) -> Scorer:
        """Hand scorers the activations of their rows."""

        def read_and_score(span: RowSpan, sink: Sink) -> None:
            rows = self._activations.read_range(f"{block}_rows", span.start, span.stop)
            for score in scorers:
                score(RowSpan(block, span.start, span.stop), rows, sink)

        return read_and_score

    def _list_scorer(
        self,
        block: str,
        *,
        first: int = 0,
        resume: Callable[[RowSpan], TopKState] | None = None,
    ) -> ListScorer:
        """Return what lists the columns of a block from a first one on."""
        return ListScorer(
            read_network(self._networks, block),
            self._columns(block, first),
            self._top_k or 0,
            make_backend(self.resources),
            self._num_counted_as(block),
            num_threads_of(self.resources),
            dense=self._config.dense,
            resume=resume,
        )

    def _sum_scorer(self, block: str, *, first: int = 0) -> SumScorer:
        """Return what sums the columns of a block from a first one on."""
        subtasks = Subtasks.one(self._num_rows(block))
        if block == CROSS and self._subtask_by is not None and self._examples is not None:
            subtasks = read_subtasks(self._examples, self._subtask_by)
        return SumScorer(
            read_network(self._networks, block),
            self._columns(block, first),
            subtasks,
            self._num_counted_as(block),
            num_threads_of(self.resources),
        )

    def _existing_scorers(self, block: str) -> list[ExistingScorer]:
        """Return what scores a block's rows against existing data, where there are any."""
        if not self._has_existing(block):
            return []
        table, tile_rows = f"{block}_existing", self._config.column_tile
        tiles = ColumnTiles(self._activations, table, tile_rows, keep=False)
        return [ExistingScorer(read_network(self._networks, block), tiles)]

    def _columns(self, block: str, first: int) -> ColumnTiles:
        keep = self._memory(block, first).keeps_columns(self._config.max_worker_bytes)
        table, tile_rows = f"{block}_columns", self._config.column_tile
        return ColumnTiles(self._activations, table, tile_rows, keep=keep, first=first)

    def _has_existing(self, block: str) -> bool:
        return bool(self._activations.num_rows(f"{block}_existing"))

    def _num_rows(self, block: str) -> int:
        return self._activations.num_rows(f"{block}_rows")

    def _num_columns(self, block: str) -> int:
        return self._activations.num_rows(f"{block}_columns")

    def _num_counted_as(self, block: str) -> int:
        """Return the number of rows that says which of them are counted."""
        return self._num_rows(block)

    def _memory(self, block: str, first: int = 0) -> PairMemory:
        return PairMemory(
            self._num_columns(block) - first,
            read_network(self._networks, block).num_hidden,
            shard_rows=min(self.shard_items * ATOM_ROWS, self._num_rows(block)),
            top_k=self._top_k or 0,
            column_tile=self._config.column_tile,
        )

    def _check_bounds(self, block: str) -> None:
        config = self._config
        self._memory(block).check_streamed(block, config.max_worker_bytes)
        size = self._num_rows(block) * self._num_columns(block) * FLOAT_BYTES
        if config.dense and size > config.max_dense_bytes:
            raise ConfigError(
                f"pair_scores.dense: all scores of block '{block}' are "
                f"{self._num_rows(block):,} x {self._num_columns(block):,} numbers, {size:,} "
                f"bytes, more than pair_scores.max_dense_bytes = {config.max_dense_bytes:,}: raise "
                "it, or leave dense out"
            )


# New pairs: what a run that goes on from another has to score, and nothing that is scored.


class ScoreNewPairsStage(ScorePairsStage):
    """Write ``<block>_top_helpers`` whole, and what is new of the other tables of score_pairs.

    Old rows meet the new columns, and what is best among them enters the lists that the parent
    kept; new rows meet all columns. Every pair's score has the bits it has in a run over
    everything, and a list is the best K of them, ties by smaller column; so the lists, column
    maxima and sums, read behind the parent's, are those of such a run.

    New pairs are all scored, however the parent chose its own. Where it pruned, old rows miss what
    it missed, no more; recall of the joined lists is measured again on the rows it was measured on.
    """

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        parent_activations: StageOutput,
        parent_scores: StageOutput,
        config: PairScoresConfig,
        *,
        examples: StageOutput | None = None,
    ) -> None:
        """Score what is in the activations and not in the parent's.

        Args:
            activations: Of the union, the parent's rows first.
            networks: The parent's networks.
            parent_activations: Their tables tell how many rows and columns are scored.
            parent_scores: What of the scores was kept; blocks, K and subtasks are as there.
            config: The recipe's section.
            examples: The union's examples; read only where the parent's sums are by subtask.
        """
        settings = parent_scores.manifest.settings
        as_before = {"dense": False, "top_k": settings.get("top_k", config.top_k)}
        super().__init__(
            activations,
            networks,
            settings["blocks"],
            config.model_copy(update=as_before),
            keeps_lists="top_k" in settings,
            examples=examples,
            subtask_by=settings.get("subtask_by"),
        )
        self._parent_activations, self._parent_scores = parent_activations, parent_scores
        self._held_out = _held_out_rows(parent_scores)
        ranges: list[tuple[str, int]] = []
        first: dict[str, int] = {}
        for block in self._blocks:
            first[block] = parent_activations.num_rows(f"{block}_rows")
            if block != POINTS:
                ranges.append((f"{block}{OLD}", first[block]))
            ranges.append((block, self._num_rows(block) - first[block]))
        ranges += [(f"{block}{HELD_OUT}", len(rows)) for block, rows in self._held_out.items()]
        self._atoms = RowAtoms(tuple(ranges), ATOM_ROWS, first_rows=first)

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations, networks, the parent's work, and the records that name subtasks."""
        parents = {"parent_activations": self._parent_activations, "parent": self._parent_scores}
        return {**super().inputs, **parents}

    def settings(self) -> dict[str, Any]:
        """As the parent's, but that new pairs are all scored, and the dense table is left out."""
        tables = ("top_helpers", "dense") if self._top_k else ()
        whole = [f"{block}_{table}" for block in self._blocks for table in tables]
        kept = {"top_k": self._top_k} if self._top_k else {"subtask_by": self._subtask_by}
        blocks = list(self._blocks)
        return {"blocks": blocks, "mode": "exact", **kept, WHOLE_TABLES: [*whole, "recall"]}

    def _make_scorer(self, name: str, readers: Mapping[str, IndexReader]) -> Scorer:
        """Return what scores rows of a block against the columns that they lack."""
        if name.endswith(HELD_OUT):
            return self._recall_scorer(name.removesuffix(HELD_OUT))
        block = name.removesuffix(OLD)
        if name == block:
            return super()._make_scorer(name, readers)
        first = self._parent_activations.num_rows(f"{block}_columns")
        if self._top_k is None:
            return self._of_rows(block, [self._sum_scorer(block, first=first)])
        table = f"{block}_top_helpers"
        if self._num_columns(block) == first:

            def copy_lists(span: RowSpan, sink: Sink) -> None:
                lists = self._parent_scores.read_range(table, span.start, span.stop)
                sink.write(table, lists.cast(schemas.TOP_HELPERS))

            return copy_lists

        def resume(span: RowSpan) -> TopKState:
            return self._state_of(self._parent_scores.read_range(table, span.start, span.stop))

        return self._of_rows(block, [self._list_scorer(block, first=first, resume=resume)])

    def _num_counted_as(self, block: str) -> int:
        """Return the rows by which every n-th is counted: those of the first run of the chain.

        A run over everything may count other rows of a large block; here all parts of a chain count
        the same ones.
        """
        return root_of(self._parent_activations).num_rows(f"{block}_rows")

    def _recall_scorer(self, block: str) -> Scorer:
        """Return what compares held-out rows' joined lists with their true ones."""
        first = self._parent_activations.num_rows(f"{block}_columns")
        num_columns = self._num_columns(block)
        share = (num_columns - first) / num_columns  # of a row's columns, scored in this run

        def resume(span: RowSpan) -> TopKState:
            rows = self._held_out[block][span.start : span.stop]
            return self._state_of(self._parent_scores.take_rows(f"{block}_top_helpers", rows))

        every = self._list_scorer(block)
        joined = self._list_scorer(block, first=first, resume=resume)

        def measure(span: RowSpan, sink: Sink) -> None:
            rows = self._held_out[block][span.start : span.stop]
            a_IH, none = read_rows(self._activations, block, rows), CountedRows.none(len(rows))
            true, _ = every.score(span, a_IH, none)
            found, _ = joined.score(span, a_IH, none)
            if true is None or found is None:
                return
            recall_I = recall_at_k(found.score_IK, true.score_IK)
            table = recall_rows_table(block, rows, recall_I, np.full(len(rows), share))
            sink.write("recall", table)

        return measure

    def _state_of(self, lists: pa.Table) -> TopKState:
        """Return the parent's lists of some rows as what further columns are added to."""
        state = start_state(lists.num_rows, self._top_k or 0, 0, 0, None)
        helper, influence = (
            cast("Any", lists[name].combine_chunks()) for name in ("helper_index", "influence")
        )
        row_P = np.repeat(np.arange(lists.num_rows), helper.value_lengths().to_numpy())
        score_P = influence.flatten().to_numpy()
        add_pairs(state, row_P, helper.flatten().to_numpy(), score_P)
        return state


def _is_pruned(decision: Any) -> bool:
    return decision is not None and decision.mode == PRUNED


def _held_out_rows(scores: StageOutput) -> dict[str, np.ndarray]:
    """Return the rows of each pruned block that the parent measured recall on."""
    table = scores.read("recall", ["block", "row_index"], schemas.ROW_RECALL)
    return {
        str(block): np.sort(table.filter(pc.field("block") == block)["row_index"].to_numpy())
        for block in table["block"].unique().to_pylist()
    }
