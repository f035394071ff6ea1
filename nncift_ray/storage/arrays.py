"""Matrices as Arrow columns of fixed-size lists, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def vectors_to_arrow(vectors: npt.NDArray[np.floating], dtype: str) -> pa.FixedSizeListArray:
    """Wrap vectors [N, D] as an Arrow column of ``dtype`` ("float32" or "float16")."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.dtype(dtype)).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def column_matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a fixed-size-list column as a float32 matrix [N, D]."""
    width = column.type.list_size
    chunks = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in column.chunks]
    if not chunks:
        return np.empty((0, width), np.float32)
    return np.concatenate(chunks).astype(np.float32, copy=False).reshape(-1, width)
