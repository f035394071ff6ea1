"""Influence whose lists are read anew, some rows at a time, for what no memory holds in one piece.

Suffixes: I rows, J columns, S some columns, R some rows, E entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.sparse_scores import SparseScores

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class StreamedScores:
    """Scaled influence in batches of rows.

    Attributes:
        num_rows: Rows I of all batches.
        num_columns: Columns J.
        batches: Reads the lists from the first row to the last; every batch names all columns.
            Called once for each pass over the lists.
    """

    num_rows: int
    num_columns: int
    batches: Callable[[], Iterator[SparseScores]]

    def whole(self) -> SparseScores:
        """Read all lists into memory."""
        return _joined(list(self.batches()), self.num_columns)

    def restricted(self, columns_S: I64, rows_R: I64 | None = None) -> SparseScores:
        """Read the entries of some columns, numbered in the order given; one pass.

        Args:
            columns_S: The columns wanted.
            rows_R: The rows wanted, ascending; None keeps every row, with what is left of its list.

        Returns:
            The entries in the order they have in their lists.

        Memory: the entries kept (twice for a moment), 4 bytes a column, 8 a row, and a batch.
        """
        number_J = np.full(self.num_columns, -1, np.int32)
        number_J[columns_S] = np.arange(len(columns_S), dtype=np.int32)
        kept: list[SparseScores] = []
        start = 0
        for batch in self.batches():
            stop = start + batch.num_rows
            if rows_R is not None:
                first, last = np.searchsorted(rows_R, [start, stop])
                batch_rows = rows_R[first:last] - start
            else:
                batch_rows = None
            kept.append(_kept(batch, number_J, len(columns_S), batch_rows))
            start = stop
        return _joined(kept, len(columns_S))


def _kept(batch: SparseScores, number_J: I32, num_columns: int, rows_R: I64 | None) -> SparseScores:
    """Return the entries of numbered columns, in some rows of a batch (None: all)."""
    number_E = number_J[batch.indices]
    keep_E = number_E >= 0
    if rows_R is not None:
        wanted_I = np.zeros(batch.num_rows, np.bool_)
        wanted_I[rows_R] = True
        keep_E &= np.repeat(wanted_I, np.diff(batch.indptr))
    before_E = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep_E)])
    length_I = np.diff(before_E[batch.indptr])
    length_R = length_I if rows_R is None else length_I[rows_R]
    indptr = np.zeros(len(length_R) + 1, np.int64)
    np.cumsum(length_R, out=indptr[1:])
    return SparseScores(indptr, number_E[keep_E], batch.data[keep_E], num_columns)


def _joined(batches: list[SparseScores], num_columns: int) -> SparseScores:
    length_I = np.concatenate([np.zeros(1, np.int64), *[np.diff(b.indptr) for b in batches]])
    return SparseScores(
        np.cumsum(length_I),
        np.concatenate([np.zeros(0, np.int32), *[batch.indices for batch in batches]]),
        np.concatenate([np.zeros(0, np.float32), *[batch.data for batch in batches]]),
        num_columns,
    )
