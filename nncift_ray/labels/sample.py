"""The label sample: which pairs the teacher is asked about, and what each is for.

A square block of R random rows and R random columns is labelled and split into train, validation
and Q1; the other quadrants measure the network on examples it never saw:

    Q1 row seen, column seen      Q2 row unseen, column seen
    Q3 row seen, column unseen    Q4 neither seen

Unseen columns are few (about the square root of a quadrant's pairs), because each costs the
teacher a prefix of its own. Rows are few too (twice that), so that each has several held-out
pairs: which of its helpers is best can only be asked within a row. Unseen examples are those the
seed's order puts last: the same for every budget, where enough are left, so that Q4 of two samples
of one seed can be compared. A pointwise teacher is asked about examples instead: there Q4 is what
training never saw. Sampled examples stay selectable.

Where the labels themselves are the scores nothing is held out: everything is labelled, or whole
rows with every column.
Suffixes: I rows, J columns, P pairs.
Source: NN-CIFT, arXiv 2502.09969 (5 % of the examples on each axis; the quadrants' names).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Integers = NDArray[np.integer]

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
    """Share of the rows and of the columns in the block; ignored when label_pairs is given."""
    label_pairs: int | None = None
    """Total number of labelled pairs, held-out ones included."""
    holdout_pairs_per_quadrant: int = 200
    """Held-out pairs in each of Q1..Q4; less where examples or label_pairs do not suffice."""
    validation_fraction: float = 0.1
    """Share of the block's other pairs that decides when training stops."""
    seed: int = 0
    whole_rows: bool = False
    """Label ``label_pairs`` pairs of as few rows as hold them, each row with every column."""

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


def design_of_scores(
    num_rows: int,
    row_pairs: int | None,
    most: int,
    *,
    validation_fraction: float,
    seed: int,
) -> SampleDesign:
    """Return the design for labels that are the scores: of everything, or of whole rows.

    Args:
        num_rows: Helped examples.
        row_pairs: Pairs of each; None: the examples are rated by themselves.
        most: Most pairs (or examples) to label.
        validation_fraction: Of the design; it names splits, and no one reads them.
        seed: Of the draw; rows of a smaller bound are among those of a larger one.

    Raises:
        ValueError: If not even one row is allowed, or not every example to be rated, since one
            without a rating has no rank.
    """
    if num_rows * (row_pairs or 1) <= most:
        return SampleDesign(1.0, None, 0, validation_fraction, seed)
    if row_pairs is None:
        msg = f"{num_rows:,} examples are to be rated, more than {most:,}"
        raise ValueError(msg)
    if row_pairs > most:
        msg = f"one row is {row_pairs:,} pairs, more than {most:,}"
        raise ValueError(msg)
    pairs = most // row_pairs * row_pairs
    return SampleDesign(None, pairs, 0, validation_fraction, seed, whole_rows=True)


@dataclass(frozen=True, slots=True, eq=False)
class PairSample:
    """Distinct pairs, by helper then helped, so that requests sharing a helper are neighbours."""

    helped: I64  # row of each pair [P]
    helper: I64 | None  # column [P]; None where examples are labelled on their own
    split: NDArray[np.str_]  # "train", "validation", "Q1", "Q2", "Q3" or "Q4" [P]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.helped)


def draw_block(
    num_rows: int, num_columns: int, same_examples: bool, design: SampleDesign
) -> PairSample:
    """Draw the pairs to label, the same on any machine; with `label_pairs` never more than that.

    Columns depend only on the seed and their number, so that `within` and `cross` ask about the
    same helpers.

    Args:
        num_rows: Helped examples.
        num_columns: Helper examples.
        same_examples: Rows and columns are the same table (`within`): one set of examples is
            drawn for both axes, self pairs are left out, and (i, j) and (j, i) share a split.
        design: How many, and how split.

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
    rows = columns
    if not same_examples:
        rows = _generator(design.seed, ROW_STREAM).permutation(num_rows)
    size, num_pairs, holdout = _plan_block((num_rows, num_columns), same_examples, design)
    seen_rows, seen_columns = rows[: size[0]], columns[: size[1]]
    generator = _generator(design.seed, PAIR_STREAM)
    helped, helper = all_pairs(seen_rows, seen_columns, same_examples)
    kept = np.sort(generator.permutation(len(helped))[:num_pairs])
    helped, helper = helped[kept], helper[kept]
    key_of_pair = _mirror_keys(helped, helper, max(num_rows, num_columns), same_examples)
    measured = _measured_pairs(helped, helper, rows, same_examples, holdout)
    split = _split_block(key_of_pair, helped, helper, measured, holdout,
                         design.validation_fraction, generator)  # fmt: skip
    # In `within` an unseen example was drawn on neither axis.
    unseen_from = (max(size), max(size)) if same_examples else size
    parts = [(helped, helper, split)]
    parts += _draw_quadrants(
        (seen_rows[np.isin(seen_rows, helped)], seen_columns[np.isin(seen_columns, helper)]),
        (rows[unseen_from[0] :][::-1], columns[unseen_from[1] :][::-1]),
        same_examples, holdout, design.seed,
    )  # fmt: skip
    helped, helper, split = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((helped, helper))
    return PairSample(helped[order], helper[order], split[order])


def draw_points(num_rows: int, design: SampleDesign) -> PairSample:
    """Draw the examples that a pointwise teacher labels, in ascending order, without helpers.

    They are ``label_fraction`` of the examples or ``label_pairs`` of them, validation and Q4
    (``holdout_pairs_per_quadrant``, at most half) included.

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


