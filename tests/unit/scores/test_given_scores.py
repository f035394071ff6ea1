"""Scores that are given pair by pair keep what scoring all pairs keeps."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import ScoreTotal
from nncift_ray.scores.teacher_scores import BestColumns, GivenSums

SCALE = 2**32


def pairs(*rows: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, column, score = zip(*rows, strict=True)
    return np.array(row), np.array(column), np.array(score, np.float32)


def test_lists_worked_by_hand() -> None:
    best = BestColumns(3, 4, 2)
    best.add(*pairs((0, 3, 0.5), (0, 1, 0.5), (0, 0, 0.25), (2, 2, -1.0)))
    best.add(*pairs((0, 2, 0.5), (2, 0, -2.0), (2, 1, -1.5)))
    index, score = best.lists()
    # Row 0: three equal, the smaller columns stay; row 1: never given; row 2: below 0, but given.
    assert index.tolist() == [[1, 2], [-1, -1], [2, 1]]
    assert score.tolist() == [[0.5, 0.5], [-np.inf, -np.inf], [-1.0, -1.5]]


@pytest.mark.parametrize("top_k", [1, 5, 40, 99])
def test_lists_are_a_sort_whatever_the_order_and_the_batches(top_k: int) -> None:
    random = np.random.default_rng(0)
    score_IJ = random.integers(-4, 5, (12, 40)).astype(np.float32)  # many ties
    row, column = (axis.ravel() for axis in np.indices(score_IJ.shape))
    best = BestColumns(12, 40, top_k)
    for batch in np.array_split(random.permutation(len(row)), 7):
        best.add(row[batch], column[batch], score_IJ.ravel()[batch])
    expected = np.argsort(-score_IJ, axis=1, kind="stable")[:, :top_k]
    index, score = best.lists()
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(score, np.take_along_axis(score_IJ, expected, axis=1))


def test_sums_count_what_was_given_and_nothing_else() -> None:
    sums = GivenSums(np.array([0, 1, 0]), 2, 3)
    sums.add(*pairs((0, 0, 0.5), (2, 0, -2.0), (1, 2, 3.0)))
    sums.add(*pairs((2, 2, 1.0)))
    assert sums.sum_GJ.tolist() == [[-1.5 * SCALE, 0, SCALE], [0, 0, 3 * SCALE]]
    assert sums.num_GJ.tolist() == [[2, 0, 1], [0, 0, 1]]


def test_totals_of_batches_merge_to_that_of_all_scores() -> None:
    total = ScoreTotal()
    for part in ([0.5, -2.0], [], [4.0]):
        total = total.merge(ScoreTotal.of(np.array(part, np.float32)))
    assert total == ScoreTotal(3, -2.0, 4.0, 2.5, 20.25)


def test_pairs_that_are_none_are_refused() -> None:
    best = BestColumns(2, 3, 1)
    with pytest.raises(ShapeError, match="2 rows, 1 columns"):
        best.add(np.array([0, 1]), np.array([0]), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"columns 0..3 named, there are 3"):
        best.add(*pairs((0, 0, 1.0), (1, 3, 1.0)))
    with pytest.raises(ValueError, match="row 1, column 2 is not finite"):
        best.add(*pairs((0, 0, 1.0), (1, 2, np.nan)))
