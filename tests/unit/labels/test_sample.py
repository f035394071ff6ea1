from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nncift_ray.labels.sample import (
    QUADRANTS,
    SPLITS,
    PairSample,
    SampleDesign,
    choose_evenly,
    design_of_scores,
    draw_block,
    draw_points,
)

TOTAL_TOLERANCE = 0.02  # share of label_pairs that may stay unused


def pairs_of(sample: PairSample, *splits: str) -> list[tuple[int, int]]:
    kept = np.isin(sample.split, splits)
    return list(zip(sample.helped[kept].tolist(), sample.helper[kept].tolist(), strict=True))


def block_of(sample: PairSample) -> list[tuple[int, int]]:
    return pairs_of(sample, "train", "validation", "Q1")


@pytest.mark.parametrize("label_pairs", [40, 1000, 3999])
@pytest.mark.parametrize(("rows", "columns", "same"), [(500, 5000, False), (800, 800, True)])
def test_label_pairs_is_met_and_never_exceeded(
    rows: int, columns: int, same: bool, label_pairs: int | None
) -> None:
    sample = draw_block(rows, columns, same, SampleDesign(label_pairs=label_pairs))
    assert (1 - TOTAL_TOLERANCE) * label_pairs <= len(sample) <= label_pairs
    assert len(set(pairs_of(sample, *SPLITS))) == len(sample)


def test_label_fraction_is_that_share_of_each_axis() -> None:
    sample = draw_block(400, 2000, False, SampleDesign(label_fraction=0.05))
    block = block_of(sample)
    assert len({i for i, _ in block}) == 20
    assert len({j for _, j in block}) == 100
    assert len(block) == 20 * 100


@pytest.mark.parametrize("same", [False, True])
def test_quadrants_hold_what_their_names_say(same: bool) -> None:
    sample = draw_block(600, 600, same, SampleDesign(label_pairs=2000))
    block = block_of(sample)
    rows, columns = {i for i, _ in block}, {j for _, j in block}
    if same:  # an example seen on either axis is seen
        rows = columns = rows | columns
    seen = {name: [(i in rows, j in columns) for i, j in pairs_of(sample, name)]
            for name in QUADRANTS}  # fmt: skip
    assert set(seen["Q1"]) == {(True, True)}
    assert set(seen["Q2"]) == {(False, True)}  # the paper's names
    assert set(seen["Q3"]) == {(True, False)}
    assert set(seen["Q4"]) == {(False, False)}
    assert all(len(pairs) == pytest.approx(200, abs=1) for pairs in seen.values())


def test_held_out_helpers_are_few() -> None:
    sample = draw_block(2000, 2000, True, SampleDesign(label_pairs=4000))
    new_helpers = {j for _, j in pairs_of(sample, "Q3", "Q4")}
    assert len(new_helpers) <= 15  # the square root of 200 pairs
    assert len({j for _, j in pairs_of(sample, "Q2")}) <= 15


@pytest.mark.parametrize(("rows", "same"), [(5000, True), (500, False)])
def test_rows_of_every_quadrant_have_several_pairs_to_rank(rows: int, same: bool) -> None:
    sample = draw_block(rows, 5000, same, SampleDesign(label_pairs=8000))
    for name in QUADRANTS:
        _, counts = np.unique(sample.helped[sample.split == name], return_counts=True)
        assert counts[counts >= 4].sum() >= 0.8 * counts.sum()


@pytest.mark.parametrize("same", [False, True])
def test_rows_that_measure_q1_keep_half_of_their_pairs_in_training(same: bool) -> None:
    sample = draw_block(1000, 1000, same, SampleDesign(label_pairs=1500))
    trained = np.bincount(sample.helped[sample.split == "train"], minlength=1000)
    held_out = np.bincount(sample.helped[sample.split == "Q1"], minlength=1000)
    assert (trained >= held_out).all()


