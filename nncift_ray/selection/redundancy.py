"""How columns stand beside a finished selection: what they would add, and who took their place.

Suffixes: I rows (covered), J columns, S selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.jit import compiled
from nncift_ray.selection.problem import (
    PAIRWISE,
    SATURATION,
    Columns,
    ColumnSource,
    Problem,
    State,
    add,
    all_gains,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The columns beside a selection.

    Attributes:
        problem: The set function.
        order_S: The picks, best first.
        rank_J: Rank of each column among the picks, from 0; -1 where it is none.
        best_I: The pick that covers each row best, -1 for none (`objectives.coverage`).
        alone_J: What each column is worth alone [J].
        gain_J: What each column would add to the whole selection [J]; of a pick itself, how much a
            copy of it would.
    """

    problem: Problem
    order_S: I64
    rank_J: I64
    best_I: I64
    alone_J: F64
    gain_J: F64
    state: State

    def takers(self, j: int) -> tuple[I64, F64]:
        """Say which picks took what a column is worth alone from it.

        Args:
            j: A column.

        Returns:
            (picks, how much of the column's worth each took), the largest first, ties by rank. Each
            covered row counts for the pick that covers it best; of graph cut a pick takes what the
            two do for each other. The amounts add up to alone - gain, but for rows that are
            saturated by several picks, whose loss is all counted for the best of them.
        """
        problem = self.problem
        part = slice(problem.indptr[j], problem.indptr[j + 1])
        rows, value = problem.rows[part], problem.values[part].astype(np.float64)
        if problem.kind == PAIRWISE:
            pick, loss = rows.astype(np.int64), value
        else:
            pick = self.best_I[rows]
            if problem.kind == SATURATION:
                left = np.minimum(self.state.level[rows], problem.cap_I[rows])
                loss = np.minimum(value, problem.cap_I[rows]) - np.minimum(value, left)
            else:
                loss = np.minimum(value, self.state.cover_I[rows].astype(np.float64))
        keep = (pick >= 0) & (loss > 0) & (pick != j)
        keep[keep] &= self.rank_J[pick[keep]] >= 0
        picks, back = np.unique(pick[keep], return_inverse=True)
        amount = np.bincount(back, loss[keep], len(picks)).astype(np.float64)
        order = np.lexsort((self.rank_J[picks], -amount))
        return picks[order], amount[order]

    def takers_of(self, columns_S: I64) -> list[tuple[I64, F64]]:
        """Return the `takers` of each of some columns."""
        return [self.takers(int(j)) for j in columns_S]


@dataclass(frozen=True, slots=True, eq=False)
class StandingInParts:
    """The columns beside a selection, where not all of them are in memory at once.

    Attributes:
        source: The set function.
        order_S: As of `Standing`, like the rest.
        rank_J: Ranks of the picks.
        best_I: The pick that covers each row best.
        alone_J: Worth of each column alone.
        gain_J: What each column would add.
    """

    source: ColumnSource
    order_S: I64
    rank_J: I64
    best_I: I64
    alone_J: F64
    gain_J: F64

    def takers_of(self, columns_S: I64) -> list[tuple[I64, F64]]:
        """Return what `Standing.takers_of` does, of columns that are no picks; they are read."""
        num_picks = len(self.order_S)
        problem = self.source.restricted(np.concatenate([self.order_S, columns_S]))
        best_I = np.where(self.best_I >= 0, self.rank_J[self.best_I], -1)
        near = stand(problem, np.arange(num_picks), best_I)
        takers = near.takers_of(num_picks + np.arange(len(columns_S)))
        return [(self.order_S[picks], amount) for picks, amount in takers]


def stand(problem: Problem, order_S: I64, best_I: I64) -> Standing:
    """Say how every column stands beside a selection.

    Args:
        problem: The set function, sparse or of no rows.
        order_S: The picks, best first.
        best_I: The pick that covers each row best, -1 for none.

    Raises:
        ValueError: If the problem is dense.

    Memory: 24 bytes a column and 4 to 8 a row.
    """
    if problem.dense:
        msg = "standing needs a problem on lists; a dense one names no rows"
        raise ValueError(msg)
    alone_J, gain_J, state = _gains(problem, order_S)
    rank_J = np.full(problem.num_columns, -1, np.int64)
    rank_J[order_S] = np.arange(len(order_S))
    return Standing(problem, order_S, rank_J, best_I, alone_J, gain_J, state)


def stand_in_parts(
    source: ColumnSource, order_S: I64, best_I: I64, num_parts: int
) -> StandingInParts:
    """Say how every column stands beside a selection, some columns at a time.

    Each part is read with the picks, so gains are those of `stand` to the last bit.

    Args:
        source: The set function.
        order_S: The picks, best first.
        best_I: The pick that covers each row best, -1 for none.
        num_parts: Into how many parts the columns that are no picks are cut.

    Memory: the picks and a part, at a time.
    """
    num_picks = len(order_S)
    rank_J = np.full(source.num_columns, -1, np.int64)
    rank_J[order_S] = np.arange(num_picks)
    alone_J, gain_J = np.zeros(source.num_columns), np.zeros(source.num_columns)
    for part in np.array_split(np.flatnonzero(rank_J < 0), num_parts):
        columns_S = np.concatenate([order_S, part])
        problem = source.restricted(columns_S)
        alone_J[columns_S], gain_J[columns_S], _ = _gains(problem, np.arange(num_picks))
    return StandingInParts(source, order_S, rank_J, best_I, alone_J, gain_J)


def _gains(problem: Problem, order_S: I64) -> tuple[F64, F64, State]:
    """Return what every column is worth alone [J] and after the picks [J], and their state."""
    columns, state = problem.columns, problem.empty_state()
    alone_J, gain_J = np.empty(problem.num_columns), np.empty(problem.num_columns)
    all_gains(columns, state, alone_J)
    _add_all(columns, state, order_S)
    all_gains(columns, state, gain_J)
    return alone_J, gain_J, state


@compiled
def _add_all(columns: Columns, state: State, order_S: I64) -> None:
    for j in order_S:
        add(columns, state, j)
