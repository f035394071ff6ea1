from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.errors import DataError
from nncift_ray.evaluation.results import Resampling, summarise
from nncift_ray.runtime.schemas import SCORES, SUMMARY
from tests.unit.evaluate.make_scores import make_scores

NUM_SAMPLES = 400
HOW = Resampling(num_samples=NUM_SAMPLES)
NUM_ROWS = 60


def summary_of(*scores: pa.Table) -> dict[str, dict[str, Any]]:
    """Summarise cells of one size, and return the rows by method."""
    table = summarise(pa.concat_tables(scores), HOW)
    assert table.schema.equals(SUMMARY)
    return {row["method"]: row for row in table.to_pylist()}


def noisy(seed: int, shift: float = 0.0, scale: float = 0.01) -> list[float]:
    """Rows that are alike over all methods but for a shift and a little noise."""
    rows = np.random.default_rng(0).normal(size=NUM_ROWS)
    noise = np.random.default_rng(seed).normal(size=NUM_ROWS) * scale
    return (rows + noise + shift).tolist()


def random_seeds(metric: str = "rouge1") -> list[pa.Table]:
    return [make_scores("random", noisy(10 + s), seed=s, metric=metric) for s in range(4)]


def test_mean_and_missing_are_those_computed_by_hand() -> None:
    row = summary_of(make_scores("delift", [0.2, None, 0.6, math.nan]))["delift"]
    assert row["mean"] == pytest.approx(0.4)
    assert (row["num_rows"], row["num_missing"], row["num_seeds"]) == (2, 2, 1)
    assert row["low"] <= 0.4 <= row["high"]


def test_seeds_of_random_become_one_row_that_averages_each_test_row_first() -> None:
    seeds = [make_scores("random", [0.0, 0.4], seed=0), make_scores("random", [0.2, None], seed=1)]
    row = summary_of(*seeds)["random"]
    assert row["mean"] == pytest.approx((0.1 + 0.4) / 2)
    assert (row["num_seeds"], row["num_rows"], row["num_missing"]) == (2, 2, 1)
    assert row["difference"] is None


def test_a_row_that_another_method_has_is_missing_where_it_is_absent() -> None:
    found = summary_of(
        make_scores("delift", {0: 0.5, 7: 0.7}), make_scores("less", {0: 0.5, 3: 0.1, 7: 0.7})
    )
    assert (found["delift"]["num_rows"], found["delift"]["num_missing"]) == (2, 1)
    assert (found["less"]["num_rows"], found["less"]["num_missing"]) == (3, 0)


def test_rows_of_one_mode_are_not_missing_in_another() -> None:
    table = summarise(
        pa.concat_tables([
            make_scores("delift", [1.0, 2.0, 3.0], metric="nll", mode="tuned"),
            make_scores("delift", [1.0], metric="nll", mode="icl"),
        ]),
        HOW,
    )  # fmt: skip
    assert table["num_missing"].to_pylist() == [0, 0]
    assert table["mode"].to_pylist() == ["tuned", "icl"]


def test_difference_is_over_the_rows_that_both_have() -> None:
    found = summary_of(
        make_scores("random", [0.1, 0.2, 0.9], seed=0),
        make_scores("random", [0.3, 0.2, 0.9], seed=1),
        make_scores("delift", [0.5, 0.4, None]),
    )
    # Row 0: 0.5 - mean(0.1, 0.3); row 1: 0.4 - 0.2; row 2 says nothing of a pair.
    assert found["delift"]["difference"] == pytest.approx((0.3 + 0.2) / 2)


def test_a_clear_gain_is_better_and_a_copy_of_random_is_noise() -> None:
    found = summary_of(
        *random_seeds(),
        make_scores("delift", noisy(1, shift=0.5)),
        make_scores("less", noisy(2)),
        make_scores("selectit", noisy(3, shift=-0.5)),
    )
    assert found["delift"]["verdict"] == "better"
    assert found["less"]["verdict"] == "noise"
    assert found["selectit"]["verdict"] == "worse"
    assert found["delift"]["difference_low"] > 0


def test_methods_are_compared_with_random_of_their_own_size() -> None:
    table = summarise(
        pa.concat_tables([
            *random_seeds(),
            make_scores("delift", noisy(1, shift=0.5), budget=0.3),
            make_scores("full", noisy(2), budget=1.0),
            make_scores("initial", noisy(3), budget=0.0, mode="none"),
        ]),
        HOW,
    )  # fmt: skip
    assert table["difference"].to_pylist() == [None] * 4
    assert table["verdict"].to_pylist() == [None] * 4


def test_a_cell_without_any_value_has_no_mean_and_stays_in_the_table() -> None:
    found = summary_of(*random_seeds(), make_scores("delift", [None] * NUM_ROWS))
    row = found["delift"]
    assert (row["mean"], row["num_rows"], row["num_missing"]) == (None, 0, NUM_ROWS)
    assert row["verdict"] is None


def test_no_scores_give_no_rows() -> None:
    table = summarise(SCORES.empty_table(), HOW)
    assert table.num_rows == 0
    assert table.schema.equals(SUMMARY)


def test_a_row_given_twice_is_refused_with_its_number() -> None:
    twice = pa.concat_tables([make_scores("delift", {4: 0.1}), make_scores("delift", {4: 0.2})])
    with pytest.raises(DataError, match=r"delift.*row 4 twice"):
        summarise(twice, HOW)


def test_seeds_of_a_method_that_is_not_drawn_are_refused() -> None:
    two = pa.concat_tables([make_scores("delift", [0.1]), make_scores("delift", [0.1], seed=1)])
    with pytest.raises(DataError, match="only random subsets"):
        summarise(two, HOW)


def test_scores_in_another_order_give_the_same_numbers() -> None:
    scores = pa.concat_tables([*random_seeds(), make_scores("delift", noisy(1, shift=0.1))])
    order = np.random.default_rng(0).permutation(scores.num_rows)
    first, second = (
        {row["method"]: row for row in summarise(table, HOW).to_pylist()}
        for table in (scores, scores.take(pa.array(order)))
    )
    assert first == second
