"""Scorers: what scores the rows of a block, what is kept of it, and the tables it is written to.

A row scorer is called with a span of rows, their activations and the sink that it writes to.

Suffixes: I rows (helped), J columns (helpers), H hidden, T columns of a tile, K kept columns,
G subtasks, N examples.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy

from nncift_ray.corpus.examples import Subtasks
from nncift_ray.errors import ConfigError, DataError, StageError
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CROSS, EXISTING
from nncift_ray.runtime.step import Resources, RowSpan
from nncift_ray.scores.exact import (
    RescoredTopK,
    ScoreStatistics,
    ScoreTotal,
    TopK,
    TopKState,
    sum_columns,
    to_fixed_point,
    top_k_rows,
    top_k_tiles,
)
from nncift_ray.scores.index import ColumnIndex, SearchSettings, recall_at_k

#: `exact.top_k_tiles` on threads, or the same on a device.
ScoreTiles = Callable[..., TopK | None]


def num_threads_of(resources: Resources) -> int:
    """Return the threads of an actor: its CPUs, never more than the machine has."""
    return max(1, min(int(resources.num_cpus), os.cpu_count() or 1))


def pair_backend(device: str = "cpu", *, num_threads: int = 1) -> ScoreTiles:
    """Return what scores all pairs on "cpu" or on a torch device.

    The CPU kernel loads no torch; "cuda" is the Triton kernel where Triton is installed (it comes
    with a GPU build of torch), else plain torch.
    """
    if device == "cpu":
        return functools.partial(top_k_tiles, num_threads=num_threads)
    from nncift_ray.scores.gpu import fold_in_torch, top_k_tiles_on

    fold = fold_in_torch
    if device.startswith("cuda") and importlib.util.find_spec("triton") is not None:
        from nncift_ray.scores.triton_kernel import fold_in_triton

        fold = fold_in_triton
    return functools.partial(top_k_tiles_on, device=device, fold=fold)


def make_backend(resources: Resources) -> ScoreTiles:
    """Return what scores all pairs with an actor's resources.

    Raises:
        StageError: If Ray gave a GPU that torch cannot use.
    """
    if not resources.num_gpus:
        return pair_backend(num_threads=num_threads_of(resources))
    import torch  # a CPU worker does without

    if not torch.cuda.is_available():
        raise StageError(
            "Ray gave this actor a GPU, but torch finds none: install torch for CUDA, or set "
            "pair_scores.pool.num_gpus to 0"
        )
    return pair_backend("cuda")


# What a worker of the pair stages holds in memory: estimated before it starts, and measured.

FLOAT_BYTES, LONG_BYTES = 4, 8
#: Python with the libraries, and what reading and writing Parquet takes.
PROCESS_BYTES = 450 * 10**6
TILE_COPIES = 4  # of the columns read at a time: as Parquet, as Arrow, as numbers, packed
PADDING = 1.2  # hidden units are padded to sixteens, cells to whole panels
FEATURE_COPIES = 4  # the index, its bytes while they are read, and packed for searching
MEMORY_KEY = "pair_scores.max_worker_bytes"


@dataclass(frozen=True, slots=True)
class PairMemory:
    """Estimates in bytes for one block; a worker scores so many rows of it together."""

    num_columns: int
    num_hidden: int
    shard_rows: int
    top_k: int
    column_tile: int = 65_536

    @property
    def streamed(self) -> int:
        """The least that exact scoring takes: rows, lists and one tile of columns."""
        hidden = self.num_hidden * FLOAT_BYTES
        tile = TILE_COPIES * min(self.column_tile, self.num_columns) * hidden
        return PROCESS_BYTES + tile + self.shard_rows * (3 * hidden + 4 * self.top_k * LONG_BYTES)

    def keeps_columns(self, max_bytes: int) -> bool:
        """Whether all columns fit beside what streaming takes."""
        return self.streamed + self.num_columns * self.num_hidden * FLOAT_BYTES <= max_bytes

    def pruned(self, num_features: int) -> int:
        """What scoring through an index takes: columns, a packed copy, the index."""
        packed = round(self.num_columns * self.num_hidden * FLOAT_BYTES * (1 + PADDING))
        features = self.num_columns * num_features * FLOAT_BYTES
        return self.streamed + packed + FEATURE_COPIES * features

    def check_streamed(self, block: str, max_bytes: int) -> None:
        """Raise ConfigError, with what to change, for a bound that even streaming does not keep."""
        if self.streamed > max_bytes:
            raise ConfigError(
                f"{MEMORY_KEY} = {max_bytes:,} is less than scoring block '{block}' takes, about "
                f"{self.streamed:,} bytes a worker: raise it, or lower pair_scores.column_tile "
                f"(now {self.column_tile:,}) or pair_scores.pool.shard_rows"
            )


def peak_bytes() -> int:
    """Return the largest memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS


