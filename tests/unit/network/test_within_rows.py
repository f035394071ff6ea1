from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from nncift_ray.network.fidelity import WithinRows, centre, measure_within_rows

EXACT = 1e-12  # float64 arithmetic on numbers of size 1


def draw(num_rows: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels, noisy predictions and rows of 4 to 9 pairs, in no order."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(
        np.repeat(rng.permutation(100)[:num_rows], rng.integers(4, 10, num_rows))
    )
    labels = rng.standard_normal(len(rows))
    return labels, labels + rng.standard_normal(len(rows)), rows


def rows_of(rows: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(rows == row) for row in np.unique(rows)]


def test_offsets_of_rows_change_nothing() -> None:
    labels, predictions, rows = draw()
    offset = np.random.default_rng(1).standard_normal(100)
    moved = measure_within_rows(labels + 9 * offset[rows], predictions - 5 * offset[rows], rows)
    still = measure_within_rows(labels, predictions, rows)
    for name in WithinRows.__dataclass_fields__:
        assert getattr(moved, name) == pytest.approx(getattr(still, name), abs=EXACT)


def test_centred_r2_of_a_worked_example() -> None:
    labels, rows = np.array([1.0, 3.0, 10.0, 16.0, 7.0]), np.array([5, 5, 2, 2, 9])
    predictions = np.array([0.0, 0.0, 0.0, 4.0, 50.0])  # centred: 0, 0, -2, 2, and nothing of row 9
    measured = measure_within_rows(labels, predictions, rows)
    assert measured.centred_r2 == pytest.approx(1 - (1 + 1 + 1 + 1) / (1 + 1 + 9 + 9))
    assert measured.num_rows == 0


def test_row_correlation_is_the_mean_of_scipys() -> None:
    labels, predictions, rows = draw()
    labels, predictions = np.round(labels), np.round(predictions)  # ties
    expected = [spearmanr(labels[at], predictions[at]).statistic for at in rows_of(rows)]
    found = measure_within_rows(labels, predictions, rows)
    assert found.num_rows == len(expected)
    assert found.row_spearman == pytest.approx(np.mean(expected), abs=EXACT)


def test_centred_correlation_is_scipys_of_centred_values() -> None:
    labels, predictions, rows = draw()
    centred = [centre(values, rows) for values in (labels, predictions)]
    expected = spearmanr(*centred).statistic
    assert measure_within_rows(labels, predictions, rows).centred_spearman == pytest.approx(
        expected
    )


def test_overlap_is_the_shared_part_of_the_best_quarters() -> None:
    labels, predictions, rows = draw()
    shares = []
    for at in rows_of(rows):
        k = -(-len(at) // 4)
        best, predicted = (set(np.argsort(-v[at])[:k]) for v in (labels, predictions))
        shares.append(len(best & predicted) / k)
    assert measure_within_rows(labels, predictions, rows).top_overlap == pytest.approx(
        np.mean(shares), abs=EXACT
    )


def test_largest_labels_are_the_best_ones() -> None:
    """Published error 10: ascending order, the worst selected."""
    labels = np.array([4.0, 3.0, 2.0, 1.0])
    rows = np.zeros(4, np.int64)
    assert measure_within_rows(labels, np.array([9.0, 1, 1, 1]), rows).top_overlap == 1
    assert measure_within_rows(labels, np.array([1.0, 1, 1, 9]), rows).top_overlap == 0


def test_ties_are_worth_the_mean_over_all_ways_to_break_them() -> None:
    labels = np.array([2.0, 1.0, 1.0, 0.0, 0.0])  # the two best: the first, and one of two
    predictions = np.array([1.0, 1.0, 0.0, 1.0, 0.0])  # the two best: two of three
    shares = []
    for one in permutations(range(5)):
        for other in permutations(range(5)):
            best = set(np.lexsort((one, -labels))[:2])
            shares.append(len(best & set(np.lexsort((other, -predictions))[:2])) / 2)
    found = measure_within_rows(labels, predictions, np.zeros(5, np.int64))
    assert found.top_overlap == pytest.approx(np.mean(shares))


def test_a_constant_finds_the_best_by_chance_and_ranks_nothing() -> None:
    labels, _, rows = draw()
    found = measure_within_rows(labels, np.full(len(rows), 0.1), rows)
    sizes = [len(at) for at in rows_of(rows)]
    assert found.chance_overlap == pytest.approx(np.mean([-(-m // 4) / m for m in sizes]))
    assert found.top_overlap == pytest.approx(found.chance_overlap)
    assert (found.centred_r2, found.centred_spearman, found.row_spearman) == (0.0, None, None)


def test_the_teacher_itself_is_perfect() -> None:
    labels, _, rows = draw()
    found = measure_within_rows(labels, labels, rows)
    assert (found.centred_r2, found.top_overlap) == (1.0, 1.0)
    assert found.row_spearman == pytest.approx(1.0)


def test_a_row_predicted_constant_counts_as_no_correlation() -> None:
    labels, rows = np.tile(np.arange(4.0), 2), np.repeat([0, 1], 4)
    predictions = np.concatenate([np.arange(4.0), np.full(4, 0.3)])
    assert measure_within_rows(labels, predictions, rows).row_spearman == pytest.approx(0.5)


def test_short_rows_and_rows_of_one_label_are_not_ranked() -> None:
    rows = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    labels = np.array([1.0, 2, 3, 4, 1, 2, 3, 0.1, 0.1, 0.1, 0.1])
    found = measure_within_rows(labels, labels[::-1], rows)
    assert found.num_rows == 1
    assert found.centred_r2 is not None


@pytest.mark.parametrize("rows", [np.arange(6), np.zeros(0, np.int64)])
def test_rows_of_single_pairs_define_nothing(rows: np.ndarray) -> None:
    values = rows.astype(float)
    assert measure_within_rows(values, values, rows) == WithinRows()
