"""Overlap beside chance, and what a subset is worth to another's teacher."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.evaluate.statistics import compare_values, measure_overlap
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import lazy_greedy, random_ranking
from nncift_ray.selection.objectives import facility_location, top_scores
from nncift_ray.selection.problem import DenseScores

EXACT = 1e-6  # float32 scores


def test_overlap_by_hand() -> None:
    # Of the C(10, 3) = 120 subsets of 3, those with 2 or 3 of {1, 2, 3, 4}: 6 x 6 + 4 = 40.
    found = measure_overlap(np.array([1, 4, 9]), np.array([1, 2, 3, 4]), 10)
    assert found.shared == 2
    assert found.fraction == pytest.approx(2 / 3)
    assert found.chance_fraction == pytest.approx(0.4)
    assert found.p_value == pytest.approx(40 / 120)


def test_chance_overlap_is_what_random_subsets_share() -> None:
    rng = np.random.default_rng(0)
    teacher = np.arange(30)
    drawn = [rng.choice(100, 20, replace=False) for _ in range(2_000)]
    shared = [measure_overlap(subset, teacher, 100) for subset in drawn]
    assert np.mean([each.fraction for each in shared]) == pytest.approx(0.3, abs=0.01)
    assert np.mean([each.p_value <= 0.05 for each in shared]) <= 0.06


def test_values_by_hand() -> None:
    # Row maxima of the picks: {0, 1}: 1 + .5 + .2; {2, 0}: 1 + .1 + .9; {1, 2}: .3 + .5 + .9.
    scores = DenseScores(np.array([[1, 0.3, 0], [0.1, 0.5, 0], [0, 0.2, 0.9]], np.float32))
    objective = facility_location(scores)
    found = compare_values(
        objective, np.array([0, 1]), np.array([2, 0]), [np.array([1, 2]), np.array([0, 1])]
    )
    assert found.method == pytest.approx(1.7, abs=EXACT)
    assert found.teacher == pytest.approx(2.0, abs=EXACT)
    assert found.random == pytest.approx(1.7, abs=EXACT)
    assert found.gain_fraction == pytest.approx(0.0, abs=1e-4)
    assert compare_values(objective, np.array([0]), np.array([2, 0])).random is None


def test_gain_is_a_share_of_the_teacher_s() -> None:
    objective = top_scores(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    found = compare_values(objective, np.array([3]), np.array([4]), [np.array([1])])
    assert found.gain_fraction == pytest.approx((3 - 1) / (4 - 1))
    worst = compare_values(objective, np.array([3]), np.array([0]), [np.array([1])])
    assert worst.gain_fraction is None  # the teacher gains nothing to have a share of


def test_the_teacher_s_subset_is_worth_more_than_random_ones() -> None:
    rng = np.random.default_rng(1)
    objective = facility_location(DenseScores(rng.random((60, 60), np.float32)))
    teacher = lazy_greedy(objective, Budget(6)).order
    drawn = [random_ranking(objective, Budget(6), seed=seed).order for seed in range(5)]
    found = compare_values(objective, drawn[0], teacher, drawn)
    assert found.random is not None
    assert found.teacher > found.random
    own = compare_values(objective, teacher[::-1], teacher, drawn)
    assert own.gain_fraction == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("members", "message"), [([], "without"), ([1, 1], "twice"), ([3], "3..3"), ([-1], "-1")]
)
def test_what_is_no_subset_is_refused(members: list[int], message: str) -> None:
    bad, good = np.array(members, np.int64), np.array([0])
    objective = top_scores(np.zeros(3))
    with pytest.raises(ValueError, match=message):
        measure_overlap(good, bad, 3)
    with pytest.raises(ValueError, match=message):
        compare_values(objective, bad, good)
