"""Influence of every pair on a GPU: `exact.top_k_rows`, its contract and its bits.

Scores are the CPU kernel's additions in the same order; so lists, extremes and column maxima agree
to the last bit, and the sums to about 1e-7. The pair network's agree to rounding in plain torch.

Suffixes: I rows (helped), J columns (helpers), T columns of a tile, H hidden units in kernel order,
K kept columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nncift_ray.scores.exact import (
    TopK,
    TopKState,
    check_activations,
    prepare_rows,
    start_state,
    unit_order,
)
from nncift_ray.scores.kernel import BITS_DROPPED, FIRST_BIN, LAST_COLUMN, NUM_BINS, CountedRows

F32 = NDArray[np.float32]

TILE_COLUMNS = 1024  # of the torch version: 8 bytes x rows x columns of temporaries


@dataclass(frozen=True, slots=True, eq=False)
class DevicePairs:
    """Rows and columns on the device, prepared for scoring."""

    rows_HI: torch.Tensor  # w_h a_ih
    columns_HJ: torch.Tensor  # -w_h b_jh
    base_J: torch.Tensor  # bias + sum_h w_h b_jh
    num_max: int  # units before this one add a maximum, the others a minimum
    own_I: torch.Tensor | None  # effect of each row, of the pair network; its units add products
    first_column: int


@dataclass(frozen=True, slots=True, eq=False)
class DeviceState:
    """What is kept on the device; a fold changes it in place."""

    key_IK: torch.Tensor  # those of `kernel`, in any order
    min_I: torch.Tensor
    max_I: torch.Tensor
    sum_I: torch.Tensor  # float64
    sum_of_squares_I: torch.Tensor  # float64
    column_max_J: torch.Tensor


def top_k_rows_on(
    a_IH: F32,
    b_JH: F32,
    w_H: F32,
    bias: float,
    k: int,
    *,
    device: str,
    fold: Callable[[DevicePairs, DeviceState], None],
    column_offset: int = 0,
    state: TopKState | None = None,
    counted: CountedRows | None = None,
) -> TopK:
    """Return the K best columns of every row, of all pairs scored on a device.

    Arguments, result, state and errors are those of `exact.top_k_rows`; a state may go from one to
    the other. `fold` is what scores: `fold_in_torch`, or `fold_in_triton` on a GPU.

    Device memory: 4 * (I + J) * H bytes, 8 * I * K for the keys.
    """
    check_activations(a_IH, b_JH[:0], w_H, bias)
    state = start_state(len(a_IH), k, column_offset, len(b_JH), state)
    columns_JH = torch.asarray(b_JH, device=device)
    if not bool(torch.isfinite(columns_JH).all()):
        check_activations(a_IH, b_JH, w_H, bias)  # names the row
    base_J = torch.full((len(b_JH),), bias, dtype=torch.float64).to(device)
    order_H, sign_H = unit_order(w_H)
    if len(w_H):
        rows_IH = prepare_rows(a_IH, w_H)[0] * sign_H
        weighted_HJ = (columns_JH * torch.asarray(w_H, device=device)).T.contiguous()
        for weighted_J in weighted_HJ:  # in order, in float64, as the CPU does
            base_J += weighted_J
        columns_HJ = -weighted_HJ[torch.asarray(order_H, device=device)]
        own_I = None
    else:
        rows_IH, columns_HJ = a_IH[:, :-1], columns_JH[:, :-1].T.contiguous()
        own_I = torch.asarray(a_IH[:, -1].copy(), device=device)
        base_J += columns_JH[:, -1]
    pairs = DevicePairs(
        torch.asarray(rows_IH, device=device).T.contiguous(),
        columns_HJ,
        base_J.float(),
        int((sign_H > 0).sum()),
        own_I,
        column_offset,
    )
    statistics = state.statistics
    host = (state.key_IK, *statistics[1:])
    # Copies: on a CPU the tensors would share the state's memory.
    kept = [torch.tensor(values).to(device) for values in host]
    column_max_J = torch.full((len(b_JH),), -torch.inf, device=device)
    if len(a_IH) and len(b_JH):
        fold(pairs, DeviceState(*kept, column_max_J=column_max_J))
        if counted is not None:
            _count_scores(pairs, counted)
    for values, found in zip(host, kept, strict=True):
        values[:] = found.cpu().numpy()
    state.key_IK.sort(axis=1)  # the worst first is a heap
    statistics.num_pairs_I[:] += len(b_JH)
    return TopK.of_state(state, column_max_J.cpu().numpy())


def fold_in_torch(pairs: DevicePairs, state: DeviceState) -> None:
    """Score tile by tile with whole-tile operations, on any device; the kernel's oracle."""
    key_IK, num_columns = state.key_IK, pairs.columns_HJ.shape[1]
    for start in range(0, num_columns, TILE_COLUMNS):
        part = slice(start, min(start + TILE_COLUMNS, num_columns))
        score_IT = _score_tile(pairs, slice(None), part)
        state.min_I.copy_(torch.minimum(state.min_I, score_IT.amin(dim=1)))
        state.max_I.copy_(torch.maximum(state.max_I, score_IT.amax(dim=1)))
        wide_IT = score_IT.double()
        state.sum_I.add_(wide_IT.sum(dim=1))
        state.sum_of_squares_I.add_(wide_IT.square().sum(dim=1))
        state.column_max_J[part] = score_IT.amax(dim=0)
        # The keys of `kernel`; only rows with one above their worst kept change.
        column_T = torch.arange(part.start, part.stop, device=key_IK.device) + pairs.first_column
        ordered_IT = _ordered_bits(torch.where(score_IT == 0, 0.0, score_IT))  # -0 equals 0
        key_IT = ordered_IT.long() * 2**32 + (LAST_COLUMN - column_T)
        better_N = (key_IT.amax(dim=1) > key_IK.amin(dim=1)).nonzero()[:, 0]
        if len(better_N):
            both = torch.cat([key_IK[better_N], key_IT[better_N]], dim=1)
            key_IK[better_N] = torch.topk(both, key_IK.shape[1], dim=1, sorted=False).values


