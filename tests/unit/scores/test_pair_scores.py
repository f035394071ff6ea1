from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import NO_COLUMN, score_block, top_k_rows, top_k_vector

ORACLE_TOLERANCE = 2e-5  # float32 sums of 23 products of size 1, beside a float64 oracle
NUM_ROWS, NUM_COLUMNS, NUM_HIDDEN = 11, 203, 23  # none a multiple of a vector or of a row group


def make_pairs(
    seed: int = 0, rows: int = NUM_ROWS, columns: int = NUM_COLUMNS, hidden: int = NUM_HIDDEN
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    a, b, w = (rng.standard_normal(shape) for shape in ((rows, hidden), (columns, hidden), hidden))
    return a.astype(np.float32), b.astype(np.float32), w.astype(np.float32), 0.25


def full_scores(
    a: np.ndarray, b: np.ndarray, w: np.ndarray, bias: float, **options: Any
) -> np.ndarray:
    """Return every score of the kernel as a matrix, through lists as long as the row."""
    top = top_k_rows(a, b, w, bias, len(b), **options)
    scores = np.empty((len(a), len(b)), np.float32)
    np.put_along_axis(scores, top.index_IK.astype(np.int64), top.score_IK, axis=1)
    return scores


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    assert one.tobytes() == other.tobytes()


def test_score_block_is_the_formula_of_one_pair_at_a_time() -> None:
    a, b, w, bias = make_pairs()
    scores = score_block(a, b, w, bias)
    for i, j in ((0, 0), (3, 100), (10, 202)):
        expected = sum(float(w[h]) * max(float(a[i, h] + b[j, h]), 0.0) for h in range(23)) + bias
        assert scores[i, j] == pytest.approx(expected, abs=ORACLE_TOLERANCE)


@pytest.mark.parametrize("sign", [None, 1, -1], ids=["mixed", "positive", "negative"])
def test_kernel_scores_match_the_plain_block(sign: int | None) -> None:
    a, b, w, bias = make_pairs()
    w = w if sign is None else sign * np.abs(w)
    np.testing.assert_allclose(
        full_scores(a, b, w, bias), score_block(a, b, w, bias), rtol=0, atol=ORACLE_TOLERANCE
    )


def test_lists_are_the_best_columns_with_the_best_first() -> None:
    pairs = make_pairs()
    scores = full_scores(*pairs)
    top = top_k_rows(*pairs, 7)
    np.testing.assert_array_equal(top.index_IK, np.argsort(-scores, axis=1, kind="stable")[:, :7])
    assert (np.diff(top.score_IK, axis=1) <= 0).all()
    assert (top.score_IK[:, 0] == scores.max(axis=1)).all()


@pytest.mark.parametrize("tile_columns", [1, 5, 16, 64, 100, 4096])
def test_results_have_the_same_bits_in_any_tile(tile_columns: int) -> None:
    pairs = make_pairs()
    one, other = top_k_rows(*pairs, 9), top_k_rows(*pairs, 9, tile_columns=tile_columns)
    assert_same_bits(one.index_IK, other.index_IK)
    assert_same_bits(one.score_IK, other.score_IK)
    assert_same_bits(one.column_max_J, other.column_max_J)
    assert_same_bits(one.statistics.sum_I, other.statistics.sum_I)
    assert_same_bits(one.statistics.sum_of_squares_I, other.statistics.sum_of_squares_I)
    assert_same_bits(one.statistics.min_I, other.statistics.min_I)


@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 5])
def test_results_have_the_same_bits_in_any_row_block(rows_per_block: int) -> None:
    a, b, w, bias = make_pairs()
    whole = top_k_rows(a, b, w, bias, 9)
    starts = range(0, len(a), rows_per_block)
    parts = [top_k_rows(a[i : i + rows_per_block], b, w, bias, 9) for i in starts]
    assert_same_bits(np.concatenate([p.index_IK for p in parts]), whole.index_IK)
    assert_same_bits(np.concatenate([p.score_IK for p in parts]), whole.score_IK)
    assert_same_bits(np.concatenate([p.statistics.sum_I for p in parts]), whole.statistics.sum_I)
    assert_same_bits(np.max([p.column_max_J for p in parts], axis=0), whole.column_max_J)


def test_scores_have_the_same_bits_for_any_k() -> None:
    pairs = make_pairs()
    long, short = top_k_rows(*pairs, NUM_COLUMNS), top_k_rows(*pairs, 3)
    assert_same_bits(long.score_IK[:, :3].copy(), short.score_IK)


