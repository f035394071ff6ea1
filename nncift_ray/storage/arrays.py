"""Matrices as Arrow columns of fixed-size lists, and back."""

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def vectors_to_arrow(
    vectors: npt.NDArray[np.floating], dtype: str
) -> pa.FixedSizeListArray[Any, Any]:
    """Wrap vectors [N, D] as an Arrow column of ``dtype`` ("float32" or "float16")."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.dtype(dtype)).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def column_matrix(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.float32]:
    """Return a fixed-size-list column as a float32 matrix [N, D]."""
    width = column.type.list_size
    lists = cast("list[pa.FixedSizeListArray[Any, Any]]", column.chunks)
    chunks = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in lists]
    if not chunks:
        return np.empty((0, width), np.float32)
    return np.concatenate(chunks).astype(np.float32, copy=False).reshape(-1, width)
