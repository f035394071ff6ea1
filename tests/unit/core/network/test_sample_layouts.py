"""Layouts of the label sample: what each promises, and what all of them keep."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from nncift_ray.labels.sample import (
    LAYOUTS,
    QUADRANTS,
    SPLITS,
    WHOLE_ROWS,
    PairSample,
    SampleDesign,
    choose_evenly,
    draw_block,
)
from nncift_ray.recipe.sections import LabelsConfig

TOTAL_TOLERANCE = 0.02  # share of label_pairs that may stay unused
BUDGET = 2000
TABLES = [(600, 3000, False), (3000, 300, False), (1500, 1500, True)]
SPARSE_ASPECT_TOLERANCE = 1.3

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_table = pytest.mark.parametrize(("rows", "columns", "same"), TABLES)


def draw(
    rows: int, columns: int, same: bool, layout: str, pairs: int = BUDGET, seed: int = 0
) -> PairSample:
    holdout = pairs // 20
    design = SampleDesign(None, pairs, holdout, seed=seed, layout=layout)
    return draw_block(rows, columns, same, design)


def pairs_of(sample: PairSample, *splits: str) -> list[tuple[int, int]]:
    kept = np.isin(sample.split, splits)
    return list(zip(sample.helped[kept].tolist(), sample.helper[kept].tolist(), strict=True))


def seen_of(sample: PairSample) -> tuple[set[int], set[int]]:
    learnt = pairs_of(sample, "train", "validation")
    return {i for i, _ in learnt}, {j for _, j in learnt}


@every_layout
@every_table
@pytest.mark.parametrize("pairs", [50, 999, 4000])
def test_budget_is_met_with_distinct_pairs(
    rows: int, columns: int, same: bool, layout: str, pairs: int
) -> None:
    sample = draw(rows, columns, same, layout, pairs)
    assert (1 - TOTAL_TOLERANCE) * pairs <= len(sample) <= pairs
    assert len(set(pairs_of(sample, *SPLITS))) == len(sample)
    assert not same or (sample.helped != sample.helper).all()


@every_layout
@every_table
def test_quadrants_hold_what_their_names_say(
    rows: int, columns: int, same: bool, layout: str
) -> None:
    sample = draw(rows, columns, same, layout)
    seen_rows, seen_columns = seen_of(sample)
    for name, row_seen, column_seen in (
        ("Q1", True, True), ("Q2", True, False), ("Q3", False, True), ("Q4", False, False),
    ):  # fmt: skip
        pairs = pairs_of(sample, name)
        assert all((i in seen_rows) == row_seen for i, _ in pairs)
        assert all((j in seen_columns) == column_seen for _, j in pairs)


@every_table
def test_q4_is_the_same_whatever_the_layout_and_the_budget(
    rows: int, columns: int, same: bool
) -> None:
    designs = [SampleDesign(None, pairs, 60, layout=name)
               for name in LAYOUTS for pairs in (1000, 3000)]  # fmt: skip
    held_out = [pairs_of(draw_block(rows, columns, same, design), "Q4") for design in designs]
    assert len(held_out[0]) == 60
    assert all(pairs == held_out[0] for pairs in held_out)


@pytest.mark.parametrize("layout", ["rows", "helpers", "balanced"])
def test_layouts_have_their_shape(layout: str) -> None:
    sample = draw(4000, 4000, False, layout)
    seen_rows, seen_columns = seen_of(sample)
    pairs = len(pairs_of(sample, "train", "validation", "Q1"))
    aspect, fill = len(seen_rows) / len(seen_columns), pairs / len(seen_rows) / len(seen_columns)
    wanted = LAYOUTS[layout]
    assert 1 / SPARSE_ASPECT_TOLERANCE < aspect / wanted.aspect < SPARSE_ASPECT_TOLERANCE
    assert fill == pytest.approx(wanted.fill, rel=0.05)


@pytest.mark.parametrize("same", [False, True])
def test_balanced_rows_meet_equally_many_helpers_and_helpers_about_as_many_rows(same: bool) -> None:
    sample = draw(2000, 2000, same, "balanced")
    block = np.isin(sample.split, ["train", "validation", "Q1"])
    for axis, tolerance in ((sample.helped, 2), (sample.helper, 3)):
        _, counts = np.unique(axis[block], return_counts=True)
        assert np.ptp(counts) <= tolerance


def test_uniform_pairs_touch_nearly_as_many_examples_as_there_are_pairs() -> None:
    sample = draw(50_000, 80_000, False, "uniform")
    seen_rows, seen_columns = seen_of(sample)
    learnt = len(pairs_of(sample, "train", "validation"))
    assert len(seen_rows) > 0.97 * learnt
    assert len(seen_columns) > 0.97 * learnt


def test_uniform_pairs_hold_no_row_out_of_training_that_q1_names() -> None:
    sample = draw(300, 5000, False, "uniform")
    trained = set(sample.helped[np.isin(sample.split, ["train", "validation"])].tolist())
    assert set(sample.helped[sample.split == "Q1"].tolist()) <= trained


@every_layout
def test_mirrored_pairs_share_a_split(layout: str) -> None:
    sample = draw(200, 200, True, layout, 3000)
    block = ("train", "validation", "Q1")
    names = sample.split[np.isin(sample.split, block)]
    split_of = dict(zip(pairs_of(sample, *block), names.tolist(), strict=True))
    mirrored = [(i, j) for i, j in split_of if (j, i) in split_of]
    assert mirrored
    assert all(split_of[i, j] == split_of[j, i] for i, j in mirrored)


@every_layout
def test_draw_follows_the_seed(layout: str) -> None:
    one, same, other = (draw(500, 700, False, layout, seed=seed) for seed in (4, 4, 5))
    assert pairs_of(one, *SPLITS) == pairs_of(same, *SPLITS)
    assert one.split.tolist() == same.split.tolist()
    assert pairs_of(one, *SPLITS) != pairs_of(other, *SPLITS)


@pytest.mark.parametrize("layout", ["paper", "rows", "helpers", "balanced"])
def test_within_and_cross_ask_about_the_same_helpers(layout: str) -> None:
    within = seen_of(draw(2000, 2000, True, layout))[1]
    cross = seen_of(draw(900, 2000, False, layout))[1]
    assert within <= cross or cross <= within


@every_layout
@pytest.mark.parametrize("pairs", [None, 1, 7, 100, 5000])
@pytest.mark.parametrize(
    ("rows", "columns", "same"),
    [(1, 1, False), (2, 1, False), (1, 500, False), (3, 9, False), (2, 2, True), (30, 30, True),
     (400, 5, False)],
)  # fmt: skip
def test_tiny_tables_have_something_to_learn_from(
    rows: int, columns: int, same: bool, layout: str, pairs: int | None
) -> None:
    sample = draw_block(rows, columns, same, SampleDesign(label_pairs=pairs, layout=layout))
    possible = rows * columns - (rows if same else 0)
    assert len(pairs_of(sample, "train")) >= 1
    assert len(set(pairs_of(sample, *SPLITS))) == len(sample) <= possible
    if pairs is not None:
        assert (1 - TOTAL_TOLERANCE) * min(pairs, possible) <= len(sample) <= pairs


@every_layout
def test_fraction_labels_as_many_pairs_as_the_square_block_would(layout: str) -> None:
    sample = draw_block(800, 3000, False, SampleDesign(0.05, layout=layout))
    assert len(pairs_of(sample, "train", "validation", "Q1")) == 40 * 150
    assert len(pairs_of(sample, "Q4")) == 200


@pytest.mark.parametrize("layout", ["paper", "rows", "helpers", "balanced"])
def test_held_out_rows_have_several_pairs_to_rank(layout: str) -> None:
    sample = draw(4000, 4000, False, layout, 8000)
    for name in QUADRANTS:
        _, counts = np.unique(sample.helped[sample.split == name], return_counts=True)
        assert counts[counts >= 4].sum() >= 0.8 * counts.sum()


def test_even_choice_takes_from_every_row_in_turn() -> None:
    rows = np.repeat([3, 8, 5], [10, 4, 7])
    chosen = choose_evenly(rows, 13, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 13
    assert sorted(np.unique(rows[chosen], return_counts=True)[1].tolist()) == [4, 4, 5]


def test_recipes_know_every_layout_but_that_of_teacher_scores() -> None:
    named = get_args(LabelsConfig.model_fields["design"].annotation)
    assert (*named, WHOLE_ROWS) == tuple(LAYOUTS)
