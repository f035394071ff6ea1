"""Means and intervals against hand-computed numbers, textbook formulas and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nncift_ray.errors import ShapeError
from nncift_ray.evaluation.compare import (
    MANY_ROWS,
    Resampling,
    draw_row_deviations,
    estimate_mean,
    measure_seed_spread,
    sign_flip_p_value,
)

NAN = float("nan")
EXACT = 1e-12
RESAMPLING = 0.05  # relative, of half a width with 10,000 resamples
RNG = np.random.default_rng


def test_mean_and_counts_of_values_with_gaps() -> None:
    estimate = estimate_mean(np.array([1.0, NAN, 3.0, 5.0]))
    assert (estimate.num_rows, estimate.num_missing, estimate.mean) == (3, 1, 3.0)
    assert estimate.seed_deviation is None


def test_random_seeds_are_one_mean_and_their_deviation() -> None:
    # Rows' means 2 and 5; seeds' means 3, 3.5 and 4, whose deviation is 0.5.
    estimate = estimate_mean(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    assert estimate.mean == pytest.approx(3.5, abs=EXACT)
    assert estimate.seed_deviation == pytest.approx(0.5, abs=EXACT)


def test_one_row_has_a_mean_and_no_interval() -> None:
    estimate = estimate_mean(np.array([2.0, NAN]))
    assert (estimate.mean, estimate.low, estimate.high) == (2.0, None, None)


@pytest.mark.parametrize("num_rows", [30, 400])
def test_interval_of_normal_values_is_students(num_rows: int) -> None:
    values = RNG(1).normal(3, 2, num_rows)
    estimate = estimate_mean(values)
    error = stats.sem(values)
    low, high = stats.t.interval(0.95, num_rows - 1, values.mean(), error)
    assert estimate.low == pytest.approx(low, abs=2 * RESAMPLING * (high - low) / 2)
    assert estimate.high == pytest.approx(high, abs=2 * RESAMPLING * (high - low) / 2)


def test_no_right_answer_of_many_does_not_prove_that_there_never_is_one() -> None:
    # Wilson: z^2 / (n + z^2) with z = 1.96.
    estimate = estimate_mean(np.zeros(100))
    assert estimate.low == 0
    assert estimate.high == pytest.approx(3.8415 / 103.8415, abs=1e-4)


def test_seeds_that_differ_widen_the_interval() -> None:
    rows = RNG(2).normal(0, 1, 200)
    alike = estimate_mean(np.stack([rows] * 3, axis=1))
    apart = estimate_mean(np.stack([rows - 1, rows, rows + 1], axis=1))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)  # t x deviation 1 / sqrt(3 seeds)
    assert alike.low is not None
    assert apart.low is not None
    assert alike.mean == pytest.approx(apart.mean)
    assert alike.mean - alike.low < 0.2
    assert apart.mean - apart.low == pytest.approx(half, rel=2 * RESAMPLING)


def test_a_seed_without_the_hard_rows_is_not_a_good_one() -> None:
    hard = np.array([0.0] * 5 + [10.0] * 5)
    values = np.stack([hard, hard, hard], axis=1)
    values[5:, 2] = NAN
    assert measure_seed_spread(values)[0] == pytest.approx(0, abs=EXACT)


def test_seed_spread_is_the_analysis_of_variance() -> None:
    # Centred rows: (-1, 0, 1), (-2, 0, 2), (0, 0, 0). Seeds' means -1, 0, 1: variance 1.
    # The rest: (0,0,0), (-1,0,1), (1,0,-1): squares 4 over 2 x 2 degrees of freedom, over 3 rows.
    means, rest = measure_seed_spread(np.array([[1.0, 2, 3], [0, 2, 4], [7, 7, 7]]))
    assert means == pytest.approx(1.0, abs=EXACT)
    assert rest == pytest.approx(1 / 3, abs=EXACT)


def test_means_of_many_rows_are_drawn_as_wide_as_resampled_ones() -> None:
    values = RNG(4).exponential(2.0, MANY_ROWS + 1)
    for some in (values, values[:-1]):
        draws = draw_row_deviations(some, Resampling(0.95, 4_000), RNG(0))
        assert draws.std() == pytest.approx(stats.sem(some), rel=RESAMPLING)
        assert draws.mean() == pytest.approx(0, abs=0.1 * stats.sem(some))


def test_sign_flips_of_few_rows_are_counted_exactly() -> None:
    # Of the 16 patterns of 1, 2, 3, 4 only + + + + and - - - - reach a sum of 10.
    assert sign_flip_p_value(np.array([1.0, 2, 3, 4]), 10, RNG(0)) == 2 / 16
    # -1, 2, 3, 4 sum to 8: reached by +-10, and +-8 of the first sign alone.
    assert sign_flip_p_value(np.array([-1.0, 2, 3, 4]), 10, RNG(0)) == 4 / 16
    # Zeros change nothing, and rounding must not split what is a tie.
    assert sign_flip_p_value(np.array([0.1, 0.2, 0.3, 0.0]), 10, RNG(0)) == 2 / 8
    assert sign_flip_p_value(np.zeros(5), 10, RNG(0)) == 1.0


def test_drawn_sign_flips_agree_with_the_t_test() -> None:
    differences = RNG(5).normal(0.25, 1, 80)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert sign_flip_p_value(differences, 20_000, RNG(0)) == pytest.approx(expected, abs=0.01)


def test_sign_flips_of_many_rows_agree_with_the_t_test() -> None:
    differences = RNG(6).normal(0.005, 1, 50_000)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert sign_flip_p_value(differences, 2_000, RNG(0)) == pytest.approx(expected, abs=0.04)


def test_more_than_two_axes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 2, 2\)"):
        estimate_mean(np.zeros((2, 2, 2)))


def covers(rng: np.random.Generator, num_rows: int) -> bool:
    estimate = estimate_mean(rng.exponential(1.0, num_rows), Resampling(num_samples=400))
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= 1.0 <= estimate.high


def test_interval_of_a_skewed_metric_covers_about_as_often_as_it_says() -> None:
    rng = RNG(7)
    covered = np.mean([covers(rng, 60) for _ in range(600)])
    assert 0.90 <= covered <= 0.975  # 0.95; skewed values of few rows cost a little
