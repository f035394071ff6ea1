"""How scores are distributed: counts in bins that are the same everywhere, so that they add up.

A bin is the leading 16 bits of a score's float32, in an order that integers share: sign, exponent
and seven bits of the mantissa, so a bin is 1/128 of its power of two wide. The bins need no bounds
to be known before scoring, and counts of shards, threads and devices add up exactly.

Counting costs about as much as scoring a pair, so of large blocks every n-th row is counted, with
all its columns: which ones follows from the row's number and the number of rows alone.

Suffixes: I rows, J columns, B bins, N bins of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

NUM_BINS = 2**16
FIRST_BIN = -(2**15)  # of the most negative scores
BITS_DROPPED = 16
COUNTED_ROWS = 2048  # of a block, at least, where it has so many


@dataclass(frozen=True, slots=True, eq=False)
class CountedRows:
    """Which rows of a call are counted, and the counts; a call adds to them in place."""

    is_counted_I: Bool
    count_B: I64

    @classmethod
    def of_range(cls, start: int, stop: int, num_rows: int) -> CountedRows:
        """Count every n-th of the rows [start, stop) of a block of `num_rows`, from nothing."""
        step = counting_step(num_rows)
        return cls(np.arange(start, stop) % step == 0, np.zeros(NUM_BINS, np.int64))

    def part(self, rows: slice) -> CountedRows:
        """Return some of the rows, with counts of their own."""
        return CountedRows(self.is_counted_I[rows], np.zeros(NUM_BINS, np.int64))

    @classmethod
    def none(cls, num_rows: int) -> CountedRows:
        """Count no row."""
        return cls(np.zeros(num_rows, np.bool_), np.zeros(0, np.int64))


def counting_step(num_rows: int) -> int:
    """Return n: every n-th row of a block is counted."""
    return max(1, num_rows // COUNTED_ROWS)


def bin_edges(bins: NDArray[np.integer]) -> tuple[F64, F64]:
    """Return the lowest value in each bin, and the lowest above it; 0..NUM_BINS - 1."""
    ordered = (bins.astype(np.int64) + FIRST_BIN) << BITS_DROPPED
    return _value_of(ordered), _value_of(ordered + (1 << BITS_DROPPED))


def spread_counts(bins: NDArray[np.integer], counts: NDArray[np.integer], edge_N: F64) -> F64:
    """Share counts out over wider bins of a picture, in proportion to how much of each they hold.

    Args:
        bins: Bins that hold counts.
        counts: Their counts.
        edge_N: Ascending edges of the picture's bins, one more than bins.

    Returns:
        Counts [N - 1], whose sum is that of the counts whose bins lie within the edges.
    """
    low, high = bin_edges(bins)
    order = np.argsort(low, kind="stable")
    places = np.column_stack([low[order], high[order]]).ravel()
    # The number of scores below a value, a straight line within each bin.
    below = np.repeat(np.cumsum(counts[order]), 2).astype(np.float64)
    below[::2] -= counts[order]
    return np.diff(np.interp(edge_N, places, below))


def count_values(score_N: F32) -> I64:
    """Return the counts [NUM_BINS] of some scores."""
    count_B = np.zeros(NUM_BINS, np.int64)
    count_scores(np.ascontiguousarray(score_N), len(score_N), count_B)
    return count_B


@compiled
def count_scores(score_T: F32, num_columns: int, count_B: I64) -> None:
    """Add the scores of one row to the counts."""
    bits_T = score_T.view(np.int32)
    for j in range(num_columns):
        bits = bits_T[j]
        count_B[((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> BITS_DROPPED) - FIRST_BIN] += 1


def _value_of(ordered: I64) -> F64:
    bits = ordered.astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32).astype(np.float64)
