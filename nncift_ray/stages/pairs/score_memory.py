"""What a worker of the pair stages holds in memory: estimated before it starts, and measured."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

from nncift_ray.errors import ConfigError

FLOAT_BYTES, LONG_BYTES = 4, 8
#: Python with the libraries, and what reading and writing Parquet takes.
PROCESS_BYTES = 450 * 10**6
TILE_COPIES = 4  # of the columns read at a time: as Parquet, as Arrow, as numbers, packed
PADDING = 1.2  # hidden units are padded to sixteens, cells to whole panels
FEATURE_COPIES = 4  # the index, its bytes while they are read, and packed for searching
MEMORY_KEY = "pair_scores.max_worker_bytes"


@dataclass(frozen=True, slots=True)
class PairMemory:
    """Estimates for one block, in bytes.

    Attributes:
        num_columns: Columns J.
        num_hidden: Hidden units H.
        shard_rows: Rows scored together.
        top_k: Columns kept a row.
        column_tile: Columns streamed at a time.
    """

    num_columns: int
    num_hidden: int
    shard_rows: int
    top_k: int
    column_tile: int = 65_536

    @property
    def columns(self) -> int:
        """All columns' activations."""
        return self.num_columns * self.num_hidden * FLOAT_BYTES

    @property
    def streamed(self) -> int:
        """The least that exact scoring takes: rows, lists and one tile of columns."""
        tile = min(self.column_tile, self.num_columns) * self.num_hidden * FLOAT_BYTES
        rows = self.shard_rows * (3 * self.num_hidden * FLOAT_BYTES + 4 * self.top_k * LONG_BYTES)
        return PROCESS_BYTES + TILE_COPIES * tile + rows

    def keeps_columns(self, max_bytes: int) -> bool:
        """Whether all columns fit beside what streaming takes."""
        return self.streamed + self.columns <= max_bytes

    def pruned(self, num_features: int) -> int:
        """What scoring through an index takes: columns, a packed copy, the index."""
        features = self.num_columns * num_features * FLOAT_BYTES
        packed = round(self.columns * (1 + PADDING))
        return self.streamed + packed + FEATURE_COPIES * features

    def check_streamed(self, block: str, max_bytes: int) -> None:
        """Refuse a bound that even streaming does not keep to.

        Raises:
            ConfigError: With the estimate and what to change.
        """
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