def test_validation_pairs_are_of_all_rows_and_not_of_those_that_measure() -> None:
    sample = draw_block(5000, 5000, False, SampleDesign(label_pairs=8000))
    validated, measured = (set(sample.helped[sample.split == n]) for n in ("validation", "Q1"))
    assert len(validated - measured) > len(validated & measured)


def test_sample_is_drawn_and_not_the_first_rows() -> None:
    """Published error 6: the first 5 % of the rows as sample."""
    sample = draw_block(1000, 1000, True, SampleDesign(label_fraction=0.05))
    rows = {i for i, _ in block_of(sample)}
    assert rows != set(range(len(rows)))
    assert max(rows) > 800
    assert min(rows) < 200


def test_same_seed_draws_the_same_pairs_and_another_seed_others() -> None:
    one, same, other = (
        draw_block(90, 90, True, SampleDesign(label_pairs=300, seed=s)) for s in (1, 1, 2)
    )
    assert pairs_of(one, *SPLITS) == pairs_of(same, *SPLITS)
    assert one.split.tolist() == same.split.tolist()
    assert pairs_of(one, *SPLITS) != pairs_of(other, *SPLITS)


def test_draw_of_a_seed_is_frozen() -> None:
    sample = draw_block(6, 8, False, SampleDesign(label_pairs=9, seed=3))
    assert list(zip(sample.helped.tolist(), sample.helper.tolist(), sample.split.tolist(),
                    strict=True)) == FROZEN  # fmt: skip


def test_within_leaves_self_pairs_out() -> None:
    sample = draw_block(40, 40, True, SampleDesign(label_pairs=900))
    assert (sample.helped != sample.helper).all()


def test_within_keeps_mirrored_pairs_in_one_split() -> None:
    sample = draw_block(300, 300, True, SampleDesign(label_pairs=1500))
    split_of = dict(zip(block_of(sample), sample.split[np.isin(sample.split, SPLITS[:3])],
                        strict=True))  # fmt: skip
    mirrored = [(pair, pair[::-1]) for pair in split_of if pair[::-1] in split_of]
    assert len(mirrored) > 100
    assert all(split_of[pair] == split_of[mirror] for pair, mirror in mirrored)


def test_within_and_cross_ask_about_the_same_helpers() -> None:
    design = SampleDesign(label_pairs=400)
    within = {j for _, j in block_of(draw_block(1000, 1000, True, design))}
    cross = {j for _, j in block_of(draw_block(50, 1000, False, design))}
    assert within <= cross or cross <= within


def test_pairs_that_share_a_helper_are_neighbours() -> None:
    sample = draw_block(50, 70, False, SampleDesign(label_pairs=500))
    order = np.lexsort((sample.helped, sample.helper))
    assert (order == np.arange(len(sample))).all()


def test_validation_fraction_is_that_share_of_the_pairs_to_learn_from() -> None:
    sample = draw_block(500, 500, False, SampleDesign(label_pairs=2000, validation_fraction=0.25))
    learnt = len(pairs_of(sample, "train", "validation"))
    assert len(pairs_of(sample, "validation")) == round(0.25 * learnt)


@pytest.mark.parametrize("label_pairs", [None, 1, 2, 7, 100, 5000])
@pytest.mark.parametrize(
    ("rows", "columns", "same"),
    [(1, 1, False), (1, 2, False), (2, 1, False), (1, 500, False), (3, 9, False), (2, 2, True),
     (3, 3, True), (30, 30, True), (400, 5, False)],
)  # fmt: skip
def test_tiny_tables_have_a_sample_with_something_to_learn_from(
    rows: int, columns: int, same: bool, label_pairs: int | None
) -> None:
    sample = draw_block(rows, columns, same, SampleDesign(label_pairs=label_pairs))
    possible = rows * columns - (rows if same else 0)
    assert len(pairs_of(sample, "train")) >= 1
    assert len(set(pairs_of(sample, *SPLITS))) == len(sample) <= possible
    if label_pairs is not None:
        assert (1 - TOTAL_TOLERANCE) * min(label_pairs, possible) <= len(sample) <= label_pairs


