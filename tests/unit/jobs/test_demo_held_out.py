"""The held-out families answer rightly, and their corpus is planted like the demo's."""

from __future__ import annotations

import datetime
import re
import statistics
from collections import Counter
from random import Random

import pytest

from benchmarks.demo_held_out import HELD_OUT, MONTHS, SEED
from nncift_ray.demo.corpus import WRONG_RESPONSE, WRONG_SAME_FAMILY, make_demo_rows
from nncift_ray.demo.tasks import FAMILIES, Item, draw_item


def _solve(item: Item) -> str:
    """Answer from the first wording by another way than the generator's."""
    prompt = item.prompts[0]
    numbers = [int(each) for each in re.findall(r"-?\d+", prompt)]
    quoted = re.findall(r"'([A-Za-z ]+)'", prompt)
    match item.family:
        case "averages":
            return f"{statistics.fmean(numbers):g}"
        case "common divisors":
            shared = [n for n in range(1, min(numbers) + 1) if not any(m % n for m in numbers)]
            return str(shared[-1])
        case "temperatures":
            return f"{numbers[0] * 1.8 + 32:g} °F"
        case "hexadecimal":
            return hex(numbers[0])[2:].upper()
        case "cubes":
            return str(numbers[0] * numbers[0] * numbers[0])
        case "speeds":
            return f"{numbers[0] / numbers[1]:g} km/h"
        case "snake case":
            return quoted[0].lower().replace(" ", "_")
        case "one letter":
            return f"{len(quoted[1].split(quoted[0])) - 1} times"
        case "file types":
            return "." + prompt.rstrip("?").rpartition(".")[2]
        case "quarters":
            month = MONTHS.index(prompt.split()[4])
            return f"Q{(month + 3) // 3} {numbers[0]}"
        case "articles":
            gap = "an" if re.search("___ [aeiou]", prompt) else "a"
            return prompt.partition(": ")[2].replace("___", gap)
        case "longest word":
            return sorted(re.findall(r"[a-z]+(?=[,?])", prompt), key=len)[-1]
        case "phone numbers":
            return re.sub(r"(\d{3})(\d{3})(\d{4})", r"(\1) \2-\3", str(numbers[0]))
        case "HTML tags":
            tag = prompt.rstrip(".").split()[-1]
            return f"<{tag}>{quoted[0]}</{tag}>"
        case "primes":
            prime = not re.fullmatch(r"(11+?)\1+", "1" * numbers[0])
            return f"{numbers[0]} is {'a prime' if prime else 'not a prime'}."
        case _:
            length = datetime.timedelta(minutes=numbers[0])
            return re.sub(r"(\d+):0?(\d+):00", r"\1 h \2 min", str(length))


@pytest.mark.parametrize("family", HELD_OUT)
def test_answers_are_right(family: str) -> None:
    rng = Random(7)
    for item in (draw_item(family, rng, HELD_OUT) for _ in range(100)):
        assert _solve(item) == item.answer
        assert len(set(item.prompts)) == 3


def test_its_corpus_has_the_demos_faults_in_families_of_its_own() -> None:
    rows, _ = make_demo_rows(SEED, 1000, 100, HELD_OUT)
    kinds = Counter(row.kind for row in rows)
    assert (kinds[WRONG_RESPONSE], kinds[WRONG_SAME_FAMILY], len(rows)) == (75, 75, 1000)
    assert {row.family for row in rows} == set(HELD_OUT)
    assert not set(HELD_OUT) & set(FAMILIES)


def test_its_wrong_answers_are_wrong() -> None:
    rows, _ = make_demo_rows(SEED, 1000, 100, HELD_OUT)
    wrong = [row for row in rows if row.kind == WRONG_SAME_FAMILY and row.family == "cubes"]
    assert wrong
    for row in wrong:
        assert row.completion != str(int(re.findall(r"\d+", row.prompt)[0]) ** 3)
