"""Influence of every pair on a GPU: `exact.top_k_tiles`, its contract and its bits.

Scores are the CPU kernel's additions in the same order; so lists, extremes and column maxima agree
to the last bit, and the sums to about 1e-7. The pair network's agree to rounding in plain torch.

Suffixes: I rows (helped), J columns (helpers), T columns of a tile, H hidden units in kernel order,
K kept columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

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
from nncift_ray.scores.kernel import LAST_COLUMN

F32 = NDArray[np.float32]

TILE_COLUMNS = 1024  # of the torch version: 8 bytes x rows x columns of temporaries


@dataclass(frozen=True, slots=True, eq=False)
class DeviceColumns:
    """A tile of columns on the device, prepared for scoring."""

    columns_HJ: torch.Tensor  # -w_h b_jh times its unit's sign; of the pair network the features
    base_J: torch.Tensor  # bias + sum_h w_h b_jh; of the pair network with each one's own effect
    first_column: int

    @property
    def num_bytes(self) -> int:
        """What it takes of the device's memory."""
        return self.columns_HJ.nbytes + self.base_J.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class DevicePairs:
    """Rows and columns on the device, prepared for scoring."""

    rows_HI: torch.Tensor  # w_h a_ih times its unit's sign, which makes all units add a maximum
    columns_HJ: torch.Tensor
    base_J: torch.Tensor
    sign_H: torch.Tensor | None  # 1 or -1; None: the pair network's, whose units add products
    own_I: torch.Tensor | None  # effect of each row, of the pair network
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


Fold = Callable[[DevicePairs, DeviceState], None]
#: First column and activations of each tile. What ``on_device`` holds of them, if there is such a
#: list, is what an earlier call has prepared, and is not asked for again.
Tiles = Iterable[tuple[int, F32]]


def top_k_tiles_on(
    a_IH: F32,
    tiles: Tiles,
    w_H: F32,
    bias: float,
    k: int,
    *,
    device: str,
    fold: Fold,
    state: TopKState | None = None,
) -> TopK | None:
    """Return the K best columns of every row, of all tiles scored on a device; None without tiles.

    Result, state and errors are those of `exact.top_k_tiles`; a state may go from one to the other.
    It goes to the device once and comes back once. `fold` is what scores: `fold_in_torch`, or
    `fold_in_triton` on a GPU.

    Device memory: 4 * (I + J) * H bytes, 8 * I * K for the keys; half of what is free at most for
    tiles that are kept.
    """
    check_activations(a_IH, a_IH[:0], w_H, bias)
    state = start_state(len(a_IH), k, 0, 0, state)
    sign_H = unit_order(w_H)[1]
    on_device = functools.partial(torch.asarray, device=device)
    rows_HI = on_device(a_IH if len(w_H) else a_IH[:, :-1]).T.contiguous()
    signs, own_I = on_device(sign_H) if len(w_H) else None, None
    if len(w_H):
        rows_HI = on_device(prepare_rows(a_IH, w_H)[0]).T.contiguous()
    else:
        own_I = on_device(a_IH[:, -1].copy())
    statistics = state.statistics
    host = (state.key_IK, *statistics[1:])
    # Copies: on a CPU the tensors would share the state's memory.
    kept = [torch.tensor(values).to(device) for values in host]
    maxima: list[torch.Tensor] = []
    for tile in _prepared(tiles, w_H, bias, device):
        start_state(len(a_IH), k, tile.first_column, len(tile.base_J), state)
        pairs = DevicePairs(rows_HI, tile.columns_HJ, tile.base_J, signs, own_I, tile.first_column)
        maxima.append(torch.full(tile.base_J.shape, -torch.inf, device=device))
        if len(a_IH) and len(tile.base_J):
            fold(pairs, DeviceState(*kept, column_max_J=maxima[-1]))
        statistics.num_pairs_I[:] += len(tile.base_J)
    if not maxima:
        return None
    for values, found in zip(host, kept, strict=True):
        values[:] = found.cpu().numpy()
    state.key_IK.sort(axis=1)  # the worst first is a heap
    return TopK.of_state(state, torch.cat(maxima).cpu().numpy())


