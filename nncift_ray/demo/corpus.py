"""Write the demo corpus: short tasks, most of them good, with faults planted on purpose.

    python -m nncift_ray.demo.corpus runs/demo/corpus

Three files come out. ``candidates.jsonl`` and ``targets.jsonl`` are what the pipeline reads;
``planted.jsonl`` says of every line of the former what it is, and the pipeline never sees it.
Everything follows from the seed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from nncift_ray.corpus.examples import make_example_id
from nncift_ray.demo.tasks import FAMILIES, Draw, Item, draw_distinct_items

# What is measured, in the order it is shown.
WRONG = "wrong answers"
EMPTY = "empty answers"
EXACT_REPEAT = "exact repeats"
REWORDED_REPEAT = "reworded repeats"
WRONG_OF_TYPE = "... of the right type"
MEASURES = (WRONG, WRONG_OF_TYPE, EMPTY, EXACT_REPEAT, REWORDED_REPEAT)


@dataclass(frozen=True, slots=True)
class PlantedRow:
    """What one line of the demo corpus is."""

    line: int
    example_id: str
    kind: str
    family: str
    item: int


def read_planted(path: Path) -> list[PlantedRow]:
    """Read ``planted.jsonl`` in the order of the corpus."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PlantedRow(**json.loads(line)) for line in lines]


def usable_rows(rows: Sequence[PlantedRow]) -> list[PlantedRow]:
    """Keep what any ingest would keep: one row of every id, none with an empty answer."""
    first: dict[str, PlantedRow] = {}
    for row in rows:
        if row.kind != EMPTY_RESPONSE:
            first.setdefault(row.example_id, row)
    return list(first.values())


def rows_by_id(rows: Sequence[PlantedRow], example_ids: Iterable[str]) -> list[PlantedRow]:
    """Find what was planted for each id of a subset, in the subset's order.

    Raises:
        ValueError: If an id is none of the corpus.
    """
    known: dict[str, PlantedRow] = {}
    for row in rows:
        # A copied id has two rows; as a pick it is the original.
        if row.kind != EXACT_DUPLICATE or row.example_id not in known:
            known[row.example_id] = row
    wanted = list(example_ids)
    unknown = [example_id for example_id in wanted if example_id not in known]
    if unknown:
        raise ValueError(f"{len(unknown)} ids are not of this corpus, e.g. {unknown[0]}")
    return [known[example_id] for example_id in wanted]


def junk_shares(rows: Sequence[PlantedRow]) -> dict[str, float]:
    """Measure a set of rows: each share is a fraction of the set, 0..1.

    A repeat is a row whose item is in the set already: in the same words (exact) or in others
    (reworded). The first row of an item is never a repeat, whichever of its wordings it is.

    Raises:
        ValueError: If the set is empty.
    """
    if not rows:
        raise ValueError("an empty set of rows has no shares")
    counts: Counter[str] = Counter()
    ids: set[str] = set()
    items: set[int] = set()
    for row in rows:
        counts[WRONG] += row.kind in (WRONG_RESPONSE, WRONG_SAME_FAMILY)
        counts[WRONG_OF_TYPE] += row.kind == WRONG_SAME_FAMILY
        counts[EMPTY] += row.kind == EMPTY_RESPONSE
        counts[EXACT_REPEAT] += row.example_id in ids
        counts[REWORDED_REPEAT] += row.item in items and row.example_id not in ids
        ids.add(row.example_id)
        items.add(row.item)
    return {measure: counts[measure] / len(rows) for measure in MEASURES}


@dataclass(frozen=True, slots=True)
class RandomShare:
    """A share over random subsets: its mean, and the range that 99 of 100 of them keep to."""

    mean: float
    low: float
    high: float


