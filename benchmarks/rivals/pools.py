"""The pools: candidates with planted faults, targets, test rows; everything from a seed.

Data that are not in the repository are read from a folder: t0_train.jsonl.gz (yizhongw's
self-instruct), gsm8k_train.jsonl, gsm8k_test.jsonl, alpaca_demo.json (LLaMA-Factory).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from nncift_ray.corpus.examples import Example
from nncift_ray.demo.corpus import (
    CLEAN,
    EMPTY_RESPONSE,
    WRONG_RESPONSE,
    WRONG_SAME_FAMILY,
    DemoRow,
    make_demo_rows,
)
from nncift_ray.demo.tasks import FAMILIES

NUM_CANDIDATES, SHARE, NUM_TARGETS, NUM_TEST = 200, 0.2, 20, 48
DEMO_ROWS, DEMO_SHARE = 500, 0.1
WRONG, VERBOSE = "wrong", "verbose"
MAX_CHARACTERS = {"gsm8k": 320, "t0": 200, "alpaca": 280}
RARE_ROWS, NUM_RARE = 10, 8
#: The planted pools: families of one size, and sizes that fall as 1/rank.
DEMO, LONG_TAIL = "demo", "long_tail"
PLANTED = (DEMO, LONG_TAIL)
#: Of T0: eight rare templates, one of them the target; a long tail of templates, no target.
T0_RARE, T0_TAIL = "t0_rare", "t0_tail"
NUM_TEMPLATES, TAIL_ROWS, TAIL_TESTS = 24, 480, 10
#: The vocabularies of these end before a hundred items: none is among the most frequent.
FEW_ITEMS = ("antonyms", "capitals", "definitions", "French", "ordering events", "plurals",
             "reversal", "rhymes", "Spanish", "spelling")  # fmt: skip
NUM_FREQUENT = 4


@dataclass(frozen=True)
class PoolRow:
    """A row of a pool; ``fault`` is empty, WRONG or VERBOSE."""

    source: str
    prompt: str
    response: str
    fault: str = ""

    @property
    def example(self) -> Example:
        """The row as the package knows examples."""
        return Example(example_id="", prompt=self.prompt, response=self.response)


@dataclass(frozen=True)
class Pool:
    """What is selected from, for what, and tested on what."""

    name: str
    candidates: list[PoolRow]
    targets: list[PoolRow]
    test: list[PoolRow]
    right_source: str  # of the targets; "" where every source counts

    @property
    def budget(self) -> int:
        """How many rows a method picks."""
        tenth = self.name in (*PLANTED, T0_TAIL)
        return round((DEMO_SHARE if tenth else SHARE) * len(self.candidates))

    def write(self, folder: Path) -> None:
        """Write candidates.jsonl, targets.jsonl and test.jsonl; ``row`` is a row's number."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("candidates", "targets", "test"):
            lines = [
                json.dumps({"row": n, "prompt": row.prompt, "completion": row.response})
                for n, row in enumerate(getattr(self, name))
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_pool(name: str, seed: int, data: Path) -> Pool:
    """Return a pool by its name in POOLS."""
    rng = Random(seed * 1000 + list(POOLS).index(name))
    return POOLS[name](name, seed, data, rng)


def _mixed(name: str, seed: int, data: Path, rng: Random) -> Pool:
    t0 = rng.sample(_t0(data), NUM_CANDIDATES * 7 // 10)
    maths, test = _gsm8k(data, "train"), _gsm8k(data, "test")
    rng.shuffle(maths)
    count = NUM_CANDIDATES - len(t0)
    rows = t0 + maths[:count]
    rng.shuffle(rows)
    targets = maths[count : count + NUM_TARGETS]
    return Pool(name, rows, targets, rng.sample(test, NUM_TEST), "gsm8k")


def _wrong_steps(name: str, seed: int, data: Path, rng: Random) -> Pool:
    maths, test = _gsm8k(data, "train"), _gsm8k(data, "test")
    rng.shuffle(maths)
    rows, targets = maths[:NUM_CANDIDATES], maths[NUM_CANDIDATES : NUM_CANDIDATES + NUM_TARGETS]
    for place in rng.sample(range(len(rows)), len(rows) // 5):
        text = _change_numbers(rows[place].response, rng)
        rows[place] = replace(rows[place], response=text, fault=WRONG)
    return Pool(name, rows, targets, rng.sample(test, NUM_TEST), "gsm8k")


def _change_numbers(text: str, rng: Random) -> str:
    """Return steps with half of their numbers, and the final one always, changed."""
    places = list(re.finditer(r"\d+", text))
    for match in reversed(places):
        if match is places[-1] or rng.random() < 0.5:
            old = int(match.group())
            new = rng.choice([n for n in range(max(0, old // 2), old * 2 + 5) if n != old])
            text = f"{text[: match.start()]}{new}{text[match.end() :]}"
    return text


def _rare_template(name: str, seed: int, data: Path, rng: Random) -> Pool:
    by_task: dict[str, list[PoolRow]] = defaultdict(list)
    for row in _t0(data):
        by_task[row.source].append(row)
    large = sorted(task for task, rows in by_task.items() if len(rows) >= 90)
    rng.shuffle(large)
    rare = large[:NUM_RARE]
    for rows in by_task.values():
        rng.shuffle(rows)
    rows = [row for task in rare for row in by_task[task][:RARE_ROWS]]
    common = [row for task, some in by_task.items() if task not in rare for row in some]
    rows += rng.sample(common, NUM_CANDIDATES - len(rows))
    rng.shuffle(rows)
    rest = by_task[rare[0]][RARE_ROWS:]
    return Pool(name, rows, rest[:NUM_TARGETS], rest[NUM_TARGETS:][:NUM_TEST], rare[0])


def _tail_of_templates(name: str, seed: int, data: Path, rng: Random) -> Pool:
    by_task: dict[str, dict[str, PoolRow]] = defaultdict(dict)
    for row in _t0(data):
        by_task[row.source][row.prompt] = row
    rows: list[PoolRow] = []
    test: list[PoolRow] = []
    for share in _falling_shares(NUM_TEMPLATES):
        size = round(TAIL_ROWS * share)
        large = sorted(t for t, some in by_task.items() if len(some) >= size + TAIL_TESTS)
        some = list(by_task.pop(rng.choice(large)).values())
        rng.shuffle(some)
        rows += some[:size]
        test += some[size:][:TAIL_TESTS]
    rng.shuffle(rows)
    return Pool(name, rows, [], test, "")


def _planted(name: str, seed: int, data: Path, rng: Random) -> Pool:
    rows: dict[tuple[str, str], PoolRow] = {}
    for row in _planted_rows(name, seed):
        wrong = row.kind in (WRONG_RESPONSE, WRONG_SAME_FAMILY)
        if row.kind != EMPTY_RESPONSE:
            one = PoolRow(row.family, row.prompt, row.completion, WRONG if wrong else "")
            rows.setdefault((row.prompt, row.completion), one)
    kept = _make_verbose(list(rows.values()), rng, 0.05)
    return Pool(name, kept, [], planted_tests(name, seed, 2), "")


def _planted_rows(name: str, seed: int) -> list[DemoRow]:
    shares: dict[str, float] | None = None
    if name == LONG_TAIL:
        order = _by_frequency(seed)
        shares = dict(zip(order, _falling_shares(len(order)), strict=True))
    return make_demo_rows(seed, DEMO_ROWS, 100, shares=shares)[0]


def _falling_shares(count: int) -> list[float]:
    """Return shares that fall as 1/rank, of a sum of 1."""
    total = sum(1 / rank for rank in range(1, count + 1))
    return [1 / rank / total for rank in range(1, count + 1)]


def _by_frequency(seed: int) -> list[str]:
    """Return the families in random order, large vocabularies only at the first places."""
    order = list(FAMILIES)
    Random(seed).shuffle(order)
    first = [family for family in order if family not in FEW_ITEMS][:NUM_FREQUENT]
    return first + [family for family in order if family not in first]


def planted_tests(name: str, seed: int, a_family: int) -> list[PoolRow]:
    """Return clean rows of another seed of the generator, so many a family, none of the pool."""
    others, _ = make_demo_rows(seed + 1000, 1000, 100)
    prompts, count = {row.prompt for row in _planted_rows(name, seed)}, Counter[str]()
    test: list[PoolRow] = []
    for row in others:
        if row.kind == CLEAN and row.prompt not in prompts and count[row.family] < a_family:
            count[row.family] += 1
            test.append(PoolRow(row.family, row.prompt, row.completion))
    return test


def _instructions(name: str, seed: int, data: Path, rng: Random) -> Pool:
    rows = json.loads((data / "alpaca_demo.json").read_text(encoding="utf-8"))
    alpaca = [
        PoolRow("alpaca", "\n".join(filter(None, (r["instruction"], r["input"]))), r["output"])
        for r in rows
    ]
    alpaca = [row for row in alpaca if _is_short(row, "alpaca")]
    rng.shuffle(alpaca)
    mixed = [draw(rng) for _ in range(60) for draw in _MIXES]
    mixed = list({row.prompt: row for row in mixed}.values())
    rng.shuffle(mixed)
    test = alpaca[:36] + mixed[:12]
    rows = alpaca[36:176] + mixed[12 : 12 + NUM_CANDIDATES - 140]
    answers = [row.response for row in rows]
    for place in rng.sample(range(len(rows)), len(rows) // 10):
        rows[place] = replace(rows[place], response=rng.choice(answers), fault=WRONG)
    rows = _make_verbose(rows, rng, 0.05)
    rng.shuffle(rows)
    return Pool(name, rows, [], test, "")


_FILLER = (
    "That is a very good question, and there are many ways to look at it.",
    "It is important to consider all the relevant aspects carefully.",
    "In general, the answer depends on a number of different factors.",
    "Many people have thought about this, and opinions differ.",
    "One should always keep the wider context in mind.",
    "I hope this helps, and please feel free to ask if anything is unclear.",
    "As with most things, a balanced approach is usually the best one.",
)


def _make_verbose(rows: list[PoolRow], rng: Random, share: float) -> list[PoolRow]:
    """Replace the answers of a share of the faultless rows by words that say nothing."""
    sound = [place for place, row in enumerate(rows) if not row.fault]
    for place in rng.sample(sound, round(share * len(rows))):
        text = " ".join(rng.sample(_FILLER, rng.randint(2, 4)))
        rows[place] = replace(rows[place], response=text, fault=VERBOSE)
    return rows


def _mix_rewrite(rng: Random) -> PoolRow:
    who, verb = rng.choice(_PEOPLE), rng.choice(_VERBS)
    what = rng.choice(_THINGS)
    prompt = f"Rewrite in the past tense: {who} {verb[0]} the {what} every day."
    return PoolRow("rewrite", prompt, f"{who} {verb[1]} the {what} every day.")


def _mix_sort(rng: Random) -> PoolRow:
    words = rng.sample(_THINGS, 4)
    prompt = f"Sort these words alphabetically: {', '.join(words)}"
    return PoolRow("sort", prompt, ", ".join(sorted(words)))


def _mix_shop(rng: Random) -> PoolRow:
    count, price, what = rng.randint(2, 9), rng.randint(2, 12), rng.choice(_THINGS)
    prompt = f"One {what} costs {price} dollars. What do {count} of them cost?"
    return PoolRow("shop", prompt, f"{count} times {price} dollars is {count * price} dollars.")


def _mix_letter(rng: Random) -> PoolRow:
    who, what = rng.choice(_PEOPLE), rng.choice(_THINGS)
    prompt = f"Write one polite sentence in which you ask {who} to return the {what}."
    return PoolRow("letter", prompt, f"Dear {who}, could you please return the {what}?")


_PEOPLE = "Anna,Ben,Clara,David,Emma,Felix,Grace,Hugo,Ida,Jonas,Karin,Leo".split(",")
_VERBS = [("cleans", "cleaned"), ("paints", "painted"), ("carries", "carried"), ("sees", "saw")]
_THINGS = "lamp,chair,bicycle,kettle,window,basket,violin,ladder,mirror,drum,hammer,boat".split(",")
_MIXES = (_mix_rewrite, _mix_sort, _mix_shop, _mix_letter)


def _gsm8k(data: Path, split: str) -> list[PoolRow]:
    """Read short rows, without the annotations of a calculator."""
    lines = (data / f"gsm8k_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    rows = [
        PoolRow("gsm8k", row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in read
    ]
    return [row for row in rows if _is_short(row, "gsm8k")]


def _t0(data: Path) -> list[PoolRow]:
    with gzip.open(data / "t0_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        read = [json.loads(line) for line in lines]
    rows = [PoolRow(row["task"], row["prompt"].strip(), row["completion"].strip()) for row in read]
    return [row for row in rows if row.response and _is_short(row, "t0")]


def _is_short(row: PoolRow, kind: str) -> bool:
    return len(row.prompt) + len(row.response) <= MAX_CHARACTERS[kind]


POOLS: dict[str, Callable[[str, int, Path, Random], Pool]] = {
    "t0_gsm8k": _mixed,
    "gsm8k_wrong": _wrong_steps,
    T0_RARE: _rare_template,
    DEMO: _planted,
    "instructions": _instructions,
    LONG_TAIL: _planted,
    T0_TAIL: _tail_of_templates,
}
#: Drawn once, for `rivals_cpu`; some are drawn anew for `rivals_draws_cpu`.
DRAWN_ONCE = [name for name in POOLS if name not in (LONG_TAIL, T0_TAIL)]


def describe(pool: Pool) -> dict[str, Any]:
    """Return what a page says of a pool."""
    faults = Counter(row.fault for row in pool.candidates)
    sources = Counter(row.source for row in pool.candidates)
    right = sources.get(pool.right_source, 0)
    return {
        "candidates": len(pool.candidates),
        "budget": pool.budget,
        "targets": len(pool.targets),
        "test_rows": len(pool.test),
        "of_right_source": right or len(pool.candidates),
        "faults": {name: count for name, count in faults.items() if name},
    }


def examples(rows: Sequence[PoolRow]) -> list[Example]:
    """Return rows as the package knows examples."""
    return [row.example for row in rows]


def dump(pool: Pool) -> list[dict[str, Any]]:
    """Return the candidates as plain objects."""
    return [asdict(row) for row in pool.candidates]
