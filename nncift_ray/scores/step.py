"""Project and score pairs: the network's influence for the pairs of a block, what is kept of it.

The first layer reads [e_i ; 0 ; e_j], so ``project`` computes a row part and a column part once an
example; a pointwise network has rows only. ``score_pairs`` keeps every row's best K helpers, for
objectives that cover rows, or the sums of every column by subtask, for top_k. Rows are sharded;
columns stream through every shard tile by tile, or are looked up in the index where that was
decided. Nothing of size rows x columns is held, nor written unless asked for. A run that goes on
from another scores its new pairs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import ConfigError, StageError
from nncift_ray.network.factored import read_network
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.recipe.sections import PairScoresConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import (
    WHOLE_TABLES,
    Sink,
    StageOutput,
    column_matrix,
    vectors_to_arrow,
)
from nncift_ray.runtime.schemas import CANDIDATE, CROSS, EXISTING, POINTS, helped_role
from nncift_ray.runtime.step import RowAtoms, RowSpan, RowStage, Shard, Worker, merge_spans, present
from nncift_ray.scores.exact import RescoredTopK, TopKState, add_pairs, start_state
from nncift_ray.scores.index_step import PRUNED, draw_held_out, index_digest, read_decisions
from nncift_ray.scores.scorers import (
    FLOAT_BYTES,
    Columns,
    HeldOutScorer,
    ListScorer,
    PairMemory,
    PrunedScorer,
    RowScorer,
    keep_existing,
    keep_points,
    keep_sums,
    make_backend,
    num_threads_of,
    peak_bytes,
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

    Existing data are helpers: they go through the column half of the block's network. ``parent``
    holds the activations of the first rows, where a run goes on with further data.
    """

    name: ClassVar[str] = "project"
    title: ClassVar[str] = "project embeddings"

    def __init__(
        self,
        inputs: ExampleInputs,
        networks: StageOutput,
        blocks: Sequence[str],
        *,
        shard_rows: int = PROJECT_SHARD_ROWS,
        parent: StageOutput | None = None,
        pairs_only: bool = False,
    ) -> None:
        """Project the inputs through the networks of the given blocks.

        ``pairs_only`` leaves out what an example is by itself, so that scores are their pair part;
        of pair networks only.
        """
        self._pairs_only = pairs_only
        self._inputs, self._networks, self._parent = inputs, networks, parent
        self._blocks, self._shard_rows = tuple(blocks), shard_rows
        widths = {b: read_network(networks, b).num_hidden for b in self._blocks}
        self._widths, embeddings = widths, inputs.embeddings
        left: list[tuple[str, int]] = []
        done: dict[str, int] = {}
        for block in self._blocks:
            for side in ("rows",) if block == POINTS else ("rows", "columns", EXISTING):
                table = f"{block}_{side}"
                num_rows = embeddings.num_rows(_embeddings_of(table))
                if num_rows or side != EXISTING:
                    done[table] = parent.num_rows(table) if parent else 0
                    left.append((table, num_rows - done[table]))
        self._atoms = RowAtoms(tuple(left), PROJECT_ATOM_ROWS, first_rows=done)
        self.inputs = {**inputs.steps, **present(networks=networks, parent=parent)}

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Activations of each block and side."""
        return {name: self._schema(name) for name, _ in self._atoms.ranges}

    def _schema(self, table: str) -> pa.Schema:
        return schemas.activations_schema(self._widths[table.rpartition("_")[0]])

    def settings(self) -> dict[str, Any]:
        """The blocks; the rest is in the inputs."""
        settings = {"blocks": list(self._blocks), "atom_rows": PROJECT_ATOM_ROWS}
        return settings | ({"pairs_only": True} if self._pairs_only else {})

    def make_worker(self) -> Worker:
        """Load the networks."""
        networks = {block: read_network(self._networks, block) for block in self._blocks}

        def project_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                block, _, side = span.name.rpartition("_")
                network = networks[block]
                project = network.project_rows if side == "rows" else network.project_columns
                read = self._inputs.read(_embeddings_of(span.name), span.start, span.stop)
                activation_NH = project(read)
                if self._pairs_only:
                    activation_NH[:, -1] = 0.0  # the example's own effect (`scores.exact`)
                columns = {
                    "row_index": np.arange(span.start, span.stop),
                    "activation": vectors_to_arrow(activation_NH, "float32"),
                }
                schema = self._schema(span.name)
                sink.write(span.name, pa.Table.from_pydict(columns, schema=schema))

        return project_shard


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
        whole: bool = False,
    ) -> None:
        """Score the pairs of the given blocks, or the examples of the block "points".

        ``keeps_lists`` keeps lists of helpers, and not the sum of every column, which is what the
        objective top_k reads. ``subtask_by`` is the field of a target's record that names its
        subtask (None: one for all); only then the examples are read. Blocks that the index stage
        did not decide to prune are scored exactly. ``whole`` lists hold every column, for
        objectives that add pairs up.

        Raises:
            ConfigError: If a bound on memory or on whole lists does not hold.
        """
        if whole:
            num_columns = max(activations.num_rows(f"{block}_columns") for block in blocks)
            config = config.model_copy(update={"top_k": max(num_columns, 1)})
        self._whole = whole
        self._activations, self._networks, self._index = activations, networks, index
        self._blocks, self._config = tuple(blocks), config
        self._examples, self._subtask_by = examples, subtask_by
        if subtask_by is not None and examples is None:
            raise StageError("data.subtask_by needs the examples, whose records name the subtasks")
        self._keeps_lists = keeps_lists and POINTS not in self._blocks
        self.can_use_gpu = self._keeps_lists and not whole
        decisions = {} if index is None else read_decisions(index)
        self._searches = {
            block: decisions[block].search
            for block in self._blocks
            if block in decisions and decisions[block].mode == PRUNED
        }
        self._held_out = {
            block: draw_held_out(self._num("rows", block), config.recall_rows, config.seed)[1]
            for block in self._searches
        }
        self._atoms = self._cut([(block, self._num("rows", block)) for block in self._blocks])
        for block in self._blocks:
            self._check_bounds(block)
        # No index among them: it counts by what it holds (``settings``), not how it came to be.
        self.inputs = present(
            activations=activations,
            networks=networks,
            examples=None if subtask_by is None else examples,
        )

    def _cut(
        self, ranges: list[tuple[str, int]], first_rows: Mapping[str, int] | None = None
    ) -> RowAtoms:
        """Return the atoms of ranges of rows, and of the rows held out behind them."""
        held_out = [(f"{block}{HELD_OUT}", len(rows)) for block, rows in self._held_out.items()]
        return RowAtoms((*ranges, *held_out), ATOM_ROWS, first_rows=first_rows or {})

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, and sums or lists with column maxima."""
        tables = {"statistics": schemas.SCORE_STATISTICS}
        for block in self._blocks:
            if self._num(EXISTING, block):
                tables[f"{block}_existing_influence"] = schemas.EXISTING_INFLUENCE
        if not self._keeps_lists:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        for block in self._blocks:
            tables[f"{block}_top_helpers"] = schemas.TOP_HELPERS
        if self._held_out:
            tables["recall"] = schemas.ROW_RECALL
        return tables | {"column_max": schemas.COLUMN_MAX}

    def settings(self) -> dict[str, Any]:
        """What is kept and what is scored; tiles, shards and threads change nothing."""
        config = self._config
        settings: dict[str, Any] = {"blocks": list(self._blocks), "mode": "exact"}
        if self._keeps_lists:
            settings |= {"top_k": config.top_k}
            settings |= {"whole": True} if self._whole else {}
        else:
            settings["subtask_by"] = self._subtask_by
        if self._index is not None and self._searches:
            settings["mode"] = PRUNED
            settings["searches"] = {
                block: {**asdict(search), "index": index_digest(self._index, block)}
                for block, search in self._searches.items()
            }
            settings["held_out"] = {"recall_rows": config.recall_rows, "seed": config.seed}
        return settings

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
        index, k, num_threads = self._index, self._config.top_k, num_threads_of(self.resources)
        pruned = {
            block: PrunedScorer(block, index, self._activations, search, k, num_threads)
            for block, search in self._searches.items()
            if index is not None
        }
        scorers = {
            name: self._make_scorer(name, pruned) for name, count in self._atoms.ranges if count
        }

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                scorers[span.name](span, sink)
            sink.facts["peak_bytes"] = peak_bytes()

        return score_shard

    def _make_scorer(self, name: str, pruned: Mapping[str, PrunedScorer]) -> Scorer:
        """Return what scores a range of rows and writes what is kept."""
        block = name.removesuffix(HELD_OUT)
        if name != block:
            exact = self._list_scorer(self._columns(block))
            return HeldOutScorer(block, self._held_out[block], exact, pruned[block].search)
        scorer: RowScorer
        if block == POINTS:
            scorer = partial(keep_points, read_network(self._networks, block))
        elif not self._keeps_lists:
            scorer = self._sum_scorer(self._columns(block), block)
        else:
            scorer = pruned.get(block) or self._list_scorer(self._columns(block))
        if not self._num(EXISTING, block):
            return self._of_rows(block, scorer)
        existing = self._columns(block, side=EXISTING)
        return self._of_rows(block, scorer, partial(keep_existing, existing))

    def _of_rows(self, block: str, *scorers: RowScorer) -> Scorer:
        """Hand scorers the activations of their rows."""

        def read_and_score(span: RowSpan, sink: Sink) -> None:
            table = f"{block}_rows"
            rows = self._activations.read_range(table, span.start, span.stop, ["activation"])
            a_IH = column_matrix(rows["activation"])
            for score in scorers:
                score(RowSpan(block, span.start, span.stop), a_IH, sink)

        return read_and_score

    def _list_scorer(
        self, columns: Columns, resume: Callable[[RowSpan], TopKState] | None = None
    ) -> ListScorer:
        score_tiles = make_backend(self.resources)
        return ListScorer(columns, self._config.top_k, score_tiles, resume)

    def _sum_scorer(self, columns: Columns, block: str) -> RowScorer:
        subtasks = Subtasks.one(self._num("rows", block))
        if block == CROSS and self._subtask_by is not None and self._examples is not None:
            subtasks = read_subtasks(self._examples, self._subtask_by)
        return partial(keep_sums, columns, subtasks)

    def _columns(self, block: str, first: int = 0, side: str = "columns") -> Columns:
        fits = self._memory(block, first).keeps_columns(self._config.max_worker_bytes)
        return Columns(
            read_network(self._networks, block),
            self._activations,
            f"{block}_{side}",
            self._config.column_tile,
            num_threads=num_threads_of(self.resources),
            first=first,
            keep=fits and side != EXISTING,
        )

    def _num(self, side: str, block: str) -> int:
        """Return a block's number of rows, columns or existing examples."""
        return self._activations.num_rows(f"{block}_{side}")

    def _memory(self, block: str, first: int = 0) -> PairMemory:
        return PairMemory(
            self._num("columns", block) - first,
            read_network(self._networks, block).num_hidden,
            shard_rows=min(self.shard_items * ATOM_ROWS, self._num("rows", block)),
            top_k=self._config.top_k if self._keeps_lists else 0,
            column_tile=self._config.column_tile,
        )

    def _check_bounds(self, block: str) -> None:
        config = self._config
        self._memory(block).check_streamed(block, config.max_worker_bytes)
        num_rows, num_columns = self._num("rows", block), self._num("columns", block)
        size = num_rows * num_columns * FLOAT_BYTES
        if self._whole and 2 * size > config.max_dense_bytes:
            raise ConfigError(
                f"selection.objective adds up every pair of block '{block}': {num_rows:,} x "
                f"{num_columns:,}, {2 * size:,} bytes with their numbers, more than "
                f"pair_scores.max_dense_bytes = {config.max_dense_bytes:,}: raise it, or take "
                "facility_location or pair_coverage, which read lists of best helpers"
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
        """Score what is in the activations of the union and not in the parent's.

        Blocks, K and subtasks are as in the parent's scores. The union's examples are read only
        where the parent's sums are by subtask.
        """
        settings = parent_scores.manifest.settings
        super().__init__(
            activations,
            networks,
            settings["blocks"],
            config.model_copy(update={"top_k": settings.get("top_k", config.top_k)}),
            keeps_lists="top_k" in settings,
            examples=examples,
            subtask_by=settings.get("subtask_by"),
            whole=settings.get("whole", False),
        )
        self._parent_activations, self._parent_scores = parent_activations, parent_scores
        self.inputs |= {"parent_activations": parent_activations, "parent": parent_scores}
        recall = parent_scores.read("recall", ["block", "row_index"], schemas.ROW_RECALL)
        self._held_out = {
            str(block): np.sort(recall.filter(pc.field("block") == block)["row_index"].to_numpy())
            for block in recall["block"].unique().to_pylist()
        }
        ranges: list[tuple[str, int]] = []
        first: dict[str, int] = {}
        for block in self._blocks:
            first[block] = parent_activations.num_rows(f"{block}_rows")
            if block != POINTS:
                ranges.append((f"{block}{OLD}", first[block]))
            ranges.append((block, self._num("rows", block) - first[block]))
        self._atoms = self._cut(ranges, first)

    def settings(self) -> dict[str, Any]:
        """As the parent's, but that new pairs are all scored."""
        settings: dict[str, Any] = {"blocks": list(self._blocks), "mode": "exact"}
        if not self._keeps_lists:
            return settings | {"subtask_by": self._subtask_by, WHOLE_TABLES: ["recall"]}
        whole = [f"{block}_top_helpers" for block in self._blocks]
        return settings | {"top_k": self._config.top_k, WHOLE_TABLES: [*whole, "recall"]}

    def _make_scorer(self, name: str, pruned: Mapping[str, PrunedScorer]) -> Scorer:
        """Return what scores rows of a block against the columns that they lack."""
        if name.endswith(HELD_OUT):
            return self._recall_scorer(name.removesuffix(HELD_OUT))
        block = name.removesuffix(OLD)
        if name == block:
            return super()._make_scorer(name, pruned)
        if not self._keeps_lists:
            first = self._parent_activations.num_rows(f"{block}_columns")
            return self._of_rows(block, self._sum_scorer(self._columns(block, first), block))

        def read(span: RowSpan) -> pa.Table:
            table = f"{block}_top_helpers"
            return self._parent_scores.read_range(table, span.start, span.stop)

        def copy_lists(span: RowSpan, sink: Sink) -> None:
            sink.write(f"{block}_top_helpers", read(span).cast(schemas.TOP_HELPERS))

        if self._num("columns", block) == self._parent_activations.num_rows(f"{block}_columns"):
            return copy_lists
        return self._of_rows(block, self._joined_scorer(block, read))

    def _recall_scorer(self, block: str) -> Scorer:
        """Return what compares held-out rows' joined lists with their true ones."""
        held_out = self._held_out[block]

        def read(span: RowSpan) -> pa.Table:
            rows = held_out[span.start : span.stop]
            return self._parent_scores.take_rows(f"{block}_top_helpers", rows)

        joined = self._joined_scorer(block, read)

        def search(span: RowSpan, a_IH: np.ndarray) -> RescoredTopK | None:
            top = joined.score(span, a_IH)
            if top is None:
                return None
            return RescoredTopK(top.index_IK, top.score_IK, top.statistics.num_pairs_I)

        exact = self._list_scorer(self._columns(block))
        return HeldOutScorer(block, held_out, exact, search, keeps_statistics=False)

    def _joined_scorer(self, block: str, read: Callable[[RowSpan], pa.Table]) -> ListScorer:
        """Return what adds the new columns to the parent's lists of some rows."""
        first = self._parent_activations.num_rows(f"{block}_columns")
        columns = self._columns(block, first)
        return self._list_scorer(columns, lambda span: _state_of(read(span), self._config.top_k))


def _state_of(lists: pa.Table, k: int) -> TopKState:
    """Return the lists of some rows as what further columns are added to."""
    state = start_state(lists.num_rows, k, 0, 0, None)
    helper, influence = (
        cast("Any", lists[name].combine_chunks()) for name in ("helper_index", "influence")
    )
    row_P = np.repeat(np.arange(lists.num_rows), helper.value_lengths().to_numpy())
    add_pairs(state, row_P, helper.flatten().to_numpy(), influence.flatten().to_numpy())
    return state