def random_junk_shares(
    rows: Sequence[PlantedRow], size: int, num_draws: int = 200
) -> dict[str, RandomShare]:
    """Measure random subsets of ``size`` rows, seeds 0, 1, 2 ..."""
    draws = [junk_shares(Random(seed).sample(rows, size)) for seed in range(num_draws)]
    found: dict[str, RandomShare] = {}
    for measure in MEASURES:
        shares = np.array([draw[measure] for draw in draws])
        low, high = np.quantile(shares, [0.005, 0.995])
        found[measure] = RandomShare(float(shares.mean()), float(low), float(high))
    return found


def family_shares(rows: Sequence[PlantedRow]) -> dict[str, float]:
    """Return the share of every task family in a set of rows, by name."""
    counts = Counter(row.family for row in rows)
    return {family: counts[family] / len(rows) for family in sorted(counts)}


CLEAN = "clean"
EXACT_DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"
WRONG_RESPONSE = "wrong_response"  # the answer of another family's task
WRONG_SAME_FAMILY = "wrong_response_of_its_family"  # of the right kind: harder to see
EMPTY_RESPONSE = "empty_response"
KINDS = (
    CLEAN, EXACT_DUPLICATE, NEAR_DUPLICATE, WRONG_RESPONSE, WRONG_SAME_FAMILY, EMPTY_RESPONSE
)  # fmt: skip

