"""Exact influence of the columns in some cells: a row is scored against the cells it probes.

Columns that behave alike lie in one cell (`models.neighbour_index`), and a row probes a few cells.
The columns of a cell are packed side by side, and cells are taken one after the other, each with
all rows that probe it: the streamed kernel's inner loop runs on a few per cent of the pairs, at a
quarter to half of its pace, and no second pass is needed. Scattered columns (`rescoring`) cost some
ten times as much a pair.

The arithmetic is that of `pair_scores`, so a score has the same bits; lists do not depend on which
other rows are in the call.

Suffixes: I rows (helped), J columns (helpers, cell after cell), H hidden units in kernel order,
L cells, P probed cells, K kept columns, R rows that probe one cell, T columns of one cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.cell_layout import CellLayout, group_probes, lay_out_cells
from nncift_ray.core.pairs.pair_scores import NO_COLUMN
from nncift_ray.core.pairs.pair_vectors import NUM_ROWS, PANEL_COLUMNS, find_extremes
from nncift_ray.core.pairs.panels import Panels, gather_rows, pack_panels, score_panels
from nncift_ray.core.pairs.rescoring import RescoredTopK, insert_best
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PackedCells:
    """All columns of a network, cell after cell, each cell in panels of its own."""

    panels: Panels
    layout: CellLayout

    @property
    def num_cells(self) -> int:
        """Number L of cells, empty ones included."""
        return self.layout.num_cells


def pack_cells(
    b_JH: F32, w_H: F32, bias: float, cell_J: NDArray[np.integer], num_cells: int
) -> PackedCells:
    """Sort the columns into their cells and prepare them for `score_cells`.

    Args:
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.
        cell_J: Cell of each column, in 0..num_cells - 1.
        num_cells: Cells L.

    Raises:
        ShapeError: If the arrays do not belong together.
        ValueError: If an activation is not finite (the message names the first such row), or a
            cell does not exist.

    Memory: 4 * J * H bytes, each cell's columns padded to a multiple of 64.
    """
    if cell_J.shape != (len(b_JH),):
        msg = f"{len(b_JH)} columns, but cells of {cell_J.shape}"
        raise ShapeError(msg)
    layout = lay_out_cells(cell_J, num_cells)
    return PackedCells(pack_panels(b_JH, w_H, bias, layout.column_X), layout)


def score_cells(
    a_IH: F32, cells: PackedCells, cell_IP: NDArray[np.integer], k: int
) -> RescoredTopK:
    """Score every row against all columns of the cells it probes and keep the K best.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included, units in their own order.
        cells: All columns, from `pack_cells`.
        cell_IP: Cells probed by each row [I, P], each at most once; -1 is no cell.
        k: Columns kept per row, at least 1.

    Returns:
        Lists in the unit of the labels (raw and signed). Probing every cell gives the lists of
        `pair_scores.top_k_rows`, to the last bit.

    Raises:
        ShapeError: If rows, hidden units and cells do not belong together.
        ValueError: If an activation is not finite (the message names the first such row), a probed
            cell does not exist, or k is below 1.

    Memory: 16 * I * P bytes, 8 * I * K for the result, 8 * I * H for the rows, one cell's scores.
        Rows of one call share the reading of a cell: thousands of rows are faster than hundreds.
    """
    rows_IH = cells.panels.prepare_rows(a_IH)
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise ValueError(msg)
    probes = group_probes(cell_IP, cells.layout, len(a_IH))
    index_IK = np.full((len(a_IH), k), NO_COLUMN, np.int32)
    score_IK = np.full((len(a_IH), k), -np.inf, np.float32)
    _score_cells(
        rows_IH,
        cells.panels.panel_PHC,
        cells.panels.base_X,
        cells.panels.column_X,
        cells.panels.sign_H,
        cells.layout.start_L,
        probes.row_N,
        probes.start_L,
        index_IK,
        score_IK,
    )
    return RescoredTopK(index_IK, score_IK, probes.num_pairs_I)


@compiled
def _score_cells(
    rows_IH: F32, panel_PHC: F32, base_X: F32, column_X: I32, sign_H: F32, start_L: I64,
    prober: I64, prober_start_L: I64, index_IK: I32, score_IK: F32,
) -> None:  # fmt: skip
    """Take the cells in turn, each with the rows that probe it, eight of them at a time."""
    group_HR = np.empty((len(sign_H), NUM_ROWS), np.float32)
    for cell in range(len(start_L) - 1):
        start, stop = start_L[cell], start_L[cell + 1]
        row_N = prober[prober_start_L[cell] : prober_start_L[cell + 1]]
        if start == stop:
            continue
        places = slice(start * PANEL_COLUMNS, stop * PANEL_COLUMNS)
        score_RX = np.empty((NUM_ROWS, (stop - start) * PANEL_COLUMNS), np.float32)
        for first in range(0, len(row_N), NUM_ROWS):
            gather_rows(rows_IH, row_N, first, group_HR)
            score_panels(group_HR, panel_PHC[start:stop], sign_H, base_X[places], score_RX)
            for r in range(min(NUM_ROWS, len(row_N) - first)):
                i = row_N[first + r]
                _keep_best(score_RX[r], column_X[places], index_IK[i], score_IK[i])


@compiled
def _keep_best(score_X: F32, column_X: I32, index_K: I32, score_K: F32) -> None:
    """Insert what belongs into a row's list, skipping panels of which nothing does."""
    num_panels = len(score_X) // PANEL_COLUMNS
    low_P, high_P = np.empty(num_panels, np.float32), np.empty(num_panels, np.float32)
    find_extremes(score_X, num_panels, low_P, high_P)
    for p in range(num_panels):
        if high_P[p] < score_K[-1]:
            continue
        for x in range(p * PANEL_COLUMNS, (p + 1) * PANEL_COLUMNS):
            if column_X[x] >= 0 and score_X[x] >= score_K[-1]:
                insert_best(index_K, score_K, column_X[x], score_X[x])
