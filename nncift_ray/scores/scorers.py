"""Scorers: what is kept of the scores of some rows of a block, and the tables it is written to.

A row scorer is called with a span of rows, their activations and the sink that it writes to.

Suffixes: I rows (helped), J columns (helpers), H hidden, T columns of a tile, K kept columns,
G subtasks, B bins of a histogram, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import Subtasks
from nncift_ray.errors import DataError, StageError
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix, vectors_to_arrow
from nncift_ray.runtime.schemas import CROSS, EXISTING
from nncift_ray.runtime.step import RowSpan
from nncift_ray.scores.backend import ScoreTiles
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
from nncift_ray.scores.index import ColumnIndex, SearchSettings, recall_at_k
from nncift_ray.scores.index_step import read_columns, read_index, read_rows
from nncift_ray.scores.kernel import CountedRows, count_values

# Columns whose sums are made at once: as many as fit in this, times their subtasks.
SUM_BYTES = 64 * 1024**2
INT_BYTES = 8
DENSE_ROWS = 256  # written at a time

RowScorer = Callable[[RowSpan, np.ndarray, Sink], None]


@dataclass
class Columns:
    """The columns of a block in tiles of activations, and the network that scores rows on them."""

    network: FactoredNetwork
    activations: StageOutput
    table: str
    tile_rows: int
    num_block_rows: int  # says which rows are counted in the histogram
    num_threads: int
    first: int = 0  # columns before it are left out
    keep: bool = False  # in memory, once they are read
    #: What a GPU keeps of them, prepared.
    on_device: list[Any] = field(default_factory=list[Any])
    _kept: list[tuple[int, np.ndarray]] | None = None
    _latest: tuple[int, np.ndarray] | None = None  # that was yielded, to name what is wrong with it

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first column, activations [T, H])."""
        if self._kept is None and self.keep:
            self._kept = list(self._read())
        for tile in self._read() if self._kept is None else self._kept:
            self._latest = tile
            yield tile
        self._latest = None

    @contextmanager
    def naming_bad(self, span: RowSpan, a_IH: np.ndarray) -> Iterator[None]:
        """Name the first example whose activations are not finite, as the block numbers it.

        Raises:
            DataError: In place of a ValueError.
        """
        try:
            yield
        except ValueError as error:
            first_column, b_JH = self._latest or (0, a_IH[:0])
            with _name_bad_activations(span.name, span.start, a_IH, first_column, b_JH):
                raise error from None

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        num_rows = self.activations.num_rows(self.table)
        for start in range(self.first, num_rows, self.tile_rows):
            stop = min(start + self.tile_rows, num_rows)
            rows = self.activations.read_range(self.table, start, stop, ["activation"])
            yield start, column_matrix(rows["activation"])


@dataclass(frozen=True)
class ListScorer:
    """Keeps the best helpers of every row, and of `cross` every helper's largest influence.

    ``resume`` returns what some rows have kept already, of columns that come before these.
    Raises DataError naming the first row or column whose activations are not finite.
    """

    columns: Columns
    top_k: int
    score_tiles: ScoreTiles
    dense: bool = False
    resume: Callable[[RowSpan], TopKState] | None = None

    def __call__(self, span: RowSpan, a_IH: np.ndarray, sink: Sink) -> None:
        """Write lists, column maxima, statistics and, if wanted, every score."""
        counted = CountedRows.of_range(span.start, span.stop, self.columns.num_block_rows)
        top = self.score(span, a_IH, counted)
        if top is None:
            return
        write_lists(sink, span.name, span.start, top.index_IK, top.score_IK)
        write_statistics(sink, span.name, top.statistics.total(), counted.count_B)
        if span.name == CROSS:
            helper_J = self.columns.first + np.arange(len(top.column_max_J))
            write_column_max(sink, span.name, helper_J, top.column_max_J)
        if self.dense:
            self._write_dense(span, a_IH, sink)

    def score(self, span: RowSpan, a_IH: np.ndarray, counted: CountedRows) -> TopK | None:
        """Return lists, statistics and the maxima of all columns; None without columns."""
        network = self.columns.network
        state = None if self.resume is None else self.resume(span)
        with self.columns.naming_bad(span, a_IH):
            return self.score_tiles(
                a_IH, self.columns, network.w_H, network.bias, self.top_k, state=state,
                counted=counted,
            )  # fmt: skip

    def _write_dense(self, span: RowSpan, a_IH: np.ndarray, sink: Sink) -> None:
        network, num_threads = self.columns.network, self.columns.num_threads
        for start in range(0, len(a_IH), DENSE_ROWS):
            piece_IH = a_IH[start : start + DENSE_ROWS]
            parts = [
                score_matrix(piece_IH, tile_JH, network.w_H, network.bias, num_threads=num_threads)
                for _, tile_JH in self.columns
            ]
            score_IJ = np.concatenate(parts, axis=1)
            columns = {
                "row_index": span.start + start + np.arange(len(piece_IH)),
                "influence": vectors_to_arrow(score_IJ, "float32"),
            }
            _write(sink, f"{span.name}_dense", schemas.dense_schema(score_IJ.shape[1]), columns)


