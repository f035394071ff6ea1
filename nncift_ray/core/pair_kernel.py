"""The compiled loops of `pair_scores`: score four rows against a tile, fold into running lists.

Only plain IEEE additions in a fixed order, and maxima and minima, which are exact: vectors run
across columns, so a pair's score has the same bits in any tile, row group or vector width.
Suffixes: I rows, R the four rows scored at once, T columns of a tile, K places of a heap, H hidden.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ROWS_AT_ONCE = 4  # rows that share one pass over a tile: each loaded column value is used 4 times
UNITS_AT_ONCE = 4  # hidden units added per pass over the accumulators
SCAN_COLUMNS = 64  # columns that are dismissed at once when none reaches the top K
NUM_LANES = 32  # partial extremes held apart, so that finding them becomes vector code


@compiled
def _score_rows(
    rows_IH: F32, tile_HT: F32, base_T: F32, num_max: int, r0: int, r1: int, r2: int, r3: int,
    score_RT: F32,
) -> None:  # fmt: skip
    """Score four rows against a tile into score_RT; two loops, for maxima and for minima."""
    num_columns = tile_HT.shape[1]
    for j in range(num_columns):
        score_RT[0, j] = base_T[j]
        score_RT[1, j] = base_T[j]
        score_RT[2, j] = base_T[j]
        score_RT[3, j] = base_T[j]
    for h in range(0, num_max, UNITS_AT_ONCE):
        p0, p1, p2, p3 = rows_IH[r0, h], rows_IH[r0, h + 1], rows_IH[r0, h + 2], rows_IH[r0, h + 3]
        q0, q1, q2, q3 = rows_IH[r1, h], rows_IH[r1, h + 1], rows_IH[r1, h + 2], rows_IH[r1, h + 3]
        s0, s1, s2, s3 = rows_IH[r2, h], rows_IH[r2, h + 1], rows_IH[r2, h + 2], rows_IH[r2, h + 3]
        t0, t1, t2, t3 = rows_IH[r3, h], rows_IH[r3, h + 1], rows_IH[r3, h + 2], rows_IH[r3, h + 3]
        for j in range(num_columns):
            b0, b1, b2, b3 = tile_HT[h, j], tile_HT[h + 1, j], tile_HT[h + 2, j], tile_HT[h + 3, j]
            x = score_RT[0, j] + (p0 if p0 > b0 else b0)
            x = x + (p1 if p1 > b1 else b1)
            x = x + (p2 if p2 > b2 else b2)
            score_RT[0, j] = x + (p3 if p3 > b3 else b3)
            x = score_RT[1, j] + (q0 if q0 > b0 else b0)
            x = x + (q1 if q1 > b1 else b1)
            x = x + (q2 if q2 > b2 else b2)
            score_RT[1, j] = x + (q3 if q3 > b3 else b3)
            x = score_RT[2, j] + (s0 if s0 > b0 else b0)
            x = x + (s1 if s1 > b1 else b1)
            x = x + (s2 if s2 > b2 else b2)
            score_RT[2, j] = x + (s3 if s3 > b3 else b3)
            x = score_RT[3, j] + (t0 if t0 > b0 else b0)
            x = x + (t1 if t1 > b1 else b1)
            x = x + (t2 if t2 > b2 else b2)
            score_RT[3, j] = x + (t3 if t3 > b3 else b3)
    for h in range(num_max, tile_HT.shape[0], UNITS_AT_ONCE):
        p0, p1, p2, p3 = rows_IH[r0, h], rows_IH[r0, h + 1], rows_IH[r0, h + 2], rows_IH[r0, h + 3]
        q0, q1, q2, q3 = rows_IH[r1, h], rows_IH[r1, h + 1], rows_IH[r1, h + 2], rows_IH[r1, h + 3]
        s0, s1, s2, s3 = rows_IH[r2, h], rows_IH[r2, h + 1], rows_IH[r2, h + 2], rows_IH[r2, h + 3]
        t0, t1, t2, t3 = rows_IH[r3, h], rows_IH[r3, h + 1], rows_IH[r3, h + 2], rows_IH[r3, h + 3]
        for j in range(num_columns):
            b0, b1, b2, b3 = tile_HT[h, j], tile_HT[h + 1, j], tile_HT[h + 2, j], tile_HT[h + 3, j]
            x = score_RT[0, j] + (p0 if p0 < b0 else b0)
            x = x + (p1 if p1 < b1 else b1)
            x = x + (p2 if p2 < b2 else b2)
            score_RT[0, j] = x + (p3 if p3 < b3 else b3)
            x = score_RT[1, j] + (q0 if q0 < b0 else b0)
            x = x + (q1 if q1 < b1 else b1)
            x = x + (q2 if q2 < b2 else b2)
            score_RT[1, j] = x + (q3 if q3 < b3 else b3)
            x = score_RT[2, j] + (s0 if s0 < b0 else b0)
            x = x + (s1 if s1 < b1 else b1)
            x = x + (s2 if s2 < b2 else b2)
            score_RT[2, j] = x + (s3 if s3 < b3 else b3)
            x = score_RT[3, j] + (t0 if t0 < b0 else b0)
            x = x + (t1 if t1 < b1 else b1)
            x = x + (t2 if t2 < b2 else b2)
            score_RT[3, j] = x + (t3 if t3 < b3 else b3)


@compiled
def _extremes(score_T: F32, low_L: F32, high_L: F32) -> tuple[float, float]:
    """Return minimum and maximum, found lane by lane: a loop that becomes vector code."""
    width = len(low_L)
    low_L[:] = score_T[0]
    high_L[:] = score_T[0]
    num_whole = len(score_T) // width
    for chunk in range(num_whole):
        part_L = score_T[chunk * width : (chunk + 1) * width]
        for lane in range(width):
            value = part_L[lane]
            low_L[lane] = value if value < low_L[lane] else low_L[lane]
            high_L[lane] = value if value > high_L[lane] else high_L[lane]
    low, high = low_L[0], high_L[0]
    for lane in range(width):
        low, high = min(low, low_L[lane]), max(high, high_L[lane])
    for j in range(num_whole * width, len(score_T)):
        low, high = min(low, score_T[j]), max(high, score_T[j])
    return low, high


@compiled
def _count_reaching(score_T: F32, threshold: float) -> int:
    count = 0
    for j in range(len(score_T)):
        count += score_T[j] >= threshold
    return count


@compiled
def _raise_column_max(column_max_T: F32, score_RT: F32) -> None:
    for j in range(len(column_max_T)):
        top = max(score_RT[0, j], score_RT[1, j])
        bottom = max(score_RT[2, j], score_RT[3, j])
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
    num_rows, num_columns = rows_IH.shape[0], tile_HT.shape[1]
    score_RT = np.empty((ROWS_AT_ONCE, num_columns), np.float32)
    low_L, high_L = np.empty(NUM_LANES, np.float32), np.empty(NUM_LANES, np.float32)
    for first in range(0, num_rows, ROWS_AT_ONCE):
        # A last group that is not full repeats its last row: scored, never folded in twice.
        r1, r2 = min(first + 1, num_rows - 1), min(first + 2, num_rows - 1)
        r3 = min(first + 3, num_rows - 1)
        _score_rows(rows_IH, tile_HT, base_T, num_max, first, r1, r2, r3, score_RT)
        _raise_column_max(column_max_T, score_RT)
        _add_sums(score_RT, sum_I, sum_of_squares_I, first, min(ROWS_AT_ONCE, num_rows - first))
        for r in range(min(ROWS_AT_ONCE, num_rows - first)):
            i = first + r
            size_I[i] = _offer_row(index_IK[i], score_IK[i], size_I[i], score_RT[r], first_column)
            low, high = _extremes(score_RT[r], low_L, high_L)
            num_pairs_I[i] += num_columns
            min_I[i] = min(min_I[i], low)
            max_I[i] = max(max_I[i], high)


@compiled
def _add_sums(score_RT: F32, sum_I: F64, sum_of_squares_I: F64, first: int, num_rows: int) -> None:
    """Add scores column after column, so that tiles do not change a bit of the sums."""
    sums, squares = np.zeros(4), np.zeros(4)
    for r in range(num_rows):
        sums[r], squares[r] = sum_I[first + r], sum_of_squares_I[first + r]
    u0, u1, u2, u3 = sums[0], sums[1], sums[2], sums[3]
    v0, v1, v2, v3 = squares[0], squares[1], squares[2], squares[3]
    for j in range(score_RT.shape[1]):  # eight chains at once hide the latency of an addition
        x0, x1 = np.float64(score_RT[0, j]), np.float64(score_RT[1, j])
        x2, x3 = np.float64(score_RT[2, j]), np.float64(score_RT[3, j])
        u0, u1, u2, u3 = u0 + x0, u1 + x1, u2 + x2, u3 + x3
        v0, v1, v2, v3 = v0 + x0 * x0, v1 + x1 * x1, v2 + x2 * x2, v3 + x3 * x3
    sums[0], sums[1], sums[2], sums[3] = u0, u1, u2, u3
    squares[0], squares[1], squares[2], squares[3] = v0, v1, v2, v3
    for r in range(num_rows):
        sum_I[first + r], sum_of_squares_I[first + r] = sums[r], squares[r]


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
