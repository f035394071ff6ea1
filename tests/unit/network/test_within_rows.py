from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from nncift_ray.errors import ShapeError
from nncift_ray.network.fidelity import (
    PairMeasures,
    capture,
    interaction_correlation,
    measure_pairs,
)

EXACT = 1e-9  # float64 sums of numbers of size 1; effects are found by iteration


def draw(num_rows: int = 12, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Draw labels, noisy predictions, rows of 4 to 9 pairs and columns, in no order."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.permutation(100)[:num_rows], rng.integers(4, 10, num_rows))
    columns = np.concatenate(
        [rng.permutation(10)[: (rows == row).sum()] for row in np.unique(rows)]
    )
    order = rng.permutation(len(rows))
    labels = rng.standard_normal(len(rows))
    return labels, labels + rng.standard_normal(len(rows)), np.sort(rows)[order], columns[order]


def matrix(seed: int, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def additive(seed: int, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    return matrix(seed, (shape[0], 1)) + matrix(seed + 1, (1, shape[1]))


def centred(values: np.ndarray) -> np.ndarray:
    means = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    return values - means[0] - means[1] + values.mean()


# Interaction.


def test_interaction_correlation_by_hand() -> None:
    labels = np.array([[1.0, 0], [0, 1]])  # centred: +-1/2
    assert interaction_correlation(labels, np.array([[5.0, 3], [1, 9]])) == pytest.approx(1)
    assert interaction_correlation(labels, np.array([[0.0, 3], [1, 0]])) == pytest.approx(-1)


def test_interaction_correlation_of_whole_matrices_is_that_of_double_centred_ones() -> None:
    one, other = matrix(0) + additive(5), matrix(1) - additive(7)
    expected = np.corrcoef(centred(one).ravel(), centred(other).ravel())[0, 1]
    assert interaction_correlation(one, other) == pytest.approx(expected, abs=EXACT)


def test_row_and_column_effects_change_no_interaction() -> None:
    labels, predictions = matrix(0), matrix(0) + matrix(1)
    moved = interaction_correlation(labels + 3 * additive(2), predictions - 9 * additive(4))
    assert moved == pytest.approx(interaction_correlation(labels, predictions), abs=EXACT)


def test_missing_pairs_are_centred_by_least_squares() -> None:
    labels, predictions = matrix(0), matrix(0) + matrix(1)
    present = np.random.default_rng(3).random(labels.shape) < 0.6
    rows, columns = np.nonzero(present)
    design = np.concatenate([np.eye(9)[rows], np.eye(7)[columns]], axis=1)
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
            for values in (labels[present], predictions[present])]  # fmt: skip
    found = interaction_correlation(np.where(present, labels, np.nan), predictions)
    assert found == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_of_rows_and_columns_knows_no_interaction_and_captures_popularity(
    dtype: type,
) -> None:
    labels = matrix(0) + additive(2)
    popularity = matrix(3, (1, 7))
    predictions = (10 + matrix(4, (9, 1)) + popularity).astype(dtype)
    assert np.isnan(interaction_correlation(labels, predictions))
    expected = capture(labels, np.broadcast_to(popularity, labels.shape))
    assert capture(labels, predictions) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1), (0, 0)])
def test_one_row_or_column_has_no_interaction(shape: tuple[int, int]) -> None:
    assert np.isnan(interaction_correlation(matrix(0, shape), matrix(1, shape)))


def test_pairs_that_share_no_row_or_column_twice_have_no_interaction() -> None:
    labels = np.full((4, 4), np.nan)
    for row, column in ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 3)):  # a tree: all explained
        labels[row, column] = row + column**2
    assert np.isnan(interaction_correlation(labels, matrix(0, (4, 4))))


def test_constant_labels_have_no_interaction_and_no_best_helpers() -> None:
    assert np.isnan(interaction_correlation(np.ones((9, 7)), matrix(0)))
    assert np.isnan(capture(np.ones((9, 7)), matrix(0)))


# Capture.


def test_capture_by_hand() -> None:
    labels = np.array([[8.0, 4, 0, 0], [0, 0, 0, 4]])  # means 3 and 1; one best each
    predictions = np.array([[0.0, 9, 1, 2], [1, 2, 3, 4]])  # takes 4 and 4
    assert capture(labels, predictions) == pytest.approx(((4 - 3) + (4 - 1)) / ((8 - 3) + (4 - 1)))
    # The best half: 8 and 4 against 4 and 0; 4 and 0 against 4 and 0.
    expected = ((2 - 3) + (2 - 1)) / ((6 - 3) + (2 - 1))
    assert capture(labels, predictions, 0.5) == pytest.approx(expected)


def test_the_largest_labels_are_the_best_ones() -> None:
    """Published error 10: ascending order, the worst selected."""
    labels = np.array([[4.0, 3, 2, 1]])
    assert capture(labels, labels) == 1
    assert capture(labels, -labels) == pytest.approx(-1)


def test_ties_are_worth_the_mean_over_all_ways_to_break_them() -> None:
    labels = np.array([5.0, 1, 1, 0, 0, 3])
    predictions = np.array([1.0, 1, 0, 1, 0, 0])  # the two best: two of three
    gains = []
    for order in permutations(range(6)):
        best = np.lexsort((order, -predictions))[:2]
        gains.append((labels[best].mean() - labels.mean()) / (4 - labels.mean()))
    found = capture(labels[None], predictions[None], 1 / 3)
    assert found == pytest.approx(np.mean(gains))


