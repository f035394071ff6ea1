from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import (
    ColumnSums,
    best_group_mean,
    check_sum_range,
    score_block,
    sum_columns,
    to_fixed_point,
    top_k_rows,
)

MEAN_TOLERANCE = 1e-6  # float32 scores of size 1, beside a float64 oracle
SUM_TOLERANCE = 1e-12  # the two kernels add in different orders, in float64
SCALE = 2**32
NUM_ROWS, NUM_COLUMNS, NUM_HIDDEN, NUM_GROUPS = 37, 203, 23, 3  # no multiple of a row group


def make_pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    shapes = ((NUM_ROWS, NUM_HIDDEN), (NUM_COLUMNS, NUM_HIDDEN), NUM_HIDDEN)
    a, b, w = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return a, b, w * np.float32(0.05), 0.25


GROUP_I = np.random.default_rng(1).integers(0, NUM_GROUPS, NUM_ROWS)


def test_sums_are_those_of_the_dense_matrix_in_float64() -> None:
    a, b, w, bias = make_pairs()
    sums = sum_columns(a, b, w, bias, GROUP_I, NUM_GROUPS).sum_GJ / SCALE
    dense = score_block(a, b, w, bias).astype(np.float64)
    for group in range(NUM_GROUPS):
        rows = GROUP_I == group
        expected = dense[rows].sum(axis=0)
        np.testing.assert_allclose(sums[group], expected, rtol=0, atol=MEAN_TOLERANCE * rows.sum())


def test_sums_are_exactly_those_of_the_scores_that_lists_hold() -> None:
    a, b, w, bias = make_pairs()
    top = top_k_rows(a, b, w, bias, len(b))
    scores = np.empty((len(a), len(b)), np.float32)
    np.put_along_axis(scores, top.index_IK.astype(np.int64), top.score_IK, axis=1)
    fixed = np.rint(scores.astype(np.float64) * SCALE).astype(np.int64)
    sums = sum_columns(a, b, w, bias, GROUP_I, NUM_GROUPS)
    expected = [fixed[GROUP_I == group].sum(axis=0) for group in range(NUM_GROUPS)]
    assert sums.sum_GJ.tolist() == np.array(expected).tolist()
    found, total = sums.statistics.total(), top.statistics.total()
    assert (found.num_pairs, found.min, found.max) == (total.num_pairs, total.min, total.max)
    assert found.sum_of_squares == pytest.approx(total.sum_of_squares, rel=SUM_TOLERANCE)


@pytest.mark.parametrize("cuts", [[1], [5, 6, 30], [4, 8, 12, 16, 20, 24, 28, 32]])
def test_cuts_of_rows_and_tiles_change_no_bit(cuts: list[int]) -> None:
    a, b, w, bias = make_pairs()
    whole = sum_columns(a, b, w, bias, GROUP_I, NUM_GROUPS).sum_GJ
    total = np.zeros_like(whole)
    for rows in np.split(np.arange(NUM_ROWS), cuts):
        part = sum_columns(a[rows], b, w, bias, GROUP_I[rows], NUM_GROUPS, tile_columns=17)
        total += part.sum_GJ
    assert total.tobytes() == whole.tobytes()


def test_columns_in_two_calls_are_those_of_one_with_its_statistics() -> None:
    a, b, w, bias = make_pairs()
    whole = sum_columns(a, b, w, bias, GROUP_I, NUM_GROUPS)
    parts: list[ColumnSums] = []
    for columns in (b[:50], b[50:]):
        statistics = parts[-1].statistics if parts else None
        parts.append(sum_columns(a, columns, w, bias, GROUP_I, NUM_GROUPS, statistics=statistics))
    joined = np.concatenate([part.sum_GJ for part in parts], axis=1)
    assert joined.tobytes() == whole.sum_GJ.tobytes()
    assert parts[-1].statistics.total() == whole.statistics.total()


