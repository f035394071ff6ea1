"""Groups of the label sample."""

from __future__ import annotations

import numpy as np

from nncift_ray.core.sampling import PairSample, SampleDesign, draw_block
from nncift_ray.stages.sample import MAX_GROUP_PAIRS, group_pairs, sampled_rows


def draw(num_rows: int, num_columns: int) -> PairSample:
    return draw_block(num_rows, num_columns, False, SampleDesign(label_pairs=90, seed=1))


def test_every_group_has_one_helper_and_one_block() -> None:
    samples = {"within": draw(50, 50), "cross": draw(30, 50)}
    rows = group_pairs(samples, needs_baseline=True).to_pylist()
    groups = {row["group"]: (row["block"], row["helper_index"]) for row in rows}
    assert all(groups[row["group"]] == (row["block"], row["helper_index"]) for row in rows)
    assert [row["group"] for row in rows] == sorted(row["group"] for row in rows)


def test_baselines_are_asked_once_for_every_helped_example() -> None:
    sample = draw(50, 50)
    rows = group_pairs({"within": sample}, needs_baseline=True).to_pylist()
    alone = [row["helped_index"] for row in rows if row["helper_index"] is None]
    assert alone == sorted(set(sample.helped.tolist()))


def test_no_pair_is_lost_or_repeated() -> None:
    sample = draw(50, 50)
    rows = group_pairs({"cross": sample}, needs_baseline=False).to_pylist()
    asked = [(row["helped_index"], row["helper_index"], row["split"]) for row in rows]
    drawn = zip(sample.helped.tolist(), sample.helper.tolist(), sample.split.tolist(), strict=True)
    assert sorted(asked) == sorted(drawn)


def test_a_long_run_of_one_helper_is_cut() -> None:
    count = 2 * MAX_GROUP_PAIRS + 1
    sample = PairSample(np.arange(count), np.zeros(count, np.int64), np.array(["train"] * count))
    groups = group_pairs({"cross": sample}, needs_baseline=False)["group"].to_numpy()
    assert np.bincount(groups).tolist() == [MAX_GROUP_PAIRS, MAX_GROUP_PAIRS, 1]


def test_sampled_rows_are_told_apart_by_role() -> None:
    sample = draw(30, 50)
    rows = sampled_rows({"cross": sample})
    assert rows["target"].tolist() == np.unique(sample.helped).tolist()
    assert rows["candidate"].tolist() == np.unique(sample.helper).tolist()
