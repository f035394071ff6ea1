"""Score pairs: the network's influence for the pairs of a block, and what is kept of it.

Either every row's best K helpers, for objectives that cover rows, or the sums of every column by
subtask, for top_k; of a pointwise network the score of every candidate. Of data that the model has
already, what they do for every row, for conditional gains. Rows are sharded; columns stream through
every shard tile by tile, or are looked up in the index of the ``index`` stage where that decided
so. Nothing of size rows x columns is held, nor written unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import ConfigError, DataError, StageError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix, vectors_to_arrow
from nncift_ray.runtime.schemas import CROSS, EXISTING, POINTS, helped_role
from nncift_ray.runtime.step import RowAtoms, RowSpan, RowStage, Shard, Worker, merge_spans
from nncift_ray.scores.backend import (
    FLOAT_BYTES,
    PairMemory,
    ScoresRows,
    make_backend,
    num_threads_of,
    peak_bytes,
)
from nncift_ray.scores.exact import (
    CpuThreads,
    RescoredTopK,
    ScoreStatistics,
    ScoreTotal,
    TopK,
    TopKState,
    run_parts,
    score_matrix,
    score_points,
    sum_columns,
    to_fixed_point,
    top_k_rows,
)
from nncift_ray.scores.index import recall_at_k
from nncift_ray.scores.index_step import (
    CALL_ROWS,
    GENERATORS,
    PRUNED,
    BlockDecision,
    ColumnIndex,
    HeldOutRows,
    index_digests,
    index_files,
    read_columns,
    read_decisions,
    read_index,
    read_rows,
)
from nncift_ray.scores.kernel import CountedRows, count_values

# Columns whose sums are made at once: as many as fit in this, times their subtasks.
SUM_BYTES = 64 * 1024**2
INT_BYTES = 8
DENSE_ROWS = 256  # written at a time


@dataclass(frozen=True)
class ListScorer:
    """Keeps the best helpers of every row, and of `cross` every helper's largest influence.

    ``resume`` returns what some rows have kept already, of columns that come before these.
    """

    network: FactoredNetwork
    columns: ColumnTiles
    top_k: int
    score_rows: ScoresRows
    num_block_rows: int
    num_threads: int = 1
    dense: bool = False
    resume: Callable[[RowSpan], TopKState] | None = None

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all columns.

        Raises:
            DataError: If an activation is not finite; the message names the first such row.
        """
        activation = column_matrix(rows["activation"])
        counted = CountedRows.of_range(span.start, span.stop, self.num_block_rows)
        top, maxima = self.score(span, activation, counted)
        if top is None:
            return
        sink.write(
            f"{span.name}_top_helpers",
            top_helpers_table(rows["row_index"], top.index_IK, top.score_IK),
        )
        write_statistics(sink, span.name, top.statistics.total())
        write_histogram(sink, span.name, counted.count_B)
        if span.name == CROSS:
            helper = np.arange(self.columns.first, self.columns.first + len(maxima))
            sink.write("column_max", column_max_table(span.name, helper, maxima))
        if self.dense:
            self._write_dense(span.name, rows["row_index"], activation, sink)

    def score(
        self, span: RowSpan, activation: np.ndarray, counted: CountedRows
    ) -> tuple[TopK | None, np.ndarray]:
        """Return lists and statistics (None without columns) and every column's maximum."""
        top: TopK | None = None
        state = None if self.resume is None else self.resume(span)
        maxima: list[np.ndarray] = [np.zeros(0, np.float32)]
        for offset, tile in self.columns:
            try:
                top = self.score_rows(
                    activation,
                    tile,
                    self.network.w_H,
                    self.network.bias,
                    self.top_k,
                    column_offset=offset,
                    state=state,
                    counted=counted,
                )
            except ValueError as error:
                raise bad_activations(
                    span.name, span.start, activation, offset, tile, error
                ) from error
            state = top.state
            maxima.append(top.column_max_J)
        return top, np.concatenate(maxima)

    def _write_dense(
        self, block: str, row_index: pa.ChunkedArray, activation: np.ndarray, sink: Sink
    ) -> None:
        network = self.network
        for start in range(0, len(activation), DENSE_ROWS):
            piece = activation[start : start + DENSE_ROWS]
            tiles = [
                np.concatenate(
                    run_parts(
                        len(piece),
                        self.num_threads,
                        lambda part, tile=tile, piece=piece: score_matrix(
                            piece[part], tile, network.w_H, network.bias
                        ),
                    )
                )
                for _, tile in self.columns
            ]
            sink.write(
                f"{block}_dense",
                dense_table(row_index.slice(start, len(piece)), np.concatenate(tiles, axis=1)),
            )


