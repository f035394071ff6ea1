"""A small instruction corpus, made by a seed: four tasks, three layouts, copies and bad rows.

``num_copies`` of a call are rows that repeat others, so there are fewer candidates than rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

NUM_COPIES, NUM_TARGETS, SEED = 8, 36, 7
BAD_LINES = ('{"prompt": "cut off here', '{"prompt": "What has no answer?", "task": "facts"}')
FILES = ("questions.jsonl", "instructions.json", "chats.jsonl")

NAMES = "Ada Bruno Chika Dmitri Elif Farid Greta Hanna Ivo Jamila Kofi Lena".split()
GOODS = "apples pencils stamps marbles tickets tiles lanterns notebooks".split()
PLACES = {
    "Kenya": ("Nairobi", "the Athi plains, where cattle trails met the railway"),
    "Portugal": ("Lisbon", "the mouth of the Tagus"),
    "Peru": ("Lima", "the valley of the Rimac, a few miles from the Pacific"),
    "Norway": ("Oslo", "the head of a long fjord"),
    "Vietnam": ("Hanoi", "a bend of the Red River"),
    "Canada": ("Ottawa", "the southern bank of the Ottawa River, opposite Gatineau"),
    "Egypt": ("Cairo", "the Nile, just south of its delta"),
    "Mongolia": ("Ulaanbaatar", "a high valley of the Tuul"),
    "Chile": ("Santiago", "a basin between the Andes and the coast range"),
}
QUESTIONS = (
    "What is the capital of {}?",
    "Name the seat of government of {} and say where it lies.",
    "I am writing about {}. Which city should I visit first, and why?",
)
THINGS = (
    ("bake bread", "flour", "an oven"),
    ("mend a bicycle tyre", "a patch", "two tyre levers"),
    ("plant tomatoes", "seedlings", "a trowel"),
    ("clean a camera lens", "a soft cloth", "a blower"),
    ("brew green tea", "loose leaves", "a thermometer"),
    ("sharpen a kitchen knife", "a whetstone", "a damp towel"),
    ("build a bird house", "cedar boards", "a hand saw"),
)
STEPS = (
    "Lay out {0} and {1} before you begin.",
    "Work slowly; most mistakes come from haste.",
    "Check {0} twice, since it cannot be changed later.",
    "Put {1} aside and wait for ten minutes.",
    "Ask somebody to look at the result with fresh eyes.",
    "Clean {1} at once and store it somewhere dry.",
)
SUBJECTS = ("the committee", "our neighbour", "a tired nurse", "the young engineer", "every child")
VERBS = (("repaired", "mended"), ("described", "portrayed"), ("ignored", "overlooked"),
         ("bought", "purchased"), ("celebrated", "honoured"))  # fmt: skip
OBJECTS = ("the old bridge", "a noisy machine", "the winter festival", "an unsigned letter",
           "the smallest island", "a borrowed violin")  # fmt: skip
STYLES = ("formally", "in the passive voice", "for a newspaper", "as a question")

Row = tuple[str, str, str, str]  # task, instruction, input, output


def write_corpus(folder: Path, num_rows: int) -> None:
    """Write candidates in three files of three layouts, and targets."""
    random = Random(SEED)
    rows = [_make_row(random, number) for number in range(num_rows - NUM_COPIES)]
    rows += random.sample(rows, NUM_COPIES)
    thirds = [rows[start::3] for start in range(3)]
    folder.mkdir(parents=True)
    lines = [json.dumps(_prompt_record(row)) for row in thirds[0]]
    middle = len(lines) // 2
    _write_lines(folder / FILES[0], [*lines[:middle], *BAD_LINES, *lines[middle:]])
    (folder / FILES[1]).write_text(json.dumps([_alpaca_record(row) for row in thirds[1]]))
    _write_lines(folder / FILES[2], [json.dumps(_chat_record(row)) for row in thirds[2]])
    targets = [_make_row(random, 2 * number) for number in range(NUM_TARGETS)]  # of two tasks
    _write_lines(folder / "targets.jsonl", [json.dumps(_prompt_record(row)) for row in targets])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def _make_row(random: Random, number: int) -> Row:
    return (_sum, _facts, _advice, _rewriting)[number % 4](random)


def _sum(random: Random) -> Row:
    first, second = random.sample(NAMES, 2)
    goods, have, get = random.choice(GOODS), random.randint(3, 90), random.randint(2, 60)
    task = f"{first} has {have} {goods}. {second} brings {get} more. How many are there now?"
    answer = f"There are {have} + {get} = {have + get} {goods}."
    if random.random() < 0.4:
        half = (have + get) // 2
        task = f"{task[:-1]}, and how many would half of them be, rounded down?"
        answer = f"{answer} Half of them, rounded down, are {half}."
    return "sums", task, "", answer


def _facts(random: Random) -> Row:
    country = random.choice(sorted(PLACES))
    city, where = PLACES[country]
    population = random.randint(2, 90) / 10
    answer = f"{city}. It lies on {where}; about {population} million people live there."
    return (
        "facts",
        random.choice(QUESTIONS).format(country),
        f"Year: {random.randint(1960, 2020)}",
        answer,
    )


def _advice(random: Random) -> Row:
    what, first, second = random.choice(THINGS)
    steps = random.sample(STEPS, random.randint(2, 5))
    answer = " ".join(
        f"{number}. {step.format(first, second)}" for number, step in enumerate(steps, 1)
    )
    reader = random.choice(NAMES)
    return "advice", f"Explain to {reader} in {len(steps)} steps how to {what}.", "", answer


def _rewriting(random: Random) -> Row:
    subject, (verb, better) = random.choice(SUBJECTS), random.choice(VERBS)
    thing, day, style = random.choice(OBJECTS), random.randint(1, 28), random.choice(STYLES)
    sentence = f"{subject.capitalize()} {verb} {thing} on day {day}."
    answers = {
        STYLES[0]: f"On day {day}, {subject} {better} {thing}.",
        STYLES[1]: f"{thing.capitalize()} was {better} by {subject} on day {day}.",
        STYLES[2]: f"Day {day}: {thing} {better}, and {subject} is said to be behind it.",
        STYLES[3]: f"Is it true that {subject} {better} {thing} on day {day}?",
    }
    return "rewriting", f"Rewrite the sentence {style}.", sentence, answers[style]


def _prompt_record(row: Row) -> dict[str, Any]:
    task, instruction, extra, output = row
    return {"prompt": f"{instruction} {extra}".strip(), "completion": output, "task": task}


def _alpaca_record(row: Row) -> dict[str, Any]:
    task, instruction, extra, output = row
    return {"instruction": instruction, "input": extra, "output": output, "task": task}


def _chat_record(row: Row) -> dict[str, Any]:
    task, instruction, extra, output = row
    turns = [("system", "Be brief."), ("user", f"{instruction}\n{extra}"), ("assistant", output)]
    return {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "task": task,
    }