# What is kept of the scores of some rows.

# Columns whose sums are made at once: as many as fit in this, times their subtasks.
SUM_BYTES = 64 * 1024**2
INT_BYTES = 8

RowScorer = Callable[[RowSpan, np.ndarray, Sink], None]


@dataclass
class Columns:
    """The columns of a block in tiles of activations, and the network that scores rows on them."""

    network: FactoredNetwork
    activations: StageOutput
    table: str
    tile_rows: int
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
    resume: Callable[[RowSpan], TopKState] | None = None

    def __call__(self, span: RowSpan, a_IH: np.ndarray, sink: Sink) -> None:
        """Write lists, column maxima and statistics."""
        top = self.score(span, a_IH)
        if top is None:
            return
        write_lists(sink, span.name, span.start, top.index_IK, top.score_IK)
        write_statistics(sink, span.name, top.statistics.total())
        if span.name == CROSS:
            helper_J = self.columns.first + np.arange(len(top.column_max_J))
            write_column_max(sink, span.name, helper_J, top.column_max_J)

    def score(self, span: RowSpan, a_IH: np.ndarray) -> TopK | None:
        """Return lists, statistics and the maxima of all columns; None without columns."""
        network = self.columns.network
        state = None if self.resume is None else self.resume(span)
        with self.columns.naming_bad(span, a_IH):
            return self.score_tiles(
                a_IH, self.columns, network.w_H, network.bias, self.top_k, state=state,
            )  # fmt: skip


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
    for offset, tile_JH in columns:
        for start in range(0, len(tile_JH), step):
            with _stage_error(f"block '{span.name}'"):
                sum_GJ, statistics = sum_columns(
                    a_IH, tile_JH[start : start + step], columns.network.w_H, columns.network.bias,
                    group_I, len(present), statistics=statistics,
                    num_threads=columns.num_threads,
                )  # fmt: skip
            helper_J = offset + start + np.arange(sum_GJ.shape[1])
            for group, num_rows, sum_J in zip(present, num_rows_G, sum_GJ, strict=True):
                name = subtasks.names[group]
                write_column_sums(sink, span.name, name, num_rows, helper_J, sum_J)
    if statistics is not None:
        write_statistics(sink, span.name, statistics.total())


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
    write_statistics(sink, span.name, ScoreTotal.of(score_N))


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
        exact, found = self.exact.score(here, a_IH), self.search(here, a_IH)
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
            write_statistics(sink, self.block, total, num_scored=0)


# What they read: rows and columns, the index.


def read_columns(activations: StageOutput, block: str) -> np.ndarray:
    """Return the activations [J, H] of all columns of a block."""
    return column_matrix(activations.read(f"{block}_columns", ["activation"])["activation"])


def read_rows(activations: StageOutput, block: str, rows: np.ndarray) -> np.ndarray:
    """Return the activations [I, H] of some rows of a block."""
    table = activations.take_rows(f"{block}_rows", rows, ["activation"])
    return column_matrix(table["activation"])


def index_file(block: str) -> str:
    """Return the name of the file that holds a block's index."""
    return f"index-{block}.safetensors"


def write_index(sink: Sink, block: str, index: ColumnIndex) -> None:
    """Write what ``read_index`` reads; the columns themselves are in the activations."""
    arrays = {name: np.ascontiguousarray(array) for name, array in index.to_state().items()}
    sink.write_file(index_file(block), safetensors.numpy.save(arrays))


def read_index(output: StageOutput, block: str, b_JH: np.ndarray, num_threads: int) -> ColumnIndex:
    """Return the index of a block, for the columns that it was built over."""
    state = safetensors.numpy.load(output.read_file(index_file(block)))
    return ColumnIndex.from_state(state, b_JH, num_threads=num_threads)


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
    sink: Sink, block: str, total: ScoreTotal, *, num_scored: int | None = None
) -> None:
    """Write count, extremes and sums of some scores of a block.

    ``num_scored`` are the pairs scored for lists or sums, where those are others than the
    statistics cover.
    """
    scored = total.num_pairs if num_scored is None else num_scored
    row = {"block": block, "num_scored": scored, **asdict(total)}
    sink.write_rows("statistics", [row], schemas.SCORE_STATISTICS)


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
