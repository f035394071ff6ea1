from __future__ import annotations

import math
from typing import Any

import pytest

from nncift_ray.evaluation.page import (
    Result,
    gain_words,
    interval_words,
    mean_words,
    method_place,
    verdict_words,
)


def make_result(**given: Any) -> Result:
    row = Result(
        method="delift", budget=0.1, num_examples=100, mode="tuned", test="gsm8k", metric="nll",
        num_seeds=1, num_rows=40, num_missing=0, mean=2.3124, low=2.2624, high=2.3624,
        seed_deviation=math.nan, difference=-0.051, difference_low=-0.08, difference_high=-0.02,
        p_value=0.001, adjusted_p_value=0.004, verdict="better",
    )  # fmt: skip
    return Result(**vars(row) | given)


def test_a_mean_has_the_digits_its_interval_leaves_meaning_in() -> None:
    assert mean_words(make_result()) == "2.312 ± 0.050"
    assert mean_words(make_result(low=1.3124, high=3.3124)) == "2.3 ± 1.0"
    assert mean_words(make_result(low=math.nan, high=math.nan)) == "2.31"
    assert mean_words(make_result(mean=math.nan)) == "–"


def test_without_verdict_or_comparison_the_words_say_which() -> None:
    assert verdict_words(make_result(verdict=None)) == "no verdict"
    assert verdict_words(make_result(verdict=None, difference=math.nan)) == ""


def test_a_gain_points_up_where_less_is_better() -> None:
    result = make_result()
    assert result.gain == pytest.approx((0.051, 0.02, 0.08))
    assert gain_words(result) == "0.051 lower"
    assert gain_words(make_result(metric="rouge1")) == "0.051 lower"
    assert gain_words(make_result(metric="rouge1", difference=0.051)) == "0.051 higher"


def test_a_difference_stands_with_its_interval() -> None:
    assert interval_words(make_result()) == "−0.051 [−0.080, −0.020]"
    assert interval_words(make_result(difference=math.nan)) == "–"


def test_a_teacher_stands_beside_what_stands_in_for_it() -> None:
    names = ["full", "nn_cift+less", "delift", "less", "random", "nn_cift+delift", "initial",
             "small_lm+delift"]  # fmt: skip
    assert sorted(names, key=method_place) == [
        "initial", "random", "delift", "nn_cift+delift", "small_lm+delift", "less", "nn_cift+less",
        "full",
    ]  # fmt: skip
