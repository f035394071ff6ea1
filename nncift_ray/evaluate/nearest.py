"""The nearest of some vectors by cosine, exactly: FAISS finds them, float64 puts them in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError

DIGITS = 6  # cosines that agree to so many are equal
#: What FAISS did not find is at most so much nearer than the farthest it found: float32 rounds.
SEARCH_ERROR = 1e-5
SPARE = 8  # found beyond those wanted, so that one search mostly does
WIDENING = 4

F32 = NDArray[np.float32]


class Nearest(NamedTuple):
    """The nearest vectors of each query, nearest first; the lower name first among equals."""

    place_IK: NDArray[np.int64]  # in the order the vectors were given in
    cosine_IK: F32  # rounded to DIGITS


class NearestVectors:
    """Unit vectors [J, D] to be found by cosine; their names decide among equally near ones."""

    def __init__(self, vector_JD: F32, names: Sequence[str], *, num_threads: int = 1) -> None:
        """Take vectors to search on so many threads of FAISS.

        Raises:
            ShapeError: If there is no vector.
        """
        if not len(vector_JD):
            raise ShapeError("there is no vector to search")
        self._vector_JD = np.ascontiguousarray(vector_JD, np.float32)
        self._rank_J = np.empty(len(names), np.int64)
        self._rank_J[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        self._num_threads = num_threads

    def search(self, query_ID: F32, num_wanted: int) -> Nearest:
        """Return the nearest vectors of each query: K = num_wanted, or all if they are fewer.

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

    def _find(self, query_ID: F32, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return C vectors of each query in their final order, with their rounded cosines."""
        faiss.omp_set_num_threads(self._num_threads)
        width = min(width, len(self._vector_JD))
        found_IC = faiss.knn(query_ID, self._vector_JD, width, faiss.METRIC_INNER_PRODUCT)[1]
        near_ICD = self._vector_JD[found_IC].astype(np.float64)
        exact_IC = np.einsum("id,icd->ic", query_ID.astype(np.float64), near_ICD)
        cosine_IC = np.round(exact_IC, DIGITS)
        order_IC = np.lexsort((self._rank_J[found_IC], -cosine_IC), axis=1)
        return (
            np.take_along_axis(found_IC, order_IC, axis=1),
            np.take_along_axis(cosine_IC, order_IC, axis=1),
        )
