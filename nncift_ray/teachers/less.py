"""LESS: how far a training step on one example lowers another's loss, by projected gradients.

The teacher only compares gradients that a warm-up (``warmup``) and the gradients step
(``gradients``) have left. Suffixes: C checkpoints of the warm-up, N rows, P projected dimensions.
Source: LESS, arXiv 2402.04333.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.corpus.examples import ExampleKey
from nncift_ray.errors import ConfigError, ShapeError, StorageError
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
)

HELPED, HELPER = "helped", "helper"
#: Rows that are written, and so can be read, together.
GRADIENT_BLOCK_ROWS = 32
DEFAULT_CACHE_BYTES = 512 * 1024**2
_TABLE_PREFIX = "checkpoint_"


class LessTeacher(Teacher):
    """LESS: weighted cosines of projected gradients over the warm-up's checkpoints."""

    needs_gradients: ClassVar[bool] = True

    def __init__(self, checkpoint_weights: Sequence[float]) -> None:
        """Make a teacher that weights the checkpoints so (they sum to 1)."""
        self._weights_C = tuple(checkpoint_weights)

    @classmethod
    def from_context(cls, context: TeacherContext) -> LessTeacher:
        """Make a teacher with the warm-up's checkpoint weights."""
        if not context.checkpoint_weights:
            raise ConfigError("teacher less needs the checkpoints of a warm-up, none were given")
        return cls(context.checkpoint_weights)

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the influence in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

    def _measure_one(self, request: LabelRequest) -> Measurement | MeasurementFailure:
        helped_CP, helper_CP = request.helped_gradients, request.helper_gradients
        if helped_CP is None or helper_CP is None:
            return MeasurementFailure("no_gradient", "an example of the pair has no gradient")
        try:
            return Measurement(less_score(helped_CP, helper_CP, self._weights_C))
        except ValueError as error:  # a feature without a direction, or of another warm-up
            return MeasurementFailure("bad_gradient", str(error))


