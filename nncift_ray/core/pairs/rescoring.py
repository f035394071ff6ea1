"""Exact influence of listed pairs: the columns that an approximate search proposed for each row.

The arithmetic is that of `pair_scores`, addition by addition: a pair has the same bits here and in
the streamed kernel. Listed columns lie scattered, so each is kept as one run of memory (a column
costs a few cache lines, not H of them), and eight are summed side by side to hide the latency of
their additions.

Suffixes: I rows (helped), J columns (helpers), H hidden units (in kernel order where packed),
C listed columns, K kept columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.pair_kernel import NO_KEY, key_of
from nncift_ray.core.pairs.pair_scores import (
    NO_COLUMN,
    check_activations,
    pack_tile,
    prepare_rows,
    read_keys,
    unit_order,
)
from nncift_ray.core.pairs.pair_vectors import GATHERED_COLUMNS, score_gathered
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

TILE_COLUMNS = 1024  # columns packed at once: 400 kB at 100 hidden units


@dataclass(frozen=True, slots=True, eq=False)
class PackedColumns:
    """All columns of a network, prepared for scoring in any order; made by `pack_columns`."""

    weighted_JH: F32  # -w_h b_jh, units of a minimum negated; H a multiple of 16, 0 where padded
    base_J: F32  # bias + sum_h w_h b_jh
    sign_H: F32  # 1 for units of a maximum, -1 for units of a minimum
    order_H: I64
    w_H: F32
    bias: float

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.base_J)


@dataclass(frozen=True, slots=True, eq=False)
class RescoredTopK:
    """The best of the listed columns of each row, best first, equal scores by smaller column."""

    index_IK: I32  # -1 where fewer than K columns were listed
    score_IK: F32  # -inf there
    num_pairs_I: I64  # distinct columns listed, and so scored


def pack_columns(b_JH: F32, w_H: F32, bias: float) -> PackedColumns:
    """Prepare all columns for `rescore_rows`.

    Raises:
        ShapeError: If H differs between the arrays.
        ValueError: If an activation is not finite; the message names the first such row.

    Memory: 4 * J * H bytes, H padded to two multiples of four, and one tile.
    """
    check_activations(np.zeros((0, len(w_H)), np.float32), b_JH, w_H, bias)
    order_H, num_max = unit_order(w_H)
    num_hidden = len(w_H)
    num_padded = -(-num_hidden // GATHERED_COLUMNS) * GATHERED_COLUMNS
    sign_H = np.where(np.arange(num_padded) < num_max, 1, -1).astype(np.float32)
    weighted_JH = np.zeros((len(b_JH), num_padded), np.float32)
    base_J = np.empty(len(b_JH), np.float32)
    for start in range(0, len(b_JH), TILE_COLUMNS):
        part = slice(start, start + TILE_COLUMNS)
        tile_HT, base_J[part] = pack_tile(b_JH[part], w_H, order_H, bias)
        weighted_JH[part, :num_hidden] = (tile_HT * sign_H[:num_hidden, None]).T
    return PackedColumns(weighted_JH, base_J, sign_H, order_H, w_H, bias)


def rescore_rows(
    a_IH: F32, columns: PackedColumns, candidate_IC: NDArray[np.integer], k: int
) -> RescoredTopK:
    """Score the listed columns of every row exactly and keep the K best.

    Args:
        a_IH: Row (helped) activations [I, H], first-layer bias included, units in their own order.
        columns: All columns, from `pack_columns`.
        candidate_IC: Listed columns of each row [I, C], in any order; a column listed twice counts
            once, -1 is no column.
        k: Columns kept per row, at least 1.

    Returns:
        Lists in the unit of the labels (raw and signed). A pair's score has the bits that
        `pair_scores.top_k_rows` gives it, and listing every column gives the lists of that
        function.

    Raises:
        ShapeError: If rows, hidden units and lists do not belong together.
        ValueError: If an activation is not finite (the message names the first such row), a
            listed column does not exist, or k is below 1.

    Memory: 12 * I * C bytes while it works, 8 * I * K for the result, 4 * I * H for the rows.
    """
    check_activations(a_IH, np.zeros((0, len(columns.w_H)), np.float32), columns.w_H, columns.bias)
    _check_lists(len(a_IH), len(columns), candidate_IC, k)
    num_hidden = len(columns.w_H)
    rows_IH = np.zeros((len(a_IH), len(columns.sign_H)), np.float32)
    rows_IH[:, :num_hidden] = prepare_rows(a_IH, columns.w_H, columns.order_H)
    rows_IH[:, :num_hidden] *= columns.sign_H[:num_hidden]
    # Ascending: equal columns are neighbours.
    listed_IC = np.sort(candidate_IC.astype(np.int32), axis=1)
    key_IC = np.empty((len(a_IH), max(k, listed_IC.shape[1])), np.int64)
    num_pairs_I = np.zeros(len(a_IH), np.int64)
    _score_lists(
        rows_IH,
        columns.sign_H,
        columns.weighted_JH,
        columns.base_J,
        listed_IC,
        key_IC,
        num_pairs_I,
    )
    best_IK = np.partition(key_IC, key_IC.shape[1] - k, axis=1)[:, -k:]
    return RescoredTopK(*read_keys(best_IK), num_pairs_I)


def _check_lists(
    num_rows: int, num_columns: int, candidate_IC: NDArray[np.integer], k: int
) -> None:
    if candidate_IC.ndim != 2 or len(candidate_IC) != num_rows:
        msg = f"{num_rows} rows, but lists of {candidate_IC.shape}; expected one list a row"
        raise ShapeError(msg)
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise ValueError(msg)
    if candidate_IC.size == 0:
        return
    low, high = int(candidate_IC.min()), int(candidate_IC.max())
    if low < NO_COLUMN or high >= num_columns:
        msg = (
            f"columns {low}..{high} are listed, there are {num_columns} (and {NO_COLUMN} for none):"
            " was the index built from other columns?"
        )
        raise ValueError(msg)


@compiled
def _score_lists(
    rows_IH: F32, sign_H: F32, weighted_JH: F32, base_J: F32, listed_IC: I32, key_IC: I64,
    num_pairs_I: I64,
) -> None:  # fmt: skip
    num_listed = listed_IC.shape[1]
    # The last group is filled up, and another follows that is fetched and not scored.
    num_places = num_listed + 2 * GATHERED_COLUMNS
    padded_C = np.empty(num_places, np.int32)
    score_C = np.empty(num_places, np.float32)
    for i in range(len(rows_IH)):
        count = _move_distinct(listed_IC[i])
        num_pairs_I[i] = count
        for c in range(key_IC.shape[1]):
            key_IC[i, c] = NO_KEY + c
        if count == 0:
            continue
        padded_C[:count] = listed_IC[i, :count]
        padded_C[count:] = listed_IC[i, count - 1]
        for c in range(0, count, GATHERED_COLUMNS):
            score_gathered(rows_IH[i], sign_H, weighted_JH, base_J, padded_C, c, score_C)
        for c in range(count):
            key_IC[i, c] = key_of(score_C[c], listed_IC[i, c])


@compiled
def _move_distinct(listed_C: I32) -> int:
    """Move the distinct columns of an ascending list to its front and return their number."""
    count = 0
    for c in range(len(listed_C)):
        column = listed_C[c]
        if column >= 0 and (count == 0 or column != listed_C[count - 1]):
            listed_C[count] = column
            count += 1
    return count


@compiled
def insert_best(index_K: I32, score_K: F32, column: int, score: float) -> None:
    """Insert a column into a list sorted best first, if it belongs there; ties by column."""
    place = len(score_K)
    while place > 0 and (
        score > score_K[place - 1] or (score == score_K[place - 1] and column < index_K[place - 1])
    ):
        place -= 1
        if place + 1 < len(score_K):
            index_K[place + 1], score_K[place + 1] = index_K[place], score_K[place]
    if place < len(score_K):
        index_K[place], score_K[place] = column, score