def test_golden_sums_of_a_network_worked_by_hand() -> None:
    # s_ij = 0.5 * max(a_i + b_j, 0) - 0.25: rows 1 and -3, columns 0 and 2.
    a, b = np.array([[1], [-3]], np.float32), np.array([[0], [2]], np.float32)
    sums = sum_columns(a, b, np.array([0.5], np.float32), -0.25, np.array([0, 0]), 1).sum_GJ
    assert sums.tolist() == [[0 * SCALE, SCALE]]  # (0.25 - 0.25), (1.25 - 0.25)


def test_a_score_rounds_to_the_nearest_step_half_to_even() -> None:
    step = 2.0**-32
    scores = np.array([0.5 * step, 1.5 * step, -0.5 * step, -0.75 * step], np.float32)
    assert to_fixed_point(scores).tolist() == [0, 2, 0, -1]
    a, w = np.zeros((1, 1), np.float32), np.ones(1, np.float32)
    sums = sum_columns(a, scores[:, None], w, 0.0, np.zeros(1, np.int64), 1).sum_GJ
    assert sums.tolist() == [[0, 2, 0, 0]]  # relu leaves no negative score


@pytest.mark.parametrize("size", [1024.0, -1024.0, 1e30])
def test_scores_too_large_to_add_exactly_are_refused(size: float) -> None:
    a, b = np.ones((2, 1), np.float32), np.zeros((3, 1), np.float32)
    w = np.array([size], np.float32)
    with pytest.raises(ValueError, match="divide its labels by a constant"):
        sum_columns(a, b, w, 0.0, np.zeros(2, np.int64), 1)
    with pytest.raises(ValueError, match="divide its labels by a constant"):
        to_fixed_point(np.array([0.0, size], np.float32))


def test_scores_that_overflow_are_refused() -> None:
    a, b = np.full((1, 2), 3e38, np.float32), np.full((1, 2), 3e38, np.float32)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="divide its labels"),
    ):
        sum_columns(a, b, np.array([2, -2], np.float32), 0.0, np.zeros(1, np.int64), 1)


def test_sums_that_could_pass_64_bits_are_refused() -> None:
    check_sum_range(2**31 - 1, -1.0, 0.5)
    with pytest.raises(ValueError, match="cannot be added exactly"):
        check_sum_range(2**31, -1.0, 0.5)


def test_groups_of_other_rows_are_refused() -> None:
    a, b, w, bias = make_pairs()
    with pytest.raises(ShapeError, match="37 rows, but groups"):
        sum_columns(a, b, w, bias, GROUP_I[:5], NUM_GROUPS)
    with pytest.raises(ValueError, match="there are 2"):
        sum_columns(a, b, w, bias, np.full(NUM_ROWS, 2), 2)


def test_score_is_the_best_of_the_subtasks_means_worked_by_hand() -> None:
    sums = np.array([[6, -4, 0], [2, -1, 9]]) * SCALE
    # Means over 3 and 1 rows: [2, -4/3, 0] and [2, -1, 9]; the sums alone would say [6, -1, 9].
    rows = [np.full(3, 3), np.full(3, 1)]
    assert best_group_mean(list(sums), rows).tolist() == [2.0, -1.0, 9.0]


def test_a_group_of_no_row_says_nothing_of_a_column() -> None:
    sums = [np.array([-6, 0, 0]) * SCALE, np.array([0, 4, 0]) * SCALE]
    rows = [np.array([3, 0, 0]), np.array([0, 2, 0])]
    # Worked by hand: -6 / 3 and 4 / 2, not the 0 of an empty group; the last has no row at all.
    np.testing.assert_array_equal(best_group_mean(sums, rows), [-2.0, 2.0, np.nan])


def test_sums_and_rows_of_other_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        best_group_mean([], [])
    with pytest.raises(ShapeError, match="rows of 2"):
        best_group_mean([np.zeros(2, np.int64)], [np.ones(2, np.int64)] * 2)
