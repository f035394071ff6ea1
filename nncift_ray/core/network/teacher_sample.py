"""The label sample where no network is trained: every pair, or whole rows of pairs.

A candidate is then judged by what the teacher said of it, so all candidates must have been measured
against the same rows: fewer labels mean fewer rows, each with every helper. Nothing is held out,
since nothing is predicted.
"""

from __future__ import annotations

from nncift_ray.core.network.sample_layouts import PAPER, WHOLE_ROWS, count_pairs
from nncift_ray.core.network.sampling import SampleDesign


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
