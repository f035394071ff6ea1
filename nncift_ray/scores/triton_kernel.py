"""The fold of `gpu` as one Triton kernel: score, count, keep the best; nothing is stored.

A program owns a few rows and walks over all columns. Keys above a row's threshold (its worst kept
key) are taken out one by one, largest first, each replacing the worst: after the first few hundred
columns almost every tile has none, so the lists cost a few per cent of the scores.

Imported only where Triton is installed. Suffixes as in `gpu`.
"""

from __future__ import annotations

from typing import Any, cast

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from nncift_ray.scores.gpu import DevicePairs, DeviceState
from nncift_ray.scores.kernel import LAST_COLUMN, NO_KEY

# pyright: basic
# Triton has no types: its strict reading is all "unknown".


ROWS, COLUMNS, WARPS = 16, 128, 4  # of a program's tile: 16 scores a thread
UNROLLED = 4  # hidden units


def fold_in_triton(pairs: DevicePairs, state: DeviceState) -> None:
    """Score all pairs and fold them into the state, on the device that the tensors are on."""
    num_hidden, num_rows = pairs.rows_HI.shape
    num_columns, k = pairs.columns_HJ.shape[1], state.key_IK.shape[1]
    launch = cast("Any", _fold)[(triton.cdiv(num_rows, ROWS),)]
    launch(
        pairs.rows_HI, pairs.own_I, pairs.columns_HJ, pairs.base_J, state.key_IK,
        state.min_I, state.max_I, state.sum_I, state.sum_of_squares_I, state.column_max_J,
        num_rows, num_columns, num_hidden, pairs.num_max, pairs.first_column, k,
        PADDED_K=triton.next_power_of_2(k), UNROLLED=UNROLLED, ROWS=ROWS, COLUMNS=COLUMNS,
        LAST_COLUMN=LAST_COLUMN, NO_KEY=NO_KEY, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _fold(
    rows_HI: tl.tensor, own_I: tl.tensor | None, columns_HJ: tl.tensor, base_J: tl.tensor,
    key_IK: tl.tensor,
    min_I: tl.tensor, max_I: tl.tensor, sum_I: tl.tensor, sum_of_squares_I: tl.tensor,
    column_max_J: tl.tensor, num_rows: tl.tensor, num_columns: tl.tensor, num_hidden: tl.tensor,
    num_max: tl.tensor, first_column: tl.tensor, k: tl.tensor, PADDED_K: tl.constexpr,
    UNROLLED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LAST_COLUMN: tl.constexpr, NO_KEY: tl.constexpr,
) -> None:  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < num_rows
    places = i[:, None].to(tl.int64) * k + tl.arange(0, PADDED_K)[None, :]
    is_place = is_row[:, None] & (tl.arange(0, PADDED_K)[None, :] < k)
    # Places beyond K can never be the worst, so nothing is put there.
    kept = tl.load(key_IK + places, mask=is_place, other=2**63 - 1)
    threshold = tl.min(kept, axis=1)
    low = tl.load(min_I + i, mask=is_row, other=0.0)
    high = tl.load(max_I + i, mask=is_row, other=0.0)
    total = tl.load(sum_I + i, mask=is_row, other=0.0)
    squares = tl.load(sum_of_squares_I + i, mask=is_row, other=0.0)
    for start in range(0, num_columns, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        is_column = j < num_columns
        base = tl.load(base_J + j, mask=is_column, other=0.0)
        score = tl.zeros((ROWS, COLUMNS), tl.float32)
        if own_I is None:
            score += base[None, :]
        a_at, b_at = rows_HI + i, columns_HJ + j
        for _ in tl.range(0, num_max, loop_unroll_factor=UNROLLED):
            a = tl.load(a_at, mask=is_row, other=0.0)
            b = tl.load(b_at, mask=is_column, other=0.0)
            score += tl.maximum(a[:, None], b[None, :])
            a_at, b_at = a_at + num_rows, b_at + num_columns
        for _ in tl.range(num_max, num_hidden, loop_unroll_factor=UNROLLED):
            a = tl.load(a_at, mask=is_row, other=0.0)
            b = tl.load(b_at, mask=is_column, other=0.0)
            if own_I is None:
                score += tl.minimum(a[:, None], b[None, :])
            else:
                score += a[:, None] * b[None, :]  # one fused step, as on the CPU
            a_at, b_at = a_at + num_rows, b_at + num_columns
        if own_I is not None:
            own = tl.load(own_I + i, mask=is_row, other=0.0)
            positive = tl.maximum(score, 0.0)
            score = positive * positive + (base[None, :] + own[:, None])
        is_pair = is_row[:, None] & is_column[None, :]
        highest = tl.where(is_pair, score, float("-inf"))
        low = tl.minimum(low, tl.min(tl.where(is_pair, score, float("inf")), axis=1))
        high = tl.maximum(high, tl.max(highest, axis=1))
        counted = tl.where(is_pair, score, 0.0)
        total += tl.sum(counted, axis=1).to(tl.float64)
        squares += tl.sum(counted * counted, axis=1).to(tl.float64)
        tl.atomic_max(column_max_J + j, tl.max(highest, axis=0), mask=is_column)
        bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
        key = (ordered << 32) + (LAST_COLUMN - (first_column + j)).to(tl.int64)[None, :]
        key = tl.where(is_pair, key, NO_KEY)
        best = tl.max(key, axis=1)
        while tl.max((best > threshold).to(tl.int32), axis=0) > 0:
            is_worst = (kept == threshold[:, None]) & (best > threshold)[:, None]
            kept = tl.where(is_worst, best[:, None], kept)
            threshold = tl.min(kept, axis=1)
            key = tl.where(key == best[:, None], NO_KEY, key)
            best = tl.max(key, axis=1)
    tl.store(key_IK + places, kept, mask=is_place)
    tl.store(min_I + i, low, mask=is_row)
    tl.store(max_I + i, high, mask=is_row)
    tl.store(sum_I + i, total, mask=is_row)
    tl.store(sum_of_squares_I + i, squares, mask=is_row)