def top_k_rows_on(
    a_IH: F32, b_JH: F32, w_H: F32, bias: float, k: int, *, column_offset: int = 0, **options: Any
) -> TopK:
    """Return `exact.top_k_rows` of one tile; options are those of `top_k_tiles_on`."""
    start_state(len(a_IH), k, column_offset, len(b_JH), options.get("state"))
    return cast("TopK", top_k_tiles_on(a_IH, [(column_offset, b_JH)], w_H, bias, k, **options))


def _prepared(tiles: Tiles, w_H: F32, bias: float, device: str) -> Iterator[DeviceColumns]:
    """Yield tiles ready for scoring; those that fit beside everything else stay for later calls."""
    kept: list[DeviceColumns] | None = getattr(tiles, "on_device", None)
    if kept:
        yield from kept
        return
    found: list[DeviceColumns] = []
    left = torch.cuda.mem_get_info()[0] / 2 if device.startswith("cuda") else math.inf
    for first_column, b_JH in tiles:
        tile = prepare_columns(b_JH, w_H, bias, first_column, device)
        left -= tile.num_bytes
        if kept is not None and left >= 0:
            found.append(tile)
        yield tile
    if kept is not None and left >= 0:
        kept.extend(found)


def prepare_columns(
    b_JH: F32, w_H: F32, bias: float, first_column: int, device: str
) -> DeviceColumns:
    """Return columns on a device, ready for scoring.

    Raises:
        ValueError: If an activation is not finite.
    """
    columns_JH = torch.asarray(b_JH, device=device)
    if not bool(torch.isfinite(columns_JH).all()):
        check_activations(b_JH[:0], b_JH, w_H, bias)  # names the row
    base_J = torch.full((len(b_JH),), bias, dtype=torch.float64).to(device)
    if len(w_H) == 0:
        base_J += columns_JH[:, -1]
        return DeviceColumns(columns_JH[:, :-1].T.contiguous(), base_J.float(), first_column)
    order_H, sign_H = (torch.asarray(x, device=device) for x in unit_order(w_H))
    weighted_HJ = (columns_JH * torch.asarray(w_H, device=device)).T.contiguous()
    for weighted_J in weighted_HJ:  # in order, in float64, as the CPU does
        base_J += weighted_J
    columns_HJ = -weighted_HJ[order_H] * sign_H[:, None]
    return DeviceColumns(columns_HJ, base_J.float(), first_column)


def fold_in_torch(pairs: DevicePairs, state: DeviceState) -> None:
    """Score tile by tile with whole-tile operations, on any device; the kernel's oracle."""
    key_IK, num_columns = state.key_IK, pairs.columns_HJ.shape[1]
    for start in range(0, num_columns, TILE_COLUMNS):
        part = slice(start, min(start + TILE_COLUMNS, num_columns))
        score_IT = _score_tile(pairs, part)
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


def _score_tile(pairs: DevicePairs, part: slice) -> torch.Tensor:
    """Return the scores of the rows against some columns."""
    rows_HI = pairs.rows_HI
    if pairs.own_I is not None:
        positive_IT = (rows_HI.T @ pairs.columns_HJ[:, part]).clamp_(min=0)
        return torch.addcmul(pairs.own_I[:, None] + pairs.base_J[part], positive_IT, positive_IT)
    score_IT = pairs.base_J[part].repeat(rows_HI.shape[1], 1)
    signs = cast("list[float]", [] if pairs.sign_H is None else pairs.sign_H.tolist())  # pyright: ignore
    for row_I, column_J, sign in zip(rows_HI, pairs.columns_HJ, signs, strict=True):
        score_IT.add_(torch.maximum(row_I[:, None], column_J[None, part]), alpha=sign)
    return score_IT


def _ordered_bits(score: torch.Tensor) -> torch.Tensor:
    """Return the bits of scores in an order that integers share."""
    bits = score.contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
