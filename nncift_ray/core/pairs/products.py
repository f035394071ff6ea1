"""Matrix products of rows, summed in one fixed order: a row's bits are the same in any call.

A library's product may round a row differently in a call of another size. Suffixes: N rows, F what
is summed over, C columns of the matrix, X the same in whole panels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.pair_vectors import NUM_ROWS, PANEL_COLUMNS, multiply_panel
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]


def multiply_rows(x_NF: F32, matrix_FC: F32) -> F32:
    """Return x times the matrix [N, C], each number summed over F in order.

    Raises:
        ShapeError: If F differs.

    Memory: 4 * N * C bytes and the matrix, its columns padded to a multiple of 64.
    """
    if x_NF.ndim != 2 or matrix_FC.ndim != 2 or x_NF.shape[1] != len(matrix_FC):
        msg = f"{x_NF.shape} cannot be multiplied by {matrix_FC.shape}"
        raise ShapeError(msg)
    product_NC = np.empty((len(x_NF), matrix_FC.shape[1]), np.float32)
    num_panels = -(-matrix_FC.shape[1] // PANEL_COLUMNS)
    padded_FX = np.zeros((len(matrix_FC), num_panels * PANEL_COLUMNS), np.float32)
    padded_FX[:, : matrix_FC.shape[1]] = matrix_FC
    panel_PFC = padded_FX.reshape(len(matrix_FC), num_panels, PANEL_COLUMNS).transpose(1, 0, 2)
    _multiply(np.ascontiguousarray(x_NF, np.float32), np.ascontiguousarray(panel_PFC), product_NC)
    return product_NC


@compiled
def _multiply(x_NF: F32, panel_PFC: F32, product_NC: F32) -> None:
    num_columns = product_NC.shape[1]
    group_FR = np.empty((x_NF.shape[1], NUM_ROWS), np.float32)
    base_X = np.zeros(len(panel_PFC) * PANEL_COLUMNS, np.float32)
    product_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    for first in range(0, len(x_NF), NUM_ROWS):
        for r in range(NUM_ROWS):
            n = min(first + r, len(x_NF) - 1)
            for f in range(x_NF.shape[1]):
                group_FR[f, r] = x_NF[n, f]
        for p in range(len(panel_PFC)):
            multiply_panel(group_FR, panel_PFC[p], base_X, product_RX, p * PANEL_COLUMNS)
        for r in range(min(NUM_ROWS, len(x_NF) - first)):
            for c in range(num_columns):
                product_NC[first + r, c] = product_RX[r, c]
