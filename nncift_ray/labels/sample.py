"""The label sample: which pairs the teacher is asked about, and what each is for.

A block of R random rows and C random columns is labelled, whole or in part as its layout says
(``sample_layouts``), and split into train, validation and Q1; the other quadrants measure the
network on examples it never saw:

    Q1 row seen, column seen      Q2 row seen, column unseen
    Q3 row unseen, column seen    Q4 neither seen

Unseen columns are few (about the square root of a quadrant's pairs), because each costs the
teacher a prefix of its own. Rows are few too (twice that), so that each has several held-out
pairs: which of its helpers is best can only be asked within a row. Unseen examples are those the
seed's order puts last: the same for every layout and, where enough are left, for every budget, so
that Q4 of two samples of one seed can be compared. A pointwise teacher is asked about examples
instead: there Q4 is what training never saw. Sampled examples stay selectable: nothing here takes
them away.
Source: NN-CIFT, arXiv 2502.09969 (5 % of the examples on each axis).
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


# The label sample: which pairs the teacher is asked about, and what each is for.


TRAIN, VALIDATION = "train", "validation"
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
SPLITS = (TRAIN, VALIDATION, *QUADRANTS)

#: One random stream a purpose.
COLUMN_STREAM, ROW_STREAM, PAIR_STREAM, POINT_STREAM, HOLDOUT_STREAM = 1, 2, 3, 4, 5
MAX_HOLDOUT_SHARE = 0.5  # of label_pairs, over the four quadrants
SMALLEST_VALIDATED = 4  # labels from which on one at least decides when training stops


@dataclass(frozen=True, slots=True)
class SampleDesign:
    """How many labels to ask for and how to split them."""

    label_fraction: float | None = 0.05
    """Share of the rows and of the columns in the block; ignored when label_pairs is given.
    Other layouts than the square block label as many pairs as it would."""
    label_pairs: int | None = None
    """Total number of labelled pairs, held-out ones included."""
    holdout_pairs_per_quadrant: int = 200
    """Held-out pairs in each of Q1..Q4; less where examples or label_pairs do not suffice."""
    validation_fraction: float = 0.1
    """Share of the block's other pairs that decides when training stops."""
    seed: int = 0
    layout: str = PAPER
    """Which pairs: a name in `sample_layouts.LAYOUTS`."""

    def __post_init__(self) -> None:
        """Raise ValueError on a design that cannot be drawn."""
        if self.label_pairs is None and self.label_fraction is None:
            msg = "give label_fraction or label_pairs"
            raise ValueError(msg)
        if self.label_fraction is not None and not 0 < self.label_fraction <= 1:
            msg = f"label_fraction must be in (0, 1], got {self.label_fraction}"
            raise ValueError(msg)
        if self.label_pairs is not None and self.label_pairs < 1:
            msg = f"label_pairs must be at least 1, got {self.label_pairs}"
            raise ValueError(msg)
        if self.holdout_pairs_per_quadrant < 0 or not 0 <= self.validation_fraction < 1:
            msg = "holdout_pairs_per_quadrant must be >= 0 and validation_fraction in [0, 1)"
            raise ValueError(msg)
        if self.layout not in LAYOUTS:
            msg = f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class PairSample:
    """Pairs to label, by helper then helped, so that requests sharing a helper are neighbours.

    Attributes:
        helped: Row of each pair [P].
        helper: Column of each pair [P]; None where examples are labelled on their own.
        split: "train", "validation", "Q1", "Q2", "Q3" or "Q4" of each pair [P].
    """

    helped: I64
    helper: I64 | None
    split: NDArray[np.str_]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.helped)


