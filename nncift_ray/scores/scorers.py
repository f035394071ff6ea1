"""Scorers: what is kept of the scores of some rows of a block, and the tables it is written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import Subtasks
from nncift_ray.errors import DataError, StageError
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix, vectors_to_arrow
from nncift_ray.runtime.schemas import CROSS, EXISTING
from nncift_ray.runtime.step import RowSpan
from nncift_ray.scores.backend import ScoreRows
from nncift_ray.scores.exact import (
    RescoredTopK,
    ScoreStatistics,
    ScoreTotal,
    TopK,
    TopKState,
    score_matrix,
    sum_columns,
    to_fixed_point,
    top_k_rows,
)
from nncift_ray.scores.index import ColumnIndex, recall_at_k
from nncift_ray.scores.index_step import BlockDecision, read_columns, read_index, read_rows
from nncift_ray.scores.kernel import CountedRows, count_values

# Columns whose sums are made at once: as many as fit in this, times their subtasks.
SUM_BYTES = 64 * 1024**2
INT_BYTES = 8
DENSE_ROWS = 256  # written at a time

#: Scores the rows of a span, given with their activations, and writes what it keeps.
RowScorer = Callable[[RowSpan, pa.Table, Sink], None]


class ColumnTiles:
    """The column activations of a block, tile by tile; kept in memory where they fit."""

    def __init__(
        self, activations: StageOutput, table: str, tile_rows: int, *, keep: bool, first: int = 0
    ) -> None:
        """Read ``table`` from row ``first`` on in tiles, once if they are to be kept."""
        self._activations, self._table, self._tile_rows = activations, table, tile_rows
        self._keep, self.first = keep, first
        self._kept: list[tuple[int, np.ndarray]] | None = None

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first column, activations [T, H])."""
        if self._kept is None and self._keep:
            self._kept = list(self._read())
        yield from self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        num_rows = self._activations.num_rows(self._table)
        for start in range(self.first, num_rows, self._tile_rows):
            stop = min(start + self._tile_rows, num_rows)
            rows = self._activations.read_range(self._table, start, stop, ["activation"])
            yield start, column_matrix(rows["activation"])


