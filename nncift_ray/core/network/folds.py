"""Folds of unseen examples: what decides how long a small sample is trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unseen_folds(
    helped: NDArray[np.integer],
    helper: NDArray[np.integer] | None,
    *,
    same_examples: bool,
    num_folds: int,
    seed: int,
) -> list[NDArray[np.bool_]]:
    """Deal the examples of some pairs into folds and say which pairs each fold holds out.

    A fold holds out every pair that touches one of its rows or columns, so that a network trained
    on the others meets it as it will meet nearly all pairs it scores: with examples it never saw.
    Pairs held out at random share both examples with training and let memorising look like
    learning.

    Args:
        helped: Row of each pair [P], any numbering.
        helper: Column of each pair [P]; the numbering of `helped` where `same_examples`. None in
            pointwise data: the rows alone are dealt.
        same_examples: Rows and columns are one set of examples: each goes to one fold on both axes.
        num_folds: Folds, at least 2.
        seed: Of the deal.

    Returns:
        Held-out mask [P] a fold; none where an axis has fewer examples than folds, or a fold would
        leave nothing to train on or nothing to measure.
    """
    generator = np.random.default_rng(seed)
    axes = [helped] if helper is None else [helped, helper]
    if same_examples:
        axes = [np.concatenate(axes)]
    if min(len(np.unique(axis)) for axis in axes) < num_folds:
        return []
    dealt = np.concatenate([_deal(axis, num_folds, generator) for axis in axes])
    fold_AP = dealt.reshape(-1, len(helped))  # a row of folds for each axis
    masks = [(fold_AP == fold).any(axis=0) for fold in range(num_folds)]
    return [] if any(mask.all() or not mask.any() for mask in masks) else masks


def _deal(
    examples: NDArray[np.integer], num_folds: int, generator: np.random.Generator
) -> NDArray[np.integer]:
    """Return a fold for each entry, the same for equal entries, folds of nearly equal size."""
    distinct, place = np.unique(examples, return_inverse=True)
    return (generator.permutation(len(distinct)) % num_folds)[place]