@pytest.mark.parametrize("cuts", [(50, 51, 130), (1,)])
def test_columns_that_arrive_in_parts_give_the_lists_of_all_columns(cuts: tuple[int, ...]) -> None:
    a, b, w, bias = make_pairs()
    whole, state, maxima = top_k_rows(a, b, w, bias, 9), None, []
    for start, stop in zip((0, *cuts), (*cuts, len(b)), strict=True):
        part = top_k_rows(a, b[start:stop], w, bias, 9, column_offset=start, state=state)
        state = part.state
        maxima.append(part.column_max_J)
    assert_same_bits(part.index_IK, whole.index_IK)
    assert_same_bits(part.score_IK, whole.score_IK)
    assert_same_bits(part.statistics.sum_I, whole.statistics.sum_I)
    assert_same_bits(np.concatenate(maxima), whole.column_max_J)


def test_equal_scores_go_to_the_smaller_column_even_when_it_arrives_last() -> None:
    a, b, w, bias = make_pairs(columns=6)
    b[:] = b[0]
    late = top_k_rows(a, b[3:], w, bias, 2, column_offset=3)
    both = top_k_rows(a, b[:3], w, bias, 2, state=late.state)
    assert (late.index_IK == [3, 4]).all()
    assert (both.index_IK == [0, 1]).all()


def test_lists_longer_than_the_row_are_padded() -> None:
    pairs = make_pairs(columns=3)
    top = top_k_rows(*pairs, 5)
    assert (top.index_IK[:, 3:] == NO_COLUMN).all()
    assert np.isneginf(top.score_IK[:, 3:]).all()
    assert (np.sort(top.index_IK[:, :3], axis=1) == [0, 1, 2]).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (4, 0), (0, 0)])
def test_empty_blocks_have_empty_lists(rows: int, columns: int) -> None:
    top = top_k_rows(*make_pairs(rows=rows, columns=columns), 2)
    assert top.index_IK.shape == (rows, 2)
    assert (top.index_IK == NO_COLUMN).all()
    assert top.statistics.total().num_pairs == 0


def test_statistics_and_column_maxima_are_those_of_all_pairs() -> None:
    pairs = make_pairs()
    scores = full_scores(*pairs)
    top = top_k_rows(*pairs, 4)
    total = top.statistics.total()
    assert (total.num_pairs, total.min, total.max) == (scores.size, scores.min(), scores.max())
    assert total.sum == pytest.approx(scores.sum(dtype=np.float64))
    assert total.sum_of_squares == pytest.approx(np.square(scores, dtype=np.float64).sum())
    np.testing.assert_array_equal(top.column_max_J, scores.max(axis=0))


def test_rows_are_helped_and_columns_are_helpers() -> None:
    """Published error 5: a kernel written [helper x helped] and read the other way round."""
    a = np.array([[1.0], [0.0]], np.float32)
    b = np.array([[0.0], [5.0], [2.0]], np.float32)
    top = top_k_rows(a, b, np.ones(1, np.float32), 0.0, 3)
    np.testing.assert_array_equal(top.index_IK, [[1, 2, 0], [1, 2, 0]])
    np.testing.assert_array_equal(top.score_IK, [[6, 3, 1], [5, 2, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_is_not_finite_is_named(bad: float, side: int) -> None:
    pairs = make_pairs()
    pairs[side][6, 2] = bad
    with pytest.raises(ValueError, match=r"row 6 is not finite \(1 of"):
        top_k_rows(*pairs, 3)


def test_a_state_of_other_rows_is_refused() -> None:
    a, b, w, bias = make_pairs()
    state = top_k_rows(a, b, w, bias, 3).state
    with pytest.raises(ShapeError, match="state holds"):
        top_k_rows(a[:5], b, w, bias, 3, state=state)


def test_differing_hidden_units_are_refused() -> None:
    a, b, w, bias = make_pairs()
    with pytest.raises(ShapeError, match="hidden units differ"):
        top_k_rows(a[:, :5], b, w, bias, 3)


def test_best_of_a_vector_come_first_and_ties_go_to_the_smaller_index() -> None:
    """Published error 10: an ascending sort selects the worst rows."""
    index, score = top_k_vector(np.array([1, 3, 3, 0, 2], np.float32), 3)
    assert index.tolist() == [1, 2, 4]
    assert score.tolist() == [3, 3, 2]


def test_a_vector_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="score 1 is NaN"):
        top_k_vector(np.array([1, np.nan], np.float32), 1)
