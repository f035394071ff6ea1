"""Activations stored in half precision: what fits into it, and what it does to scores.

Suffixes: N examples, I rows, J columns, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.pair_scores import score_block, score_points

F32 = NDArray[np.float32]

LARGEST_HALF = float(np.finfo(np.float16).max)  # 65,504; beyond it float16 knows infinity only


@dataclass(frozen=True, slots=True)
class RoundingError:
    """How far scores move, in the unit of the labels.

    Attributes:
        max: Largest absolute difference.
        mean: Mean absolute difference.
        num_pairs: Scores compared: pairs, or examples of a pointwise network.
    """

    max: float
    mean: float
    num_pairs: int


def first_beyond_half(a_NH: F32) -> int | None:
    """Return the first row that holds a number beyond float16, None where all fit."""
    rows_N = np.flatnonzero((np.abs(a_NH) > LARGEST_HALF).any(axis=1))
    return int(rows_N[0]) if len(rows_N) else None


def round_to_half(a_NH: F32) -> F32:
    """Return activations as they are read again from float16.

    Raises:
        ValueError: If one is beyond float16.
    """
    row = first_beyond_half(a_NH)
    if row is not None:
        raise ValueError(f"row {row} holds an activation beyond {LARGEST_HALF:,.0f}")
    return a_NH.astype(np.float16).astype(np.float32)


def rounding_error(network: FactoredNetwork, a_IH: F32, b_JH: F32 | None) -> RoundingError:
    """Compare scores of activations in float16 with those in float32, by the plain oracle.

    Args:
        network: Whose output weights and bias score.
        a_IH: Row activations [I, H], one or more.
        b_JH: Column activations [J, H], one or more; None: a pointwise network has none.

    Raises:
        ValueError: If an activation is not finite, or beyond float16.
    """
    w_H, bias = network.w_H, network.bias
    if b_JH is None:
        exact = score_points(a_IH, w_H, bias)
        rounded = score_points(round_to_half(a_IH), w_H, bias)
    else:
        exact = score_block(a_IH, b_JH, w_H, bias)
        rounded = score_block(round_to_half(a_IH), round_to_half(b_JH), w_H, bias)
    change = np.abs(rounded.astype(np.float64) - exact)
    return RoundingError(float(change.max()), float(change.mean()), change.size)
