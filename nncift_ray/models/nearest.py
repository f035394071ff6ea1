"""The nearest of some vectors by cosine, exactly: FAISS finds them, float64 puts them in order.

Suffixes: I queries, J vectors, C found by FAISS, K wanted, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift_ray.models.neighbour_index import F32, NeighbourIndex

I64 = npt.NDArray[np.int64]

DIGITS = 6  # cosines that agree to so many are equal
#: What FAISS did not find is at most so much nearer than the farthest it found: float32 rounds.
SEARCH_ERROR = 1e-5
SPARE = 8  # found beyond those wanted, so that one search mostly does
WIDENING = 4


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The nearest vectors of each query, nearest first; the lower name first among equals."""

    place_IK: I64  # in the order the vectors were given in
    cosine_IK: F32  # rounded to DIGITS


class NearestVectors:
    """Unit vectors to be found by cosine."""

    def __init__(self, vector_JD: F32, names: Sequence[str], *, num_threads: int = 1) -> None:
        """Index vectors.

        Args:
            vector_JD: Unit vectors.
            names: Their names, which decide among vectors that are equally near.
            num_threads: Threads of FAISS.

        Raises:
            ShapeError: If there is no vector.
            ValueError: If a vector is not finite.

        Memory: 8 * J * D bytes.
        """
        self._vector_JD = vector_JD
        by_name = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        self._rank_J = np.empty(len(names), np.int64)
        self._rank_J[by_name] = np.arange(len(names))
        self._index = NeighbourIndex.build(
            "flat", vector_JD[:1], len(vector_JD), seed=0, num_threads=num_threads
        )
        self._index.add(vector_JD)

    def search(self, query_ID: F32, num_wanted: int) -> Nearest:
        """Return the nearest vectors of each query: K = num_wanted, or all if they are fewer.

        Raises:
            ShapeError: If D differs.
            ValueError: If a query is not finite.

        Memory: 8 * I * C * D bytes, C a little more than K unless many are equally near.
        """
        size = min(num_wanted, len(self._vector_JD))
        place_IK = np.empty((len(query_ID), size), np.int64)
        cosine_IK = np.empty((len(query_ID), size), np.float32)
        open_rows = np.arange(len(query_ID))
        width = size + SPARE
        while len(open_rows):
            place_IC, cosine_IC = self._find(query_ID[open_rows], width)
            place_IK[open_rows] = place_IC[:, :size]
            cosine_IK[open_rows] = cosine_IC[:, :size]
            if width >= len(self._vector_JD):
                break
            # What was not found may still belong here where the farthest found is hardly farther.
            open_rows = open_rows[cosine_IC[:, size - 1] <= cosine_IC[:, -1] + SEARCH_ERROR]
            width *= WIDENING
        return Nearest(place_IK, cosine_IK)

    def _find(self, query_ID: F32, width: int) -> tuple[I64, npt.NDArray[np.float64]]:
        """Return C vectors of each query in their final order, with their rounded cosines."""
        found_IC = self._index.search(query_ID, min(width, len(self._vector_JD))).astype(np.int64)
        near_ICD = self._vector_JD[found_IC].astype(np.float64)
        exact_IC = np.einsum("id,icd->ic", query_ID.astype(np.float64), near_ICD)
        cosine_IC = np.round(exact_IC, DIGITS)
        order_IC = np.lexsort((self._rank_J[found_IC], -cosine_IC), axis=1)
        return (
            np.take_along_axis(found_IC, order_IC, axis=1),
            np.take_along_axis(cosine_IC, order_IC, axis=1),
        )
