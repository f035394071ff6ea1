"""Groups of the label sample."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.labels.sample import PairSample, SampleDesign, draw_block, draw_points
from nncift_ray.labels.step import group_requests

GROUP_PAIRS = 16


def draw(num_rows: int, num_columns: int) -> PairSample:
    return draw_block(num_rows, num_columns, False, SampleDesign(label_pairs=90, seed=1))


def sample_of(*runs: int) -> PairSample:
    """Make pairs whose helper j has ``runs[j]`` of them."""
    helper = np.repeat(np.arange(len(runs)), runs)
    return PairSample(np.arange(len(helper)), helper, np.full(len(helper), "train"))


def helpers_by_group(requests: pa.Table) -> list[list[int]]:
    rows = requests.to_pylist()
    groups = itertools.groupby(rows, key=lambda row: row["group"])
    return [[row["helper_index"] for row in group] for _, group in groups]


def test_every_group_is_of_one_block_and_no_larger_than_asked() -> None:
    samples = {"within": draw(50, 50), "cross": draw(30, 50)}
    rows = group_requests(samples, GROUP_PAIRS, needs_baseline=True).to_pylist()
    groups = [row["group"] for row in rows]
    assert groups == sorted(groups)
    assert sorted(set(groups)) == list(range(max(groups) + 1))
    assert max(np.bincount(groups)) <= GROUP_PAIRS
    kinds = {row["group"]: (row["block"], row["split"] is None) for row in rows}
    assert all(kinds[row["group"]] == (row["block"], row["split"] is None) for row in rows)


def test_baselines_are_asked_once_for_every_helped_example() -> None:
    sample = draw(50, 50)
    rows = group_requests({"within": sample}, GROUP_PAIRS, needs_baseline=True).to_pylist()
    alone = [row["helped_index"] for row in rows if row["helper_index"] is None]
    assert alone == sorted(set(sample.helped.tolist()))


def test_no_pair_is_lost_or_repeated() -> None:
    sample = draw(50, 50)
    rows = group_requests({"cross": sample}, GROUP_PAIRS, needs_baseline=False).to_pylist()
    asked = [(row["helped_index"], row["helper_index"], row["split"]) for row in rows]
    drawn = zip(sample.helped.tolist(), sample.helper.tolist(), sample.split.tolist(), strict=True)
    assert sorted(asked) == sorted(drawn)


@pytest.mark.parametrize(
    ("runs", "groups"),
    [
        ((2, 2, 1, 3), [[0, 0, 1, 1], [2, 3, 3, 3]]),  # helper 2 opens a group, 3 fills it
        ((3, 2, 4), [[0, 0, 0], [1, 1], [2, 2, 2, 2]]),  # whole runs stay together
        ((9, 2), [[0] * 4, [0] * 4, [0, 1, 1]]),  # only a run that no group could hold is cut
        ((1, 9), [[0], [1] * 4, [1] * 4, [1]]),
    ],
)
def test_groups_hold_whole_helpers_where_they_fit(
    runs: tuple[int, ...], groups: list[list[int]]
) -> None:
    requests = group_requests({"cross": sample_of(*runs)}, 4, needs_baseline=False)
    assert helpers_by_group(requests) == groups


def test_points_are_asked_alone_in_the_order_of_the_rows() -> None:
    sample = draw_points(100, SampleDesign(label_pairs=40))
    requests = group_requests({"points": sample}, GROUP_PAIRS, needs_baseline=False)
    assert requests["helped_index"].to_pylist() == sample.helped.tolist()
    assert requests["helper_index"].null_count == 40
    assert np.bincount(requests["group"].to_numpy()).tolist() == [16, 16, 8]
