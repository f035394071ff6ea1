"""Columns sorted into cells, each cell in whole panels, and which rows probe which cell.

Suffixes: I rows, J columns, L cells, P probed cells, X places of columns in panels, N probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.pair_vectors import PANEL_COLUMNS
from nncift_ray.core.pairs.panels import padded_places
from nncift_ray.errors import ShapeError

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_CELL = -1


@dataclass(frozen=True, slots=True, eq=False)
class CellLayout:
    """Where the columns of each cell lie."""

    column_X: I32  # the column's number at each place, or -1
    start_L: I64  # first panel of each cell, and the number of panels: [L + 1]
    num_columns_L: I64

    @property
    def num_cells(self) -> int:
        """Number L of cells, empty ones included."""
        return len(self.num_columns_L)


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The rows that probe each cell: `row_N[start_L[cell] : start_L[cell + 1]]`."""

    row_N: I64
    start_L: I64
    num_pairs_I: I64  # columns in the cells of each row


def lay_out_cells(cell_J: NDArray[np.integer], num_cells: int) -> CellLayout:
    """Give every cell's columns, in their order, panels of their own.

    Raises:
        ShapeError: If the cells are no vector.
        ValueError: If a cell does not exist.
    """
    if cell_J.ndim != 1:
        msg = f"cells of columns are {cell_J.shape}, expected [J]"
        raise ShapeError(msg)
    _check_cells("a column lies in", cell_J, 0, num_cells)
    num_columns_L = np.bincount(cell_J, minlength=num_cells)
    members = np.split(np.argsort(cell_J, kind="stable"), np.cumsum(num_columns_L)[:-1])
    column_X = np.concatenate([padded_places(columns) for columns in members])
    num_panels_L = -(-num_columns_L // PANEL_COLUMNS)
    return CellLayout(column_X, np.concatenate([[0], np.cumsum(num_panels_L)]), num_columns_L)


def group_probes(cell_IP: NDArray[np.integer], layout: CellLayout, num_rows: int) -> Probes:
    """Return the rows of each cell, in their order.

    Args:
        cell_IP: Cells probed by each row [I, P], each at most once; -1 is no cell.
        layout: The cells there are.
        num_rows: Rows I there should be.

    Raises:
        ShapeError: If there is not one list a row.
        ValueError: If a probed cell does not exist.

    Memory: 24 * I * P bytes.
    """
    if cell_IP.ndim != 2 or len(cell_IP) != num_rows:
        msg = f"{num_rows} rows, but probes of {cell_IP.shape}; expected one list a row"
        raise ShapeError(msg)
    _check_cells("a row probes", cell_IP, NO_CELL, layout.num_cells)
    probed = cell_IP.ravel()
    order = np.argsort(probed, kind="stable")
    start_L = np.searchsorted(probed[order], np.arange(layout.num_cells + 1))
    scored_IP = np.where(cell_IP == NO_CELL, 0, layout.num_columns_L[cell_IP])
    return Probes(order // max(cell_IP.shape[1], 1), start_L, scored_IP.sum(axis=1))


def _check_cells(what: str, cells: NDArray[np.integer], lowest: int, num_cells: int) -> None:
    if cells.size and not lowest <= cells.min() <= cells.max() < num_cells:
        msg = f"{what} cells {cells.min()}..{cells.max()}, there are {num_cells}"
        raise ValueError(msg)