def draw_block(
    num_rows: int, num_columns: int, same_examples: bool, design: SampleDesign
) -> PairSample:
    """Draw the pairs to label.

    The same arguments give the same sample on any machine. Columns depend only on the seed and
    their number, so that `within` and `cross` ask about the same helpers.

    Args:
        num_rows: Helped examples.
        num_columns: Helper examples.
        same_examples: Rows and columns are the same table (`within`): one set of examples is
            drawn for both axes, self pairs are left out, and (i, j) and (j, i) share a split.
        design: How many, and how split.

    Returns:
        Distinct pairs; with `label_pairs` never more than that.

    Raises:
        ValueError: If no training pair is possible, or the tables are not the same length where
            they are the same examples.
    """
    if same_examples and num_rows != num_columns:
        msg = f"the same examples cannot be {num_rows} rows and {num_columns} columns"
        raise ValueError(msg)
    if count_pairs(num_rows, num_columns, same_examples) < 1:
        msg = (
            f"{num_rows} helped and {num_columns} helper examples make no pair to label:"
            " at least one pair of two different examples is needed"
        )
        raise ValueError(msg)
    columns = _generator(design.seed, COLUMN_STREAM).permutation(num_columns)
    if same_examples:
        rows = columns
    else:
        rows = _generator(design.seed, ROW_STREAM).permutation(num_rows)
    plan = _plan_block(num_rows, num_columns, same_examples, design)
    generator = _generator(design.seed, PAIR_STREAM)
    seen_rows, seen_columns = rows[: plan.num_rows], columns[: plan.num_columns]
    helped, helper = draw_pairs(seen_rows, seen_columns, same_examples, plan.num_pairs,
                                LAYOUTS[design.layout], generator)  # fmt: skip
    key_of_pair = _mirror_keys(helped, helper, max(num_rows, num_columns), same_examples)
    measured = _measured_pairs(helped, helper, rows, same_examples, plan.holdout)
    split = _split_block(helped, helper, key_of_pair, measured, plan.holdout,
                         design.validation_fraction, generator)  # fmt: skip
    # In `within` an unseen example was drawn on neither axis.
    both = max(plan.num_rows, plan.num_columns)
    new_rows = rows[both if same_examples else plan.num_rows :][::-1]
    new_columns = columns[both if same_examples else plan.num_columns :][::-1]
    parts = [(helped, helper, split)]
    parts += _draw_quadrants(
        (seen_rows[np.isin(seen_rows, helped)], seen_columns[np.isin(seen_columns, helper)]),
        (new_rows, new_columns), same_examples, plan.holdout, design.seed,
    )  # fmt: skip
    helped, helper, split = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((helped, helper))
    return PairSample(helped[order], helper[order], split[order])


def draw_points(num_rows: int, design: SampleDesign) -> PairSample:
    """Draw the examples that a pointwise teacher labels.

    The same arguments give the same sample on any machine.

    Args:
        num_rows: Examples to draw from.
        design: How many, and how split: ``label_fraction`` of the examples or ``label_pairs`` of
            them, Q4 (``holdout_pairs_per_quadrant``, at most half) and validation included.

    Returns:
        Distinct examples in ascending order, without helpers.

    Raises:
        ValueError: If there is no example.
    """
    if num_rows < 1:
        msg = "there is no example to label"
        raise ValueError(msg)
    wanted = design.label_pairs or max(1, round((design.label_fraction or 0.0) * num_rows))
    generator = _generator(design.seed, POINT_STREAM)
    drawn = generator.permutation(num_rows)[: min(wanted, num_rows)]
    holdout = min(design.holdout_pairs_per_quadrant, int(len(drawn) * MAX_HOLDOUT_SHARE))
    num_validation = _validation_size(len(drawn) - holdout, design.validation_fraction)
    split = np.full(len(drawn), TRAIN, "<U10")
    split[:holdout] = "Q4"
    split[holdout : holdout + num_validation] = VALIDATION
    order = np.argsort(drawn)
    return PairSample(drawn[order], None, split[order])


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    """How large the block is, how many of its pairs are labelled, how many a quadrant holds out."""

    num_rows: int
    num_columns: int
    num_pairs: int
    holdout: int


