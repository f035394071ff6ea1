"""Random numbers by hashing: the same for a seed and a number, in whatever order they are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


@compiled
def mixed(seed: int | np.uint64, number: int) -> np.uint64:
    """Return 64 bits that look random, of a seed and a number.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014.
    """
    bits = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number)
    bits += np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@compiled
def mixed_each(seed: int, number_N: I64, bits_N: U64) -> None:
    """Write `mixed` of each number."""
    for n in range(len(number_N)):
        bits_N[n] = mixed(seed, number_N[n])
