"""Random projection by signs that are computed where they are needed and never held.

The matrix R of +-1 is a function: the sign at (row, column) is bit row % 64 of a 64-bit hash of
(seed, row // 64, column). Any rows of it can be had anywhere, in any order, on every processor.

On a CPU no sign is ever turned into a number. For 64 rows of R, all 256 signed sums of each 8 of
the 64 inputs are tabled, for 32 examples side by side; a byte of the hash then picks a sum, so that
8 multiply-adds become one addition, and the examples fill the vector registers. On an accelerator
blocks of signs are written out and multiplied.

Suffixes: B examples, D input dimensions, P output dimensions, L lanes (examples of one sweep).
Source: LESS, arXiv 2402.04333, section 4.1; Johnson and Lindenstrauss with signs: Achlioptas 2003;
tabled sums: the method of four Russians.
"""

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncift_ray.core.jit import compiled
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = np.uint64

NUM_LANES = 32  # examples of one sweep; a constant, so that the compiler makes vector code of it
WORD_BITS = 64  # rows of R in one hash
FOLD_WORDS = 256  # words summed in float32 before they go to a float64 total
BLOCK_BYTES = 256 << 20  # signs written out at once on an accelerator

# The steps of splitmix64, as unsigned numbers for numba and as signed ones for torch.
_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STEP_U, _MIX_1_U, _MIX_2_U = U64(_STEP), U64(_MIX_1), U64(_MIX_2)
_S8, _S16, _S24, _S27, _S30, _S31 = U64(8), U64(16), U64(24), U64(27), U64(30), U64(31)
_S32, _S40, _S48, _S56, _BYTE = U64(32), U64(40), U64(48), U64(56), U64(255)


