"""Score pairs: the network's influence for every pair of a block; keeps every row's best K helpers.

Rows are sharded; columns stream through every shard tile by tile. Nothing of size rows x columns is
ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.factored import FactoredNetwork
from nncift_ray.core.pair_scores import TopK, top_k_rows
from nncift_ray.stages.atoms import RowAtoms, RowSpan, RowStage, merge_spans
from nncift_ray.stages.stage import Shard, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import Sink, StageOutput

ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 4096
# Columns of a block are read once and kept while they fit in this; else every shard streams them.
COLUMN_CACHE_BYTES = 256 * 1024**2
FLOAT_BYTES = 4


class ScorePairsStage(RowStage):
    """Write ``<block>_top_helpers``, ``statistics`` and, for cross, ``column_max``."""

    name: ClassVar[str] = "score_pairs"

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        top_k: int,
        *,
        column_tile: int = 65_536,
        shard_rows: int | None = None,
    ) -> None:
        """Score the pairs of the given blocks."""
        self._activations, self._networks = activations, networks
        self._blocks, self._top_k, self._column_tile = tuple(blocks), top_k, column_tile
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        ranges = tuple((block, activations.num_rows(f"{block}_rows")) for block in self._blocks)
        self._atoms = RowAtoms(ranges, ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Lists of each block, statistics, column maxima."""
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        return lists | {
            "statistics": schemas.SCORE_STATISTICS,
            "column_max": schemas.COLUMN_MAX,
        }

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations and the networks' output weights."""
        return {"activations": self._activations, "networks": self._networks}

    def settings(self) -> dict[str, Any]:
        """What is kept; tiles and shards change nothing."""
        return {"blocks": list(self._blocks), "top_k": self._top_k, "mode": "exact"}

    def make_worker(self) -> Worker:
        """Load the networks; columns are read as they are needed."""
        networks = {block: read_network(self._networks, block) for block in self._blocks}
        columns = {
            block: ColumnTiles(
                self._activations, f"{block}_columns", self._column_tile, networks[block].num_hidden
            )
            for block in self._blocks
        }

        def score_shard(shard: Shard, sink: Sink) -> None:
            for span in merge_spans(list(self._atoms.spans(shard.start, shard.stop))):
                self._score_span(span, networks[span.name], columns[span.name], sink)

        return score_shard

    def _score_span(
        self, span: RowSpan, network: FactoredNetwork, columns: ColumnTiles, sink: Sink
    ) -> None:
        rows = self._activations.read_range(f"{span.name}_rows", span.start, span.stop)
        activation = column_matrix(rows["activation"])
        top: TopK | None = None
        maxima: list[np.ndarray] = []
        for offset, tile in columns:
            top = top_k_rows(
                activation,
                tile,
                network.w_H,
                network.bias,
                self._top_k,
                column_offset=offset,
                state=None if top is None else top.state,
            )
            maxima.append(top.column_max_J)
        if top is None:
            return
        sink.write(f"{span.name}_top_helpers", top_helpers_table(rows["row_index"], top))
        statistics = {"block": span.name, **asdict(top.statistics.total())}
        sink.write_rows("statistics", [statistics], schemas.SCORE_STATISTICS)
        if span.name == schemas.CROSS:
            sink.write("column_max", _column_max_table(span.name, np.concatenate(maxima)))


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


def _column_max_table(block: str, maxima: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "block": pa.array([block] * len(maxima), pa.string()),
            "helper_index": pa.array(np.arange(len(maxima)), pa.int64()),
            "max_influence": pa.array(maxima, pa.float32()),
        },
        schema=schemas.COLUMN_MAX,
    )
