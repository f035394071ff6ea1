from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import lazy_greedy
from nncift_ray.selection.objectives import (
    coverage,
    facility_location,
    facility_location_mutual_information,
    facility_location_query_mutual_information,
    top_scores,
)
from nncift_ray.selection.problem import InfluenceScale, SparseScores
from tests.oracles import naive_greedy
from tests.unit.selection.instances import listed

VALUE_TOLERANCE = 1e-5  # float32 scores summed in float64


def make_dense(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, columns)).astype(np.float32)


def test_candidates_of_no_use_to_any_target_are_not_worth_covering() -> None:
    s = np.eye(3, dtype=np.float32)
    objective = facility_location_mutual_information(listed(s), np.array([0, 1, 0.5], np.float32))
    ranking = lazy_greedy(objective, Budget(max_count=3))
    assert ranking.order.tolist() == [1, 2, 0]
    assert ranking.gain.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("raw", [2.0, -1.0, np.nan])
def test_scores_outside_the_scale_are_refused(raw: float) -> None:
    with pytest.raises(ValueError, match="outside the scale"):
        InfluenceScale(-0.5, 1.5).apply(np.array([raw], np.float32))


def test_a_scale_without_width_maps_all_to_zero() -> None:
    assert InfluenceScale(0.3, 0.3).apply(np.full(3, 0.3, np.float32)).tolist() == [0, 0, 0]


def test_a_scale_keeps_the_order_and_the_bounds_of_raw_scores() -> None:
    raw = np.sort(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    scaled = InfluenceScale(float(raw[0]), float(raw[-1])).apply(raw)
    assert scaled[0] == 0
    assert scaled[-1] == 1
    assert (np.diff(scaled) >= 0).all()


def test_lists_of_another_table_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 3"):
        SparseScores(np.array([0, 1]), np.array([3], np.int32), np.ones(1, np.float32), 3)


def test_mutual_information_refuses_lists_of_targets() -> None:
    with pytest.raises(ShapeError, match="candidates x candidates"):
        facility_location_mutual_information(listed(make_dense(4, 5)), np.zeros(5, np.float32))


def test_column_maxima_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="one a candidate"):
        facility_location_query_mutual_information(
            listed(make_dense(4, 5)), np.zeros(4, np.float32)
        )


def test_coverage_names_the_best_pick_of_each_row() -> None:
    s = np.array([[0.2, 0.9, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.7], [0.8, 0.1, 0.0]], np.float32)
    best, value = coverage(facility_location(listed(s)), np.array([1, 0]))
    assert best.tolist() == [1, 1, -1, 0]  # the tie of row 1 goes to the earlier pick
    np.testing.assert_array_equal(value, np.array([0.9, 0.5, 0.0, 0.8], np.float32))


def test_coverage_of_facility_location_sums_to_its_value() -> None:
    objective = facility_location(listed(make_dense(30, 30)))
    ranking = lazy_greedy(objective, Budget(max_count=5))
    best, value = coverage(objective, ranking.order)
    assert value.sum(dtype=np.float64) == pytest.approx(ranking.objective[-1])
    assert set(best.tolist()) <= set(ranking.order.tolist())


def test_top_scores_are_picked_by_a_sort_with_negative_ones_last() -> None:
    score = np.array([0.5, -2.0, 3.0, -0.5, 3.0])
    by_id = np.array([0, 1, 4, 3, 2])  # the second 3.0 has the smaller id
    for optimise in (lazy_greedy, naive_greedy):
        ranking = optimise(top_scores(score), Budget(max_count=5), tie_rank=by_id)
        assert ranking.order.tolist() == [4, 2, 0, 3, 1]
        assert ranking.gain.tolist() == [3.0, 3.0, 0.5, -0.5, -2.0]


def test_top_scores_cover_no_row() -> None:
    best, value = coverage(top_scores(np.arange(4.0)), np.array([3, 2]))
    assert best.shape == value.shape == (0,)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="candidate 1 is not finite"):
        top_scores(np.array([1.0, np.nan]))


def test_means_are_scaled_as_the_mean_of_the_scaled() -> None:
    scale, raw = InfluenceScale(-0.5, 1.5), np.array([-0.5, 0.25, 1.5], np.float32)
    mean = np.array([raw.astype(np.float64).mean()])
    expected = scale.apply(raw).mean()
    np.testing.assert_allclose(scale.apply_to_means(mean), expected, rtol=VALUE_TOLERANCE)
    assert InfluenceScale(0.3, 0.3).apply_to_means(mean).tolist() == [0.0]