class RademacherProjector:
    """x R / sqrt(P) for a matrix R [D, P] of random signs, fixed by the seed.

    Inner products keep their expected value; for unit vectors the error has a standard deviation
    of at most sqrt(2 / P).
    """

    def __init__(self, input_dim: int, output_dim: int, seed: int) -> None:
        """Fix the matrix.

        Raises:
            ValueError: If a dimension is not positive or the seed is negative.
        """
        if input_dim < 1 or output_dim < 1 or seed < 0:
            msg = (
                f"dimensions must be >= 1 and the seed >= 0: {input_dim} to {output_dim}, "
                f"seed {seed}"
            )
            raise ValueError(msg)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.seed = seed

    def project(self, x_BD: Tensor, offset: int = 0) -> Tensor:
        """Project a run of input dimensions; the projections of all runs add up to the whole.

        On a CPU a row's result does not depend on the other rows, nor on the threads.

        Args:
            x_BD: Inputs [B, d], the dimensions offset to offset + d of the whole.
            offset: Where the run starts.

        Returns:
            [B, P] float32 on the device of x: x @ R[offset:offset + d] / sqrt(P).

        Raises:
            ShapeError: If x is no matrix, or the run leaves the input dimensions.

        Memory: CPU, for each thread 256 KiB, and 12 * 32 * P bytes in all; elsewhere BLOCK_BYTES.
        """
        if x_BD.ndim != 2 or offset < 0 or offset + x_BD.shape[1] > self.input_dim:
            msg = f"x {tuple(x_BD.shape)} at {offset} leaves the {self.input_dim} input dimensions"
            raise ShapeError(msg)
        if x_BD.device.type == "cpu":
            x = np.asarray(x_BD.detach().numpy(), dtype=np.float32)
            return torch.from_numpy(self._project_with_tables(x, offset))
        return self._project_with_blocks(x_BD.detach().float(), offset)

    def _project_with_tables(self, x_BD: F32, offset: int) -> F32:
        """Project 32 rows at a time; the threads share the columns."""
        num_threads = min(torch.get_num_threads(), self.output_dim)
        edges = np.linspace(0, self.output_dim, num_threads + 1).astype(int)
        out_BP = np.empty((len(x_BD), self.output_dim), np.float32)
        with ThreadPoolExecutor(num_threads) as threads:
            for start in range(0, len(x_BD), NUM_LANES):
                rows = slice(start, start + NUM_LANES)
                sums_PL = np.zeros((self.output_dim, NUM_LANES), np.float64)
                parts = [
                    threads.submit(
                        _sweep, x_BD[rows], offset, U64(self.seed), low, sums_PL[low:high]
                    )
                    for low, high in zip(edges[:-1], edges[1:], strict=True)
                ]
                for part in parts:
                    part.result()
                out_BP[rows] = sums_PL.T[: len(x_BD[rows])] / math.sqrt(self.output_dim)
        return out_BP

    def _project_with_blocks(self, x_BD: Tensor, offset: int) -> Tensor:
        """Write out signs of whole words of rows, block by block, and multiply."""
        num_rows = max(1, BLOCK_BYTES // (4 * WORD_BITS * self.output_dim)) * WORD_BITS
        end = offset + x_BD.shape[1]
        out_BP = x_BD.new_zeros((len(x_BD), self.output_dim))
        for start in range(offset // num_rows * num_rows, end, num_rows):
            low, high = max(start, offset), min(start + num_rows, end)
            signs_PD = self._signs(low, high, x_BD.device)
            out_BP += x_BD[:, low - offset : high - offset] @ signs_PD.T
        return out_BP / math.sqrt(self.output_dim)

    def _signs(self, low: int, high: int, device: torch.device) -> Tensor:
        """Return rows low to high of R, transposed [P, high - low], by torch's integers."""
        first, last = low // WORD_BITS, (high - 1) // WORD_BITS + 1
        words_W = torch.arange(first, last, device=device)
        columns_P = torch.arange(self.output_dim, device=device)
        seed = torch.tensor(self.seed, device=device)
        keys_W = _mix_tensor(_mix_tensor(seed + _signed(_STEP)) + words_W * _signed(_STEP))
        hash_PW = _mix_tensor(keys_W[None] + (columns_P[:, None] + 1) * _signed(_STEP))
        bytes_PB = hash_PW.view(torch.uint8)  # of little-endian words: lowest rows first
        values = torch.arange(256, device=device)[:, None]
        table = ((values >> torch.arange(8, device=device)) & 1).float() * 2 - 1
        signs = torch.nn.functional.embedding(bytes_PB.int(), table).flatten(1)
        skip = low - first * WORD_BITS
        return signs[:, skip : skip + high - low]


@compiled
def _mix(z: np.uint64) -> np.uint64:
    """Return the finaliser of splitmix64: every input bit moves half of the output bits."""
    z = (z ^ (z >> _S30)) * _MIX_1_U
    z = (z ^ (z >> _S27)) * _MIX_2_U
    return z ^ (z >> _S31)


@compiled
def _fill_tables(inputs_DL: F32, tables_GML: F32) -> None:
    """Table the 256 signed sums of each 8 of 64 inputs; bit b of the index is the sign of b."""
    for group in range(8):
        tables_GML[group, 0, :] = 0.0
        for bit in range(8):
            size = 1 << bit
            d = group * 8 + bit
            for m in range(size):
                for lane in range(NUM_LANES):
                    value = inputs_DL[d, lane]
                    tables_GML[group, m + size, lane] = tables_GML[group, m, lane] + value
                    tables_GML[group, m, lane] = tables_GML[group, m, lane] - value


@compiled
def _add_word(tables_GML: F32, key: np.uint64, first_column: int, sums_PL: F32) -> None:
    """Add the signed sums of 64 inputs to every column."""
    for p in range(sums_PL.shape[0]):
        h = _mix(key + U64(first_column + p + 1) * _STEP_U)
        i0, i1, i2, i3 = h & _BYTE, (h >> _S8) & _BYTE, (h >> _S16) & _BYTE, (h >> _S24) & _BYTE
        i4, i5, i6 = (h >> _S32) & _BYTE, (h >> _S40) & _BYTE, (h >> _S48) & _BYTE
        i7 = h >> _S56
        for lane in range(NUM_LANES):
            low = (tables_GML[0, i0, lane] + tables_GML[1, i1, lane]) + (
                tables_GML[2, i2, lane] + tables_GML[3, i3, lane]
            )
            high = (tables_GML[4, i4, lane] + tables_GML[5, i5, lane]) + (
                tables_GML[6, i6, lane] + tables_GML[7, i7, lane]
            )
            sums_PL[p, lane] += low + high


@compiled
def _sweep(x_BD: F32, offset: int, seed: np.uint64, first_column: int, total_PL: F64) -> None:
    """Add x @ R[offset:, first_column:] to the totals, for at most NUM_LANES rows of x."""
    num_rows, width = x_BD.shape
    inputs_DL = np.zeros((WORD_BITS, NUM_LANES), np.float32)
    tables_GML = np.empty((8, 256, NUM_LANES), np.float32)
    sums_PL = np.zeros((total_PL.shape[0], NUM_LANES), np.float32)
    seed_key = _mix(seed + _STEP_U)
    first, last = offset // WORD_BITS, (offset + width - 1) // WORD_BITS + 1
    for word in range(first, last):
        for k in range(WORD_BITS):
            d = word * WORD_BITS + k - offset
            for row in range(num_rows):
                inputs_DL[k, row] = x_BD[row, d] if 0 <= d < width else 0.0
        _fill_tables(inputs_DL, tables_GML)
        _add_word(tables_GML, _mix(seed_key + U64(word) * _STEP_U), first_column, sums_PL)
        if (word + 1) % FOLD_WORDS == 0 or word + 1 == last:
            total_PL += sums_PL
            sums_PL[:] = 0.0


def _signed(number: int) -> int:
    """Return the signed 64-bit integer of the same bits."""
    return number - (1 << 64) if number >> 63 else number


def _mix_tensor(z: Tensor) -> Tensor:
    """Return ``_mix`` of int64 bits: products wrap alike, and a mask makes the shifts logical."""
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
