"""Lists that go on with further columns end as lists over all columns at once."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.scores.exact import TopK, TopKState, add_pairs, start_state, top_k_rows

NUM_ROWS, NUM_COLUMNS, NUM_HIDDEN = 21, 60, 5


def network(seed: int, *, coarse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make activations; coarse ones have few values, so that many scores tie."""
    rng = np.random.default_rng(seed)
    shapes = ((NUM_ROWS, NUM_HIDDEN), (NUM_COLUMNS, NUM_HIDDEN), (NUM_HIDDEN,))
    arrays = [rng.normal(size=shape) for shape in shapes]
    arrays = [np.round(array) for array in arrays] if coarse else arrays
    return tuple(array.astype(np.float32) for array in arrays)  # type: ignore[return-value]


def state_of_lists(index_IK: np.ndarray, score_IK: np.ndarray) -> TopKState:
    state = start_state(*index_IK.shape, 0, 0, None)
    row, place = np.nonzero(index_IK >= 0)
    add_pairs(state, row, index_IK[row, place], score_IK[row, place])
    return state


def split(seed: int, k: int, seam: int, *, coarse: bool) -> tuple[TopK, TopK]:
    """Return lists over all columns, and lists stored at the seam and gone on with."""
    a, b, w = network(seed, coarse=coarse)
    whole = top_k_rows(a, b, w, 0.5, k)
    first = top_k_rows(a, b[:seam], w, 0.5, k)
    state = state_of_lists(first.index_IK, first.score_IK)
    return whole, top_k_rows(a, b[seam:], w, 0.5, k, column_offset=seam, state=state)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("k", "seam"), [(1, 30), (8, 3), (8, 59), (64, 30), (100, 1), (8, 0)])
def test_stored_lists_go_on_to_the_lists_of_all_columns(k: int, seam: int, coarse: bool) -> None:
    whole, merged = split(3, k, seam, coarse=coarse)
    np.testing.assert_array_equal(merged.index_IK, whole.index_IK)
    np.testing.assert_array_equal(merged.score_IK, whole.score_IK)


def test_statistics_are_of_the_further_columns_only() -> None:
    _, merged = split(1, 4, 50, coarse=False)
    assert set(merged.statistics.num_pairs_I.tolist()) == {10}


def test_no_further_columns_leave_the_lists_as_they_were() -> None:
    a, b, w = network(2, coarse=True)
    first = top_k_rows(a, b, w, 0.0, 7)
    state = state_of_lists(first.index_IK, first.score_IK)
    again = top_k_rows(a, b[:0], w, 0.0, 7, state=state)
    np.testing.assert_array_equal(again.index_IK, first.index_IK)
    np.testing.assert_array_equal(again.score_IK, first.score_IK)


def test_a_stored_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="score nan of row 0, column 0 is not finite"):
        state_of_lists(np.zeros((1, 1), np.int32), np.full((1, 1), np.nan, np.float32))