def _plan_block(
    num_rows: int, num_columns: int, same_examples: bool, design: SampleDesign
) -> _BlockPlan:
    holdout = design.holdout_pairs_per_quadrant
    table, layout = (num_rows, num_columns), LAYOUTS[design.layout]
    if design.label_pairs is None:
        smallest = 2 if same_examples else 1
        square = [max(smallest, round((design.label_fraction or 0.0) * size)) for size in table]
        num_pairs = count_pairs(square[0], square[1], same_examples)
        # A tiny block is not worth more held-out labels than it has itself.
        holdout = min(holdout, num_pairs // len(QUADRANTS))
        size = square[0], square[1]
        if layout != LAYOUTS[PAPER]:
            spare = _spare(table, same_examples, holdout)
            size = block_size(num_pairs, table, same_examples, layout, spare)
        return _BlockPlan(*size, num_pairs, holdout)
    holdout = min(holdout, int(design.label_pairs * MAX_HOLDOUT_SHARE) // len(QUADRANTS))
    return _plan_total(design.label_pairs, table, same_examples, layout, holdout)


def _plan_total(
    total: int, table: tuple[int, int], same_examples: bool, layout: Layout, holdout: int
) -> _BlockPlan:
    """Size a block so that it and the quadrants outside come to a number of pairs."""
    spare = _spare(table, same_examples, holdout)
    wanted = total - (len(QUADRANTS) - 1) * holdout
    size = block_size(wanted, table, same_examples, layout, spare)
    while True:
        # What the quadrants outside the block cannot use (too few unseen examples) goes to the
        # block, which may leave fewer unseen again; the block only grows, so this ends.
        outside = _outside_pairs(size, table, same_examples, holdout)
        wanted = max(wanted, total - outside)
        larger = block_size(wanted, table, same_examples, layout, spare)
        larger = max(size[0], larger[0]), max(size[1], larger[1])
        if larger == size:
            break
        size = larger
    return _BlockPlan(*size, min(total - outside, count_pairs(*size, same_examples)), holdout)


def _spare(table: tuple[int, int], same_examples: bool, holdout: int) -> tuple[int, int]:
    """Return the rows and columns to leave unseen; never more than half."""
    few = math.ceil(math.sqrt(holdout))
    columns = 2 * few if same_examples else few
    return min(2 * few, table[0] // 2), min(columns, table[1] // 2)


def _few_rows(num_columns: int, num_pairs: int) -> int:
    """Return how many rows a quadrant measures: few, but enough for its pairs."""
    return max(2 * math.ceil(math.sqrt(num_pairs)), math.ceil(num_pairs / max(1, num_columns)))


def _outside_pairs(
    size: tuple[int, int], table: tuple[int, int], same_examples: bool, holdout: int
) -> int:
    """Return how many pairs Q2, Q3 and Q4 will hold beside a block of this size."""
    few = math.ceil(math.sqrt(holdout))
    seen = (max(size), max(size)) if same_examples else size
    new_rows, new_columns = min(2 * few, table[0] - seen[0]), min(few, table[1] - seen[1])
    # Only Q4 in `within` meets an example on both axes: both pools begin with the same ones.
    self_pairs = min(new_rows, new_columns) if same_examples else 0
    return (
        min(holdout, size[0] * new_columns)
        + min(holdout, new_rows * min(few, size[1]))
        + min(holdout, new_rows * new_columns - self_pairs)
    )


def _draw_quadrants(
    seen: tuple[I64, I64], unseen: tuple[I64, I64], same_examples: bool, holdout: int, seed: int
) -> list[tuple[I64, I64, NDArray[np.str_]]]:
    """Draw Q2, Q3 and Q4 from the first of the seen and unseen (rows, columns)."""
    few = math.ceil(math.sqrt(holdout))
    # Rows of a table of their own cost a baseline each: twice as many as columns, no more.
    new_rows, new_columns = unseen[0][: 2 * few], unseen[1][:few]
    measured_rows = seen[0][: _few_rows(len(new_columns), holdout)]
    parts: list[tuple[I64, I64, NDArray[np.str_]]] = []
    for name, row_pool, column_pool in (
        ("Q2", measured_rows, new_columns),
        ("Q3", new_rows, seen[1][:few]),
        ("Q4", new_rows, new_columns),
    ):
        helped, helper = all_pairs(row_pool, column_pool, same_examples)
        generator = _generator(seed, HOLDOUT_STREAM, QUADRANTS.index(name))
        chosen = choose_evenly(helped, holdout, generator)
        parts.append((helped[chosen], helper[chosen], np.full(len(chosen), name, "<U10")))
    return parts


def _mirror_keys(helped: I64, helper: I64, num_examples: int, same_examples: bool) -> I64:
    """Return a number [P] that a pair shares with its mirror image only.

    Where rows and columns are the same examples the two go together: a symmetric teacher gives
    both one label, and the held-out half would not be held out.
    """
    first, second = helped, helper
    if same_examples:
        first, second = np.minimum(helped, helper), np.maximum(helped, helper)
    return np.unique(first * num_examples + second, return_inverse=True)[1]


def _measured_pairs(
    helped: I64, helper: I64, rows: I64, same_examples: bool, holdout: int
) -> NDArray[np.bool_]:
    """Return the pairs [P] of the few rows that Q1 is drawn from.

    They are twice as many as Q1 takes: the rest stays in training, and the rows are seen.
    """
    if len(helped) == 0 or holdout == 0:
        return np.zeros(len(helped), np.bool_)
    place_of_row = np.empty(len(rows), np.int64)
    place_of_row[rows] = np.arange(len(rows))
    place = place_of_row[helped]
    if same_examples:  # a pair's mirror image is measured with it
        place = np.maximum(place, place_of_row[helper])
    enough = min(2 * holdout, len(place)) - 1
    few = 2 * math.ceil(math.sqrt(2 * holdout))
    return place < max(few, int(np.partition(place, enough)[enough]) + 1)


def _split_block(
    helped: I64,
    helper: I64,
    key_of_pair: I64,
    measured: NDArray[np.bool_],
    holdout: int,
    validation_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.str_]:
    """Split the block's pairs at random into Q1, validation and train (never left empty).

    Q1 comes from the pairs ``measured`` [P] as far as they suffice. A pair whose row or column has
    no pair beside Q1 is not one of seen examples, and is trained on.
    """
    num_pairs = len(helped)
    place = generator.permutation(int(key_of_pair.max(initial=-1)) + 1)[key_of_pair]
    num_q1 = min(holdout, num_pairs // len(QUADRANTS))
    order = np.lexsort((place, ~measured))
    in_q1 = np.zeros(num_pairs, np.bool_)
    in_q1[order[: _whole_group(key_of_pair[order], num_q1)]] = True
    seen = np.isin(helped, helped[~in_q1]) & np.isin(helper, helper[~in_q1])
    in_q1 &= ~np.isin(key_of_pair, key_of_pair[in_q1 & ~seen])
    num_validation = _validation_size(num_pairs - int(in_q1.sum()), validation_fraction)
    free = np.argsort(place, kind="stable")
    free = free[~in_q1[free]]
    split = np.full(num_pairs, TRAIN, "<U10")
    split[in_q1] = "Q1"
    split[free[: _whole_group(key_of_pair[free], num_validation)]] = VALIDATION
    return split


def _validation_size(num_labels: int, validation_fraction: float) -> int:
    """Return how many labels decide when training stops; one at least is left to train on."""
    size = min(round(validation_fraction * num_labels), max(0, num_labels - 1))
    return max(1, size) if validation_fraction > 0 and num_labels >= SMALLEST_VALIDATED else size


def _whole_group(key_of_place: I64, bound: int) -> int:
    """Lower a bound so that it does not cut through equal neighbours."""
    while 0 < bound < len(key_of_place) and key_of_place[bound - 1] == key_of_place[bound]:
        bound -= 1
    return bound


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))


# The label sample where no network is trained: every pair, or whole rows of pairs.


def design_whole_rows(
    num_rows: int,
    num_columns: int,
    same_examples: bool,
    most_pairs: int,
    *,
    validation_fraction: float,
    seed: int,
) -> SampleDesign:
    """Return the design that labels every pair of a block, or as many whole rows as are allowed.

    Args:
        num_rows: Helped examples.
        num_columns: Helper examples.
        same_examples: Rows and columns are one table; a row is then an example with all others.
        most_pairs: Most pairs to label.
        validation_fraction: Of the design; it names splits, and no one reads them.
        seed: Of the draw; rows of a smaller bound are among those of a larger one.

    Raises:
        ValueError: If not even one row is allowed.
    """
    all_pairs = count_pairs(num_rows, num_columns, same_examples)
    if all_pairs <= most_pairs:
        return _complete(validation_fraction, seed)
    row_pairs = num_columns - same_examples
    num_labelled = most_pairs // row_pairs
    if num_labelled < 1:
        msg = f"one row is {row_pairs:,} pairs, more than {most_pairs:,}"
        raise ValueError(msg)
    return SampleDesign(
        label_pairs=num_labelled * row_pairs,
        holdout_pairs_per_quadrant=0,
        validation_fraction=validation_fraction,
        seed=seed,
        layout=WHOLE_ROWS,
    )


def design_all_points(
    num_rows: int, most_points: int, *, validation_fraction: float, seed: int
) -> SampleDesign:
    """Return the design that has a pointwise teacher rate every example.

    Raises:
        ValueError: If that is more than is allowed: an example without a rating has no rank.
    """
    if num_rows > most_points:
        msg = f"{num_rows:,} examples are to be rated, more than {most_points:,}"
        raise ValueError(msg)
    return _complete(validation_fraction, seed)


def _complete(validation_fraction: float, seed: int) -> SampleDesign:
    """Label all there is. The settings are those of a fraction of 1: the labels are the same."""
    return SampleDesign(
        label_fraction=1.0,
        label_pairs=None,
        holdout_pairs_per_quadrant=0,
        validation_fraction=validation_fraction,
        seed=seed,
        layout=PAPER,
    )