def count_pairs(num_rows: int, num_columns: int, same_examples: bool) -> int:
    """Return how many pairs of two different examples a block has."""
    self_pairs = min(num_rows, num_columns) if same_examples else 0
    return num_rows * num_columns - self_pairs


def all_pairs(rows_I: I64, columns_J: I64, same_examples: bool) -> tuple[I64, I64]:
    """Return (helped [P], helper [P]) of all pairs of a block, self pairs left out, by row."""
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


def _plan_block(
    table: tuple[int, int], same_examples: bool, design: SampleDesign
) -> tuple[tuple[int, int], int, int]:
    """Return the block's (rows, columns), pairs to label of it, and held-out pairs a quadrant."""
    holdout, total = design.holdout_pairs_per_quadrant, design.label_pairs
    if total is None:
        fraction = design.label_fraction or 0.0
        rows, columns = (max(1 + same_examples, round(fraction * size)) for size in table)
        num_pairs = count_pairs(rows, columns, same_examples)
        # A tiny block is not worth more held-out labels than it has itself.
        return (rows, columns), num_pairs, min(holdout, num_pairs // len(QUADRANTS))
    if design.whole_rows:
        return (total // (table[1] - same_examples), table[1]), total, 0
    holdout = min(holdout, int(total * MAX_HOLDOUT_SHARE) // len(QUADRANTS))
    wanted = total - (len(QUADRANTS) - 1) * holdout
    size = _square_block(wanted, table, same_examples)
    while True:
        # What the quadrants outside the block cannot use (too few unseen examples) goes to the
        # block, which may leave fewer unseen again; the block only grows, so this ends.
        outside = _outside_pairs(size, table, same_examples, holdout)
        wanted = max(wanted, total - outside)
        larger = _square_block(wanted, table, same_examples)
        larger = max(size[0], larger[0]), max(size[1], larger[1])
        if larger == size:
            return size, min(total - outside, count_pairs(*size, same_examples)), holdout
        size = larger


def _square_block(num_pairs: int, table: tuple[int, int], same_examples: bool) -> tuple[int, int]:
    """Return the smallest, squarest (rows, columns) that hold so many pairs, if the table can."""
    num_rows, num_columns = table
    rows = min(num_rows, max(1, math.isqrt(num_pairs)))
    columns = min(num_columns, math.ceil(num_pairs / rows))
    rows = min(num_rows, max(rows, math.ceil(num_pairs / columns)))
    while count_pairs(rows, columns, same_examples) < num_pairs:
        if columns < num_columns and (columns <= rows or rows == num_rows):
            columns += 1
        elif rows < num_rows:
            rows += 1
        else:
            break
    return rows, columns


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
    # Q3 measures few rows, but enough for its pairs.
    most_rows = max(2 * few, math.ceil(holdout / max(1, len(new_columns))))
    measured_rows = seen[0][:most_rows]
    parts: list[tuple[I64, I64, NDArray[np.str_]]] = []
    for name, row_pool, column_pool in (
        ("Q2", new_rows, seen[1][:few]),
        ("Q3", measured_rows, new_columns),
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
    key_of_pair: I64,
    helped: I64,
    helper: I64,
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


# Folds of unseen examples: what decides how long a small sample is trained, and a penalty.


def unseen_folds(
    helped: Integers,
    helper: Integers | None,
    *,
    same_examples: bool,
    num_folds: int,
    seed: int,
) -> list[NDArray[np.bool_]]:
    """Deal the examples of some pairs into folds and return the pairs each holds out, a mask [P].

    A fold holds out every pair that touches one of its rows or columns, so that a model trained
    on the others meets it as it will meet nearly all pairs it scores: with examples it never saw.
    Pairs held out at random share both examples with training and let memorising look like
    learning. There is no fold where an axis has fewer examples than folds, or a fold would leave
    nothing to train on or nothing to measure.

    Args:
        helped: Row of each pair [P], any numbering.
        helper: Column of each pair [P]; the numbering of `helped` where `same_examples`. None in
            pointwise data: the rows alone are dealt.
        same_examples: Rows and columns are one set of examples: each goes to one fold on both axes.
        num_folds: Folds, at least 2.
        seed: Of the deal.
    """
    generator = np.random.default_rng(seed)
    axes = [helped] if helper is None else [helped, helper]
    if same_examples:
        axes = [np.concatenate(axes)]
    dealt: list[Integers] = []
    for axis in axes:
        distinct, place = np.unique(axis, return_inverse=True)
        if len(distinct) < num_folds:
            return []
        dealt.append((generator.permutation(len(distinct)) % num_folds)[place])
    fold_AP = np.concatenate(dealt).reshape(-1, len(helped))  # a row of folds for each axis
    masks = [(fold_AP == fold).any(axis=0) for fold in range(num_folds)]
    return [] if any(mask.all() or not mask.any() for mask in masks) else masks
