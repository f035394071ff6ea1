"""The label sample where labels are the scores: everything, or whole rows."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.labels.sample import (
    SampleDesign,
    design_of_scores,
    draw_block,
    draw_points,
)

KEPT = {"validation_fraction": 0.1, "seed": 5}
COMPLETE = SampleDesign(1.0, None, 0, 0.1, 5)


@pytest.mark.parametrize(("rows", "same"), [(7, False), (30, True)])
def test_labels_that_are_enough_are_those_of_a_fraction_of_one(rows: int, same: bool) -> None:
    most = rows * (30 - same)
    assert design_of_scores(rows, 30 - same, most, **KEPT) == COMPLETE
    sample = draw_block(rows, 30, same, COMPLETE)
    assert len({*zip(sample.helped.tolist(), sample.helper.tolist(), strict=True)}) == most
    assert set(sample.split.tolist()) <= {"train", "validation"}


@pytest.mark.parametrize(("rows", "same"), [(40, False), (30, True)])
@pytest.mark.parametrize("num_labelled", [1, 2, 9])
def test_fewer_labels_are_whole_rows(rows: int, same: bool, num_labelled: int) -> None:
    row_pairs = 30 - same
    most = num_labelled * row_pairs + row_pairs - 1
    sample = draw_block(rows, 30, same, design_of_scores(rows, 30 - same, most, **KEPT))
    helped, counts = np.unique(sample.helped, return_counts=True)
    assert len(helped) == num_labelled
    assert set(counts.tolist()) == {row_pairs}
    assert set(sample.split.tolist()) <= {"train", "validation"}
    assert set(np.unique(sample.helper).tolist()) >= set(range(30)) - set(helped.tolist())


@pytest.mark.parametrize("same", [False, True])
def test_rows_of_a_smaller_bound_are_among_those_of_a_larger(same: bool) -> None:
    few, more = (
        set(draw_block(50, 50, same, design_of_scores(50, 50 - same, most, **KEPT)).helped.tolist())
        for most in (200, 600)
    )
    assert few < more


def test_requests_that_share_a_helper_are_neighbours() -> None:
    helper = draw_block(50, 30, False, design_of_scores(50, 30, 300, **KEPT)).helper
    assert helper is not None
    assert helper.tolist() == sorted(helper.tolist())


def test_a_bound_below_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="one row is 29 pairs, more than 28"):
        design_of_scores(30, 29, 28, **KEPT)


def test_every_point_is_rated_or_none() -> None:
    assert design_of_scores(12, None, 12, **KEPT) == COMPLETE
    assert draw_points(12, COMPLETE).helped.tolist() == list(range(12))
    with pytest.raises(ValueError, match="12 examples are to be rated, more than 11"):
        design_of_scores(12, None, 11, **KEPT)
