"""Smaller label samples inside a larger one."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.labels.sample import (
    QUADRANTS,
    PairSample,
    SampleDesign,
    draw_block,
    draw_points,
)
from nncift_ray.sweep import keep_share

SHARES = (0.1, 0.3, 0.5, 1.0)
LEARNT = ("train", "validation")


def draw(same: bool) -> PairSample:
    return draw_block(900, 900, same, SampleDesign(None, 3000, 100))


def keep(sample: PairSample, share: float, same: bool) -> np.ndarray:
    return keep_share(sample.helped, sample.helper, sample.split, share, same_examples=same, seed=0)


@pytest.mark.parametrize("same", [False, True])
def test_smaller_shares_lie_inside_larger_ones(same: bool) -> None:
    sample = draw(same)
    kept = [keep(sample, share, same) for share in SHARES]
    assert all((small <= large).all() for small, large in zip(kept, kept[1:], strict=False))
    assert kept[-1].all()


@pytest.mark.parametrize("same", [False, True])
def test_share_is_of_rows_and_of_columns(same: bool) -> None:
    sample = draw(same)
    learnt = np.isin(sample.split, (*LEARNT, "Q1"))
    kept = learnt & keep(sample, 0.5, same)
    for axis in (sample.helped, sample.helper):
        assert len(np.unique(axis[kept])) == round(0.5 * len(np.unique(axis[learnt])))
    assert kept.sum() == pytest.approx(0.25 * learnt.sum(), rel=0.05)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_held_out_pairs_still_mean_what_their_quadrant_says(share: float, same: bool) -> None:
    sample = draw(same)
    kept = keep(sample, share, same)
    learnt = kept & np.isin(sample.split, LEARNT)
    rows, columns = set(sample.helped[learnt].tolist()), set(sample.helper[learnt].tolist())
    for name, row_seen, column_seen in (
        ("Q1", True, True), ("Q2", False, True), ("Q3", True, False), ("Q4", False, False),
    ):  # fmt: skip
        of = kept & (sample.split == name)
        if not of.any():
            assert share < 0.2  # of a few rows and columns, a quadrant may hold nothing
            continue
        assert {i in rows for i in sample.helped[of].tolist()} == {row_seen}
        assert {j in columns for j in sample.helper[of].tolist()} == {column_seen}


def test_q4_is_the_same_for_every_share() -> None:
    sample = draw(True)
    assert all(keep(sample, share, True)[sample.split == "Q4"].all() for share in SHARES)


def test_small_share_is_measured_in_all_quadrants() -> None:
    sample = draw(False)
    kept = keep(sample, 0.3, False)
    counts = [int((kept & (sample.split == name)).sum()) for name in QUADRANTS]
    assert min(counts) >= 8


def test_points_keep_a_share_of_the_examples_and_all_that_measure() -> None:
    sample = draw_points(1000, SampleDesign(None, 200, 40))
    kept = keep_share(sample.helped, None, sample.split, 0.5, same_examples=False, seed=0)
    assert kept[sample.split == "Q4"].all()
    assert kept[sample.split != "Q4"].sum() == 80


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_share_out_of_range_is_refused(share: float) -> None:
    sample = draw(False)
    with pytest.raises(ValueError, match="share must be in"):
        keep(sample, share, False)
