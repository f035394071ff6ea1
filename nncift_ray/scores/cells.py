"""Columns of largest inner product in some cells: what an approximate search lists for each row.

FAISS makes the cells. A row at a time, as FAISS searches them, is two to five times slower than
this search, which takes a cell once for all the rows that probe it (docs/log.md).

A list depends on its row's query, the row's cells and the columns alone: products are summed in one
fixed order, and equal ones are listed by smaller column.

Suffixes: I rows, J columns, F features, L cells, P probed cells, C listed columns, X places of
packed columns, B places of a row's buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.scores.kernel import (
    FIRST_KEY,
    LAST_COLUMN,
    NO_KEY,
    NUM_ROWS,
    PANEL_COLUMNS,
    append_reaching,
    gather_rows,
    multiply_panel,
    score_of,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_CELL = NO_COLUMN = -1
PANELS_AT_ONCE = 4
FIRST_LISTS = 2  # lists that the cells probed first hold, about
BUFFER_LISTS = 2  # lists that a buffer holds beside what one step adds; then it is cut to one
LOWEST = np.float32(np.finfo(np.float32).min)  # -inf, below it, is no column


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCells:
    """Features of all columns, cell after cell, each cell in panels of its own."""

    column_X: I32  # the column's number at each place, or -1
    start_L: I64  # first panel of each cell, and the number of panels: [L + 1]
    num_columns: int
    panel_PFC: F32  # 0 where there is no column
    base_X: F32  # 0; -inf where there is no column, and so is its product

    @classmethod
    def pack(cls, feature_JF: F32, cell_J: NDArray[np.integer], num_cells: int) -> FeatureCells:
        """Sort the features of all columns into their cells, 0..num_cells - 1.

        Raises:
            ShapeError: If there is not one cell a column.
            ValueError: If a cell does not exist.

        Memory: 4 * J * F bytes, each cell's columns padded to a multiple of 64.
        """
        if feature_JF.ndim != 2 or cell_J.shape != (len(feature_JF),):
            msg = f"features are {feature_JF.shape}, cells of columns {cell_J.shape}"
            raise ShapeError(msg)
        _check_cells("a column lies in", cell_J, 0, num_cells)
        num_panels_L = -(-np.bincount(cell_J, minlength=num_cells) // PANEL_COLUMNS)
        start_L = np.concatenate([[0], np.cumsum(num_panels_L, dtype=np.int64)])
        column_X = np.full(start_L[-1] * PANEL_COLUMNS, NO_COLUMN, np.int32)
        for panel, columns in zip(start_L, split_cells(cell_J, num_cells), strict=False):
            start = panel * PANEL_COLUMNS
            column_X[start : start + len(columns)] = columns
        none_X = column_X == NO_COLUMN
        panel_PFC = np.empty((start_L[-1], feature_JF.shape[1], PANEL_COLUMNS), np.float32)
        for p in range(len(panel_PFC)):
            places = slice(p * PANEL_COLUMNS, (p + 1) * PANEL_COLUMNS)
            panel_PFC[p] = np.where(none_X[places], 0, feature_JF[column_X[places]].T)
        base_X = np.where(none_X, -np.inf, 0).astype(np.float32)
        return cls(column_X, start_L, len(feature_JF), panel_PFC, base_X)

    @property
    def num_cells(self) -> int:
        """Number L of cells, empty ones included."""
        return len(self.start_L) - 1


def split_cells(cell_J: NDArray[np.integer], num_cells: int) -> list[I64]:
    """Return the columns of each cell, ascending."""
    ends = np.cumsum(np.bincount(cell_J, minlength=num_cells))
    return np.split(np.argsort(cell_J, kind="stable"), ends[:-1])


def list_columns(
    query_IF: F32, cells: FeatureCells, cell_IP: NDArray[np.integer], num_listed: int
) -> I32:
    """Return the columns of largest product with each row in its cells [I, C], best first.

    A row probes each cell [I, P] at most once, -1 is no cell; their order does not change the
    result, but likely ones first are faster. Where its cells hold fewer than C columns the rest
    is -1.

    Raises:
        ShapeError: If rows, features and cells do not belong together.
        ValueError: If a probed cell does not exist, or num_listed is below 1.

    Memory: 24 * I * C bytes and 2048 * I for the buffers, 16 * I * P for the probes. Rows of one
        call share the reading of a cell: thousands of rows are faster than hundreds.
    """
    num_features = cells.panel_PFC.shape[1]
    if query_IF.ndim != 2 or query_IF.shape[1] != num_features:
        msg = f"queries are {query_IF.shape}, features have {num_features} numbers"
        raise ShapeError(msg)
    if cell_IP.ndim != 2 or len(cell_IP) != len(query_IF):
        msg = f"{len(query_IF)} rows, but probes of {cell_IP.shape}; expected one list a row"
        raise ShapeError(msg)
    if num_listed < 1:
        msg = f"num_listed must be at least 1, got {num_listed}"
        raise ValueError(msg)
    _check_cells("a row probes", cell_IP, NO_CELL, cells.num_cells)
    query_IF = np.ascontiguousarray(query_IF, np.float32)
    num_places = BUFFER_LISTS * num_listed + PANELS_AT_ONCE * PANEL_COLUMNS
    key_IB = np.empty((len(query_IF), num_places), np.int64)
    count_I = np.zeros(len(query_IF), np.int64)
    threshold_I = np.full(len(query_IF), LOWEST, np.float32)
    # Two lists, about, are enough to know what need not be kept later.
    mean_columns = max(cells.num_columns / max(cells.num_cells, 1), 1.0)
    num_first = math.ceil(FIRST_LISTS * num_listed / mean_columns)
    for part_IP in (cell_IP[:, :num_first], cell_IP[:, num_first:]):
        order = np.argsort(part_IP.ravel(), kind="stable")
        prober_start_L = np.searchsorted(part_IP.ravel()[order], np.arange(cells.num_cells + 1))
        _list_cells(
            query_IF, cells.panel_PFC, cells.base_X, cells.column_X, cells.start_L,
            order // max(part_IP.shape[1], 1), prober_start_L, num_listed, key_IB, count_I,
            threshold_I,
        )  # fmt: skip
        _cut_all(key_IB, count_I, threshold_I, num_listed)
    key_IC = np.sort(key_IB[:, :num_listed], axis=1)[:, ::-1]
    column_IC = (LAST_COLUMN - (key_IC & 0xFFFFFFFF)).astype(np.int32)
    column_IC[key_IC < FIRST_KEY] = NO_COLUMN
    return column_IC


def _check_cells(what: str, cells: NDArray[np.integer], lowest: int, num_cells: int) -> None:
    if cells.size and not lowest <= cells.min() <= cells.max() < num_cells:
        msg = f"{what} cells {cells.min()}..{cells.max()}, there are {num_cells}"
        raise ValueError(msg)


@compiled
def _list_cells(
    query_IF: F32, panel_PFC: F32, base_X: F32, column_X: I32, start_L: I64, prober_N: I64,
    prober_start_L: I64, num_listed: int, key_IB: I64, count_I: I64, threshold_I: F32,
) -> None:  # fmt: skip
    """Take the cells in turn, some panels at a time, each with the rows that probe it."""
    group_FR = np.empty((query_IF.shape[1], NUM_ROWS), np.float32)
    product_RT = np.empty((NUM_ROWS, PANELS_AT_ONCE * PANEL_COLUMNS), np.float32)
    room = key_IB.shape[1] - product_RT.shape[1]
    for cell in range(len(start_L) - 1):
        row_N = prober_N[prober_start_L[cell] : prober_start_L[cell + 1]]
        for start in range(start_L[cell], start_L[cell + 1], PANELS_AT_ONCE):
            num_panels = min(PANELS_AT_ONCE, start_L[cell + 1] - start)
            places = slice(start * PANEL_COLUMNS, (start + num_panels) * PANEL_COLUMNS)
            base_T, column_T = base_X[places], column_X[places]
            for first in range(0, len(row_N), NUM_ROWS):
                gather_rows(query_IF, row_N, first, group_FR)
                for p in range(num_panels):
                    multiply_panel(
                        group_FR, panel_PFC[start + p], base_T, product_RT, p * PANEL_COLUMNS
                    )
                for r in range(min(NUM_ROWS, len(row_N) - first)):
                    i = row_N[first + r]
                    if count_I[i] > room:
                        _cut(key_IB, count_I, threshold_I, i, num_listed)
                    count_I[i] = append_reaching(
                        product_RT, r, column_T, num_panels, threshold_I[i], key_IB[i], count_I[i]
                    )


@compiled
def _cut_all(key_IB: I64, count_I: I64, threshold_I: F32, num_listed: int) -> None:
    """Cut every row's buffer to its list, and mark the places of lists that are not full."""
    for i in range(len(key_IB)):
        _cut(key_IB, count_I, threshold_I, i, num_listed)
        for b in range(count_I[i], num_listed):
            key_IB[i, b] = NO_KEY


@compiled
def _cut(key_IB: I64, count_I: I64, threshold_I: F32, i: int, num_listed: int) -> None:
    """Move a row's best keys to the front; the worst of a full list is the row's threshold."""
    if count_I[i] > num_listed:
        _keep_largest(key_IB[i, : count_I[i]], num_listed)
        count_I[i] = num_listed
    if count_I[i] == num_listed:
        threshold_I[i] = score_of(key_IB[i, :num_listed].min())


@compiled
def _keep_largest(key_N: I64, num_kept: int) -> None:
    """Move the largest keys to the front, in any order (Hoare's selection); no two are equal."""
    low, high, last_kept = 0, len(key_N) - 1, num_kept - 1
    while low < high:
        x, y, z = key_N[low], key_N[(low + high) // 2], key_N[high]
        pivot = max(min(x, y), min(max(x, y), z))
        left, right = low, high
        while left <= right:
            while key_N[left] > pivot:
                left += 1
            while key_N[right] < pivot:
                right -= 1
            if left <= right:
                key_N[left], key_N[right] = key_N[right], key_N[left]
                left, right = left + 1, right - 1
        if last_kept <= right:
            high = right
        elif last_kept >= left:
            low = left
        else:
            return
