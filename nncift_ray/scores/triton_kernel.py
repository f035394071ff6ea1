"""The fold of `gpu` as one Triton kernel: score, count, keep the best; nothing is stored.

A program owns a few rows and walks over all columns. Both come packed, a tile's units one behind
the other, so that the loop over units has fixed distances and no masks; what fills up a tile
repeats its last row or column. Keys are made only where a score of the tile reaches its row's worst
kept one, which is rare after the first few hundred columns: they are taken out one by one, largest
first, each replacing the worst.

Imported only where Triton is installed. Suffixes as in `gpu`; P tiles, R rows and C columns of one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from nncift_ray.scores.gpu import DevicePairs, DeviceState
from nncift_ray.scores.kernel import FIRST_KEY, LAST_COLUMN, NO_KEY

# pyright: basic
# Triton has no types: its strict reading is all "unknown".


ROWS, COLUMNS, WARPS = 32, 256, 8  # of a program's tile: 32 scores a thread
UNROLLED = 4  # hidden units
OWN = 4  # neighbouring columns of one thread, which reads them together


def fold_in_triton(pairs: DevicePairs, state: DeviceState) -> None:
    """Score all pairs and fold them into the state, on the device that the tensors are on."""
    num_rows, k = state.key_IK.shape
    num_columns = pairs.columns_HJ.shape[1]
    rows_PHR, columns_PHC = pack(pairs.rows_HI, ROWS), pack(pairs.columns_HJ, COLUMNS)
    sign_H = pairs.sign_H
    if sign_H is not None:  # units that fill up add -0, which changes no score
        missing = rows_PHR.shape[1] - len(sign_H)
        sign_H = torch.nn.functional.pad(sign_H, (0, missing), value=-0.0)
    launch = cast("Any", _fold)[(len(rows_PHR),)]
    launch(
        rows_PHR, pairs.own_I, columns_PHC, sign_H, pairs.base_J, state.key_IK,
        state.min_I, state.max_I, state.sum_I, state.sum_of_squares_I, state.column_max_J,
        num_rows, num_columns, rows_PHR.shape[1], pairs.first_column, k,
        PADDED_K=triton.next_power_of_2(k), UNROLLED=UNROLLED, ROWS=ROWS, COLUMNS=COLUMNS, OWN=OWN,
        LAST_COLUMN=LAST_COLUMN, FIRST_KEY=FIRST_KEY, NO_KEY=NO_KEY, num_warps=WARPS,
    )  # fmt: skip


def pack(x_HN: torch.Tensor, width: int) -> torch.Tensor:
    """Return tiles [P, H, width]: units are filled up with zeros, a tile with its last column."""
    num_units, num = x_HN.shape
    place_N = torch.arange(-(-num // width) * width, device=x_HN.device).clamp(max=num - 1)
    padded_HN = torch.nn.functional.pad(x_HN[:, place_N], (0, 0, 0, -num_units % UNROLLED))
    return padded_HN.unflatten(1, (-1, width)).transpose(0, 1).contiguous()


@triton.jit
def _fold(
    rows_PHR: tl.tensor, own_I: tl.tensor | None, columns_PHC: tl.tensor,
    sign_H: tl.tensor | None, base_J: tl.tensor, key_IK: tl.tensor,
    min_I: tl.tensor, max_I: tl.tensor, sum_I: tl.tensor, sum_of_squares_I: tl.tensor,
    column_max_J: tl.tensor, num_rows: tl.tensor, num_columns: tl.tensor, num_hidden: tl.tensor,
    first_column: tl.tensor, k: tl.tensor, PADDED_K: tl.constexpr,
    UNROLLED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OWN: tl.constexpr,
    LAST_COLUMN: tl.constexpr, FIRST_KEY: tl.constexpr, NO_KEY: tl.constexpr,
) -> None:  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < num_rows
    places = i[:, None].to(tl.int64) * k + tl.arange(0, PADDED_K)[None, :]
    is_place = is_row[:, None] & (tl.arange(0, PADDED_K)[None, :] < k)
    # Places beyond K can never be the worst, so nothing is put there.
    kept = tl.load(key_IK + places, mask=is_place, other=2**63 - 1)
    threshold = tl.min(kept, axis=1)
    # Statistics of a thread's own columns; those of a row are made of them at the end.
    low = tl.full((ROWS, COLUMNS // OWN), float("inf"), tl.float32)
    high = tl.full((ROWS, COLUMNS // OWN), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, COLUMNS // OWN), tl.float64)
    squares = tl.zeros((ROWS, COLUMNS // OWN), tl.float64)
    rows_at = rows_PHR + tl.program_id(0).to(tl.int64) * num_hidden * ROWS + tl.arange(0, ROWS)
    b_at = columns_PHC + tl.arange(0, COLUMNS)
    for start in range(0, num_columns, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        is_column = j < num_columns
        base = tl.load(base_J + tl.minimum(j, num_columns - 1))
        score = tl.zeros((ROWS, COLUMNS), tl.float32)
        if sign_H is not None:
            score += base[None, :]
        a_at = rows_at
        for h in range(0, num_hidden, UNROLLED):
            for u in tl.static_range(UNROLLED):
                a = tl.load(a_at + u * ROWS)[:, None]
                b = tl.load(b_at + u * COLUMNS)[None, :]
                if sign_H is None:
                    score = tl.fma(a, b, score)  # one fused step, as on the CPU
                else:
                    # Of units with weights below 0 both are negated: a maximum is the minimum.
                    score = tl.fma(tl.maximum(a, b), tl.load(sign_H + h + u), score)
            a_at += UNROLLED * ROWS
            b_at += UNROLLED * COLUMNS
        if own_I is not None:
            own = tl.load(own_I + tl.minimum(i, num_rows - 1))
            positive = tl.maximum(score, 0.0)
            score = positive * positive + (base[None, :] + own[:, None])
        own_scores = tl.reshape(score, (ROWS, COLUMNS // OWN, OWN))
        best_score = tl.max(own_scores, axis=2)
        low = tl.minimum(low, tl.min(own_scores, axis=2))
        high = tl.maximum(high, best_score)
        counted = tl.reshape(tl.where(is_column[None, :], score, 0.0), own_scores.shape)
        total += tl.sum(counted, axis=2).to(tl.float64)
        squares += tl.sum(counted * counted, axis=2).to(tl.float64)
        tl.atomic_max(column_max_J + j, tl.max(score, axis=0), mask=is_column)
        worst_bits = (threshold >> 32).to(tl.int32)
        worst_bits = worst_bits ^ ((worst_bits >> 31) & 0x7FFFFFFF)
        worst = tl.where(
            threshold < FIRST_KEY, float("-inf"), worst_bits.to(tl.float32, bitcast=True)
        )
        is_wanted = is_row[:, None] & (best_score >= worst[:, None])
        if tl.max(tl.ravel(is_wanted.to(tl.int32), can_reorder=True), axis=0) > 0:
            bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
            ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
            key = (ordered << 32) + (LAST_COLUMN - (first_column + j)).to(tl.int64)[None, :]
            key = tl.where(is_row[:, None] & is_column[None, :], key, NO_KEY)
            best = tl.max(key, axis=1)
            while tl.max((best > threshold).to(tl.int32), axis=0) > 0:
                is_worst = (kept == threshold[:, None]) & (best > threshold)[:, None]
                kept = tl.where(is_worst, best[:, None], kept)
                threshold = tl.min(kept, axis=1)
                key = tl.where(key == best[:, None], NO_KEY, key)
                best = tl.max(key, axis=1)
    tl.store(key_IK + places, kept, mask=is_place)
    low_before = tl.load(min_I + i, mask=is_row, other=0.0)
    high_before = tl.load(max_I + i, mask=is_row, other=0.0)
    tl.store(min_I + i, tl.minimum(low_before, tl.min(low, axis=1)), mask=is_row)
    tl.store(max_I + i, tl.maximum(high_before, tl.max(high, axis=1)), mask=is_row)
    total_before = tl.load(sum_I + i, mask=is_row, other=0.0)
    squares_before = tl.load(sum_of_squares_I + i, mask=is_row, other=0.0)
    tl.store(sum_I + i, total_before + tl.sum(total, axis=1), mask=is_row)
    tl.store(sum_of_squares_I + i, squares_before + tl.sum(squares, axis=1), mask=is_row)
