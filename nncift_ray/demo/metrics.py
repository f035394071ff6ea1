"""What share of a set of demo rows is junk: pure functions over the list of what was planted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from nncift_ray.demo.corpus import (
    EMPTY_RESPONSE,
    EXACT_DUPLICATE,
    WRONG_RESPONSE,
    WRONG_SAME_FAMILY,
)

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