@dataclass(frozen=True)
class ListScorer:
    """Keeps the best helpers of every row, and of `cross` every helper's largest influence.

    ``resume`` returns what some rows have kept already, of columns that come before these.
    """

    network: FactoredNetwork
    columns: ColumnTiles
    top_k: int
    score_rows: ScoreRows
    num_block_rows: int
    num_threads: int = 1
    dense: bool = False
    resume: Callable[[RowSpan], TopKState] | None = None

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all columns.

        Raises:
            DataError: If an activation is not finite; the message names the first such row.
        """
        a_IH, block = column_matrix(rows["activation"]), span.name
        counted = CountedRows.of_range(span.start, span.stop, self.num_block_rows)
        top, maximum_J = self.score(span, a_IH, counted)
        if top is None:
            return
        lists = top_helpers_table(rows["row_index"], top.index_IK, top.score_IK)
        sink.write(f"{block}_top_helpers", lists)
        write_statistics(sink, block, top.statistics.total())
        write_histogram(sink, block, counted.count_B)
        if block == CROSS:
            helper_J = np.arange(self.columns.first, self.columns.first + len(maximum_J))
            sink.write("column_max", column_max_table(block, helper_J, maximum_J))
        if self.dense:
            self._write_dense(block, rows["row_index"], a_IH, sink)

    def score(
        self, span: RowSpan, a_IH: np.ndarray, counted: CountedRows
    ) -> tuple[TopK | None, np.ndarray]:
        """Return lists and statistics (None without columns) and every column's maximum."""
        top: TopK | None = None
        state = None if self.resume is None else self.resume(span)
        maxima: list[np.ndarray] = [np.zeros(0, np.float32)]
        for offset, tile_JH in self.columns:
            try:
                top = self.score_rows(
                    a_IH, tile_JH, self.network.w_H, self.network.bias, self.top_k,
                    column_offset=offset, state=state, counted=counted,
                )  # fmt: skip
            except ValueError as error:
                raise bad_activations(
                    span.name, span.start, a_IH, offset, tile_JH, error
                ) from error
            state = top.state
            maxima.append(top.column_max_J)
        return top, np.concatenate(maxima)

    def _write_dense(
        self, block: str, row_index: pa.ChunkedArray, a_IH: np.ndarray, sink: Sink
    ) -> None:
        w_H, bias = self.network.w_H, self.network.bias
        for start in range(0, len(a_IH), DENSE_ROWS):
            piece_IH = a_IH[start : start + DENSE_ROWS]
            score_IJ = np.concatenate(
                [
                    score_matrix(piece_IH, tile_JH, w_H, bias, num_threads=self.num_threads)
                    for _, tile_JH in self.columns
                ],
                axis=1,
            )
            columns = {
                "row_index": row_index.slice(start, len(piece_IH)),
                "influence": vectors_to_arrow(score_IJ, "float32"),
            }
            schema = schemas.dense_schema(score_IJ.shape[1])
            sink.write(f"{block}_dense", pa.Table.from_pydict(columns, schema=schema))


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
        a_IH, w_H, bias = column_matrix(rows["activation"]), self.network.w_H, self.network.bias
        present, group_I = np.unique(
            self.subtasks.group_I[span.start : span.stop], return_inverse=True
        )
        num_rows_G = np.bincount(group_I)
        step = max(1, SUM_BYTES // (INT_BYTES * len(present)))
        statistics: ScoreStatistics | None = None
        counted = CountedRows.of_range(span.start, span.stop, self.num_block_rows)
        for offset, tile_JH in self.columns:
            for start in range(0, len(tile_JH), step):
                try:
                    sums = sum_columns(
                        a_IH, tile_JH[start : start + step], w_H, bias, group_I, len(present),
                        statistics=statistics, counted=counted, num_threads=self.num_threads,
                    )  # fmt: skip
                except ValueError as error:
                    raise StageError(f"block '{span.name}': {error}") from error
                statistics = sums.statistics
                for group, num_rows, sum_J in zip(present, num_rows_G, sums.sum_GJ, strict=True):
                    name = self.subtasks.names[group]
                    helper_J = np.arange(offset + start, offset + start + len(sum_J))
                    table = column_sums_table(span.name, name, num_rows, helper_J, sum_J)
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
        try:
            score_N = self.network.score_points(column_matrix(rows["activation"]))
            fixed_N = to_fixed_point(score_N)
        except ValueError as error:
            raise StageError(f"block '{span.name}': {error}") from error
        helper_N = np.arange(span.start, span.start + len(fixed_N))
        sink.write("column_sums", column_sums_table(span.name, None, 1, helper_N, fixed_N))
        write_statistics(sink, span.name, ScoreTotal.of(score_N))
        write_histogram(sink, span.name, count_values(score_N))


@dataclass(frozen=True)
class ExistingScorer:
    """Writes ``<block>_existing_influence``: what data that the model has already do for each row.

    One number or two a row: the largest and the summed influence.
    """

    network: FactoredNetwork
    existing: ColumnTiles

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all existing examples.

        Raises:
            StageError: If the scores are too large to be added exactly.
        """
        a_IH, w_H, bias = column_matrix(rows["activation"]), self.network.w_H, self.network.bias
        sum_I = np.zeros(len(a_IH), np.int64)
        top: TopK | None = None
        for offset, tile_PH in self.existing:
            state = None if top is None else top.state
            top = top_k_rows(a_IH, tile_PH, w_H, bias, 1, column_offset=offset, state=state)
            # The score w . relu(a_i + b_p) + c does not change when the two sides are exchanged, so
            # rows serve as columns, and existing examples as the rows that are added up.
            one_group = np.zeros(len(tile_PH), np.int64)
            try:
                sum_I += sum_columns(tile_PH, a_IH, w_H, bias, one_group, 1).sum_GJ[0]
            except ValueError as error:
                raise StageError(f"existing data of block '{span.name}': {error}") from error
        if top is None:
            return
        columns = {
            "row_index": rows["row_index"],
            "max_influence": pa.array(top.score_IK[:, 0], pa.float32()),
            "sum": pa.array(sum_I, pa.int64()),
        }
        table = pa.Table.from_pydict(columns, schema=schemas.EXISTING_INFLUENCE)
        sink.write(f"{span.name}_existing_influence", table)
        write_statistics(sink, EXISTING, top.statistics.total())


# Scorers of a pruned block: lists from an index's candidates, and what held-out rows say of them.


@dataclass(frozen=True)
class IndexReader:
    """Reads a block's index when it is first needed, once for all scorers of a worker."""

    index: StageOutput
    activations: StageOutput
    block: str
    decision: BlockDecision
    num_threads: int

    @cached_property
    def columns(self) -> ColumnIndex:
        """The index, its columns packed.

        Raises:
            DataError: If an activation is not finite; the message names the first such row.
        """
        b_JH = read_columns(self.activations, self.block)
        try:
            return read_index(self.index, self.block, b_JH, self.num_threads)
        except ValueError as error:
            raise bad_activations(self.block, 0, b_JH[:0], 0, b_JH, error) from error

    def search(self, a_IH: np.ndarray, k: int) -> RescoredTopK:
        """Return the best columns of some rows, searched for as widely as was decided."""
        return self.columns.search(a_IH, self.decision.search, k)


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
        try:
            found = self.reader.search(a_IH, self.top_k)
        except ValueError as error:
            raise bad_activations(span.name, span.start, a_IH, 0, a_IH[:0], error) from error
        lists = top_helpers_table(rows["row_index"], found.index_IK, found.score_IK)
        sink.write(f"{span.name}_top_helpers", lists)
        kept = found.score_IK[found.index_IK >= 0]
        # No pair is counted here: what an index proposes is not a sample of all pairs.
        low, high = float(kept.min(initial=np.inf)), float(kept.max(initial=-np.inf))
        num_scored = int(found.num_pairs_I.sum())
        write_statistics(sink, span.name, ScoreTotal(0, low, high), num_scored=num_scored)


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
        a_IH = read_rows(reader.activations, block, chosen)
        counted = CountedRows.of_range(0, len(chosen), len(chosen))
        exact, _ = self.exact.score(RowSpan(block, span.start, span.stop), a_IH, counted)
        if exact is None:
            return
        found = reader.search(a_IH, self.exact.top_k)
        recall_I = recall_at_k(found.score_IK, exact.score_IK)
        scored_I = found.num_pairs_I / reader.columns.num_columns
        sink.write("recall", recall_rows_table(block, chosen, recall_I, scored_I))
        write_statistics(sink, block, exact.statistics.total(), num_scored=0)
        write_histogram(sink, block, counted.count_B)


# Tables.


def top_helpers_table(
    row_index: pa.Array | pa.ChunkedArray, index_IK: np.ndarray, score_IK: np.ndarray
) -> pa.Table:
    """Return top-K lists as a table; rows with fewer helpers (index -1) have shorter lists."""
    kept = index_IK >= 0
    offsets = pa.array(np.r_[0, np.cumsum(kept.sum(axis=1))], pa.int32())
    columns = {
        "row_index": row_index,
        "helper_index": pa.ListArray.from_arrays(offsets, pa.array(index_IK[kept])),
        "influence": pa.ListArray.from_arrays(offsets, pa.array(score_IK[kept])),
    }
    return pa.Table.from_pydict(columns, schema=schemas.TOP_HELPERS)


def column_sums_table(
    block: str,
    subtask: str | None,
    num_rows: int | np.ndarray,
    helper_J: np.ndarray,
    sum_J: np.ndarray,
) -> pa.Table:
    """Return sums of columns over so many rows of one subtask (one number, or one each)."""
    columns = {
        "block": pa.array([block] * len(sum_J), pa.string()),
        "subtask": pa.array([subtask] * len(sum_J), pa.string()),
        "num_rows": pa.array(np.full(len(sum_J), num_rows), pa.int64()),
        "helper_index": pa.array(helper_J, pa.int64()),
        "sum": pa.array(sum_J, pa.int64()),
    }
    return pa.table(columns, schema=schemas.COLUMN_SUMS)


def column_max_table(block: str, helper_J: np.ndarray, maximum_J: np.ndarray) -> pa.Table:
    """Return the largest influence of columns on any row."""
    columns = {
        "block": pa.array([block] * len(maximum_J), pa.string()),
        "helper_index": pa.array(helper_J, pa.int64()),
        "max_influence": pa.array(maximum_J, pa.float32()),
    }
    return pa.table(columns, schema=schemas.COLUMN_MAX)


def recall_rows_table(
    block: str, rows: np.ndarray, recall_I: np.ndarray, scored_fraction_I: np.ndarray
) -> pa.Table:
    """Return the recall of held-out rows' lists, and the share of their pairs that was scored."""
    columns = {
        "block": pa.array([block] * len(rows), pa.string()),
        "row_index": pa.array(rows, pa.int64()),
        "recall": pa.array(recall_I, pa.float64()),
        "scored_fraction": pa.array(scored_fraction_I, pa.float64()),
    }
    return pa.table(columns, schema=schemas.ROW_RECALL)


def write_statistics(
    sink: Sink, block: str, total: ScoreTotal, *, num_scored: int | None = None
) -> None:
    """Write count, extremes and sums of some scores of a block.

    ``num_scored`` are the pairs scored for lists or sums, where those are others than the
    statistics cover.
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