@pytest.mark.parametrize(
    ("rows", "columns", "same"), [(1, 1, True), (0, 0, True), (0, 5, False), (5, 0, False)]
)
def test_tables_without_a_pair_are_refused_in_a_sentence(
    rows: int, columns: int, same: bool
) -> None:
    with pytest.raises(ValueError, match="no pair to label"):
        draw_block(rows, columns, same, SampleDesign())


@pytest.mark.parametrize(
    "design",
    [{"label_fraction": 0.0}, {"label_fraction": 5}, {"label_pairs": 0}, {"label_fraction": None},
     {"validation_fraction": 1.0}, {"holdout_pairs_per_quadrant": -1}],
)  # fmt: skip
def test_designs_out_of_range_are_refused(design: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="label_|holdout_"):
        SampleDesign(**design)


FROZEN = [
    (0, 1, "train"),
    (4, 1, "validation"),
    (0, 2, "train"),
    (4, 2, "Q1"),
    (5, 2, "Q2"),
    (0, 3, "Q3"),
    (5, 3, "Q4"),
    (0, 4, "train"),
    (4, 4, "train"),
]


def counts_of(sample: PairSample) -> dict[str, int]:
    names, counts = np.unique(sample.split, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("design", "counts"),
    [
        (SampleDesign(0.05, None, 40), {"train": 144, "validation": 16, "Q4": 40}),
        (SampleDesign(None, 100, 20), {"train": 72, "validation": 8, "Q4": 20}),
        (SampleDesign(None, 10, 200), {"train": 4, "validation": 1, "Q4": 5}),
        (SampleDesign(None, 1, 9, 0.9), {"train": 1}),
        (SampleDesign(1.0, None, 0, 0.0), {"train": 4000}),
    ],
)
def test_points_are_split_as_designed(design: SampleDesign, counts: dict[str, int]) -> None:
    sample = draw_points(4000, design)
    assert counts_of(sample) == counts
    assert sample.helper is None
    assert (np.diff(sample.helped) > 0).all()
    assert 0 <= sample.helped[0] <= sample.helped[-1] < 4000


def test_points_follow_the_seed_and_are_no_prefix_of_the_rows() -> None:
    one, same, other = (
        draw_points(1000, SampleDesign(label_pairs=50, seed=seed)) for seed in (1, 1, 2)
    )
    assert one.helped.tolist() == same.helped.tolist() != other.helped.tolist()
    assert one.split.tolist() == same.split.tolist()
    assert one.helped[-1] > 500


def test_more_points_than_examples_label_all_of_them() -> None:
    assert draw_points(7, SampleDesign(label_pairs=100)).helped.tolist() == list(range(7))


def test_no_example_makes_no_point() -> None:
    with pytest.raises(ValueError, match="no example to label"):
        draw_points(0, SampleDesign())


def test_even_choice_takes_from_every_row_in_turn() -> None:
    rows = np.repeat([3, 8, 5], [10, 4, 7])
    chosen = choose_evenly(rows, 13, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 13
    assert sorted(np.unique(rows[chosen], return_counts=True)[1].tolist()) == [4, 4, 5]


@pytest.mark.parametrize(
    ("rows", "columns", "same"), [(600, 3000, False), (3000, 300, False), (1500, 1500, True)]
)
def test_q4_is_the_same_whatever_the_budget(rows: int, columns: int, same: bool) -> None:
    small, large = (
        draw_block(rows, columns, same, SampleDesign(None, pairs, 60)) for pairs in (1000, 3000)
    )
    assert len(pairs_of(small, "Q4")) == 60
    assert pairs_of(small, "Q4") == pairs_of(large, "Q4")


# Where labels are the scores: everything, or whole rows.

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
