"""The demo on a corpus of other families and another seed: do its figures hold?

    python -m benchmarks.demo_held_out --run-dir runs/held_out --json

The recipe, the planted faults and the figures are the demo's. Nothing of the package was chosen
on these families: measure once, and let them be.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from random import Random

from nncift_ray.demo import run as demo
from nncift_ray.demo.tasks import FIRST_NAMES, NOUNS, Draw

SEED = 20_262
MONTHS = """January February March April May June July August September October November
    December""".split()
FILE_TYPES = "pdf csv txt png mp3 zip html json".split()

#: What stands in the wordings of a drawn task, and its answer.
Slots = tuple[dict[str, object], str]


def _average(rng: Random) -> Slots:
    mean, spread = rng.randint(10, 90), rng.randint(1, 9)
    numbers = [mean - spread, mean + 2 * spread, mean - spread]
    rng.shuffle(numbers)
    return {"n": ", ".join(map(str, numbers))}, str(mean)


def _divisor(rng: Random) -> Slots:
    shared = rng.randint(2, 12)
    a, b = shared * rng.randint(2, 9), shared * rng.randint(2, 9)
    return {"a": a, "b": b}, str(math.gcd(a, b))


def _temperature(rng: Random) -> Slots:
    celsius = 5 * rng.randint(-20, 120)
    return {"c": celsius}, f"{celsius * 9 // 5 + 32} °F"


def _hexadecimal(rng: Random) -> Slots:
    number = rng.randint(16, 4095)
    return {"n": number}, f"{number:X}"


def _cube(rng: Random) -> Slots:
    number = rng.randint(2, 99)
    return {"n": number}, str(number**3)


def _speed(rng: Random) -> Slots:
    hours, pace = rng.randint(2, 9), rng.randint(20, 120)
    return {"d": hours * pace, "h": hours}, f"{pace} km/h"


def _snake_case(rng: Random) -> Slots:
    words = rng.sample(NOUNS, 3)
    return {"w": " ".join(word.capitalize() for word in words)}, "_".join(words)


def _one_letter(rng: Random) -> Slots:
    word, letter = "".join(rng.sample(NOUNS, 2)), rng.choice("aeilnrt")
    return {"w": word, "x": letter}, f"{word.count(letter)} times"


def _file_type(rng: Random) -> Slots:
    kind = rng.choice(FILE_TYPES)
    name = f"{rng.choice(NOUNS)}_{rng.randint(1, 99)}.{rng.choice(NOUNS)}.{kind}"
    return {"f": name}, f".{kind}"


def _quarter(rng: Random) -> Slots:
    month, year = rng.randrange(12), rng.randint(1980, 2030)
    return {"m": MONTHS[month], "y": year}, f"Q{month // 3 + 1} {year}"


def _article(rng: Random) -> Slots:
    noun, name = rng.choice(NOUNS), rng.choice(FIRST_NAMES)
    article = "an" if noun[0] in "aeiou" else "a"
    return {"s": f"{name} bought ___ {noun}."}, f"{name} bought {article} {noun}."


def _longest(rng: Random) -> Slots:
    lengths = rng.sample(sorted({len(noun) for noun in NOUNS}), 3)
    words = [rng.choice([noun for noun in NOUNS if len(noun) == length]) for length in lengths]
    return {"w": ", ".join(words)}, max(words, key=len)


def _phone(rng: Random) -> Slots:
    a, b, c = rng.randint(200, 999), rng.randint(200, 999), rng.randint(1000, 9999)
    return {"n": f"{a}{b}{c}"}, f"({a}) {b}-{c}"


def _tag(rng: Random) -> Slots:
    words, tag = rng.sample(NOUNS, 2), rng.choice(["b", "i", "h1", "li", "p", "code"])
    return {"w": " ".join(words), "t": tag}, f"<{tag}>{' '.join(words)}</{tag}>"


def _prime(rng: Random) -> Slots:
    number = rng.randint(11, 999)
    prime = all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
    return {"n": number}, f"{number} is {'a prime' if prime else 'not a prime'}."


def _duration(rng: Random) -> Slots:
    minutes = rng.randint(61, 900)
    return {"m": minutes}, f"{minutes // 60} h {minutes % 60} min"


def _family(draw: Callable[[Random], Slots], *wordings: str) -> Draw:
    def draw_words(rng: Random) -> tuple[tuple[str, ...], str]:
        slots, answer = draw(rng)
        return tuple(wording.format(**slots) for wording in wordings), answer

    return draw_words


HELD_OUT: Mapping[str, Draw] = {
    "averages": _family(
        _average, "What is the average of {n}?", "Find the mean of {n}.",
        "Add up {n} and divide by how many there are.",
    ),
    "common divisors": _family(
        _divisor, "What is the greatest common divisor of {a} and {b}?",
        "Which is the largest number that divides both {a} and {b}?", "Find gcd({a}, {b}).",
    ),
    "temperatures": _family(
        _temperature, "How many degrees Fahrenheit are {c} °C?", "Convert {c} °C to Fahrenheit.",
        "The thermometer shows {c} degrees Celsius. What is that in Fahrenheit?",
    ),
    "hexadecimal": _family(
        _hexadecimal, "Write {n} in hexadecimal.", "What is the decimal number {n} in base 16?",
        "Give {n} as a hex number.",
    ),
    "cubes": _family(
        _cube, "What is {n} cubed?", "Raise {n} to the third power.",
        "A cube has edges of {n}. What is its volume?",
    ),
    "speeds": _family(
        _speed, "A car drives {d} km in {h} hours. How fast is it?",
        "What is the average speed over {d} km that take {h} hours?",
        "{d} kilometres in {h} hours: which speed is that?",
    ),
    "snake case": _family(
        _snake_case, "Write '{w}' in snake case.", "Turn '{w}' into a Python variable name.",
        "Lower case, joined by underscores: {w}",
    ),
    "one letter": _family(
        _one_letter, "How often does '{x}' occur in '{w}'?", "Count the letter {x} in {w}.",
        "Number of times that {w} contains {x}?",
    ),
    "file types": _family(
        _file_type, "What is the extension of {f}?", "Which type does the file {f} have?",
        "Extract the ending from the file name {f}.",
    ),
    "quarters": _family(
        _quarter, "In which quarter is {m} {y}?", "Name the quarter of the year for {m} {y}.",
        "A bill of {m} {y} belongs to which quarter?",
    ),
    "articles": _family(
        _article, "Fill in a or an: {s}", "Complete with the right article: {s}",
        "Which article belongs into the gap? Write the sentence. {s}",
    ),
    "longest word": _family(
        _longest, "Which is the longest word: {w}?", "Pick the word with most letters from {w}.",
        "Of {w}, name the longest.",
    ),
    "phone numbers": _family(
        _phone, "Format {n} as a phone number.", "Write the phone number {n} as (xxx) xxx-xxxx.",
        "Put brackets and a dash into the telephone number {n}.",
    ),
    "HTML tags": _family(
        _tag, "Wrap '{w}' in the HTML tag {t}.", "Put <{t}> tags around '{w}'.",
        "Mark up '{w}' as the HTML element {t}.",
    ),
    "primes": _family(
        _prime, "Is {n} a prime number?", "Prime or not: {n}",
        "Does {n} have divisors other than 1 and itself?",
    ),
    "durations": _family(
        _duration, "How many hours and minutes are {m} minutes?",
        "Convert {m} minutes to hours and minutes.", "A film runs {m} minutes. How long is that?",
    ),
}  # fmt: skip


def main() -> int:
    """Run the demo on the held-out families and return its exit code."""
    return demo.main(["--seed", str(SEED), *sys.argv[1:]], families=HELD_OUT)


if __name__ == "__main__":
    sys.exit(main())
