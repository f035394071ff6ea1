"""Scores that are given pair by pair, not computed: best columns, sums of columns, statistics.

Pairs come in batches, in any order, each pair once. What is kept is what scoring all pairs keeps
(`pair_scores`, `column_sums`), to the same rules: equal scores stand by smaller column, sums are
whole numbers of 2**-32. A pair that never comes is not there: it is in no list and in no sum.

Suffixes: I rows (helped), J columns (helpers), K kept columns, G groups of rows, P pairs, B bins.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs.column_sums import to_fixed_point
from nncift_ray.core.pairs.pair_kernel import key_of, replace_worst
from nncift_ray.core.pairs.pair_scores import ScoreTotal, read_keys, start_state
from nncift_ray.core.pairs.score_histogram import NUM_BINS, count_values
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


class BestColumns:
    """The K best columns of every row, of the pairs that were given.

    Memory: 8 * I * K bytes.
    """

    def __init__(self, num_rows: int, num_columns: int, k: int) -> None:
        """Keep at most k columns a row; fewer where there are fewer columns.

        Raises:
            ValueError: If k is below 1, or there are more columns than lists can number.
        """
        k = min(k, max(1, num_columns))
        self._num_columns = num_columns
        self._key_IK = start_state(num_rows, k, 0, num_columns, None).key_IK

    def add(self, row_P: I64, column_P: I64, score_P: F32) -> None:
        """Fold pairs in.

        Raises:
            ShapeError: If the three differ in length.
            ValueError: If a row or column does not exist, or a score is not finite.
        """
        _check_pairs(row_P, len(self._key_IK), column_P, self._num_columns, score_P)
        _offer_pairs(self._key_IK, row_P, column_P, score_P)

    def lists(self, rows: slice = slice(None)) -> tuple[I32, F32]:
        """Return columns and scores [I, K] of some rows, best first; -1 and -inf where no more.

        Memory: some 40 * I * K bytes more, so ask for a part of many rows at a time.
        """
        return read_keys(self._key_IK[rows])


class GivenSums:
    """The sum of every column over the rows of each group, and of how many pairs it is.

    Memory: 16 * G * J bytes.
    """

    def __init__(self, group_I: I64, num_groups: int, num_columns: int) -> None:
        """Begin with nothing; ``group_I`` is the group of each row."""
        self._group_I = group_I
        self.sum_GJ = np.zeros((num_groups, num_columns), np.int64)  # whole numbers of 2**-32
        self.num_GJ = np.zeros((num_groups, num_columns), np.int64)

    def add(self, row_P: I64, column_P: I64, score_P: F32) -> None:
        """Fold pairs in.

        Raises:
            ShapeError: If the three differ in length.
            ValueError: If a row or column does not exist, or a score is not finite, or 2**10 or
                more in size.
        """
        num_columns = self.sum_GJ.shape[1]
        _check_pairs(row_P, len(self._group_I), column_P, num_columns, score_P)
        place_P = self._group_I[row_P] * num_columns + column_P
        np.add.at(self.sum_GJ.reshape(-1), place_P, to_fixed_point(score_P))
        np.add.at(self.num_GJ.reshape(-1), place_P, 1)


class ScoreTally:
    """Count, extremes, sums and distribution of the scores that were given."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count_B = np.zeros(NUM_BINS, np.int64)
        self._total = ScoreTotal(0, math.inf, -math.inf, 0.0, 0.0)

    def add(self, score_P: F32) -> None:
        """Fold scores in; sums are correctly rounded within a call, and added call by call."""
        if not len(score_P):
            return
        self.count_B += count_values(score_P)
        wide_P = score_P.astype(np.float64)
        self._total = self._total.merge(
            ScoreTotal(
                num_pairs=len(score_P),
                min=float(score_P.min()),
                max=float(score_P.max()),
                sum=math.fsum(wide_P),
                sum_of_squares=math.fsum(wide_P**2),
            )
        )

    def total(self) -> ScoreTotal:
        """Return count, extremes and sums."""
        return self._total


def _check_pairs(row_P: I64, num_rows: int, column_P: I64, num_columns: int, score_P: F32) -> None:
    if not len(row_P) == len(column_P) == len(score_P):
        msg = f"{len(row_P)} rows, {len(column_P)} columns and {len(score_P)} scores of pairs"
        raise ShapeError(msg)
    for name, place_P, size in (("row", row_P, num_rows), ("column", column_P, num_columns)):
        if len(place_P) and not 0 <= place_P.min() <= place_P.max() < size:
            msg = f"{name}s {place_P.min()}..{place_P.max()} named, there are {size}"
            raise ValueError(msg)
    bad = np.flatnonzero(~np.isfinite(score_P))
    if len(bad):
        at = bad[0]
        msg = f"the score {score_P[at]} of row {row_P[at]}, column {column_P[at]} is not finite"
        raise ValueError(msg)


@compiled
def _offer_pairs(key_IK: I64, row_P: I64, column_P: I64, score_P: F32) -> None:
    """Offer each pair to the heap of its row."""
    for p in range(len(row_P)):
        key_K = key_IK[row_P[p]]
        key = key_of(score_P[p], column_P[p])
        if key > key_K[0]:
            replace_worst(key_K, key)
