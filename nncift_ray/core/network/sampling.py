"""The label sample: which pairs the teacher is asked about, and what each is for.

A block of R random rows times C random columns is labelled whole and split into train, validation
and Q1; the other quadrants measure the network on examples it never saw:

    Q1 row seen, column seen      Q2 row seen, column unseen
    Q3 row unseen, column seen    Q4 neither seen

Unseen columns are few (about the square root of a quadrant's pairs), because each costs the
teacher a prefix of its own. Rows are few too (twice that), so that each has several held-out
pairs: which of its helpers is best can only be asked within a row. A pointwise teacher is asked
about examples instead: there Q4 is what training never saw. Sampled examples stay selectable:
nothing here takes them away.
Source: NN-CIFT, arXiv 2502.09969 (5 % of the examples on each axis).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

TRAIN, VALIDATION = "train", "validation"
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
SPLITS = (TRAIN, VALIDATION, *QUADRANTS)

COLUMN_STREAM, ROW_STREAM, PAIR_STREAM, POINT_STREAM = 1, 2, 3, 4  # one random stream a purpose
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
    if _num_pairs(num_rows, num_columns, same_examples) < 1:
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
    generator = _generator(design.seed, PAIR_STREAM)
    block_size, num_block_pairs, holdout = _plan_block(num_rows, num_columns, same_examples, design)
    seen_rows, seen_columns = rows[: block_size[0]], columns[: block_size[1]]
    # In `within` an unseen example was drawn on neither axis.
    first_unseen = max(block_size) if same_examples else block_size[0]
    unseen_rows = rows[first_unseen:]
    unseen_columns = columns[first_unseen if same_examples else block_size[1] :]
    helped, helper = _grid(seen_rows, seen_columns, same_examples)
    kept = np.sort(generator.permutation(len(helped))[:num_block_pairs])
    helped, helper = helped[kept], helper[kept]
    # Half of the measured rows' pairs or more stay in training: their rows are seen.
    measured = seen_rows[: _few_rows(len(seen_columns), 2 * holdout)]
    in_measured = np.isin(helped, measured)
    if same_examples:  # a pair's mirror image is measured with it
        in_measured &= np.isin(helper, measured)
    split = _split_block(helped, helper, max(num_rows, num_columns), same_examples, in_measured,
                         holdout, design.validation_fraction, generator)  # fmt: skip
    parts = [(helped, helper, split)]
    few = math.ceil(math.sqrt(holdout))
    # Rows of a table of their own cost a baseline each: twice as many as columns, no more.
    new_rows, new_columns = unseen_rows[: 2 * few], unseen_columns[:few]
    measured_rows = seen_rows[: _few_rows(len(new_columns), holdout)]
    for name, row_pool, column_pool in (
        ("Q2", measured_rows, new_columns),
        ("Q3", new_rows, seen_columns[generator.permutation(len(seen_columns))[:few]]),
        ("Q4", new_rows, new_columns),
    ):
        grid = _grid(row_pool, column_pool, same_examples)
        chosen = generator.permutation(len(grid[0]))[:holdout]
        parts.append((grid[0][chosen], grid[1][chosen], np.full(len(chosen), name, "<U10")))
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


def _plan_block(
    num_rows: int, num_columns: int, same_examples: bool, design: SampleDesign
) -> tuple[tuple[int, int], int, int]:
    """Return the block's (rows, columns), how many of its pairs are kept, pairs a quadrant."""
    holdout = design.holdout_pairs_per_quadrant
    if design.label_pairs is None:
        fraction = design.label_fraction or 0.0
        smallest = 2 if same_examples else 1
        rows = max(smallest, round(fraction * num_rows))
        columns = max(smallest, round(fraction * num_columns))
        num_pairs = _num_pairs(rows, columns, same_examples)
        # A tiny block is not worth more held-out labels than it has itself.
        return (rows, columns), num_pairs, min(holdout, num_pairs // len(QUADRANTS))
    holdout = min(holdout, int(design.label_pairs * MAX_HOLDOUT_SHARE) // len(QUADRANTS))
    total = design.label_pairs
    wanted = total - (len(QUADRANTS) - 1) * holdout
    size = _near_square(wanted, num_rows, num_columns, same_examples)
    while True:
        # What the quadrants outside the block cannot use (too few unseen examples) goes to the
        # block, which may leave fewer unseen again; the block only grows, so this ends.
        outside = _outside_pairs(size, num_rows, num_columns, same_examples, holdout)
        wanted = max(wanted, total - outside)
        larger = _near_square(wanted, num_rows, num_columns, same_examples)
        larger = max(size[0], larger[0]), max(size[1], larger[1])
        if larger == size:
            break
        size = larger
    wanted = total - outside
    return size, min(wanted, _num_pairs(*size, same_examples)), holdout


def _few_rows(num_columns: int, num_pairs: int) -> int:
    """Return how many rows a quadrant measures: few, but enough for its pairs."""
    return max(2 * math.ceil(math.sqrt(num_pairs)), math.ceil(num_pairs / max(1, num_columns)))


def _outside_pairs(
    size: tuple[int, int], num_rows: int, num_columns: int, same_examples: bool, holdout: int
) -> int:
    """Return how many pairs Q2, Q3 and Q4 will hold beside a block of this size."""
    few = math.ceil(math.sqrt(holdout))
    seen = (max(size), max(size)) if same_examples else size
    new_rows, new_columns = min(2 * few, num_rows - seen[0]), min(few, num_columns - seen[1])
    # Only Q4 in `within` meets an example on both axes: both pools begin with the same ones.
    self_pairs = min(new_rows, new_columns) if same_examples else 0
    return (
        min(holdout, size[0] * new_columns)
        + min(holdout, new_rows * min(few, size[1]))
        + min(holdout, new_rows * new_columns - self_pairs)
    )


def _near_square(
    num_pairs: int, num_rows: int, num_columns: int, same_examples: bool
) -> tuple[int, int]:
    """Return the smallest near-square (rows, columns) that hold so many pairs, if they can."""
    rows = min(num_rows, max(1, math.isqrt(num_pairs)))
    columns = min(num_columns, math.ceil(num_pairs / rows))
    rows = min(num_rows, max(rows, math.ceil(num_pairs / columns)))
    while _num_pairs(rows, columns, same_examples) < num_pairs:
        if columns < num_columns and (columns <= rows or rows == num_rows):
            columns += 1
        elif rows < num_rows:
            rows += 1
        else:
            break
    return rows, columns


def _num_pairs(num_rows: int, num_columns: int, same_examples: bool) -> int:
    self_pairs = min(num_rows, num_columns) if same_examples else 0
    return num_rows * num_columns - self_pairs


def _grid(rows: I64, columns: I64, same_examples: bool) -> tuple[I64, I64]:
    """Return all pairs of two pools, self pairs left out."""
    helped, helper = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
    if same_examples:
        different = helped != helper
        helped, helper = helped[different], helper[different]
    return helped, helper


def _split_block(
    helped: I64,
    helper: I64,
    num_examples: int,
    same_examples: bool,
    measured: NDArray[np.bool_],
    holdout: int,
    validation_fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.str_]:
    """Split the block's pairs at random into Q1, validation and train (never left empty).

    Q1 comes from the pairs ``measured`` [P] as far as they suffice.
    Where rows and columns are the same examples a pair and its mirror image go together: a
    symmetric teacher gives both one label, and the held-out half would not be held out.
    """
    num_pairs = len(helped)
    first, second = helped, helper
    if same_examples:
        first, second = np.minimum(helped, helper), np.maximum(helped, helper)
    keys, key_of_pair = np.unique(first * num_examples + second, return_inverse=True)
    place_of_key = generator.permutation(len(keys))
    place = place_of_key[key_of_pair]
    num_q1 = min(holdout, num_pairs // len(QUADRANTS))
    num_validation = _validation_size(num_pairs - num_q1, validation_fraction)
    split = np.full(num_pairs, TRAIN, "<U10")
    for name, order, size in (
        ("Q1", np.lexsort((place, ~measured)), num_q1),
        (VALIDATION, np.argsort(place, kind="stable"), num_validation),
    ):
        free = order[split[order] == TRAIN]
        split[free[: _whole_group(key_of_pair[free], size)]] = name
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


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
