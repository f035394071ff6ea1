"""Influence of every pair as a matrix, where it fits in memory.

Suffixes: I rows, J columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.sparse_scores import InfluenceScale
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DenseScores:
    """Scaled influence [I, J] in [0, 1], float32: row i is helped by column j.

    The optimisers read it by column: a matrix in Fortran order is taken as it is, one in C order is
    copied once (4 * I * J bytes).
    """

    data_IJ: F32

    def __post_init__(self) -> None:
        """Raise ShapeError unless the matrix is [I, J] of float32, ValueError on raw influence."""
        if self.data_IJ.ndim != 2 or self.data_IJ.dtype != np.float32:
            msg = f"a dense matrix is [I, J] float32; got {self.data_IJ.shape} {self.data_IJ.dtype}"
            raise ShapeError(msg)
        if self.data_IJ.size and not (self.data_IJ.min() >= 0 and self.data_IJ.max() <= 1):
            msg = "influence must be scaled to [0, 1] first (InfluenceScale.apply), without NaN"
            raise ValueError(msg)

    @classmethod
    def from_raw(cls, raw_IJ: F32, scale: InfluenceScale) -> DenseScores:
        """Scale a matrix of raw influence.

        Raises:
            ValueError: If an entry lies outside the scale (NaN too).
        """
        return cls(np.asfortranarray(scale.apply(raw_IJ)))

    @property
    def num_rows(self) -> int:
        """Number of rows I."""
        return self.data_IJ.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns J."""
        return self.data_IJ.shape[1]