def _score_tile(pairs: DevicePairs, rows: slice | torch.Tensor, part: slice) -> torch.Tensor:
    """Return the scores of some rows, a slice or a mask, against some columns."""
    rows_HI = pairs.rows_HI[:, rows]
    if pairs.own_I is not None:
        positive_IT = (rows_HI.T @ pairs.columns_HJ[:, part]).clamp_(min=0)
        return torch.addcmul(pairs.own_I[rows, None] + pairs.base_J[part], positive_IT, positive_IT)
    score_IT = pairs.base_J[part].repeat(rows_HI.shape[1], 1)
    for h, (row_I, column_J) in enumerate(zip(rows_HI, pairs.columns_HJ, strict=True)):
        larger = torch.maximum if h < pairs.num_max else torch.minimum
        score_IT += larger(row_I[:, None], column_J[None, part])
    return score_IT


def _count_scores(pairs: DevicePairs, counted: CountedRows) -> None:
    """Score the counted rows once more, a few of many, and add them to the counts."""
    counted_I = torch.asarray(counted.is_counted_I, device=pairs.rows_HI.device)
    count_B = torch.zeros(NUM_BINS, dtype=torch.int64, device=counted_I.device)
    for start in range(0, pairs.columns_HJ.shape[1], TILE_COLUMNS):
        score_NT = _score_tile(pairs, counted_I, slice(start, start + TILE_COLUMNS))
        bin_NT = (_ordered_bits(score_NT) >> BITS_DROPPED) - FIRST_BIN
        count_B += torch.bincount(bin_NT.ravel(), minlength=NUM_BINS)
    counted.count_B[:] += count_B.cpu().numpy()


def _ordered_bits(score: torch.Tensor) -> torch.Tensor:
    """Return the bits of scores in an order that integers share."""
    bits = score.contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
