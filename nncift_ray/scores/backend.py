"""What a worker scores pairs with, the threads or the GPU that Ray gave it, and its memory."""

from __future__ import annotations

import functools
import importlib.util
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

from nncift_ray.errors import ConfigError, StageError
from nncift_ray.runtime.step import Resources
from nncift_ray.scores.exact import TopK, top_k_tiles

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
