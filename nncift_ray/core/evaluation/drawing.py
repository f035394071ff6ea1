"""Which held-out rows of a test set are asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TEST_STREAM = 32  # random stream of the draw, apart from those of the samples of training


def draw_test_rows(num_rows: int, max_rows: int | None, seed: int) -> NDArray[np.int64]:
    """Draw held-out rows, the same ones for whoever asks with the same seed.

    Draws are nested: fewer rows are a subset of more, so that a larger study contains a smaller one
    and differences between methods stay paired.

    Args:
        num_rows: Rows of the test set.
        max_rows: Most rows to draw; None: all.
        seed: Seed of the draw.

    Returns:
        Sorted row numbers [min(num_rows, max_rows)].
    """
    if max_rows is None or max_rows >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    sequence = np.random.SeedSequence([seed, TEST_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_rows)
    return np.sort(order[:max_rows]).astype(np.int64)
