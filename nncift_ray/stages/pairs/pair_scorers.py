"""What the score stage keeps of the scores of some rows: lists, sums of columns, or points.

A scorer is made once a worker and called with runs of rows; it holds the network and streams the
columns. Suffixes: I rows, J columns, T columns of a tile, K list places, G subtasks, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.column_sums import to_fixed_point
from nncift_ray.core.pairs.pair_backend import ScoresRows
from nncift_ray.core.pairs.pair_scores import (
    ScoreStatistics,
    ScoreTotal,
    TopK,
    TopKState,
    score_points,
)
from nncift_ray.core.pairs.pair_threads import CpuThreads, run_parts
from nncift_ray.core.pairs.panels import score_matrix
from nncift_ray.core.pairs.score_histogram import CountedRows, count_values
from nncift_ray.errors import DataError, StageError
from nncift_ray.stages.driving.atoms import RowSpan
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix, vectors_to_arrow
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS
from nncift_ray.storage.subtasks import Subtasks

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