@dataclass(frozen=True)
class SumScorer:
    """Keeps the sum of every column over the rows of each subtask."""

    network: FactoredNetwork
    columns: ColumnTiles
    subtasks: Subtasks
    num_block_rows: int
    num_threads: int = 1

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all columns.

        Raises:
            StageError: If the scores are too large to be added exactly.
        """
        activation, threads = column_matrix(rows["activation"]), CpuThreads(self.num_threads)
        present, group_I = np.unique(
            self.subtasks.group_I[span.start : span.stop], return_inverse=True
        )
        num_rows_G = np.bincount(group_I)
        step = max(1, SUM_BYTES // (INT_BYTES * len(present)))
        statistics: ScoreStatistics | None = None
        counted = CountedRows.of_range(span.start, span.stop, self.num_block_rows)
        for offset, tile in self.columns:
            for start in range(0, len(tile), step):
                try:
                    sums = threads.sum_columns(
                        activation,
                        tile[start : start + step],
                        self.network.w_H,
                        self.network.bias,
                        group_I,
                        len(present),
                        statistics=statistics,
                        counted=counted,
                    )
                except ValueError as error:
                    raise StageError(f"block '{span.name}': {error}") from error
                statistics = sums.statistics
                for group, num_rows, sum_J in zip(present, num_rows_G, sums.sum_GJ, strict=True):
                    name = self.subtasks.names[group]
                    helper = np.arange(offset + start, offset + start + len(sum_J))
                    table = column_sums_table(span.name, name, num_rows, helper, sum_J)
                    sink.write("column_sums", table)
        if statistics is not None:
            write_statistics(sink, span.name, statistics.total())
            write_histogram(sink, span.name, counted.count_B)


@dataclass(frozen=True)
class PointScorer:
    """Keeps the score of every example, of a pointwise network."""

    network: FactoredNetwork

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some examples.

        Raises:
            StageError: If a score is too large to be kept in fixed point.
        """
        activation = column_matrix(rows["activation"])
        score_N = score_points(activation, self.network.w_H, self.network.bias)
        try:
            fixed_N = to_fixed_point(score_N)
        except ValueError as error:
            raise StageError(f"block '{span.name}': {error}") from error
        helper = np.arange(span.start, span.start + len(fixed_N))
        sink.write("column_sums", column_sums_table(span.name, None, 1, helper, fixed_N))
        wide_N = score_N.astype(np.float64)
        total = ScoreTotal(
            num_pairs=len(score_N),
            min=float(score_N.min()),
            max=float(score_N.max()),
            sum=math.fsum(wide_N),
            sum_of_squares=math.fsum(wide_N**2),
        )
        write_statistics(sink, span.name, total)
        write_histogram(sink, span.name, count_values(score_N))


