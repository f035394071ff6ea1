"""Columns packed into panels in any order, and rows scored against some of the panels.

`pair_scores` streams columns in their own order and keeps lists; here the caller chooses which
columns lie side by side (a cell of columns that behave alike) and which rows meet which panels. The
arithmetic is the same, addition by addition, and so are the bits of a pair's score.

Suffixes: I rows (helped), J columns (helpers), H hidden units in kernel order, P panels, C the
columns of one panel, X places of columns in panels (P * C), R rows scored at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.pair_scores import (
    NO_COLUMN,
    check_activations,
    pack_tile,
    prepare_rows,
    unit_order,
)
from nncift_ray.core.pairs.pair_vectors import NUM_ROWS, PANEL_COLUMNS, score_panel

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

PACKED_AT_ONCE = 64 * PANEL_COLUMNS  # places filled at once: 1.6 MB at 100 hidden units


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """Columns of a network packed side by side; made by `pack_panels`."""

    panel_PHC: F32  # -w_h b_jh, units of a minimum negated, 0 where there is no column
    base_X: F32  # bias + sum_h w_h b_jh; -inf where there is no column, and so is its score
    column_X: I32  # the column's number, or -1
    sign_H: F32  # 1 for units of a maximum, -1 for units of a minimum
    order_H: I64
    w_H: F32
    bias: float

    def prepare_rows(self, a_IH: F32) -> F32:
        """Return row activations in the kernel's order and sign.

        Raises:
            ShapeError: If H differs.
            ValueError: If an activation is not finite; the message names the first such row.
        """
        check_activations(a_IH, np.zeros((0, len(self.w_H)), np.float32), self.w_H, self.bias)
        return prepare_rows(a_IH, self.w_H, self.order_H) * self.sign_H


def padded_places(columns: NDArray[np.integer]) -> I32:
    """Return columns as places of whole panels, the last filled up with -1."""
    padding = np.full(-len(columns) % PANEL_COLUMNS, NO_COLUMN, np.int32)
    return np.concatenate([columns.astype(np.int32), padding])


def pack_panels(b_JH: F32, w_H: F32, bias: float, column_X: I32) -> Panels:
    """Pack columns into panels.

    Args:
        b_JH: Column (helper) activations [J, H].
        w_H: Output weights [H].
        bias: Output bias.
        column_X: Column at each place, -1 for none; whole panels (`padded_places`).

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 4 * X * H bytes, H padded to two multiples of four.
    """
    check_activations(np.zeros((0, len(w_H)), np.float32), b_JH, w_H, bias)
    order_H, num_max = unit_order(w_H)
    sign_H = np.where(np.arange(len(order_H)) < num_max, 1, -1).astype(np.float32)
    panel_PHC = np.empty((len(column_X) // PANEL_COLUMNS, len(order_H), PANEL_COLUMNS), np.float32)
    base_X = np.empty(len(column_X), np.float32)
    for start in range(0, len(column_X), PACKED_AT_ONCE):
        part_X = column_X[start : start + PACKED_AT_ONCE]
        b_XH = np.where(part_X[:, None] == NO_COLUMN, np.float32(0), b_JH[part_X])
        tile_HX, base_X[start : start + len(part_X)] = pack_tile(b_XH, w_H, order_H, bias)
        tile_HPC = (tile_HX * sign_H[:, None]).reshape(len(order_H), -1, PANEL_COLUMNS)
        first = start // PANEL_COLUMNS
        panel_PHC[first : first + tile_HPC.shape[1]] = tile_HPC.transpose(1, 0, 2)
    base_X[column_X == NO_COLUMN] = -np.inf
    return Panels(panel_PHC, base_X, column_X, sign_H, order_H, w_H, bias)


def score_matrix(a_IH: F32, b_JH: F32, w_H: F32, bias: float) -> F32:
    """Score every pair of a block and return all scores [I, J], in the unit of the labels.

    The scores have the bits of `pair_scores.top_k_rows`; `pair_scores.score_block` is the slow
    oracle of both.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 8 * I * J bytes and the panels.
    """
    panels = pack_panels(b_JH, w_H, bias, padded_places(np.arange(len(b_JH))))
    score_IX = np.empty((len(a_IH), len(panels.base_X)), np.float32)
    rows_IH = panels.prepare_rows(a_IH)
    _score_all(rows_IH, panels.panel_PHC, panels.base_X, panels.sign_H, score_IX)
    return np.ascontiguousarray(score_IX[:, : len(b_JH)])


@compiled
def gather_rows(rows_IH: F32, chosen_N: I64, first: int, group_HR: F32) -> None:
    """Write eight of the chosen rows, from `first` on, side by side; the last one fills up."""
    for r in range(NUM_ROWS):
        i = chosen_N[min(first + r, len(chosen_N) - 1)]
        for h in range(len(group_HR)):
            group_HR[h, r] = rows_IH[i, h]


@compiled
def score_panels(group_HR: F32, panel_PHC: F32, sign_H: F32, base_X: F32, score_RX: F32) -> None:
    """Score eight rows against neighbouring panels."""
    for p in range(len(panel_PHC)):
        score_panel(group_HR, panel_PHC[p], sign_H, base_X, score_RX, p * PANEL_COLUMNS)


@compiled
def _score_all(rows_IH: F32, panel_PHC: F32, base_X: F32, sign_H: F32, score_IX: F32) -> None:
    chosen = np.arange(len(rows_IH))
    group_HR = np.empty((len(sign_H), NUM_ROWS), np.float32)
    score_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    for first in range(0, len(rows_IH), NUM_ROWS):
        gather_rows(rows_IH, chosen, first, group_HR)
        score_panels(group_HR, panel_PHC, sign_H, base_X, score_RX)
        for r in range(min(NUM_ROWS, len(rows_IH) - first)):
            score_IX[first + r] = score_RX[r]
