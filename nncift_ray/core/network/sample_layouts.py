"""Where labelled pairs lie: the layouts of a label sample, their sizes, and drawing their pairs.

A layout is a block of rows x columns and a rule for which of its pairs are labelled. What it costs
a teacher is not the pairs alone: every row is measured once without an example, every column is a
prefix to compute. Suffixes: I rows, J columns, P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of the block, and how much of it is labelled."""

    aspect: float | None
    """Rows for each column; 0: as few rows as hold the pairs; None: as many of both as there are.
    """
    fill: float = 1.0
    """Share of the block's pairs that is labelled."""


PAPER, WHOLE_ROWS = "paper", "whole_rows"
#: Many rows with the same few helpers; the reverse; rows that meet a quarter of the helpers each,
#: all equally many; pairs drawn from all there are; and few rows with every helper there is.
LAYOUTS = {
    PAPER: Layout(1.0),
    "rows": Layout(8.0),
    "helpers": Layout(1 / 8),
    "balanced": Layout(1.0, fill=0.25),
    "uniform": Layout(None),
    WHOLE_ROWS: Layout(0.0),
}


def count_pairs(num_rows: int, num_columns: int, same_examples: bool) -> int:
    """Return how many pairs of two different examples a block has."""
    self_pairs = min(num_rows, num_columns) if same_examples else 0
    return num_rows * num_columns - self_pairs


def block_size(
    num_pairs: int,
    table_size: tuple[int, int],
    same_examples: bool,
    layout: Layout,
    spare: tuple[int, int],
) -> tuple[int, int]:
    """Return the (rows, columns) that so many pairs of a layout are drawn from.

    A layout that is not the square block leaves ``spare`` rows and columns alone, so that there
    are unseen examples to measure on; where it cannot hold the pairs then, it becomes square.

    Args:
        num_pairs: Pairs to label.
        table_size: Rows and columns there are.
        same_examples: Rows and columns are one table.
        layout: Of LAYOUTS.
        spare: Rows and columns to leave unseen.
    """
    if layout != LAYOUTS[PAPER]:
        most = table_size[0] - spare[0], table_size[1] - spare[1]
        size = most
        if layout.aspect is not None:
            wanted = math.ceil(num_pairs / layout.fill)
            size = _smallest_block(wanted, most, same_examples, layout.aspect)
        if min(size) >= 1 and count_pairs(*size, same_examples) >= num_pairs:
            return size
    return _smallest_block(num_pairs, table_size, same_examples, 1.0)


def _smallest_block(
    num_pairs: int, most: tuple[int, int], same_examples: bool, aspect: float
) -> tuple[int, int]:
    """Return the smallest (rows, columns) of about this aspect that hold so many, if they can."""
    num_rows, num_columns = most
    if min(most) < 1:
        return most
    rows = min(num_rows, max(1, math.isqrt(round(num_pairs * aspect))))
    columns = min(num_columns, math.ceil(num_pairs / rows))
    rows = min(num_rows, max(rows, math.ceil(num_pairs / columns)))
    while count_pairs(rows, columns, same_examples) < num_pairs:
        if columns < num_columns and (columns * aspect <= rows or rows == num_rows):
            columns += 1
        elif rows < num_rows:
            rows += 1
        else:
            break
    return rows, columns


def draw_pairs(
    rows_I: I64,
    columns_J: I64,
    same_examples: bool,
    num_pairs: int,
    layout: Layout,
    generator: np.random.Generator,
) -> tuple[I64, I64]:
    """Draw distinct pairs of a block, self pairs left out.

    Args:
        rows_I: Rows of the block, in random order.
        columns_J: Its columns; where `same_examples`, both begin with the same ones.
        same_examples: Rows and columns are one table.
        num_pairs: How many; at most those that the block has.
        layout: Of LAYOUTS.
        generator: Of the draw.

    Returns:
        (helped [P], helper [P]).
    """
    if layout.aspect is None:
        row_P, column_P = _draw_uniform(
            len(rows_I), len(columns_J), same_examples, num_pairs, generator
        )
        return rows_I[row_P], columns_J[column_P]
    if layout.fill < 1:
        row_P, column_P = _draw_balanced(
            len(rows_I), len(columns_J), same_examples, num_pairs, generator
        )
        return rows_I[row_P], columns_J[column_P]
    helped, helper = all_pairs(rows_I, columns_J, same_examples)
    kept = np.sort(generator.permutation(len(helped))[:num_pairs])
    return helped[kept], helper[kept]


def all_pairs(rows_I: I64, columns_J: I64, same_examples: bool) -> tuple[I64, I64]:
    """Return all pairs of a block, self pairs left out, by row."""
    helped, helper = np.repeat(rows_I, len(columns_J)), np.tile(columns_J, len(rows_I))
    if same_examples:
        different = helped != helper
        helped, helper = helped[different], helper[different]
    return helped, helper


def choose_evenly(helped_P: I64, count: int, generator: np.random.Generator) -> I64:
    """Choose places of pairs at random, from all rows as equally as can be."""
    order = generator.permutation(len(helped_P))
    by_row = np.argsort(helped_P[order], kind="stable")
    sorted_rows = helped_P[order][by_row]
    starts = np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]])
    lengths = np.diff(np.r_[starts, len(sorted_rows)])
    turn = np.empty(len(order), np.int64)
    turn[by_row] = np.arange(len(order)) - np.repeat(starts, lengths)
    return order[np.argsort(turn, kind="stable")][:count]


def _draw_uniform(
    num_rows: int, num_columns: int, same_examples: bool, num_pairs: int,
    generator: np.random.Generator,
) -> tuple[I64, I64]:  # fmt: skip
    """Draw (row, column) places from all of a block, which may be far too large to write out."""
    total = num_rows * num_columns
    if 2 * num_pairs > total - min(num_rows, num_columns):
        codes = generator.permutation(total)
        return _places(codes, num_columns, same_examples, num_pairs)
    codes = np.empty(0, np.int64)
    while len(codes) < num_pairs:
        codes = np.union1d(codes, generator.integers(total, size=num_pairs - len(codes)))
        if same_examples:
            codes = codes[codes // num_columns != codes % num_columns]
    return codes // num_columns, codes % num_columns


def _draw_balanced(
    num_rows: int, num_columns: int, same_examples: bool, num_pairs: int,
    generator: np.random.Generator,
) -> tuple[I64, I64]:  # fmt: skip
    """Draw equally many columns for every row, shifting one random set of them from row to row.

    Columns are met equally often too where rows are a multiple of them.
    """
    each = min(num_columns, math.ceil(num_pairs / num_rows) + same_examples)
    offsets = generator.permutation(num_columns)[:each]
    row = np.tile(np.arange(num_rows), each)
    column = (row + np.repeat(offsets, num_rows)) % num_columns
    return _places(row * num_columns + column, num_columns, same_examples, num_pairs)


def _places(codes: I64, num_columns: int, same_examples: bool, num_pairs: int) -> tuple[I64, I64]:
    """Return the first so many pairs of two different examples."""
    row, column = codes // num_columns, codes % num_columns
    if same_examples:
        row, column = row[row != column], column[row != column]
    return row[:num_pairs], column[:num_pairs]