def less_score(
    helped_CP: NDArray[np.floating],
    helper_CP: NDArray[np.floating],
    weights_C: NDArray[np.floating] | Sequence[float],
) -> float:
    """Return the influence of a helper: the weighted sum over checkpoints of two features' cosine.

    It lies in [-1, 1] for weights that sum to 1.

    Args:
        helped_CP: Projected plain gradients of the helped example.
        helper_CP: Projected Adam directions of the helper.
        weights_C: As ``checkpoint_weights`` gives them.

    Raises:
        ShapeError: If the three do not fit together.
        ValueError: If a feature is zero or not finite: it has no direction.

    Source: LESS, definition 3.1.
    """
    helped, helper = np.asarray(helped_CP, np.float64), np.asarray(helper_CP, np.float64)
    weights = np.asarray(weights_C, np.float64)
    if helped.ndim != 2 or helped.shape != helper.shape or weights.shape != helped.shape[:1]:
        msg = f"features {helped.shape} and {helper.shape} with weights {weights.shape}"
        raise ShapeError(msg)
    norms = np.linalg.norm(helped, axis=1) * np.linalg.norm(helper, axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        msg = "a projected gradient is zero or not finite"
        raise ValueError(msg)
    cosines = np.clip(np.einsum("cp,cp->c", helped, helper) / norms, -1.0, 1.0)
    return float(weights @ cosines)


# Gradients by their names, and where the label step finds them again.


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
        self._gradients = gradients
        tables = {part.table for shard in gradients.manifest.shards for part in shard.parts}
        self._tables = sorted(
            (name for name in tables if name.startswith(_TABLE_PREFIX)), key=checkpoint_of_table
        )
        dim = gradients.manifest.settings["projection_dim"]
        block_bytes = 4 * GRADIENT_BLOCK_ROWS * len(self._tables) * dim
        num_blocks = max(1, max_cached_bytes // max(1, block_bytes))
        self._read_cached = functools.lru_cache(num_blocks)(self._read_block)
        self._place_of = self._find_done()

    def vectors(self, keys: Iterable[GradientKey]) -> dict[GradientKey, NDArray[np.float32]]:
        """Return the projected gradients [C, P] of those keys that are done at all checkpoints.

        Memory: 4 * C * P bytes a key, and blocks of at most ``max_cached_bytes`` in all (or one).
        """
        wanted = {key: self._place_of[key] for key in keys if key in self._place_of}
        found: dict[GradientKey, NDArray[np.float32]] = {}
        for key, place in sorted(wanted.items(), key=lambda item: item[1]):
            block, row = divmod(place, GRADIENT_BLOCK_ROWS)
            # A copy: a view would keep its whole block in memory.
            found[key] = self._read_cached(block)[:, row].copy()
        return found

    def _find_done(self) -> dict[GradientKey, int]:
        """Return, for each gradient done at all checkpoints, its place in their tables."""
        keys: list[GradientKey] = []
        done_N = np.zeros(0, bool)
        for name in self._tables:
            table = self._gradients.read(name, ["side", "role", "row_index", "done"])
            columns = [table[column].to_pylist() for column in GradientKey._fields]
            named = [GradientKey(*row) for row in zip(*columns, strict=True)]
            done_here_N = np.array(table["done"].to_pylist(), dtype=bool)
            first = name == self._tables[0]
            if not first and named != keys:
                raise StorageError(
                    f"{self._gradients.folder}: '{name}' and '{self._tables[0]}' do not name the "
                    "same examples. Delete the folder and run again."
                )
            keys, done_N = named, done_here_N if first else done_N & done_here_N
        return {keys[at]: at for at in np.flatnonzero(done_N).tolist()}

    def _read_block(self, block: int) -> NDArray[np.float32]:
        """Read a block of rows [C, N, P], zeros where one is not done."""
        start = block * GRADIENT_BLOCK_ROWS
        matrices: list[NDArray[np.float32]] = []
        for name in self._tables:
            stop = min(start + GRADIENT_BLOCK_ROWS, self._gradients.num_rows(name))
            done_N, features = _read_done(self._gradients, name, start, stop)
            matrix_NP = np.zeros((len(done_N), features.shape[1]), np.float32)
            matrix_NP[done_N] = features
            matrices.append(matrix_NP)
        return np.stack(matrices)


def _read_done(
    gradients: StageOutput, table: str, start: int, stop: int
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which of some rows are done [N], and their features as they are stored."""
    rows = gradients.read_range(table, start, stop, ["done", "feature"])
    done = rows.filter(rows["done"])["feature"]
    return np.array(rows["done"].to_pylist(), dtype=bool), column_matrix(done)


# All gradients of a side, stored small: what scores every pair by inner products.


def pack_features(features_NP: NDArray[np.float32], storage: str) -> NDArray[Any]:
    """Return features as they are stored [N, P], as ``bit`` [N, P / 8 rounded up].

    ``int8`` keeps a cosine to about 0.001 (8,192 numbers); ``bit`` the signs alone, whose cosine
    with a feature is sqrt(2 / pi) of the features', within about 1 / sqrt(P): projected numbers
    are close to normal.

    Source: quantised gradient stores, arXiv 2502.01703 (8 bits) and 2602.18584 (signs).
    """
    if storage == "bit":
        return np.packbits(features_NP > 0, axis=1)
    if storage == "int8":
        most_N1 = np.abs(features_NP).max(axis=1, keepdims=True)
        return np.rint(features_NP / np.where(most_N1 > 0, most_N1, 1) * 127).astype(np.int8)
    return features_NP


def unpack_features(stored_NP: NDArray[Any], num_dims: int) -> NDArray[np.float32]:
    """Return stored features at length 1 [N, P]; of signs sqrt(pi / 2), so that cosines are right.

    A row of zeros, which no gradient is, stays one.
    """
    length = 1.0
    if stored_NP.dtype == np.uint8:
        signs_NP = np.unpackbits(stored_NP, axis=1, count=num_dims).astype(np.float32)
        stored_NP, length = 2 * signs_NP - 1, math.sqrt(math.pi / 2)
    values_NP = stored_NP.astype(np.float32)
    norms_N1 = np.linalg.norm(values_NP, axis=1, keepdims=True)
    return (length * values_NP / np.where(norms_N1 > 0, norms_N1, 1)).astype(np.float32)


def read_features(
    gradients: StageOutput, start: int, stop: int, weights_C: Sequence[float]
) -> NDArray[np.float32]:
    """Return some rows' features of all checkpoints side by side [N, C * P].

    Each is weighted by the root of its checkpoint's weight, so that the inner product of two rows
    is their score. A row that lacks a checkpoint is zero.
    """
    num_dims: int = gradients.manifest.settings["projection_dim"]
    parts: list[NDArray[np.float32]] = []
    known_N = np.ones(stop - start, bool)
    for checkpoint, weight in enumerate(weights_C):
        done_N, stored = _read_done(gradients, gradient_table(checkpoint), start, stop)
        part_NP = np.zeros((stop - start, num_dims), np.float32)
        if done_N.any():
            part_NP[done_N] = math.sqrt(weight) * unpack_features(stored, num_dims)
        known_N &= done_N
        parts.append(part_NP)
    return np.concatenate(parts, axis=1) * known_N[:, None]


def target_subspace(row_ID: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the directions [D, R] in which the targets' features vary most, unit and orthogonal.

    Cosines within them leave out what no target's gradient has. R is at most the rows' rank.

    Source: GIST, arXiv 2602.18584.
    """
    values, vectors_II = np.linalg.eigh(row_ID.astype(np.float64) @ row_ID.T)
    kept = np.flatnonzero(values > values.max(initial=0.0) * 1e-9)[::-1][:rank]
    return (row_ID.T @ vectors_II[:, kept] / np.sqrt(values[kept])).astype(np.float32)
