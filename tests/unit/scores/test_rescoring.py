from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import (
    NO_COLUMN,
    RescoredTopK,
    pack_columns,
    rescore_rows,
    score_block,
    score_matrix,
    top_k_rows,
)
from tests.unit.scores.test_pair_scores import assert_same_bits, full_scores, make_pairs

ORACLE_TOLERANCE = 2e-5  # float32 sums of 23 products of size 1, beside a float64 oracle


def rescore(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray, float], listed: np.ndarray, k: int
) -> RescoredTopK:
    a, b, w, bias = pairs
    return rescore_rows(a, pack_columns(b, w, bias), listed, k)


def every_column(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(columns) for _ in range(rows)])


@pytest.mark.parametrize(("rows", "columns", "k"), [(11, 203, 9), (1, 203, 203), (9, 1, 3)])
def test_listing_every_column_gives_the_lists_of_the_streamed_kernel(
    rows: int, columns: int, k: int
) -> None:
    pairs = make_pairs(rows=rows, columns=columns)
    top, found = top_k_rows(*pairs, k), rescore(pairs, every_column(rows, columns), k)
    assert_same_bits(found.index_IK, top.index_IK)
    assert_same_bits(found.score_IK, top.score_IK)


def test_listed_pairs_have_the_bits_of_the_streamed_kernel() -> None:
    pairs = make_pairs()
    scores = full_scores(*pairs)
    listed = every_column(len(pairs[0]), len(pairs[1]))[:, :21]
    found = rescore(pairs, listed, 21)
    assert_same_bits(
        found.score_IK, np.take_along_axis(scores, found.index_IK.astype(np.int64), axis=1)
    )
    np.testing.assert_array_equal(np.sort(found.index_IK, axis=1), np.sort(listed, axis=1))


def test_repeated_columns_count_once_and_gaps_not_at_all() -> None:
    pairs = make_pairs(rows=2)
    listed = np.array([[5, 5, NO_COLUMN, 9, 5], [NO_COLUMN] * 5])
    found = rescore(pairs, listed, 3)
    assert set(found.index_IK[0]) == {5, 9, NO_COLUMN}
    assert list(found.num_pairs_I) == [2, 0]
    assert found.score_IK[0, 2] == -np.inf
    assert (found.index_IK[1] == NO_COLUMN).all()


def test_equal_scores_are_listed_by_smaller_column() -> None:
    a, b, w, bias = make_pairs(rows=3)
    b[:] = b[0]
    listed = every_column(3, len(b))
    np.testing.assert_array_equal(
        rescore((a, b, w, bias), listed, 4).index_IK, np.tile([0, 1, 2, 3], (3, 1))
    )


def test_a_column_outside_the_network_is_refused() -> None:
    pairs = make_pairs()
    with pytest.raises(ValueError, match=r"columns -1\.\.203 are listed, there are 203"):
        rescore(pairs, np.tile([-1, 203], (len(pairs[0]), 1)), 2)


def test_lists_of_other_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="11 rows, but lists of"):
        rescore(make_pairs(), np.zeros((3, 2), np.int32), 2)


def test_a_row_that_is_not_finite_is_named() -> None:
    a, b, w, bias = make_pairs()
    a[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"row \(helped\) activations: row 4 is not finite"):
        rescore((a, b, w, bias), np.zeros((len(a), 1), np.int32), 1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (11, 203), (8, 64), (9, 65)])
def test_score_matrix_has_the_bits_of_the_streamed_kernel(rows: int, columns: int) -> None:
    pairs = make_pairs(rows=rows, columns=columns)
    assert_same_bits(score_matrix(*pairs), full_scores(*pairs))
    np.testing.assert_allclose(
        score_matrix(*pairs), score_block(*pairs), rtol=0, atol=ORACLE_TOLERANCE
    )


@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("sign", ["all positive", "all negative", "mixed", "zero"])
def test_any_width_and_sign_of_units_gives_the_bits_of_the_streamed_kernel(
    hidden: int, sign: str
) -> None:
    a, b, w, bias = make_pairs(hidden=hidden)
    w = {"all positive": np.abs(w), "all negative": -np.abs(w), "mixed": w, "zero": 0 * w}[sign]
    top, found = top_k_rows(a, b, w, bias, 7), rescore((a, b, w, bias), every_column(11, 203), 7)
    assert_same_bits(found.index_IK, top.index_IK)
    assert_same_bits(found.score_IK, top.score_IK)


@pytest.mark.parametrize("listed", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("k", [1, 16, 40])
def test_lists_of_any_length_keep_the_best_they_hold(listed: int, k: int) -> None:
    pairs = make_pairs()
    proposed = every_column(len(pairs[0]), len(pairs[1]))[:, :listed]
    found = rescore(pairs, proposed, k)
    scores = np.take_along_axis(full_scores(*pairs), proposed, axis=1)
    expected = np.full((len(pairs[0]), k), -np.inf, np.float32)
    kept = min(k, listed)
    expected[:, :kept] = -np.sort(-scores, axis=1)[:, :kept]
    assert_same_bits(found.score_IK, expected)
    assert ((found.index_IK == NO_COLUMN) == np.isinf(expected)).all()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_columns_may_be_listed_in_any_kind_of_integer(dtype: type) -> None:
    pairs = make_pairs()
    listed = every_column(len(pairs[0]), len(pairs[1]))
    one, other = rescore(pairs, listed.astype(dtype), 5), rescore(pairs, listed, 5)
    assert_same_bits(one.index_IK, other.index_IK)


def test_no_row_has_no_list() -> None:
    a, b, w, bias = make_pairs()
    found = rescore((a[:0], b, w, bias), np.zeros((0, 3), np.int32), 4)
    assert found.index_IK.shape == found.score_IK.shape == (0, 4)


def test_a_column_that_is_not_finite_is_named() -> None:
    _, b, w, bias = make_pairs()
    b[6, 1] = np.inf
    with pytest.raises(ValueError, match=r"column \(helper\) activations: row 6 is not finite"):
        pack_columns(b, w, bias)


def test_a_list_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rescore(make_pairs(), np.zeros((11, 2), np.int32), 0)
