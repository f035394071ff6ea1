"""Final answers and short references, whatever is written around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift_ray.evaluation.metrics import exact_match

GOLD = "18 + 24 = <<18+24=42>>42 eggs.\n#### 42"


@pytest.mark.parametrize(
    "answer",
    [
        "18 + 24 is 42.\n#### 42",
        "#### $42.00",
        "#### 42 dollars",
        "The answer is 42.",
        "She has 18 and 24, so 42 eggs!",
        "#### 42\n\nQuestion: how many geese?\n#### 7",  # runs on into another question
        "#### Step 1\nadd them\n#### 42",  # a heading is no answer
        "First 7.\n**$42**",
    ],
)
def test_right_final_answers(answer: str) -> None:
    assert exact_match(answer, GOLD) == 1.0


@pytest.mark.parametrize("answer", ["", "no idea", "#### 43", "-42", "42 or 43", "#### 4,2", "4.2"])
def test_wrong_final_answers(answer: str) -> None:
    assert exact_match(answer, GOLD) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("in total 1000 people", "#### 1,000"),
        ("it is -3", "#### -3"),
        ("2 - 5 = −3.0", "#### -3"),
        ("1,234,567.50", "#### 1234567.5"),
        ("x = .5", "#### 0.5"),
        ("#### Blue", "He likes it.\n#### blue"),
    ],
)
def test_numbers_are_equal_by_value(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) == 1.0


def test_a_minus_that_joins_is_no_sign() -> None:
    assert exact_match("it is 10-5", "#### 5") == 1.0
    assert exact_match("GPT-4", "#### 4") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("Paris.", "paris", 1.0),
        ("  (A) ", "A", 1.0),
        ("The capital is Paris", "Paris", 0.0),
        ("C", "C++", 0.0),
        ("c#", "C#", 1.0),
        ("50%", "50", 1.0),
        ("5", "-5", 0.0),
        ("35", "3.5", 0.0),
        ("3.50", "3.5", 1.0),
        ("北京。", "北京", 1.0),
        ("“not enough information”", "Not enough information", 1.0),
        ("", "yes", 0.0),
        ("the", "a", 0.0),
    ],
)
def test_short_references(answer: str, reference: str, value: float) -> None:
    assert exact_match(answer, reference) == value


@pytest.mark.parametrize(
    "reference",
    [
        "one two three four five six",
        "two\nlines",
        "#### Introduction\nA text with a heading.",
        "A text.\n#### and a long last line of many words",
        "...",
        "A text.\n####",
        "#### 42\nand 42",
        "",
    ],
)
def test_other_references_have_no_exact_match(reference: str) -> None:
    assert exact_match(reference, reference) is None


@given(st.integers(-(10**12), 10**12))
def test_any_whole_number_is_found_however_it_is_written(number: int) -> None:
    for answer in (f"so {number}", f"#### {number:,}", f"It is {number}.00."):
        assert exact_match(answer, f"because\n#### {number}") == 1.0


@given(st.text(), st.text())
def test_any_text_is_taken(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) in (None, 0.0, 1.0)
    assert exact_match(answer, reference + "\n#### 3") in (0.0, 1.0)
