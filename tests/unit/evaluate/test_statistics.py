"""Means and intervals against hand-computed numbers, textbook formulas and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nncift_ray.errors import ShapeError
from nncift_ray.evaluation.results import (
    MANY_ROWS,
    Comparison,
    Resampling,
    compare_methods,
    compare_with_random,
    draw_row_deviations,
    estimate_mean,
    holm,
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


# Methods beside Random: differences, verdicts, and how often a verdict is wrong.

NAN = float("nan")
EXACT = 1e-12
RNG = np.random.default_rng
TRIALS, SAMPLES = 300, 300


def compare(
    method: np.ndarray, random: np.ndarray, num_samples: int = 2_000, **options: object
) -> Comparison:
    settings = {"lower_is_better": False, "how": Resampling(num_samples=num_samples)} | options
    return compare_with_random(method, random, **settings)  # type: ignore[arg-type]


def test_difference_is_to_the_mean_over_random_subsets() -> None:
    found = compare(np.array([5.0, 1.0]), np.array([[1.0, 3.0], [2.0, 4.0]]))
    assert found.difference == pytest.approx(((5 - 2) + (1 - 3)) / 2, abs=EXACT)


def test_rows_without_a_pair_are_left_out() -> None:
    method = np.array([5.0, NAN, 1.0, 7.0])
    random = np.array([[1.0, NAN, NAN], [2.0, 4.0, NAN], [NAN, NAN, NAN], [3.0, 5.0, NAN]])
    found = compare(method, random)
    # The first row has one random value, the last two; the third seed has none at all.
    assert found.difference == pytest.approx(((5 - 1) + (7 - 4)) / 2, abs=EXACT)


def test_nothing_in_common_is_nothing_said() -> None:
    found = compare(np.array([1.0, NAN]), np.array([[NAN, NAN], [1.0, 2.0]]))
    assert found.difference is found.difference_low is found.p_value is found.verdict is None


@pytest.mark.parametrize(
    ("shift", "lower_is_better", "verdict"),
    [(1, False, "better"), (-1, False, "worse"), (1, True, "worse"), (-1, True, "better")],
)
def test_verdict_knows_the_direction(shift: float, lower_is_better: bool, verdict: str) -> None:
    rng = RNG(0)
    random = rng.normal(0, 1, (100, 1)) + rng.normal(0, 0.1, (100, 4))
    found = compare(random[:, 0] + shift, random, lower_is_better=lower_is_better)
    assert found.verdict == verdict
    assert found.difference_low is not None
    assert found.difference_high is not None
    assert found.difference_low <= found.difference <= found.difference_high
    assert found.difference_low > 0 or found.difference_high < 0


def test_five_rows_cannot_be_significant_however_large_the_difference() -> None:
    random = np.zeros((5, 3))
    found = compare(np.full(5, 100.0), random)
    assert found.p_value == 2 / 2**5
    assert found.verdict == "noise"


def test_spread_of_subsets_is_carried_however_many_rows_there_are() -> None:
    # Random subsets at -1, 0, 1 on every row: deviation 1. One more lies within
    # t(2 degrees of freedom) x sqrt(1 + 1/3) = 4.97 of their mean 19 times of 20.
    rows = RNG(2).normal(0, 1, 500)
    random = np.stack([rows - 1, rows, rows + 1], axis=1)
    found = compare(rows + 3, random, num_samples=10_000)
    half = stats.t.ppf(0.975, 2) * np.sqrt(4 / 3)
    assert found.difference_high == pytest.approx(3 + half, abs=0.4)
    assert found.difference_low == pytest.approx(3 - half, abs=0.4)
    assert found.verdict == "noise"


def test_a_method_without_a_draw_of_its_own_is_held_to_random_s_mean() -> None:
    rows = RNG(2).normal(0, 1, 500)
    random = np.stack([rows - 1, rows, rows + 1], axis=1)
    found = compare(rows + 3, random, subset_was_chosen=False, num_samples=10_000)
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert found.difference_low == pytest.approx(3 - half, abs=0.25)
    assert found.verdict == "better"


def test_one_random_subset_gives_no_verdict() -> None:
    rows = RNG(3).random(50)
    found = compare(rows + 5, rows)
    assert found.difference == pytest.approx(5)
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert found.verdict is None


def test_rows_must_be_the_same() -> None:
    with pytest.raises(ShapeError, match="same rows"):
        compare(np.zeros(3), np.zeros((4, 2)))


def test_holm_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3 = 0.06, 0.03 x 2 = 0.06, 0.5 x 1.
    assert holm([0.03, 0.5, 0.01, None, 0.02]) == pytest.approx(
        [0.06, 0.5, 0.04, None, 0.06], abs=EXACT
    )
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_side_by_side_the_adjusted_p_value_decides() -> None:
    rng = RNG(4)
    random = rng.normal(0, 1, (40, 8))
    plain = random.mean(axis=1)
    # One method a little better, and nineteen that are nothing.
    methods = {f"m{k}": plain + rng.normal(0, 1, 40) for k in range(19)}
    methods["good"] = plain + 0.6 + rng.normal(0, 1, 40)
    alone = compare(methods["good"], random)
    among = compare_methods(
        methods, random, lower_is_better=False, how=Resampling(num_samples=2_000)
    )["good"]
    assert alone.verdict == "better"
    assert among.p_value == alone.p_value
    assert among.adjusted_p_value == pytest.approx(min(1.0, 20 * among.p_value), rel=1e-6)
    assert among.verdict == "noise"


def draw_table(
    rng: np.random.Generator, between: float, rest: float, num_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a method that is one more random subset, and the random subsets [60, S]."""
    rows = rng.exponential(1.0, (60, 1))
    subsets = rng.normal(0, between, num_seeds + 1)
    values = rows + subsets + rng.normal(0, rest, (60, num_seeds + 1))
    return values[:, 0], values[:, 1:]


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
@pytest.mark.parametrize(
    ("between", "rest", "least"), [(0.0, 1.0, 0.0), (0.1, 0.5, 0.005), (0.5, 0.1, 0.02)]
)
def test_one_more_random_subset_is_called_better_or_worse_about_as_often_as_alpha_says(
    between: float, rest: float, least: float, num_seeds: int
) -> None:
    """With subsets that do not differ the spread of two or three is overestimated: fewer calls."""
    rng = RNG(8)
    wrong = covered = 0
    for _ in range(TRIALS):
        method, random = draw_table(rng, between, rest, num_seeds)
        found = compare(method, random, num_samples=SAMPLES)
        assert found.difference_low is not None
        assert found.difference_high is not None
        wrong += found.verdict != "noise"
        covered += found.difference_low <= 0 <= found.difference_high
    assert least <= wrong / TRIALS <= 0.09  # 0.05, and three standard errors of 300 trials
    assert covered / TRIALS >= 0.91


def test_a_fixed_subset_would_be_called_better_or_worse_far_too_often() -> None:
    """Why the method's subset carries the spread of subsets, too."""
    rng = RNG(9)
    wrong = 0
    for _ in range(TRIALS):
        method, random = draw_table(rng, 0.5, 0.1, 3)
        found = compare(method, random, num_samples=SAMPLES, subset_was_chosen=False)
        wrong += found.verdict != "noise"
    assert wrong / TRIALS > 0.1  # 0.164 in theory


def test_a_large_difference_is_found() -> None:
    rng = RNG(10)
    found = 0
    for _ in range(50):
        method, random = draw_table(rng, 0.05, 0.3, 3)
        found += compare(method + 1, random, num_samples=SAMPLES).verdict == "better"
    assert found >= 48
