"""Smaller label samples inside a larger one: what a teacher need not be asked again.

Suffix: P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.network.sampling import TRAIN, VALIDATION

Integers = NDArray[np.integer]

#: What of a pair has to be kept for it to mean in the smaller sample what its split says.
_NEEDS_ROW = (TRAIN, VALIDATION, "Q1", "Q2")
_NEEDS_COLUMN = (TRAIN, VALIDATION, "Q1", "Q3")


def keep_share(
    helped: Integers,
    helper: Integers | None,
    split: NDArray[np.str_] | NDArray[np.object_],
    share: float,
    *,
    same_examples: bool,
    seed: int,
) -> NDArray[np.bool_]:
    """Return which pairs [P] of a label sample a smaller one keeps.

    A share of the seen rows and the same share of the seen columns are kept, in one random order:
    a smaller share keeps a part of what a larger one keeps. Examples that a held-out pair names
    come first in that order, so that small samples can still be measured in every quadrant. A
    held-out pair is kept where it still means what its quadrant says; Q4 is always kept whole, and
    so is the same for every share.

    Args:
        helped: Row of each pair.
        helper: Column of each pair; None in pointwise data.
        split: Split of each pair.
        share: Of the rows and of the columns, in (0, 1].
        same_examples: Rows and columns are one table: an example has one place in the order.
        seed: Of the order.

    Raises:
        ValueError: If ``share`` is out of range.
    """
    if not 0 < share <= 1:
        msg = f"share must be in (0, 1], got {share}"
        raise ValueError(msg)
    axes = [helped] if helper is None else [helped, helper]
    size = 1 + max(int(axis.max(initial=0)) for axis in axes)
    needed = [np.isin(split, _NEEDS_ROW), np.isin(split, _NEEDS_COLUMN)]
    first = np.zeros((len(axes), size), np.bool_)
    for axis, measured in enumerate((("Q1", "Q2"), ("Q1", "Q3"))[: len(axes)]):
        first[axis, axes[axis][np.isin(split, measured)]] = True
    if same_examples:
        first[:] = first.any(axis=0)
    kept = np.ones(len(split), np.bool_)
    for axis, indices in enumerate(axes):
        generator = np.random.default_rng([seed, 0 if same_examples else axis])
        rank = np.empty(size, np.int64)
        rank[np.lexsort((generator.permutation(size), ~first[axis]))] = np.arange(size)
        seen = np.unique(indices[needed[axis]])
        order = seen[np.argsort(rank[seen])]
        chosen = order[: max(1 + same_examples, round(share * len(seen)))]
        kept &= np.isin(indices, chosen) | ~needed[axis]
    return kept
