"""The compiled loops of `pair_scores` and `column_sums`: score eight rows at once, fold them in.

Only plain IEEE additions in a fixed order, and maxima and minima, which are exact: vectors run
across columns, so a pair's score has the same bits in any tile, row group or vector width.

A kept column is one 64-bit key: the score's bits in an order that integers share, then the column,
counted down. A larger key is a better column, ties included, and no two are equal. A row's keys are
a heap with the worst at its root; place k holds NO_KEY + k while it is empty.

Suffixes: I rows, R the eight rows scored at once, T columns of a tile, P panels of C columns,
K places of a heap, H hidden, G groups of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.pair_vectors import (
    NUM_ROWS,
    PANEL_COLUMNS,
    SUM_COLUMNS,
    add_columns,
    find_extremes,
    score_panel,
)
from nncift_ray.core.pairs.score_histogram import count_scores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

NO_KEY = -(2**63)
FIRST_KEY = NO_KEY + 2**32  # keys below stand for empty places
LAST_COLUMN = 2**31 - 1  # a column's place in its key is counted down from here
SCAN_COLUMNS = 16  # columns that are dismissed at once when none reaches the top K
ONE = 2.0**32  # the fixed-point value of 1
# A double this large has no bits below 1, so adding and taking it away rounds to a whole number
# (half to even), below 2**51 either side; vectors have such additions and no rounded conversion.
ROUND_TO_WHOLE = 1.5 * 2.0**52


@compiled
def weigh_columns(b_TH: F32, w_H: F32, place_H: I64, tile_HT: F32, base_T: F64) -> None:
    """Write -w_h b_jh to the place of unit h in tile_HT and add w_h b_jh to base_T, h in order."""
    num_columns, num_hidden = b_TH.shape
    value_HC = np.empty((num_hidden, PANEL_COLUMNS), np.float32)  # stays in the first cache
    for first in range(0, num_columns, PANEL_COLUMNS):
        width = min(PANEL_COLUMNS, num_columns - first)
        for c in range(width):
            for h in range(num_hidden):
                value_HC[h, c] = w_H[h] * b_TH[first + c, h]
        for h in range(num_hidden):
            place = place_H[h]
            for c in range(width):
                tile_HT[place, first + c] = -value_HC[h, c]
            for c in range(width):
                base_T[first + c] += np.float64(value_HC[h, c])


@compiled
def _pack_panels(tile_HT: F32, num_max: int) -> F32:
    """Return a tile as panels [P, H, C], zero where padded, units of a minimum negated."""
    num_hidden, num_columns = tile_HT.shape
    num_panels = (num_columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
    panel_PHC = np.zeros((num_panels, num_hidden, PANEL_COLUMNS), np.float32)
    for p in range(num_panels):
        first = p * PANEL_COLUMNS
        for h in range(num_hidden):
            sign = np.float32(1 if h < num_max else -1)
            for c in range(min(PANEL_COLUMNS, num_columns - first)):
                panel_PHC[p, h, c] = sign * tile_HT[h, first + c]
    return panel_PHC


@compiled
def _pad_base(base_T: F32, num_columns: int) -> F32:
    padded_T = np.zeros(num_columns, np.float32)
    padded_T[: len(base_T)] = base_T
    return padded_T


@compiled
def _unit_signs(num_hidden: int, num_max: int) -> F32:
    """Return 1 for units of a maximum, -1 for units of a minimum: min(x, y) = -max(-x, -y)."""
    sign_H = np.ones(num_hidden, np.float32)
    sign_H[num_max:] = -1
    return sign_H


@compiled
def _score_rows(
    rows_IH: F32, first: int, panel_PHC: F32, base_T: F32, sign_H: F32, num_columns: int,
    group_HR: F32, score_RT: F32,
) -> None:  # fmt: skip
    """Score eight rows from `first` on against a tile into score_RT.

    A last group that is not full repeats its last row, and a last panel its first column: both are
    scored, and never counted twice.
    """
    for r in range(NUM_ROWS):
        row_H = rows_IH[min(first + r, len(rows_IH) - 1)]
        for h in range(len(row_H)):
            group_HR[h, r] = sign_H[h] * row_H[h]
    for p in range(len(panel_PHC)):
        score_panel(group_HR, panel_PHC[p], sign_H, base_T, score_RT, p * PANEL_COLUMNS)
    for r in range(NUM_ROWS):
        score_RT[r, num_columns:] = score_RT[r, 0]


@compiled
def _count_reaching(score_T: F32, threshold: np.float32) -> int:
    count = 0
    for j in range(len(score_T)):
        count += score_T[j] >= threshold
    return count


@compiled
def _raise_column_max(column_max_T: F32, score_RT: F32) -> None:
    for r in range(0, NUM_ROWS, 4):
        for j in range(len(column_max_T)):
            top = max(score_RT[r, j], score_RT[r + 1, j])
            bottom = max(score_RT[r + 2, j], score_RT[r + 3, j])
            column_max_T[j] = max(column_max_T[j], max(top, bottom))


@compiled
def key_of(score: np.float32, column: int) -> np.int64:
    """Return the key of a column."""
    bits = np.int64(np.float32(score + 0).view(np.int32))  # -0 + 0 is 0: the two are equal
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) + (LAST_COLUMN - column)


@compiled
def score_of(key: np.int64) -> np.float32:
    """Return the score in a key, -inf in an empty place."""
    bits = key >> 32
    score = np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    return score if key >= FIRST_KEY else np.float32(-np.inf)


@compiled
def replace_worst(key_K: I64, key: np.int64) -> None:
    """Put a key in place of the root and restore the heap."""
    place, last = 0, len(key_K) - 1
    while 2 * place + 1 <= last:
        child = 2 * place + 1
        child += key_K[min(child + 1, last)] < key_K[child]  # a branch would be foreseen by none
        if key_K[child] >= key:
            break
        key_K[place] = key_K[child]
        place = child
    key_K[place] = key


@compiled
def _offer(key_K: I64, score_T: F32, first_column: int) -> None:
    """Offer scores to the heap of their row."""
    threshold = score_of(key_K[0])
    for start in range(0, len(score_T), SCAN_COLUMNS):
        stop = min(start + SCAN_COLUMNS, len(score_T))
        if _count_reaching(score_T[start:stop], threshold) == 0:
            continue
        for j in range(start, stop):
            if score_T[j] >= threshold:
                key = key_of(score_T[j], first_column + j)
                if key > key_K[0]:
                    replace_worst(key_K, key)
                    threshold = score_of(key_K[0])


@compiled
def add_tile(
    rows_IH: F32, tile_HT: F32, base_T: F32, num_max: int, first_column: int,
    key_IK: I64,
    num_pairs_I: I64, min_I: F32, max_I: F32, sum_I: F64, sum_of_squares_I: F64,
    is_counted_I: Bool, count_B: I64,
    column_max_T: F32,
) -> None:  # fmt: skip
    """Score all rows against one tile and fold the scores into the running state."""
    num_rows, num_columns = len(rows_IH), tile_HT.shape[1]
    panel_PHC, sign_H = _pack_panels(tile_HT, num_max), _unit_signs(len(tile_HT), num_max)
    padded_T = _pad_base(base_T, len(panel_PHC) * PANEL_COLUMNS)
    group_HR = np.empty((len(tile_HT), NUM_ROWS), np.float32)
    score_RT = np.empty((NUM_ROWS, len(padded_T)), np.float32)
    low_P, high_P = np.empty(len(panel_PHC), np.float32), np.empty(len(panel_PHC), np.float32)
    for first in range(0, num_rows, NUM_ROWS):
        rows_here = min(NUM_ROWS, num_rows - first)
        _score_rows(rows_IH, first, panel_PHC, padded_T, sign_H, num_columns, group_HR, score_RT)
        _raise_column_max(column_max_T, score_RT)
        _add_sums(score_RT, num_columns, sum_I, sum_of_squares_I, first, rows_here)
        for r in range(rows_here):
            i = first + r
            find_extremes(score_RT[r], len(panel_PHC), low_P, high_P)
            num_pairs_I[i] += num_columns
            if is_counted_I[i]:
                count_scores(score_RT[r], num_columns, count_B)
            for p in range(len(panel_PHC)):
                min_I[i], max_I[i] = min(min_I[i], low_P[p]), max(max_I[i], high_P[p])
                if high_P[p] >= score_of(key_IK[i, 0]):
                    start = p * PANEL_COLUMNS
                    part_T = score_RT[r, start : min(start + PANEL_COLUMNS, num_columns)]
                    _offer(key_IK[i], part_T, first_column + start)


@compiled
def sum_tile(
    rows_IH: F32, tile_HT: F32, base_T: F32, num_max: int, group_I: I64,
    num_pairs_I: I64, min_I: F32, max_I: F32, sum_I: F64, sum_of_squares_I: F64,
    is_counted_I: Bool, count_B: I64,
    sum_GT: I64,
) -> None:  # fmt: skip
    """Score all rows against one tile and add each, in fixed point, to its group's columns."""
    num_rows, num_columns = len(rows_IH), tile_HT.shape[1]
    panel_PHC, sign_H = _pack_panels(tile_HT, num_max), _unit_signs(len(tile_HT), num_max)
    padded_T = _pad_base(base_T, len(panel_PHC) * PANEL_COLUMNS)
    group_HR = np.empty((len(tile_HT), NUM_ROWS), np.float32)
    score_RT = np.empty((NUM_ROWS, len(padded_T)), np.float32)
    low_P, high_P = np.empty(len(panel_PHC), np.float32), np.empty(len(panel_PHC), np.float32)
    for first in range(0, num_rows, NUM_ROWS):
        rows_here = min(NUM_ROWS, num_rows - first)
        _score_rows(rows_IH, first, panel_PHC, padded_T, sign_H, num_columns, group_HR, score_RT)
        _add_sums(score_RT, num_columns, sum_I, sum_of_squares_I, first, rows_here)
        for r in range(rows_here):
            i = first + r
            find_extremes(score_RT[r], len(panel_PHC), low_P, high_P)
            num_pairs_I[i] += num_columns
            if is_counted_I[i]:
                count_scores(score_RT[r], num_columns, count_B)
            min_I[i], max_I[i] = min(min_I[i], low_P.min()), max(max_I[i], high_P.max())
            sum_T = sum_GT[group_I[i]]
            for j in range(num_columns):
                whole = (np.float64(score_RT[r, j]) * ONE + ROUND_TO_WHOLE) - ROUND_TO_WHOLE
                sum_T[j] += np.int64(whole)


@compiled
def _add_sums(
    score_RT: F32, num_columns: int, sum_I: F64, sum_of_squares_I: F64, first: int, num_rows: int
) -> None:  # fmt: skip
    """Add scores column after column, so that tiles do not change a bit of the sums."""
    sum_R, square_R = np.zeros(NUM_ROWS), np.zeros(NUM_ROWS)
    sum_R[:num_rows] = sum_I[first : first + num_rows]
    square_R[:num_rows] = sum_of_squares_I[first : first + num_rows]
    num_blocks = num_columns // SUM_COLUMNS
    add_columns(score_RT, num_blocks, sum_R, square_R)
    for j in range(num_blocks * SUM_COLUMNS, num_columns):
        for r in range(num_rows):
            wide = np.float64(score_RT[r, j])
            sum_R[r] += wide
            square_R[r] += wide * wide
    sum_I[first : first + num_rows] = sum_R[:num_rows]
    sum_of_squares_I[first : first + num_rows] = square_R[:num_rows]