class ColumnTiles:
    """The column activations of a block, tile by tile; kept in memory where they fit."""

    def __init__(
        self,
        activations: StageOutput,
        table: str,
        tile_rows: int,
        *,
        keep: bool,
        first: int = 0,
    ) -> None:
        """Read ``table`` from row ``first`` on in tiles, once if they are to be kept."""
        self._activations, self._table, self._tile_rows = activations, table, tile_rows
        self._num_rows, self._keep = activations.num_rows(table), keep
        self.first = first
        self._kept: list[tuple[int, np.ndarray]] | None = None

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first column, activations [T, H])."""
        if self._kept is None and self._keep:
            self._kept = list(self._read())
        yield from self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(self.first, self._num_rows, self._tile_rows):
            stop = min(start + self._tile_rows, self._num_rows)
            rows = self._activations.read_range(self._table, start, stop, ["activation"])
            yield start, column_matrix(rows["activation"])


def top_helpers_table(
    row_index: pa.Array | pa.ChunkedArray, index_IK: np.ndarray, score_IK: np.ndarray
) -> pa.Table:
    """Write top-K lists as a table; rows with fewer helpers (index -1) have shorter lists."""
    kept = index_IK >= 0
    offsets = pa.array(np.r_[0, np.cumsum(kept.sum(axis=1))], pa.int32())
    return pa.Table.from_pydict(
        {
            "row_index": row_index,
            "helper_index": pa.ListArray.from_arrays(offsets, pa.array(index_IK[kept])),
            "influence": pa.ListArray.from_arrays(offsets, pa.array(score_IK[kept])),
        },
        schema=schemas.TOP_HELPERS,
    )


def column_sums_table(
    block: str,
    subtask: str | None,
    num_rows: int | np.ndarray,
    helper_J: np.ndarray,
    sum_J: np.ndarray,
) -> pa.Table:
    """Write the sums of columns over so many rows of one subtask (one number, or one each)."""
    count = len(sum_J)
    return pa.table(
        {
            "block": pa.array([block] * count, pa.string()),
            "subtask": pa.array([subtask] * count, pa.string()),
            "num_rows": pa.array(np.full(count, num_rows), pa.int64()),
            "helper_index": pa.array(helper_J, pa.int64()),
            "sum": pa.array(sum_J, pa.int64()),
        },
        schema=schemas.COLUMN_SUMS,
    )


def dense_table(row_index: pa.ChunkedArray, score_IJ: np.ndarray) -> pa.Table:
    """Write all scores of some rows."""
    return pa.Table.from_pydict(
        {"row_index": row_index, "influence": vectors_to_arrow(score_IJ, "float32")},
        schema=schemas.dense_schema(score_IJ.shape[1]),
    )


def write_statistics(
    sink: Sink, block: str, total: ScoreTotal, *, num_scored: int | None = None
) -> None:
    """Write count, extremes and sums of some scores of a block.

    Args:
        sink: Of the shard.
        block: The block.
        total: Of the pairs that the statistics cover.
        num_scored: Pairs scored for lists or sums, where those are others.
    """
    scored = total.num_pairs if num_scored is None else num_scored
    row = {"block": block, "num_scored": scored, **asdict(total)}
    sink.write_rows("statistics", [row], schemas.SCORE_STATISTICS)


def write_histogram(sink: Sink, block: str, count_B: np.ndarray) -> None:
    """Write the bins that hold counts."""
    bins = np.flatnonzero(count_B)
    columns = {
        "block": pa.array([block] * len(bins), pa.string()),
        "bin": pa.array(bins, pa.int32()),
        "count": pa.array(count_B[bins], pa.int64()),
    }
    sink.write("histogram", pa.table(columns, schema=schemas.SCORE_HISTOGRAM))


def bad_activations(
    block: str,
    first_row: int,
    a_IH: np.ndarray,
    first_column: int,
    b_JH: np.ndarray,
    error: ValueError,
) -> DataError:
    """Name the first example whose activations are not finite, as the block numbers it."""
    for side, first, values_NH in (
        ("row (helped)", first_row, a_IH),
        ("column (helper)", first_column, b_JH),
    ):
        bad = np.flatnonzero(~np.isfinite(values_NH).all(axis=1))
        if len(bad):
            return DataError(
                f"block '{block}': the activations of {side} {first + bad[0]} are not finite "
                f"({len(bad)} of {len(values_NH)} here). Look at its text, and embed it anew."
            )
    return DataError(f"block '{block}': {error}")


def column_max_table(block: str, helper_J: np.ndarray, maximum_J: np.ndarray) -> pa.Table:
    """Write the largest influence of columns on any row."""
    return pa.table(
        {
            "block": pa.array([block] * len(maximum_J), pa.string()),
            "helper_index": pa.array(helper_J, pa.int64()),
            "max_influence": pa.array(maximum_J, pa.float32()),
        },
        schema=schemas.COLUMN_MAX,
    )


# What data that the model already has do for the rows of a block: kept as one number or two a row.


@dataclass(frozen=True)
class ExistingScorer:
    """Writes ``<block>_existing_influence``: the largest and the summed influence on each row."""

    network: FactoredNetwork
    existing: ColumnTiles

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all existing examples.

        Raises:
            StageError: If the scores are too large to be added exactly.
        """
        activation_IH = column_matrix(rows["activation"])
        sum_I = np.zeros(len(activation_IH), np.int64)
        top: TopK | None = None
        for offset, tile_PH in self.existing:
            top = top_k_rows(
                activation_IH,
                tile_PH,
                self.network.w_H,
                self.network.bias,
                1,
                column_offset=offset,
                state=None if top is None else top.state,
            )
            sum_I += self._sums(activation_IH, tile_PH, span)
        if top is None:
            return
        sink.write(
            f"{span.name}_existing_influence",
            pa.Table.from_pydict(
                {
                    "row_index": rows["row_index"],
                    "max_influence": pa.array(top.score_IK[:, 0], pa.float32()),
                    "sum": pa.array(sum_I, pa.int64()),
                },
                schema=schemas.EXISTING_INFLUENCE,
            ),
        )
        write_statistics(sink, EXISTING, top.statistics.total())

    def _sums(self, activation_IH: np.ndarray, tile_PH: np.ndarray, span: RowSpan) -> np.ndarray:
        """Return sum_p s_ip [I] as whole numbers of 2**-32.

        The score w . relu(a_i + b_p) + c does not change when the two sides are exchanged, so the
        sums of columns serve: rows as columns, existing examples as the rows that are added up.
        """
        one_group = np.zeros(len(tile_PH), np.int64)
        try:
            sums = sum_columns(
                tile_PH, activation_IH, self.network.w_H, self.network.bias, one_group, 1
            )
        except ValueError as error:
            raise StageError(f"existing data of block '{span.name}': {error}") from error
        return sums.sum_GJ[0]


# Scorers of a pruned block: lists from an index's candidates, and what held-out rows say of them.


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


# Score pairs: the network's influence for the pairs of a block, and what is kept of it.

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
