"""What decides where gains do not: a candidate's quality, then its distance to what is picked.

A function that is not asked to tell equals apart (most rows are covered, or one column is best for
all) leaves many columns with one gain, or with next to none. Among these the best quality comes
first, in steps of a tenth, then the column that is farthest from its nearest pick (the greedy
k-center rule), and only of exact equals the first by rank. Both measures can but fall as picks are
added, so the lazy search keeps its bounds.
Suffixes: J columns, S some columns, D dimensions.

Source of farthest first: Gonzalez 1985, within twice the best radius of any subset of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

#: Lengths of whole-number directions: products, and their sums in any order, stay below 2**24, so
#: float32 holds them exactly, whatever the block, the library or the number of threads.
UNIT = 4000.0
LEVELS = 10  # steps of quality
LEVEL = 2.0**26  # more than any two products differ by
MAX_BYTES = 512 * 1024**2  # of directions in memory; longer ones are projected
LEAST_WIDTH = 16
BLOCK = 2048  # columns and picks compared at a time
LANES = 32  # partial sums of a product: additions under way side by side

#: What decided a pick, by its code in a search.
DECIDED_BY = ("objective", "quality", "distance", "id", "include", "random")
OBJECTIVE, QUALITY, DISTANCE, ID, INCLUDE, RANDOM = range(6)
OFF, UNREAD, READY = 0, 1, 2  # places of `Ties.status`


@dataclass(frozen=True, slots=True, eq=False)
class TieBreak:
    """What is known of columns besides their gains.

    Attributes:
        quality_J: Quality of each column in [0, 1].
        read: Returns the directions [S, D] of some columns (`directions`); called where the first
            tie is met, if ever.
    """

    quality_J: F32
    read: Callable[[I64], F32]

    def restricted(self, columns_S: I64) -> TieBreak:
        """Return the same of some columns, numbered in the order given."""
        return TieBreak(self.quality_J[columns_S], lambda rows_S: self.read(columns_S[rows_S]))


def direction_width(num_columns: int, width: int) -> int:
    """Return the dimensions that directions of so many columns keep within `MAX_BYTES`."""
    return min(width, max(LEAST_WIDTH, MAX_BYTES // (4 * max(num_columns, 1))))


def directions(vector_SD: F32, width: int) -> F32:
    """Return vectors at length `UNIT` in whole numbers [S, width]; of zero vectors zeros.

    Where the width is less than theirs they are projected at random (seeded) before: an angle is
    then kept to about 1 / sqrt(width).
    """
    if width < vector_SD.shape[1]:
        rng = np.random.default_rng(0)
        vector_SD = vector_SD @ rng.standard_normal((vector_SD.shape[1], width), np.float32)
    length_S = np.linalg.norm(vector_SD.astype(np.float64), axis=1, keepdims=True)
    unit_SD = vector_SD / np.maximum(length_S, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(np.rint(UNIT * unit_SD), np.float32)


class Ties(NamedTuple):
    """The order among equals during a search; the kernels change it.

    Attributes:
        level_J: `LEVEL` times the step of each column's quality.
        key_J: A bound from above on level less the largest product with a pick; larger goes first.
        seen_J: With how many picks each column was compared.
        vector_JD: Directions; empty until the first tie.
        status: OFF (nothing is known of the columns), UNREAD or READY.
    """

    level_J: F64
    key_J: F64
    seen_J: I32
    vector_JD: F32
    status: int


def open_ties(num_columns: int, tie_break: TieBreak | None) -> Ties:
    """Return the order among equals before the first pick; without a `TieBreak` all are alike."""
    none = np.zeros((0, 0), np.float32)
    seen_J = np.zeros(num_columns, np.int32)
    if tie_break is None:
        return Ties(np.zeros(num_columns), np.zeros(num_columns), seen_J, none, OFF)
    quality_J = tie_break.quality_J
    if quality_J.shape != (num_columns,):
        raise ShapeError(f"quality is {quality_J.shape}, expected [{num_columns}] (one a column)")
    if not ((quality_J >= 0) & (quality_J <= 1)).all():
        raise ValueError("quality must lie in [0, 1], without NaN")
    level_J = LEVEL * np.rint(LEVELS * quality_J.astype(np.float64))
    return Ties(level_J, level_J + LEVEL / 2, seen_J, none, UNREAD)


def read_ties(ties: Ties, tie_break: TieBreak, columns_S: I64, picks_S: I64) -> Ties:
    """Read the directions, and compare the columns that may still be picked with all picks.

    Time: S columns x S picks x D multiplications, in blocks; memory: the directions and a block.
    """
    num_columns = len(ties.level_J)
    vector_JD = tie_break.read(np.arange(num_columns))
    if len(vector_JD) != num_columns:
        raise ShapeError(f"{len(vector_JD)} directions, expected {num_columns} (one a column)")
    for start in range(0, len(columns_S), BLOCK):
        block = columns_S[start : start + BLOCK]
        for first in range(0, len(picks_S), BLOCK):
            product_SS = vector_JD[block] @ vector_JD[picks_S[first : first + BLOCK]].T
            bound_S = ties.level_J[block] - product_SS.max(axis=1)
            ties.key_J[block] = np.minimum(ties.key_J[block], bound_S)
    ties.seen_J[:] = len(picks_S)
    return ties._replace(vector_JD=vector_JD, status=READY)


@compiled
def compare(ties: Ties, order_S: I64, num_picked: int, j: int) -> bool:
    """Compare a column with the picks since it was last; return whether that lowered its key."""
    if ties.seen_J[j] == num_picked:
        return False
    before, width = ties.key_J[j], ties.vector_JD.shape[1]
    sums = np.empty(LANES, np.float32)
    whole = width // LANES * LANES
    for place in range(ties.seen_J[j], num_picked):
        pick = order_S[place]
        sums[:] = 0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += ties.vector_JD[j, start + lane] * ties.vector_JD[pick, start + lane]
        for d in range(whole, width):
            sums[d - whole] += ties.vector_JD[j, d] * ties.vector_JD[pick, d]
        product = 0.0
        for lane in range(LANES):
            product += np.float64(sums[lane])
        ties.key_J[j] = min(ties.key_J[j], ties.level_J[j] - product)
    ties.seen_J[j] = num_picked
    return ties.key_J[j] < before