def test_a_constant_captures_nothing() -> None:
    assert capture(matrix(0), np.full((9, 7), 0.1)) == pytest.approx(0, abs=EXACT)


def test_short_rows_and_rows_of_one_label_capture_nothing() -> None:
    labels = np.array([[1.0, 2, 3, 4], [1, 2, 3, np.nan], [0.1, 0.1, 0.1, 0.1]])
    assert capture(labels, -labels) == pytest.approx(-1)
    assert capture(labels[:1], -labels[:1]) == capture(labels, -labels)


def test_matrices_of_two_shapes_and_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ShapeError, match="two matrices of one shape"):
        capture(matrix(0), matrix(0, (7, 9)))
    with pytest.raises(ShapeError, match="two matrices of one shape"):
        interaction_correlation(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="share"):
        capture(matrix(0), matrix(0), 1.0)


# The pairs of a split.


def test_pairs_in_any_order_are_measured_as_a_matrix() -> None:
    labels, predictions, rows, columns = draw()
    table = np.full((100, 10), np.nan), np.zeros((100, 10))
    for values, into in zip((labels, predictions), table, strict=True):
        into[rows, columns] = values
    found = measure_pairs(labels, predictions, rows, columns, None)
    assert found.capture == pytest.approx(capture(*table))
    assert found.capture_1pct == pytest.approx(capture(*table, share=0.01))
    expected = interaction_correlation(*table)
    assert found.interaction_correlation == pytest.approx(expected, abs=1e-7)


def test_row_correlation_is_the_mean_of_scipys() -> None:
    labels, predictions, rows, columns = draw()
    labels, predictions = np.round(labels), np.round(predictions)  # ties
    expected = [
        spearmanr(labels[at], predictions[at]).statistic
        for at in (np.flatnonzero(rows == row) for row in np.unique(rows))
    ]
    found = measure_pairs(labels, predictions, rows, columns, None)
    assert found.num_rows == len(expected)
    assert found.row_spearman == pytest.approx(np.mean(expected), abs=EXACT)


def test_a_row_predicted_constant_counts_as_no_correlation() -> None:
    labels, rows, columns = np.tile(np.arange(4.0), 2), np.repeat([0, 1], 4), np.tile(range(4), 2)
    predictions = np.concatenate([np.arange(4.0), np.full(4, 0.3)])
    found = measure_pairs(labels, predictions, rows, columns, None)
    assert found.row_spearman == pytest.approx(0.5)
    assert found.capture == pytest.approx(0.5)


def test_a_constant_ranks_nothing() -> None:
    labels, _, rows, columns = draw()
    found = measure_pairs(labels, np.full(len(rows), 0.1), rows, columns, 0)
    assert (found.row_spearman, found.interaction_correlation) == (None, None)
    assert found.capture == pytest.approx(0, abs=EXACT)


def test_rows_of_single_pairs_and_no_pair_define_nothing() -> None:
    for rows in (np.arange(6), np.zeros(0, np.int64)):
        values = rows.astype(float)
        assert measure_pairs(values, values, rows, rows, 0) == PairMeasures()


# Intervals.


def grid(num_rows: int, num_columns: int, noise: float, seed: int) -> PairMeasures:
    shape = num_rows, num_columns
    labels = matrix(seed, shape) + additive(seed + 1, shape)
    predictions = labels + noise * matrix(seed + 3, shape)
    rows, columns = (axis.ravel() for axis in np.indices(shape))
    return measure_pairs(labels.ravel(), predictions.ravel(), rows, columns, 0)


def test_intervals_hold_the_figure_and_narrow_with_more_rows_and_columns() -> None:
    widths = []
    for size in (10, 40):
        found = grid(size, size, 1.0, 5)
        assert found.interaction_correlation_low < found.interaction_correlation
        assert found.interaction_correlation < found.interaction_correlation_high
        assert found.capture_low < found.capture < found.capture_high
        widths.append(found.interaction_correlation_high - found.interaction_correlation_low)
    assert widths[1] < widths[0] / 2


def test_intervals_meet_the_true_correlation_about_as_often_as_they_say() -> None:
    truth = 1 / np.sqrt(2)  # of x and x + noise of the same size
    held = 0
    for seed in range(0, 200, 4):
        found = grid(15, 15, 1.0, seed)
        held += found.interaction_correlation_low < truth < found.interaction_correlation_high
    assert 43 <= held <= 50


def test_few_rows_or_columns_have_no_interval() -> None:
    assert grid(20, 4, 1.0, 0).capture_low is None
    assert grid(4, 20, 1.0, 0).interaction_correlation_low is None


def test_scattered_pairs_have_no_interval_of_interactions() -> None:
    rows, columns = np.repeat(np.arange(30), 2), np.arange(60) % 30
    labels = np.random.default_rng(0).standard_normal(60)
    found = measure_pairs(labels, labels, rows, columns, 0)
    assert found.interaction_correlation == pytest.approx(1)
    assert found.interaction_correlation_low is None
