"""Does new data lie where the labels are? Two measures, and the rule that asks for new labels.

The network interpolates between the examples that the teacher was asked about. New examples far
from all of them, or hidden units driven beyond what training saw, are extrapolation, which nothing
measured vouches for. What is far is told by the labelled corpus itself: its own examples that were
not labelled are what the network was judged fit for.

Suffixes: N new examples, R reference (unlabelled examples of the labelled corpus), L labelled, D
embedding, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, rankdata

from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

#: Chance that a new example lies farther from the labelled ones than a reference example, from
#: which new labels are due. 0.5 says that the two are alike; 0.65 is a shift of half a standard
#: deviation, where both are normal.
MAX_FARTHER = 0.65
#: ... and so many standard errors above 0.5, so that a handful of examples raises no alarm.
MIN_SIGMAS = 3.0
#: Share of a side's activations outside the labelled range, as a multiple of the reference's share,
#: from which new labels are due ...
MAX_RANGE_RATIO = 2.0
#: ... provided that it is also so much above it.
MIN_RANGE_EXCESS = 0.01
#: Fewer new examples than this are never enough to ask for new labels.
MIN_EXAMPLES = 20
BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class DistanceShift:
    """How much farther from the labelled sample new examples lie than the reference."""

    farther: float  # chance that a new one lies farther than a reference one, ties half
    sigmas: float  # of (farther - 0.5), under the hypothesis that they are alike
    ks: float  # largest distance of the two distribution functions


@dataclass(frozen=True, slots=True)
class RangeShare:
    """Share of activations of one side of a block outside the range of the labelled examples."""

    block: str
    side: str  # rows | columns
    new: float
    reference: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether new labels are due, and each reason in a sentence."""

    due: bool
    reasons: tuple[str, ...]


def nearest_distances(e_ND: F32, labelled_LD: F32) -> F64:
    """Return the cosine distance of each example to the nearest labelled one [N], from 0 to 2.

    Args:
        e_ND: Unit vectors.
        labelled_LD: Unit vectors, at least one.

    Raises:
        ShapeError: If D differs, or there is no labelled example.

    Memory: 4 * 1024 * L bytes.
    """
    if labelled_LD.ndim != 2 or e_ND.ndim != 2 or e_ND.shape[1] != labelled_LD.shape[1]:
        msg = f"embeddings [N, D] and [L, D] of one D; got {e_ND.shape} and {labelled_LD.shape}"
        raise ShapeError(msg)
    if len(labelled_LD) == 0:
        msg = "no labelled example to measure distances from"
        raise ShapeError(msg)
    nearest_N = np.empty(len(e_ND), np.float64)
    for start in range(0, len(e_ND), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        nearest_N[part] = (e_ND[part] @ labelled_LD.T).max(axis=1)
    return np.clip(1.0 - nearest_N, 0.0, 2.0)


def compare_distances(new_N: F64, reference_R: F64) -> DistanceShift:
    """Compare two samples of distances by ranks (Mann and Whitney) and by Kolmogorov and Smirnov.

    Raises:
        ValueError: If one is empty.
    """
    num_new, num_reference = len(new_N), len(reference_R)
    if num_new == 0 or num_reference == 0:
        msg = f"{num_new} new and {num_reference} reference distances: none to compare"
        raise ValueError(msg)
    ranks = rankdata(np.concatenate([new_N, reference_R]))
    above = ranks[:num_new].sum() - num_new * (num_new + 1) / 2
    farther = float(above / (num_new * num_reference))
    error = math.sqrt((num_new + num_reference + 1) / (12 * num_new * num_reference))
    statistic = float(ks_2samp(new_N, reference_R, method="asymp").statistic)
    return DistanceShift(farther, (farther - 0.5) / error, statistic)


def count_outside(a_NH: F32, low_H: F32, high_H: F32) -> NDArray[np.int64]:
    """Count, by hidden unit, the examples below a range and those above it: [2, H].

    Raises:
        ShapeError: If H differs.
    """
    if a_NH.ndim != 2 or not a_NH.shape[1:] == low_H.shape == high_H.shape:
        msg = f"activations {a_NH.shape}, ranges {low_H.shape} and {high_H.shape}"
        raise ShapeError(msg)
    return np.stack([(a_NH < low_H).sum(axis=0), (a_NH > high_H).sum(axis=0)])


def judge(
    shift: DistanceShift | None, ranges: Sequence[RangeShare], num_new: int = MIN_EXAMPLES
) -> Verdict:
    """Apply the rule: new labels are due where either measure passes its two bounds.

    Args:
        shift: None where there is nothing new, or nothing to compare it with.
        ranges: One for each side of each block that the new examples have a part in.
        num_new: New examples; below ``MIN_EXAMPLES`` nothing is due.
    """
    if num_new < MIN_EXAMPLES:
        return Verdict(False, ())
    reasons: list[str] = []
    if shift is not None and shift.farther >= MAX_FARTHER and shift.sigmas >= MIN_SIGMAS:
        reasons.append(
            f"a new example lies farther from the labelled sample than an unlabelled one of the "
            f"labelled corpus with chance {shift.farther:.2f} (due from {MAX_FARTHER:g}; 0.5 would "
            f"be alike)"
        )
    for share in ranges:
        bound = max(MAX_RANGE_RATIO * share.reference, share.reference + MIN_RANGE_EXCESS)
        if share.new >= bound:
            reasons.append(
                f"{share.new:.1%} of the {share.block} {share.side} activations of new examples "
                f"lie outside what the labelled sample spans, {share.reference:.1%} of the "
                f"labelled corpus's own (due from {bound:.1%})"
            )
    return Verdict(bool(reasons), tuple(reasons))
