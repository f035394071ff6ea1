"""Scores that are given pair by pair keep what scoring all pairs keeps."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.corpus.examples import Subtasks
from nncift_ray.scores.exact import ScoreTotal, TopKState, add_pairs, read_keys, start_state
from nncift_ray.scores.teacher_scores import LabelSums

SCALE = 2**32


def pairs(*rows: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, column, score = zip(*rows, strict=True)
    return np.array(row), np.array(column), np.array(score, np.float32)


def empty_lists(num_rows: int, num_columns: int, k: int) -> TopKState:
    return start_state(num_rows, k, 0, num_columns, None)


def test_lists_worked_by_hand() -> None:
    best = empty_lists(3, 4, 2)
    add_pairs(best, *pairs((0, 3, 0.5), (0, 1, 0.5), (0, 0, 0.25), (2, 2, -1.0)))
    add_pairs(best, *pairs((0, 2, 0.5), (2, 0, -2.0), (2, 1, -1.5)))
    index, score = read_keys(best.key_IK)
    # Row 0: three equal, the smaller columns stay; row 1: never given; row 2: below 0, but given.
    assert index.tolist() == [[1, 2], [-1, -1], [2, 1]]
    assert score.tolist() == [[0.5, 0.5], [-np.inf, -np.inf], [-1.0, -1.5]]


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_lists_are_a_sort_whatever_the_order_and_the_batches(top_k: int) -> None:
    random = np.random.default_rng(0)
    score_IJ = random.integers(-4, 5, (12, 40)).astype(np.float32)  # many ties
    row, column = (axis.ravel() for axis in np.indices(score_IJ.shape))
    best = empty_lists(12, 40, top_k)
    for batch in np.array_split(random.permutation(len(row)), 7):
        add_pairs(best, row[batch], column[batch], score_IJ.ravel()[batch])
    expected = np.argsort(-score_IJ, axis=1, kind="stable")[:, :top_k]
    index, score = read_keys(best.key_IK)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(score, np.take_along_axis(score_IJ, expected, axis=1))


def test_sums_count_what_was_given_and_nothing_else() -> None:
    sums = LabelSums("cross", Subtasks(("a", "b"), np.array([0, 1, 0])), 3)
    sums.add(*pairs((0, 0, 0.5), (2, 0, -2.0), (1, 2, 3.0)))
    sums.add(*pairs((2, 2, 1.0)))
    assert sums.sum_GJ.tolist() == [[-1.5 * SCALE, 0, SCALE], [0, 0, 3 * SCALE]]
    assert sums.num_GJ.tolist() == [[2, 0, 1], [0, 0, 1]]


def test_totals_of_batches_merge_to_that_of_all_scores() -> None:
    total = ScoreTotal()
    for part in ([0.5, -2.0], [], [4.0]):
        total = total.merge(ScoreTotal.of(np.array(part, np.float32)))
    assert total == ScoreTotal(3, -2.0, 4.0, 2.5, 20.25)


def test_pairs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1, column 2 is not finite"):
        add_pairs(empty_lists(2, 3, 1), *pairs((0, 0, 1.0), (1, 2, np.nan)))
    with pytest.raises(ValueError, match="divide its labels"):
        LabelSums("cross", Subtasks.one(2), 3).add(*pairs((0, 0, 1.0), (1, 2, np.nan)))
