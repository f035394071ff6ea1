"""The demo on a corpus of other families and another seed: do its figures hold?

    python -m benchmarks.demo_held_out --run-dir runs/held_out --json

The recipe, the planted faults and the figures are the demo's. Nothing of the package was chosen
on these families: measure once, and let them be.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from random import Random

from nncift_ray.demo import run as demo
from nncift_ray.demo.tasks import Draw
from nncift_ray.demo.words import FIRST_NAMES, NOUNS

SEED = 20_261
Drawn = tuple[tuple[str, ...], str]
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TEENS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def _fill(*wordings: str, **slots: object) -> tuple[str, ...]:
    return tuple(wording.format(**slots) for wording in wordings)


def _parity(rng: Random) -> Drawn:
    number = rng.randint(10, 9999)
    prompts = _fill(
        "Is {n} even or odd?", "Say whether {n} is an odd or an even number.",
        "Even or odd: {n}", n=number,
    )  # fmt: skip
    return prompts, "odd" if number % 2 else "even"


def _percentage(rng: Random) -> Drawn:
    share, whole = rng.choice([10, 20, 25, 50, 75]), 20 * rng.randint(2, 60)
    prompts = _fill(
        "What is {p} % of {n}?", "Work out {p} percent of {n}.", "{p} per cent of {n} is how much?",
        p=share, n=whole,
    )  # fmt: skip
    return prompts, str(share * whole // 100)


def _area(rng: Random) -> Drawn:
    long, wide = rng.randint(11, 40), rng.randint(2, 10)
    prompts = _fill(
        "A rectangle is {a} m long and {b} m wide. What is its area?",
        "Find the area of a rectangle of {a} m by {b} m.",
        "How many square metres does a floor of {a} m times {b} m have?", a=long, b=wide,
    )  # fmt: skip
    return prompts, f"{long * wide} square metres"


def _leap_year(rng: Random) -> Drawn:
    year = rng.randint(1800, 2100)
    prompts = _fill(
        "Was or will {y} be a leap year?", "Does the year {y} have a 29 February?",
        "Leap year or not: {y}?", y=year,
    )  # fmt: skip
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return prompts, f"{year} is a leap year." if leap else f"{year} is not a leap year."


def _initials(rng: Random) -> Drawn:
    names = rng.sample(FIRST_NAMES, 3)
    prompts = _fill(
        "Give the initials of {who}.", "What are the initials of {who}?",
        "Shorten the name {who} to its initials.", who=" ".join(names),
    )  # fmt: skip
    return prompts, "".join(f"{name[0]}." for name in names)


def _capitals(rng: Random) -> Drawn:
    words = " ".join(rng.sample(NOUNS, 2))
    prompts = _fill(
        "Write '{w}' in capital letters.", "Convert '{w}' to upper case.",
        "Shout it, all letters large: {w}", w=words,
    )  # fmt: skip
    return prompts, words.upper()


def _letters(rng: Random) -> Drawn:
    first, second = rng.sample(NOUNS, 2)
    prompts = _fill(
        "How many letters do '{a}' and '{b}' have together?",
        "Count the letters of {a} and {b} and add them up.",
        "Total number of letters in the words {a}, {b}?", a=first, b=second,
    )  # fmt: skip
    return prompts, f"{len(first) + len(second)} letters"


def _clock(rng: Random) -> Drawn:
    now, later = rng.randrange(24 * 60), 5 * rng.randint(2, 30)
    prompts = _fill(
        "It is {t}. What time is it {m} minutes later?", "Add {m} minutes to {t}.",
        "A train leaves at {t} and travels {m} minutes. When does it arrive?",
        t=f"{now // 60:02}:{now % 60:02}", m=later,
    )  # fmt: skip
    then = (now + later) % (24 * 60)
    return prompts, f"{then // 60:02}:{then % 60:02}"


def _change(rng: Random) -> Drawn:
    thing, price, note = rng.choice(NOUNS), rng.randint(2, 49), rng.choice([50, 100])
    prompts = _fill(
        "{name} costs {p} dollars. How much change do you get from {n} dollars?",
        "You pay for {name} of {p} dollars with {n} dollars. What do you get back?",
        "From {n} dollars, {name} for {p} dollars is bought. What is left?",
        name=f"{'An' if thing[0] in 'aeiou' else 'A'} {thing}", p=price, n=note,
    )  # fmt: skip
    return prompts, f"{note - price} dollars"


def _weekday(rng: Random) -> Drawn:
    today, days = rng.randrange(7), rng.randint(2, 30)
    prompts = _fill(
        "Today is {d}. Which weekday is it in {n} days?", "What day comes {n} days after a {d}?",
        "Count {n} days on from {d}. Which day is that?", d=DAYS[today], n=days,
    )  # fmt: skip
    return prompts, DAYS[(today + days) % 7]


def _csv(rng: Random) -> Drawn:
    name, thing, count = rng.choice(FIRST_NAMES), rng.choice(NOUNS), rng.randint(2, 99)
    prompts = _fill(
        "Write as a CSV line name,item,count: {w} ordered the item {t} {c} times.",
        "Turn the order into CSV (name,item,count). {w} ordered the item {t} {c} times.",
        "As comma-separated values, name, item, count: {w} ordered the item {t} {c} times.",
        w=name, t=thing, c=count,
    )  # fmt: skip
    return prompts, f"{name},{thing},{count}"


def _binary(rng: Random) -> Drawn:
    number = rng.randint(5, 255)
    prompts = _fill(
        "Write {n} in binary.", "What is the decimal number {n} in base 2?",
        "Convert {n} to a binary number.", n=number,
    )  # fmt: skip
    return prompts, f"{number:b}"


def _without_vowels(rng: Random) -> Drawn:
    words = " ".join(rng.sample(NOUNS, 2))
    prompts = _fill(
        "Remove all vowels from '{w}'.", "Write '{w}' without a, e, i, o and u.",
        "Drop the vowels: {w}", w=words,
    )  # fmt: skip
    return prompts, "".join(letter for letter in words if letter not in "aeiou")


def _domain(rng: Random) -> Drawn:
    host = f"{rng.choice(NOUNS)}.{rng.choice(['com', 'org', 'net'])}"
    prompts = _fill(
        "What is the domain of the address {a}?", "Which host does the mail address {a} belong to?",
        "Extract the domain from {a}.", a=f"{rng.choice(FIRST_NAMES).lower()}@{host}",
    )  # fmt: skip
    return prompts, host


def _in_words(rng: Random) -> Drawn:
    number = rng.randint(1, 999)
    prompts = _fill(
        "Write {n} in words.", "Spell out the number {n}.", "How is {n} written with letters?",
        n=number,
    )  # fmt: skip
    return prompts, spell_out(number)


def spell_out(number: int) -> str:
    """Write a number from 0 to 999 in English words."""
    if number < len(TEENS):
        return TEENS[number]
    if number < 100:
        rest = f"-{TEENS[number % 10]}" if number % 10 else ""
        return TENS[number // 10 - 2] + rest
    rest = f" and {spell_out(number % 100)}" if number % 100 else ""
    return f"{TEENS[number // 100]} hundred{rest}"


def _days_between(rng: Random) -> Drawn:
    first = datetime.date(2023, 1, 1) + datetime.timedelta(days=rng.randrange(330))
    days = rng.randint(2, 30)
    last = first + datetime.timedelta(days=days)
    prompts = _fill(
        "How many days are there from {a} to {b}?", "Count the days between {a} and {b}.",
        "{b} is how many days after {a}?", a=f"{first.day} {first:%B}", b=f"{last.day} {last:%B}",
    )  # fmt: skip
    return prompts, f"{days} days"


HELD_OUT: Mapping[str, Draw] = {
    "parity": _parity,
    "percentages": _percentage,
    "areas": _area,
    "leap years": _leap_year,
    "initials": _initials,
    "capital letters": _capitals,
    "letters": _letters,
    "clock": _clock,
    "change": _change,
    "weekdays": _weekday,
    "CSV": _csv,
    "binary": _binary,
    "no vowels": _without_vowels,
    "mail domains": _domain,
    "numbers in words": _in_words,
    "days between": _days_between,
}


def main() -> int:
    """Run the demo on the held-out families and return its exit code."""
    return demo.main(["--seed", str(SEED), *sys.argv[1:]], families=HELD_OUT)


if __name__ == "__main__":
    sys.exit(main())
