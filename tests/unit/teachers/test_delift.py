from __future__ import annotations

import math

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringRequest
from nncift_ray.errors import ShapeError
from nncift_ray.teachers.base import MeasurementFailure
from nncift_ray.teachers.delift import (
    CUT_STEP,
    DeliftTeacher,
    delift_segments,
    distance,
    fit_to_length,
)

TOLERANCE = 1e-12
HELPED = Example("i", "What is {2} + 2?", "4")
HELPER = Example("j", "What is 1 + 1?", "2")
HEAD = list(range(100, 110))  # 3 template tokens, 5 of the example, 2 of the template
EXAMPLE_SPAN = (3, 8)
QUERY, RESPONSE = [1, 2, 3], [7, 8]


def test_baseline_prompt_is_the_papers_template() -> None:
    assert "".join(delift_segments(HELPED, None)[:4]) == (
        "Instruction: Please generate a response to the following query.\n\n\n"
        "Query: What is {2} + 2?\n"
    )


def test_example_prompt_is_the_papers_template() -> None:
    assert "".join(delift_segments(HELPED, HELPER)[:4]) == (
        "Instruction:\nUse the following example as a guide to answer the query in the same format "
        "and style, providing a clear and concise response.\n\n\nExample:\nWhat is 1 + 1?\n2\n\n\n"
        "Query:\nWhat is {2} + 2?\n"
    )


def test_head_is_the_same_for_every_query_of_a_helper() -> None:
    other = Example("k", "Name a colour.", "Blue")
    assert delift_segments(HELPED, HELPER)[:3] == delift_segments(other, HELPER)[:3]
    assert delift_segments(HELPED, None)[:3] == delift_segments(other, None)[:3]


def test_braces_in_an_example_are_text() -> None:
    tricky = Example("b", "{query} {example_prompt}", "{}")
    segments = delift_segments(tricky, tricky)
    assert segments.query == "{query} {example_prompt}\n"
    assert segments.example == "{query} {example_prompt}\n{}"


def test_distance_is_the_root_mean_square_of_the_missing_probability() -> None:
    probabilities = [0.25, 0.5, 1.0]
    expected = math.sqrt((0.75**2 + 0.5**2) / 3)
    assert distance(np.log(probabilities)) == pytest.approx(expected, abs=TOLERANCE)


def test_distance_lies_between_certainty_and_impossibility() -> None:
    assert distance(np.zeros(4)) == 0.0
    assert distance(np.full(4, -800.0)) == pytest.approx(1.0, abs=TOLERANCE)


def test_an_empty_response_has_no_distance() -> None:
    with pytest.raises(ShapeError, match="T >= 1"):
        distance(np.empty(0))


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf, 0.5])
def test_a_log_probability_that_cannot_be_one_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        distance(np.array([-1.0, bad]))


def test_utility_is_positive_where_the_example_helps() -> None:
    assert DeliftTeacher.utility(0.9, 0.4) == pytest.approx(0.5, abs=TOLERANCE)


def test_a_prompt_that_fits_is_left_alone() -> None:
    fitted = fit_to_length(HEAD, EXAMPLE_SPAN, QUERY, RESPONSE, max_length=15)
    assert fitted == ScoringRequest((*HEAD, *QUERY), tuple(RESPONSE), 10)


def test_tokens_are_cut_from_the_left_of_the_example_only() -> None:
    fitted = fit_to_length(HEAD, EXAMPLE_SPAN, QUERY, RESPONSE, max_length=12)
    assert fitted == ScoringRequest((100, 101, 102, 106, 107, 108, 109, *QUERY), tuple(RESPONSE), 7)


def test_query_and_response_that_do_not_fit_are_never_cut() -> None:
    fitted = fit_to_length(HEAD, EXAMPLE_SPAN, QUERY, RESPONSE, max_length=9)
    assert isinstance(fitted, MeasurementFailure)
    assert fitted.reason == "too_long"


def test_an_example_that_would_vanish_is_not_measured() -> None:
    fitted = fit_to_length(HEAD, EXAMPLE_SPAN, QUERY, RESPONSE, max_length=10)
    assert isinstance(fitted, MeasurementFailure)
    assert fitted.reason == "no_room_for_example"


def test_an_over_long_baseline_is_too_long() -> None:
    fitted = fit_to_length(HEAD, (10, 10), QUERY, RESPONSE, max_length=14)
    assert isinstance(fitted, MeasurementFailure)
    assert fitted.reason == "too_long"


def test_a_span_outside_the_head_is_refused() -> None:
    with pytest.raises(ShapeError, match="example_span"):
        fit_to_length(HEAD, (3, 11), QUERY, RESPONSE, max_length=100)


def test_long_examples_are_cut_alike_for_queries_of_nearly_one_length() -> None:
    example = tuple(range(1000, 2200))
    fitted = [
        fit_to_length(example, (0, len(example)), [7] * length, RESPONSE, max_length=1000)
        for length in (20, 60, 110)
    ]
    cuts = [len(example) - one.prefix_length for one in fitted if isinstance(one, ScoringRequest)]
    assert cuts == [CUT_STEP, 2 * CUT_STEP, 2 * CUT_STEP]
    assert all(len(one.prompt_ids) + len(RESPONSE) <= 1000 for one in fitted)


def test_a_cut_by_whole_steps_never_takes_all_of_the_example() -> None:
    fitted = fit_to_length(range(100), (0, 100), [7] * 10, RESPONSE, max_length=50)
    assert isinstance(fitted, ScoringRequest)
    assert fitted.prefix_length == 50 - 10 - len(RESPONSE)