# Shares of the corpus; what is left is clean.
SHARES = {
    EXACT_DUPLICATE: 0.05,
    NEAR_DUPLICATE: 0.10,
    WRONG_RESPONSE: 0.075,
    WRONG_SAME_FAMILY: 0.075,
    EMPTY_RESPONSE: 0.02,
}
TARGET_FAMILIES = ("arithmetic", "dates", "JSON extraction", "units")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One line of the corpus and what is planted there.

    Attributes:
        family: The task family of the prompt.
        item: Number of the item asked; two wordings of one item share it.
        prompt: What is asked.
        completion: What the row answers, right or wrong.
        kind: One of KINDS.
    """

    family: str
    item: int
    prompt: str
    completion: str
    kind: str

    @property
    def example_id(self) -> str:
        """The id by which the pipeline knows the row."""
        return make_example_id(self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """Where the files are and how many rows of each kind they hold."""

    candidates: Path
    targets: Path
    planted: Path
    counts: dict[str, int]
    num_targets: int


def write_demo_corpus(
    folder: Path,
    seed: int = 0,
    num_candidates: int = 1000,
    num_targets: int = 100,
    families: Mapping[str, Draw] = FAMILIES,
) -> DemoCorpus:
    """Write candidates, targets and the list of what is planted into ``folder``.

    Raises:
        ValueError: If the families' vocabularies are too small for that many rows.
    """
    candidates, targets = make_demo_rows(seed, num_candidates, num_targets, families)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = DemoCorpus(
        candidates=folder / "candidates.jsonl",
        targets=folder / "targets.jsonl",
        planted=folder / "planted.jsonl",
        counts=dict(Counter(row.kind for row in candidates)),
        num_targets=len(targets),
    )
    _write_lines(corpus.candidates, map(_record, candidates))
    _write_lines(corpus.targets, map(_record, targets))
    _write_lines(corpus.planted, planted_records(candidates))
    return corpus


def make_demo_rows(
    seed: int,
    num_candidates: int,
    num_targets: int,
    families: Mapping[str, Draw] = FAMILIES,
    shares: Mapping[str, float] | None = None,
) -> tuple[list[DemoRow], list[DemoRow]]:
    """Draw the candidates, faults included and in random order, and the clean held-out targets.

    ``shares`` says how much of the candidates each family makes up; all alike without.
    """
    rng = Random(seed)
    counts = {kind: round(share * num_candidates) for kind, share in SHARES.items()}
    # Rounding the two halves apart would plant one wrong answer more or less than announced.
    all_wrong = round((SHARES[WRONG_RESPONSE] + SHARES[WRONG_SAME_FAMILY]) * num_candidates)
    counts[WRONG_SAME_FAMILY] = all_wrong - counts[WRONG_RESPONSE]
    num_copies = counts[EXACT_DUPLICATE] + counts[NEAR_DUPLICATE]
    count = num_candidates - num_copies
    shares = shares or dict.fromkeys(families, 1 / len(families))
    sizes = {family: ceil(round(count * shares[family], 6)) for family in families}
    items, targets = _draw_items(sizes, num_targets, rng, families)
    items = items[:count]
    num_far, num_wrong, num_empty = counts[WRONG_RESPONSE], all_wrong, counts[EMPTY_RESPONSE]
    wrong = _wrong_rows(items, range(num_far), WRONG_RESPONSE, rng)
    wrong += _wrong_rows(items, range(num_far, num_wrong), WRONG_SAME_FAMILY, rng)
    empty = [_row(items, k, EMPTY_RESPONSE) for k in range(num_wrong, num_wrong + num_empty)]
    clean = [_row(items, k, CLEAN) for k in range(num_wrong + num_empty, len(items))]
    copied = rng.sample(clean, num_copies)
    exact = [replace(row, kind=EXACT_DUPLICATE) for row in copied[: counts[EXACT_DUPLICATE]]]
    near = [_reword(items, row, rng) for row in copied[counts[EXACT_DUPLICATE] :]]
    candidates = [*clean, *exact, *near, *wrong, *empty]
    rng.shuffle(candidates)
    return candidates, [_row(targets, k, CLEAN) for k in range(len(targets))]


def planted_records(rows: Iterable[DemoRow]) -> list[dict[str, Any]]:
    """Say of every line, counted from 1, what it is; the pipeline never reads this."""
    return [
        {
            "line": line,
            "example_id": row.example_id,
            "kind": row.kind,
            "family": row.family,
            "item": row.item,
        }
        for line, row in enumerate(rows, start=1)
    ]


def _draw_items(
    sizes: Mapping[str, int], num_targets: int, rng: Random, families: Mapping[str, Draw]
) -> tuple[list[Item], list[Item]]:
    """Draw distinct items, family by family, and targets that are none of them; both shuffled."""
    per_target = -(-num_targets // len(TARGET_FAMILIES))
    items: list[Item] = []
    targets: list[Item] = []
    for family, size in sizes.items():
        held_out = per_target if family in TARGET_FAMILIES else 0
        drawn = draw_distinct_items(family, size + held_out, rng, families)
        targets += drawn[:held_out]
        items += drawn[held_out:]
    rng.shuffle(items)
    rng.shuffle(targets)
    return items, targets[:num_targets]


def _row(items: list[Item], number: int, kind: str) -> DemoRow:
    item = items[number]
    answer = "" if kind == EMPTY_RESPONSE else item.answer
    # Wordings in turn, so that none belongs to one kind of row only.
    return DemoRow(item.family, number, item.prompts[number % len(item.prompts)], answer, kind)


def _wrong_rows(items: list[Item], numbers: range, kind: str, rng: Random) -> list[DemoRow]:
    """Give each row the answer of another item: of another family, as a badly joined table would.

    Or of the same family: another number, another capital, JSON of somebody else.
    """
    rows: list[DemoRow] = []
    for number in numbers:
        row = _row(items, number, kind)
        others = [
            item.answer
            for item in items
            if (item.family == row.family) == (kind == WRONG_SAME_FAMILY)
            and item.answer != row.completion
        ]
        rows.append(replace(row, completion=rng.choice(others)))
    return rows


def _reword(items: list[Item], row: DemoRow, rng: Random) -> DemoRow:
    """Ask the same in another wording, or in the same with other case and punctuation."""
    others = [prompt for prompt in items[row.item].prompts if prompt != row.prompt]
    scruffy = (
        row.prompt[0].lower() + row.prompt[1:].rstrip("?.") + rng.choice([" ...", " please", ""])
    )
    return replace(row, prompt=rng.choice([*others, scruffy]), kind=NEAR_DUPLICATE)


def _record(row: DemoRow) -> dict[str, str]:
    return {"task": row.family, "prompt": row.prompt, "completion": row.completion}


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    made = write_demo_corpus(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/corpus"))
    print(json.dumps(asdict(made), default=str, indent=2))
