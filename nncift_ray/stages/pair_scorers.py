"""What the score stage keeps of the scores of some rows: lists, sums of columns, or points.

A scorer is made once a worker and called with runs of rows; it holds the network and streams the
columns. Suffixes: I rows, J columns, T columns of a tile, K list places, G subtasks, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.column_sums import sum_columns, to_fixed_point
from nncift_ray.core.pairs.pair_scores import (
    ScoreStatistics,
    ScoreTotal,
    TopK,
    score_points,
    top_k_rows,
)
from nncift_ray.errors import StageError
from nncift_ray.stages.atoms import RowSpan
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CROSS
from nncift_ray.storage.subtasks import Subtasks

# Columns of a block are read once and kept while they fit in this; else every shard streams them.
COLUMN_CACHE_BYTES = 256 * 1024**2
FLOAT_BYTES = 4
# Columns whose sums are made at once: as many as fit in this, times their subtasks.
SUM_BYTES = 64 * 1024**2
INT_BYTES = 8


@dataclass(frozen=True)
class ListScorer:
    """Keeps the best helpers of every row, and of `cross` every helper's largest influence."""

    network: FactoredNetwork
    columns: ColumnTiles
    top_k: int

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all columns."""
        activation = column_matrix(rows["activation"])
        top: TopK | None = None
        maxima: list[np.ndarray] = []
        for offset, tile in self.columns:
            top = top_k_rows(
                activation,
                tile,
                self.network.w_H,
                self.network.bias,
                self.top_k,
                column_offset=offset,
                state=None if top is None else top.state,
            )
            maxima.append(top.column_max_J)
        if top is None:
            return
        sink.write(f"{span.name}_top_helpers", top_helpers_table(rows["row_index"], top))
        write_statistics(sink, span.name, top.statistics.total())
        if span.name == CROSS:
            sink.write("column_max", _column_max_table(span.name, np.concatenate(maxima)))


@dataclass(frozen=True)
class SumScorer:
    """Keeps the sum of every column over the rows of each subtask."""

    network: FactoredNetwork
    columns: ColumnTiles
    subtasks: Subtasks

    def __call__(self, span: RowSpan, rows: pa.Table, sink: Sink) -> None:
        """Score some rows against all columns.

        Raises:
            StageError: If the scores are too large to be added exactly.
        """
        activation = column_matrix(rows["activation"])
        present, group_I = np.unique(
            self.subtasks.group_I[span.start : span.stop], return_inverse=True
        )
        num_rows_G = np.bincount(group_I)
        step = max(1, SUM_BYTES // (INT_BYTES * len(present)))
        statistics: ScoreStatistics | None = None
        for offset, tile in self.columns:
            for start in range(0, len(tile), step):
                try:
                    sums = sum_columns(
                        activation,
                        tile[start : start + step],
                        self.network.w_H,
                        self.network.bias,
                        group_I,
                        len(present),
                        statistics=statistics,
                    )
                except ValueError as error:
                    raise StageError(f"block '{span.name}': {error}") from error
                statistics = sums.statistics
                for group, num_rows, sum_J in zip(present, num_rows_G, sums.sum_GJ, strict=True):
                    name = self.subtasks.names[group]
                    table = column_sums_table(span.name, name, int(num_rows), offset + start, sum_J)
                    sink.write("column_sums", table)
        if statistics is not None:
            write_statistics(sink, span.name, statistics.total())


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
        sink.write("column_sums", column_sums_table(span.name, None, 1, span.start, fixed_N))
        wide_N = score_N.astype(np.float64)
        total = ScoreTotal(
            num_pairs=len(score_N),
            min=float(score_N.min()),
            max=float(score_N.max()),
            sum=math.fsum(wide_N),
            sum_of_squares=math.fsum(wide_N**2),
        )
        write_statistics(sink, span.name, total)


class ColumnTiles:
    """The column activations of a block, tile by tile; kept in memory where they fit."""

    def __init__(
        self, activations: StageOutput, table: str, tile_rows: int, num_hidden: int
    ) -> None:
        """Read ``table`` in tiles of ``tile_rows``."""
        self._activations, self._table, self._tile_rows = activations, table, tile_rows
        self._num_rows = activations.num_rows(table)
        self._fits = self._num_rows * num_hidden * FLOAT_BYTES <= COLUMN_CACHE_BYTES
        self._kept: list[tuple[int, np.ndarray]] | None = None

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first column, activations [T, H])."""
        if self._kept is None and self._fits:
            self._kept = list(self._read())
        yield from self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self._num_rows, self._tile_rows):
            stop = min(start + self._tile_rows, self._num_rows)
            rows = self._activations.read_range(self._table, start, stop, ["activation"])
            yield start, column_matrix(rows["activation"])


def top_helpers_table(row_index: pa.ChunkedArray, top: TopK) -> pa.Table:
    """Write top-K lists as a table; rows with fewer helpers have shorter lists."""
    kept = top.index_IK >= 0
    offsets = pa.array(np.r_[0, np.cumsum(kept.sum(axis=1))], pa.int32())
    return pa.Table.from_pydict(
        {
            "row_index": row_index,
            "helper_index": pa.ListArray.from_arrays(offsets, pa.array(top.index_IK[kept])),
            "influence": pa.ListArray.from_arrays(offsets, pa.array(top.score_IK[kept])),
        },
        schema=schemas.TOP_HELPERS,
    )


def column_sums_table(
    block: str, subtask: str | None, num_rows: int, first_column: int, sum_J: np.ndarray
) -> pa.Table:
    """Write the sums of neighbouring columns over some rows of one subtask."""
    count = len(sum_J)
    return pa.table(
        {
            "block": pa.array([block] * count, pa.string()),
            "subtask": pa.array([subtask] * count, pa.string()),
            "num_rows": pa.array(np.full(count, num_rows), pa.int64()),
            "helper_index": pa.array(np.arange(first_column, first_column + count), pa.int64()),
            "sum": pa.array(sum_J, pa.int64()),
        },
        schema=schemas.COLUMN_SUMS,
    )


def write_statistics(sink: Sink, block: str, total: ScoreTotal) -> None:
    """Write count, extremes and sums of some scores of a block."""
    sink.write_rows("statistics", [{"block": block, **asdict(total)}], schemas.SCORE_STATISTICS)


def _column_max_table(block: str, maxima: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "block": pa.array([block] * len(maxima), pa.string()),
            "helper_index": pa.array(np.arange(len(maxima)), pa.int64()),
            "max_influence": pa.array(maxima, pa.float32()),
        },
        schema=schemas.COLUMN_MAX,
    )