def keep_sums(
    columns: Columns, subtasks: Subtasks, span: RowSpan, a_IH: np.ndarray, sink: Sink
) -> None:
    """Write the sum of every column over the rows of each subtask, and statistics.

    Raises:
        StageError: If the scores are too large to be added exactly.
    """
    present, group_I, num_rows_G = np.unique(
        subtasks.group_I[span.start : span.stop], return_inverse=True, return_counts=True
    )
    step = max(1, SUM_BYTES // (INT_BYTES * len(present)))
    statistics: ScoreStatistics | None = None
    counted = CountedRows.of_range(span.start, span.stop, columns.num_block_rows)
    for offset, tile_JH in columns:
        for start in range(0, len(tile_JH), step):
            with _stage_error(f"block '{span.name}'"):
                sum_GJ, statistics = sum_columns(
                    a_IH, tile_JH[start : start + step], columns.network.w_H, columns.network.bias,
                    group_I, len(present), statistics=statistics, counted=counted,
                    num_threads=columns.num_threads,
                )  # fmt: skip
            helper_J = offset + start + np.arange(sum_GJ.shape[1])
            for group, num_rows, sum_J in zip(present, num_rows_G, sum_GJ, strict=True):
                name = subtasks.names[group]
                write_column_sums(sink, span.name, name, num_rows, helper_J, sum_J)
    if statistics is not None:
        write_statistics(sink, span.name, statistics.total(), counted.count_B)


def keep_points(network: FactoredNetwork, span: RowSpan, a_NH: np.ndarray, sink: Sink) -> None:
    """Write the scores of examples by a pointwise network as sums over one row, and statistics.

    Raises:
        StageError: If a score is too large to be kept in fixed point.
    """
    with _stage_error(f"block '{span.name}'"):
        score_N = network.score_points(a_NH)
        fixed_N = to_fixed_point(score_N)
    helper_N = span.start + np.arange(len(fixed_N))
    write_column_sums(sink, span.name, None, 1, helper_N, fixed_N)
    write_statistics(sink, span.name, ScoreTotal.of(score_N), count_values(score_N))


def keep_existing(existing: Columns, span: RowSpan, a_IH: np.ndarray, sink: Sink) -> None:
    """Write the largest and the summed influence of data that the model has already on each row.

    Raises:
        StageError: If the scores are too large to be added exactly.
    """
    w_H, bias = existing.network.w_H, existing.network.bias
    sum_I = np.zeros(len(a_IH), np.int64)
    top: TopK | None = None
    for offset, tile_TH in existing:
        state = None if top is None else top.state
        top = top_k_rows(a_IH, tile_TH, w_H, bias, 1, column_offset=offset, state=state)
        # The score w . relu(a_i + b_p) + c does not change when the two sides are exchanged, so
        # rows serve as columns, and existing examples as the rows that are added up.
        one_group = np.zeros(len(tile_TH), np.int64)
        with _stage_error(f"existing data of block '{span.name}'"):
            sum_I += sum_columns(tile_TH, a_IH, w_H, bias, one_group, 1).sum_GJ[0]
    if top is None:
        return
    columns = {
        "row_index": np.arange(span.start, span.stop),
        "max_influence": top.score_IK[:, 0],
        "sum": sum_I,
    }
    _write(sink, f"{span.name}_existing_influence", schemas.EXISTING_INFLUENCE, columns)
    write_statistics(sink, EXISTING, top.statistics.total())


@dataclass(frozen=True)
class PrunedScorer:
    """Keeps the best helpers of every row, among those that the index of the block proposes.

    Raises DataError naming the first row or column whose activations are not finite.
    """

    block: str
    index: StageOutput
    activations: StageOutput
    settings: SearchSettings
    top_k: int
    num_threads: int

    @cached_property
    def columns(self) -> ColumnIndex:
        """The index with its columns packed, read when it is first needed."""
        b_JH = read_columns(self.activations, self.block)
        with _name_bad_activations(self.block, 0, b_JH[:0], 0, b_JH):
            return read_index(self.index, self.block, b_JH, self.num_threads)

    def search(self, span: RowSpan, a_IH: np.ndarray) -> RescoredTopK:
        """Return the best columns of some rows, searched for as widely as was decided."""
        with _name_bad_activations(self.block, span.start, a_IH, 0, a_IH[:0]):
            return self.columns.search(a_IH, self.settings, self.top_k)

    def __call__(self, span: RowSpan, a_IH: np.ndarray, sink: Sink) -> None:
        """Write lists and the extremes of what they hold."""
        found = self.search(span, a_IH)
        write_lists(sink, span.name, span.start, found.index_IK, found.score_IK)
        kept = found.score_IK[found.index_IK >= 0]
        # No pair is counted here: what an index proposes is not a sample of all pairs.
        low, high = float(kept.min(initial=np.inf)), float(kept.max(initial=-np.inf))
        num_scored = int(found.num_pairs_I.sum())
        write_statistics(sink, span.name, ScoreTotal(0, low, high), num_scored=num_scored)


@dataclass(frozen=True)
class HeldOutScorer:
    """Compares the lists that ``search`` finds for held-out rows with their true ones."""

    block: str
    row_index: np.ndarray  # all rows held out, ascending
    exact: ListScorer
    search: Callable[[RowSpan, np.ndarray], RescoredTopK | None]  # None: nothing to search
    keeps_statistics: bool = True  # over every column

    def __call__(self, span: RowSpan, sink: Sink) -> None:
        """Write the recall of the held-out rows [start, stop), and statistics."""
        here, rows = replace(span, name=self.block), self.row_index[span.start : span.stop]
        activations = self.exact.columns.activations
        a_IH = read_rows(activations, self.block, rows)
        counted = CountedRows.of_range(0, len(rows), len(rows))
        exact, found = self.exact.score(here, a_IH, counted), self.search(here, a_IH)
        if exact is None or found is None:
            return
        columns = {
            "block": [self.block] * len(rows),
            "row_index": rows,
            "recall": recall_at_k(found.score_IK, exact.score_IK),
            "scored_fraction": found.num_pairs_I / activations.num_rows(f"{self.block}_columns"),
        }
        _write(sink, "recall", schemas.ROW_RECALL, columns)
        if self.keeps_statistics:
            total = exact.statistics.total()
            write_statistics(sink, self.block, total, counted.count_B, num_scored=0)


# Tables.


def write_lists(
    sink: Sink, block: str, first_row: int, index_IK: np.ndarray, score_IK: np.ndarray
) -> None:
    """Write the top-K lists of rows from a first one on; index -1 is no helper."""
    kept = index_IK >= 0
    offsets = pa.array(np.r_[0, np.cumsum(kept.sum(axis=1))], pa.int32())
    columns = {
        "row_index": first_row + np.arange(len(index_IK)),
        "helper_index": pa.ListArray.from_arrays(offsets, pa.array(index_IK[kept])),
        "influence": pa.ListArray.from_arrays(offsets, pa.array(score_IK[kept])),
    }
    _write(sink, f"{block}_top_helpers", schemas.TOP_HELPERS, columns)


def write_column_sums(
    sink: Sink,
    block: str,
    subtask: str | None,
    num_rows: int | np.ndarray,
    helper_J: np.ndarray,
    sum_J: np.ndarray,
) -> None:
    """Write sums of columns over so many rows of one subtask (one number, or one each)."""
    columns = {
        "block": [block] * len(sum_J),
        "subtask": [subtask] * len(sum_J),
        "num_rows": np.full(len(sum_J), num_rows),
        "helper_index": helper_J,
        "sum": sum_J,
    }
    _write(sink, "column_sums", schemas.COLUMN_SUMS, columns)


def write_column_max(sink: Sink, block: str, helper_J: np.ndarray, maximum_J: np.ndarray) -> None:
    """Write the largest influence of columns on any row."""
    columns = {
        "block": [block] * len(maximum_J),
        "helper_index": helper_J,
        "max_influence": maximum_J,
    }
    _write(sink, "column_max", schemas.COLUMN_MAX, columns)


def write_statistics(
    sink: Sink,
    block: str,
    total: ScoreTotal,
    count_B: np.ndarray | None = None,
    *,
    num_scored: int | None = None,
) -> None:
    """Write count, extremes and sums of some scores of a block, and the bins that hold counts.

    ``num_scored`` are the pairs scored for lists or sums, where those are others than the
    statistics cover.
    """
    scored = total.num_pairs if num_scored is None else num_scored
    row = {"block": block, "num_scored": scored, **asdict(total)}
    sink.write_rows("statistics", [row], schemas.SCORE_STATISTICS)
    if count_B is not None:
        bins = np.flatnonzero(count_B)
        columns = {"block": [block] * len(bins), "bin": bins, "count": count_B[bins]}
        _write(sink, "histogram", schemas.SCORE_HISTOGRAM, columns)


def _write(sink: Sink, table: str, schema: pa.Schema, columns: dict[str, Any]) -> None:
    sink.write(table, pa.Table.from_pydict(columns, schema=schema))


# Errors.


@contextmanager
def _stage_error(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StageError(f"{what}: {error}") from error


@contextmanager
def _name_bad_activations(
    block: str, first_row: int, a_IH: np.ndarray, first_column: int, b_JH: np.ndarray
) -> Iterator[None]:
    """Name the first example whose activations are not finite, as the block numbers it."""
    try:
        yield
    except ValueError as error:
        for side, first, values_NH in (
            ("row (helped)", first_row, a_IH),
            ("column (helper)", first_column, b_JH),
        ):
            bad = np.flatnonzero(~np.isfinite(values_NH).all(axis=1))
            if len(bad):
                raise DataError(
                    f"block '{block}': the activations of {side} {first + bad[0]} are not finite "
                    f"({len(bad)} of {len(values_NH)} here). Look at its text, and embed it anew."
                ) from error
        raise DataError(f"block '{block}': {error}") from error
