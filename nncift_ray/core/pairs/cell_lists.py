"""Columns of largest inner product in some cells: what an approximate search lists for each row.

Features are packed in panels, cell after cell, and cells are taken one after
the other, each with all rows that probe it. A pair costs F fused steps here, H steps of a maximum
and a sum there, so that wide searches are cheap; the few columns listed are scored anew, exactly
(`rescoring`).

A product is summed over the features in order, each step rounded once, and the columns listed are
the best by (product, smaller column): neither depends on which other rows are in the call.

A row's candidates are keys as in `pair_kernel`, gathered in a buffer. The cells probed first are
likely to hold the best columns; the worst of the best C among them is a threshold that keeps most
columns of the other cells out of the buffer.

Suffixes: I rows, J columns, F features, L cells, P probed cells, C listed columns, B places of a
row's buffer, R rows taken at once, X places of columns in panels, T those of some panels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.cell_layout import CellLayout, group_probes
from nncift_ray.core.pairs.pair_kernel import FIRST_KEY, LAST_COLUMN, NO_KEY, score_of
from nncift_ray.core.pairs.pair_scores import NO_COLUMN
from nncift_ray.core.pairs.pair_vectors import (
    NUM_ROWS,
    PANEL_COLUMNS,
    append_reaching,
    multiply_panel,
)
from nncift_ray.core.pairs.panels import gather_rows
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PANELS_AT_ONCE = 4
FIRST_LISTS = 2  # lists that the cells probed first hold, about
BUFFER_LISTS = 2  # lists that a buffer holds beside what one step adds; then it is cut to one
LOWEST = np.float32(np.finfo(np.float32).min)  # -inf, below it, is no column


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCells:
    """Features of all columns, cell after cell, each cell in panels of its own."""

    layout: CellLayout
    panel_PFC: F32  # 0 where there is no column
    base_X: F32  # 0; -inf where there is no column, and so is its product

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        return self.panel_PFC.shape[1]


def pack_features(feature_JF: F32, layout: CellLayout) -> FeatureCells:
    """Sort the features of all columns into their cells, for `list_columns`.

    Raises:
        ShapeError: If the layout is of another number of columns.

    Memory: 4 * J * F bytes, each cell's columns padded to a multiple of 64.
    """
    num_columns = int(layout.num_columns_L.sum())
    if feature_JF.ndim != 2 or num_columns != len(feature_JF):
        msg = f"features are {feature_JF.shape}, the cells hold {num_columns} columns"
        raise ShapeError(msg)
    none_X = layout.column_X == NO_COLUMN
    num_panels = len(none_X) // PANEL_COLUMNS
    panel_PFC = np.empty((num_panels, feature_JF.shape[1], PANEL_COLUMNS), np.float32)
    for p in range(num_panels):
        places = slice(p * PANEL_COLUMNS, (p + 1) * PANEL_COLUMNS)
        panel_PFC[p] = np.where(none_X[places], 0, feature_JF[layout.column_X[places]].T)
    return FeatureCells(layout, panel_PFC, np.where(none_X, -np.inf, 0).astype(np.float32))


def list_columns(
    query_IF: F32, cells: FeatureCells, cell_IP: NDArray[np.integer], num_listed: int
) -> I32:
    """Return the columns of largest product with each row in its cells [I, C], best first.

    Args:
        query_IF: Row queries.
        cells: Features of all columns, from `pack_features`.
        cell_IP: Cells probed by each row [I, P], each at most once, -1 for no cell. The order does
            not change the result; likely ones first are faster.
        num_listed: Columns wanted a row, C; -1 where its cells hold fewer.

    Raises:
        ShapeError: If rows, features and cells do not belong together.
        ValueError: If a probed cell does not exist, or num_listed is below 1.

    Memory: 24 * I * C bytes and 2048 * I for the buffers, 24 * I * P for the probes. Rows of one
        call share the reading of a cell: thousands of rows are faster than hundreds.
    """
    if query_IF.ndim != 2 or query_IF.shape[1] != cells.num_features:
        msg = f"queries are {query_IF.shape}, features have {cells.num_features} numbers"
        raise ShapeError(msg)
    if num_listed < 1:
        msg = f"num_listed must be at least 1, got {num_listed}"
        raise ValueError(msg)
    query_IF = np.ascontiguousarray(query_IF, np.float32)
    best = _Best(len(query_IF), num_listed)
    layout, num_first = cells.layout, _first_probes(cells.layout, num_listed)
    for part_IP in (cell_IP[:, :num_first], cell_IP[:, num_first:]):
        probes = group_probes(part_IP, layout, len(query_IF))
        _list_cells(
            query_IF, cells.panel_PFC, cells.base_X, layout.column_X, layout.start_L,
            probes.row_N, probes.start_L, num_listed, best.key_IB, best.count_I, best.threshold_I,
        )  # fmt: skip
        best.cut()
    return best.columns()


def _first_probes(layout: CellLayout, num_listed: int) -> int:
    """Return how many probes hold about two lists: enough to know what need not be kept later."""
    mean = float(layout.num_columns_L.sum()) / max(layout.num_cells, 1)
    return math.ceil(FIRST_LISTS * num_listed / max(mean, 1.0))


class _Best:
    """The best columns of each row so far, and what else its buffer holds."""

    def __init__(self, num_rows: int, num_listed: int) -> None:
        self.num_listed = num_listed
        num_places = BUFFER_LISTS * num_listed + PANELS_AT_ONCE * PANEL_COLUMNS
        self.key_IB = np.empty((num_rows, num_places), np.int64)
        self.count_I = np.zeros(num_rows, np.int64)
        self.threshold_I = np.full(num_rows, LOWEST, np.float32)

    def cut(self) -> None:
        """Move each row's best to the front of its buffer; the worst of them is the threshold."""
        _fill_up(self.key_IB, self.count_I)
        first = self.key_IB.shape[1] - self.num_listed
        self.key_IB[:, : self.num_listed] = np.partition(self.key_IB, first, axis=1)[:, first:]
        self.count_I[:] = self.num_listed  # keys of no column among them
        _raise_thresholds(self.key_IB, self.num_listed, self.threshold_I)

    def columns(self) -> I32:
        """Return the columns [I, C], best first, once they are cut."""
        key_IC = np.sort(self.key_IB[:, : self.num_listed], axis=1)[:, ::-1]
        column_IC = (LAST_COLUMN - (key_IC & 0xFFFFFFFF)).astype(np.int32)
        column_IC[key_IC < FIRST_KEY] = NO_COLUMN
        return column_IC


@compiled
def _fill_up(key_IB: I64, count_I: I64) -> None:
    """Write keys below all others to the places that are not in use."""
    for i in range(len(key_IB)):
        for b in range(count_I[i], key_IB.shape[1]):
            key_IB[i, b] = NO_KEY + b


@compiled
def _worst_score(key_C: I64) -> np.float32:
    return max(score_of(key_C.min()), LOWEST)


@compiled
def _raise_thresholds(key_IB: I64, num_listed: int, threshold_I: F32) -> None:
    for i in range(len(key_IB)):
        threshold_I[i] = _worst_score(key_IB[i, :num_listed])


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
                        _keep_largest(key_IB[i, : count_I[i]], num_listed)
                        count_I[i] = num_listed
                        threshold_I[i] = _worst_score(key_IB[i, :num_listed])
                    count_I[i] = append_reaching(
                        product_RT, r, column_T, num_panels, threshold_I[i], key_IB[i], count_I[i]
                    )


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
