"""Gradients of sampled examples by their names, and where the label step finds them again (LESS).

Suffixes: C checkpoints of the warm-up, N rows, P projected dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import ExampleKey
from nncift_ray.errors import StorageError
from nncift_ray.runtime.output import StageManifest, StageOutput, column_matrix

HELPED, HELPER = "helped", "helper"
#: Rows that are written, and so can be read, together.
GRADIENT_BLOCK_ROWS = 32
DEFAULT_CACHE_BYTES = 512 * 1024**2
_TABLE_PREFIX = "checkpoint_"


class GradientKey(NamedTuple):
    """Names a gradient: the example, and the side of a pair it stands on."""

    side: str  # HELPED (the plain gradient) or HELPER (Adam's next step)
    role: str
    row_index: int

    @property
    def example(self) -> ExampleKey:
        """Whose gradient it is."""
        return self.role, self.row_index


def gradient_table(checkpoint: int) -> str:
    """Name the table of a checkpoint's gradients."""
    return f"{_TABLE_PREFIX}{checkpoint}"


def checkpoint_of_table(table: str) -> int:
    """Return the checkpoint whose gradients a table holds."""
    return int(table.removeprefix(_TABLE_PREFIX))


class GradientReader:
    """Finds gradients in the gradients stage's output, with a bounded part of them in memory.

    A label group names the same helped examples over and over, so the blocks read last are kept.
    """

    def __init__(
        self, gradients: StageOutput, *, max_cached_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        """Read which gradients there are; the vectors are read when they are asked for.

        Raises:
            StorageError: If the checkpoints' tables do not name the same examples.
        """
        self._gradients, self._max_cached_bytes = gradients, max_cached_bytes
        self._tables = _gradient_tables(gradients.manifest)
        self._blocks: OrderedDict[int, npt.NDArray[np.float32]] = OrderedDict()
        self._position_of = self._find_done()

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints that every gradient was taken at."""
        return len(self._tables)

    def vectors(self, keys: Iterable[GradientKey]) -> dict[GradientKey, npt.NDArray[np.float32]]:
        """Return the projected gradients [C, P] of those keys that are done at all checkpoints.

        Memory: 4 * C * P bytes a key, and blocks of at most ``max_cached_bytes`` in all (or one).
        """
        wanted = {key: self._position_of[key] for key in keys if key in self._position_of}
        found: dict[GradientKey, npt.NDArray[np.float32]] = {}
        for key, position in sorted(wanted.items(), key=lambda item: item[1]):
            block, row = divmod(position, GRADIENT_BLOCK_ROWS)
            # A copy: a view would keep its whole block in memory.
            found[key] = self._load_block(block)[:, row].copy()
        return found

    def _find_done(self) -> dict[GradientKey, int]:
        """Return, for each gradient done at all checkpoints, its place in their tables."""
        keys: list[GradientKey] = []
        done_N: npt.NDArray[np.bool_] | None = None
        for name in self._tables:
            table = self._gradients.read(name, ["side", "role", "row_index", "done"])
            columns = [table[column].to_pylist() for column in GradientKey._fields]
            named = [GradientKey(*row) for row in zip(*columns, strict=True)]
            done_here_N = np.array(table["done"].to_pylist(), dtype=bool)
            if done_N is not None and named != keys:
                raise StorageError(
                    f"{self._gradients.folder}: '{name}' and '{self._tables[0]}' do not name the "
                    "same examples. Delete the folder and run again."
                )
            keys, done_N = named, done_here_N if done_N is None else done_N & done_here_N
        return {} if done_N is None else {keys[at]: at for at in np.flatnonzero(done_N).tolist()}

    def _load_block(self, block: int) -> npt.NDArray[np.float32]:
        """Return a block of rows [C, N, P], zeros where one is not done; from memory if there."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        loaded_CNP = self._read_block(block)
        room = max(1, self._max_cached_bytes // loaded_CNP.nbytes)
        while len(self._blocks) >= room:
            self._blocks.popitem(last=False)
        self._blocks[block] = loaded_CNP
        return loaded_CNP

    def _read_block(self, block: int) -> npt.NDArray[np.float32]:
        start = block * GRADIENT_BLOCK_ROWS
        matrices: list[npt.NDArray[np.float32]] = []
        for name in self._tables:
            stop = min(start + GRADIENT_BLOCK_ROWS, self._gradients.num_rows(name))
            table = self._gradients.read_range(name, start, stop, ["done", "feature"])
            done_N = np.array(table["done"].to_pylist(), dtype=bool)
            features = column_matrix(table.filter(table["done"])["feature"])
            matrix_NP = np.zeros((len(done_N), features.shape[1]), np.float32)
            matrix_NP[done_N] = features
            matrices.append(matrix_NP)
        return np.stack(matrices)


def _gradient_tables(manifest: StageManifest) -> list[str]:
    """Return the tables of gradients, in the order of their checkpoints."""
    tables = {part.table for shard in manifest.shards for part in shard.parts}
    return sorted(
        (name for name in tables if name.startswith(_TABLE_PREFIX)), key=checkpoint_of_table
    )
