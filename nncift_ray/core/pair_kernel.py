"""The compiled loops of `pair_scores` and `column_sums`: score four rows at once, fold them in.

Only plain IEEE additions in a fixed order, and maxima and minima, which are exact: vectors run
across columns, so a pair's score has the same bits in any tile, row group or vector width.
Suffixes: I rows, R the four rows scored at once, T columns of a tile, K places of a heap, H hidden,
G groups of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pair_vectors import (
    NUM_ROWS,
    PANEL_COLUMNS,
    SUM_COLUMNS,
    add_columns,
    find_extremes,
    score_panel,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

UNITS_AT_ONCE = 4  # hidden units are padded to a multiple of this
SCAN_COLUMNS = 16  # columns that are dismissed at once when none reaches the top K
ONE = 2.0**32  # the fixed-point value of 1
# A double this large has no bits below 1, so adding and taking it away rounds to a whole number
# (half to even), below 2**51 either side; vectors have such additions and no rounded conversion.
ROUND_TO_WHOLE = 1.5 * 2.0**52


@compiled
def weigh_columns(b_TH: F32, w_H: F32, place_H: I64, tile_HT: F32, base_T: F64) -> None:
    """Write -w_h b_jh to the place of unit h in tile_HT and add w_h b_jh to base_T, h in order."""
    num_columns, num_hidden = b_TH.shape
    for first in range(0, num_columns, PANEL_COLUMNS):  # so many rows of b stay in the first cache
        for h in range(num_hidden):
            for j in range(first, min(first + PANEL_COLUMNS, num_columns)):
                value = w_H[h] * b_TH[j, h]
                tile_HT[place_H[h], j] = -value
                base_T[j] += np.float64(value)


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
def _count_reaching(score_T: F32, threshold: float) -> int:
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
def _worse(score: float, index: int, other_score: float, other_index: int) -> bool:
    return score < other_score or (score == other_score and index > other_index)


@compiled
def _sift_down(index_K: I32, score_K: F32, size: int, index: int, score: float) -> None:
    """Put an entry at the root of a heap of `size` whose root is its worst, and restore it."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _worse(score_K[right], index_K[right], score_K[child], index_K[child]):
            child = right
        if not _worse(score_K[child], index_K[child], score, index):
            break
        score_K[place], index_K[place] = score_K[child], index_K[child]
        place = child
    score_K[place], index_K[place] = score, index


@compiled
def _push(index_K: I32, score_K: F32, size: int, index: int, score: float) -> None:
    """Add an entry to a heap of `size` entries that has room for one more."""
    place = size
    while place > 0:
        parent = (place - 1) // 2
        if not _worse(score, index, score_K[parent], index_K[parent]):
            break
        score_K[place], index_K[place] = score_K[parent], index_K[parent]
        place = parent
    score_K[place], index_K[place] = score, index


@compiled
def _offer_row(index_K: I32, score_K: F32, size: int, score_T: F32, first_column: int) -> int:
    """Offer a row of scores to its heap and return the heap's size."""
    k, num_columns = len(index_K), len(score_T)
    for start in range(0, num_columns, SCAN_COLUMNS):
        stop = min(start + SCAN_COLUMNS, num_columns)
        if size == k and _count_reaching(score_T[start:stop], score_K[0]) == 0:
            continue
        for j in range(start, stop):
            score, index = score_T[j], first_column + j
            if size < k:
                _push(index_K, score_K, size, index, score)
                size += 1
            elif score >= score_K[0] and _worse(score_K[0], index_K[0], score, index):
                _sift_down(index_K, score_K, k, index, score)
    return size


@compiled
def add_tile(
    rows_IH: F32, tile_HT: F32, base_T: F32, num_max: int, first_column: int,
    index_IK: I32, score_IK: F32, size_I: I64,
    num_pairs_I: I64, min_I: F32, max_I: F32, sum_I: F64, sum_of_squares_I: F64,
    column_max_T: F32,
) -> None:  # fmt: skip
    """Score all rows against one tile and fold the scores into the running state."""
    num_rows, num_columns, k = len(rows_IH), tile_HT.shape[1], index_IK.shape[1]
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
            for p in range(len(panel_PHC)):
                min_I[i], max_I[i] = min(min_I[i], low_P[p]), max(max_I[i], high_P[p])
                if size_I[i] == k and high_P[p] < score_IK[i, 0]:
                    continue
                start = p * PANEL_COLUMNS
                part_T = score_RT[r, start : min(start + PANEL_COLUMNS, num_columns)]
                size_I[i] = _offer_row(
                    index_IK[i], score_IK[i], size_I[i], part_T, first_column + start
                )


@compiled
def sum_tile(
    rows_IH: F32, tile_HT: F32, base_T: F32, num_max: int, group_I: I64,
    num_pairs_I: I64, min_I: F32, max_I: F32, sum_I: F64, sum_of_squares_I: F64,
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


@compiled
def sort_heaps(index_IK: I32, score_IK: F32, size_I: I64) -> tuple[I32, F32]:
    """Return copies of the heaps as lists, best first, padded with -1 and -inf."""
    index, score = index_IK.copy(), score_IK.copy()
    for i in range(len(size_I)):
        for last in range(size_I[i] - 1, 0, -1):  # the root is the worst: move it to the end
            worst_index, worst_score = index[i, 0], score[i, 0]
            _sift_down(index[i], score[i], last, index[i, last], score[i, last])
            index[i, last], score[i, last] = worst_index, worst_score
    return index, score
