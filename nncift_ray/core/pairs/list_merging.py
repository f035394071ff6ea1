"""Lists of best columns that were kept, made ready to go on with further columns.

Suffixes: I rows, K list places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.pair_kernel import LAST_COLUMN, NO_KEY
from nncift_ray.core.pairs.pair_scores import ScoreStatistics, TopKState
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def state_of_lists(index_IK: I32, score_IK: F32) -> TopKState:
    """Return the state that `top_k_rows` was in when it returned these lists.

    With further columns it then keeps what it would have kept of all columns at once: the lists
    hold the best K of what came before, ties by smaller column, and nothing else could return.
    The statistics begin anew, so they are of the further columns only.

    Args:
        index_IK: Columns [I, K], -1 where a row has fewer; the places may stand in any order.
        score_IK: Their scores [I, K].

    Raises:
        ShapeError: If the two differ in shape.
        ValueError: If a kept score is NaN.
    """
    if index_IK.shape != score_IK.shape or index_IK.ndim != 2:
        msg = f"lists are [I, K] twice; got {index_IK.shape} and {score_IK.shape}"
        raise ShapeError(msg)
    kept_IK = index_IK >= 0
    if np.isnan(score_IK[kept_IK]).any():
        msg = "a kept score is NaN: score these rows anew"
        raise ValueError(msg)
    # As `pair_kernel` makes keys: -0 counts as 0, and a larger key is a better column.
    bits_IK = (score_IK.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    ordered_IK = bits_IK ^ ((bits_IK >> 31) & 0x7FFFFFFF)
    key_IK = (ordered_IK << 32) + (LAST_COLUMN - index_IK.astype(np.int64))
    key_IK[~kept_IK] = NO_KEY
    # Ascending is a heap with the worst at its root; empty places come first, each its own key.
    key_IK = np.sort(key_IK, axis=1)
    num_places = key_IK.shape[1]
    place_IK = np.tile(np.arange(num_places, dtype=np.int64), (len(key_IK), 1))
    empty_IK = place_IK < num_places - kept_IK.sum(axis=1, keepdims=True)
    return TopKState(
        np.where(empty_IK, NO_KEY + place_IK, key_IK), ScoreStatistics.empty(len(key_IK))
    )
