"""The held-out families answer rightly, and their corpus is planted like the demo's."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from random import Random

import pytest

from benchmarks.demo_held_out import DAYS, HELD_OUT, SEED, spell_out
from nncift_ray.demo.corpus import WRONG_RESPONSE, WRONG_SAME_FAMILY, make_demo_rows
from nncift_ray.demo.tasks import FAMILIES, Item, draw_item


def _days_apart(prompt: str) -> int:
    first, last = re.findall(r"\d+ [A-Z][a-z]+", prompt)
    days = [datetime.datetime.strptime(f"{each} 2023", "%d %B %Y") for each in (first, last)]
    return (days[1] - days[0]).days % 365


def _solve(item: Item) -> object:
    """Answer from the first wording by another way than the generator's."""
    prompt = item.prompts[0]
    numbers = [int(each) for each in re.findall(r"\d+", prompt)]
    quoted = (re.findall(r"'([a-z ]+)'", prompt) or [""])[0]
    match item.family:
        case "parity":
            return "even" if str(numbers[0])[-1] in "02468" else "odd"
        case "percentages":
            return f"{numbers[0] * numbers[1] / 100:g}"
        case "areas":
            return f"{sum([numbers[0]] * numbers[1])} square metres"
        case "leap years":
            try:
                datetime.date(numbers[0], 2, 29)
            except ValueError:
                return f"{numbers[0]} is not a leap year."
            return f"{numbers[0]} is a leap year."
        case "initials":
            names = prompt.removeprefix("Give the initials of ").rstrip(".")
            return re.sub(r"([A-Z])[a-z]+ ?", r"\1.", names)
        case "capital letters":
            return "".join(chr(ord(c) - 32) if c != " " else c for c in quoted)
        case "letters":
            return f"{sum(map(len, re.findall(chr(39) + '([a-z]+)' + chr(39), prompt)))} letters"
        case "clock":
            start = datetime.datetime(2023, 1, 1, numbers[0], numbers[1])
            return f"{start + datetime.timedelta(minutes=numbers[2]):%H:%M}"
        case "change":
            return f"{numbers[1] - numbers[0]} dollars"
        case "weekdays":
            named = re.findall(r"[A-Z][a-z]+day\b", prompt.removeprefix("Today"))[0]
            monday = datetime.date(2024, 1, 1)
            then = monday + datetime.timedelta(days=DAYS.index(named) + numbers[0])
            return f"{then:%A}"
        case "CSV":
            found = re.search(r": (\w+) ordered the item (\w+) (\d+) times", prompt)
            assert found
            return ",".join(found.groups())
        case "binary":
            return numbers[0] if int(item.answer, 2) == numbers[0] else None
        case "no vowels":
            return re.sub("[aeiou]", "", quoted)
        case "mail domains":
            return prompt.rstrip("?").split("@")[1]
        case "days between":
            return f"{_days_apart(prompt)} days"
        case _:
            return item.answer  # in words: by hand below


@pytest.mark.parametrize("family", HELD_OUT)
def test_answers_are_right(family: str) -> None:
    rng = Random(7)
    for item in (draw_item(family, rng, HELD_OUT) for _ in range(200)):
        answer = int(item.answer, 2) if family == "binary" else item.answer
        assert _solve(item) == answer
        assert len(set(item.prompts)) == 3


@pytest.mark.parametrize(
    ("number", "written"),
    [(13, "thirteen"), (40, "forty"), (57, "fifty-seven"), (300, "three hundred"),
     (815, "eight hundred and fifteen"), (942, "nine hundred and forty-two")],
)  # fmt: skip
def test_numbers_are_spelt_out(number: int, written: str) -> None:
    assert spell_out(number) == written


def test_its_corpus_has_the_demos_faults_in_families_of_its_own() -> None:
    rows, _ = make_demo_rows(SEED, 1000, 100, HELD_OUT)
    kinds = Counter(row.kind for row in rows)
    assert (kinds[WRONG_RESPONSE], kinds[WRONG_SAME_FAMILY], len(rows)) == (75, 75, 1000)
    assert {row.family for row in rows} == set(HELD_OUT)
    assert not set(HELD_OUT) & set(FAMILIES)


def test_its_wrong_answers_are_wrong() -> None:
    rows, _ = make_demo_rows(SEED, 1000, 100, HELD_OUT)
    wrong = [row for row in rows if row.kind in (WRONG_RESPONSE, WRONG_SAME_FAMILY)]
    parity = [row for row in wrong if row.family == "parity" and row.kind == WRONG_SAME_FAMILY]
    assert parity
    for row in parity:
        number = int(re.findall(r"\d+", row.prompt)[0])
        assert row.completion == ("odd" if number % 2 == 0 else "even")
