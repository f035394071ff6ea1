"""Influence as set functions read it: on one scale from 0 to 1, as a list of columns a row.

Suffixes: I rows, J columns, K list places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InfluenceScale:
    """The one linear map from raw influence to [0, 1], shared by everything that is compared."""

    min: float
    max: float

    def __post_init__(self) -> None:
        """Raise ValueError when the bounds are not finite or not in order."""
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.max):
            msg = f"an influence scale needs finite min <= max, got {self.min} and {self.max}"
            raise ValueError(msg)

    @classmethod
    def covering(cls, *scales: InfluenceScale) -> InfluenceScale:
        """Return the scale from the least minimum to the greatest maximum of those given."""
        return cls(min(s.min for s in scales), max(s.max for s in scales))

    def apply(self, raw: F32) -> F32:
        """Return raw influence as float32 in [0, 1]; all 0 when the scale has no width.

        Raises:
            ValueError: If a value is outside the scale (NaN too): the scale is of other scores.
        """
        bad = np.flatnonzero(~((raw >= np.float32(self.min)) & (raw <= np.float32(self.max))))
        if len(bad):
            msg = (
                f"influence {raw.reshape(-1)[bad[0]]} lies outside the scale"
                f" [{self.min}, {self.max}]: compute the scale over all blocks that are compared"
            )
            raise ValueError(msg)
        width = self.max - self.min
        if width == 0:
            return np.zeros(raw.shape, np.float32)
        # In place: on a million lists a second float64 copy would be half a gigabyte.
        scaled = raw.astype(np.float64)
        scaled -= self.min
        scaled /= width
        return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32)

    def apply_to_means(self, mean: F64) -> F64:
        """Return means of raw influence on the scale: what the mean of the scaled would be.

        In float64, since means differ by less than the influences they are made of; and not
        clipped, since a mean of rounded influences may pass a bound by that rounding. All 0 when
        the scale has no width.
        """
        width = self.max - self.min
        return np.zeros_like(mean) if width == 0 else (mean - self.min) / width


@dataclass(frozen=True, slots=True, eq=False)
class SparseScores:
    """Scaled influence of the listed columns of each row, as compressed rows.

    Row i holds columns `indices[indptr[i]:indptr[i+1]]` with values `data[...]` in [0, 1].
    """

    indptr: I64
    indices: I32
    data: F32
    num_columns: int

    def __post_init__(self) -> None:
        """Raise ShapeError on arrays that do not belong together, ValueError on bad entries."""
        if self.indptr.ndim != 1 or len(self.indptr) == 0 or self.indptr[0] != 0:
            msg = "indptr must be [I + 1] and begin with 0"
            raise ShapeError(msg)
        if not self.indptr[-1] == len(self.indices) == len(self.data):
            msg = f"{self.indptr[-1]} entries, {len(self.indices)} indices, {len(self.data)} values"
            raise ShapeError(msg)
        if (np.diff(self.indptr) < 0).any():
            msg = "indptr must not decrease"
            raise ShapeError(msg)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < (
            self.num_columns
        ):
            msg = (
                f"columns {self.indices.min()}..{self.indices.max()} listed,"
                f" there are {self.num_columns}: are these lists of another table?"
            )
            raise ValueError(msg)
        if len(self.data) and not (self.data.min() >= 0 and self.data.max() <= 1):
            msg = "influence must be scaled to [0, 1] first (InfluenceScale.apply)"
            raise ValueError(msg)

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return len(self.indptr) - 1

    @classmethod
    def from_top_k(
        cls, index_IK: I32, raw_IK: F32, num_columns: int, scale: InfluenceScale
    ) -> SparseScores:
        """Compress the lists of `top_k_rows` (raw influence, index -1 where padded).

        Raises:
            ShapeError: If the two arrays differ in shape.
            ValueError: If an entry lies outside the scale or the columns.
        """
        if index_IK.shape != raw_IK.shape or index_IK.ndim != 2:
            msg = f"lists are [I, K] twice; got {index_IK.shape} and {raw_IK.shape}"
            raise ShapeError(msg)
        listed_IK = index_IK >= 0
        indptr = np.zeros(len(index_IK) + 1, np.int64)
        np.cumsum(listed_IK.sum(axis=1), out=indptr[1:])
        indices = index_IK[listed_IK].astype(np.int32)
        return cls(indptr, indices, scale.apply(raw_IK[listed_IK]), num_columns)
