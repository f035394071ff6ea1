"""What is tuned on: random subsets and every method's picks, in waves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rivals.pools import Pool

#: The package's default recipe, the same with a language model's quality, and the one before.
DEFAULT, GATED, DELIFT = "teacher: cosine", "teacher: cosine, quality", "nn_cift+delift"
RANDOM, SOURCE_RANDOM, SOUND_RANDOM = "random", "random of the source", "random of sound rows"
INITIAL, FULL = "initial", "full"
#: Cells of each wave: random subsets, of the source and of sound rows, tuning seeds of a method.
WAVES = ((6, 3, 1), (12, 6, 2), (20, 10, 3))
STREAM = 77  # of random subsets


@dataclass(frozen=True)
class Cell:
    """A subset to train on: rows of the pool, and the seed of tuning."""

    method: str
    number: int
    rows: tuple[int, ...]


def cells_of(pool: Pool, picks: Path, wave: int) -> Iterator[Cell]:
    """Yield the cells of a wave, those of methods that have picked already."""
    num_random, num_source, num_seeds = WAVES[wave]
    if wave == 0:
        yield Cell(INITIAL, 0, ())
    every = range(len(pool.candidates))
    if wave == 1:
        yield Cell(FULL, 0, tuple(every))
    for number in range(num_random):
        yield Cell(RANDOM, number, draw(pool, every, number))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(picks.glob("*.json"))]
    for each in sorted(found, key=lambda each: each["method"] != DEFAULT):
        for number in range(num_seeds):
            yield Cell(each["method"], number, tuple(each["rows"]))
    right = [row for row in every if pool.candidates[row].source == pool.right_source]
    sound = [row for row in every if not pool.candidates[row].fault]
    for number in range(num_source):
        if right and len(right) < len(pool.candidates):
            yield Cell(SOURCE_RANDOM, number, draw(pool, right, number))
        if len(sound) < len(pool.candidates):
            yield Cell(SOUND_RANDOM, number, draw(pool, sound, number))


def draw(pool: Pool, rows: Sequence[int], number: int) -> tuple[int, ...]:
    """Return random rows of these; where they are fewer than the budget, all and random others."""
    rng = np.random.default_rng((STREAM, len(rows), number))
    first = rng.permutation(np.array(rows))[: pool.budget].tolist()
    others = rng.permutation([n for n in range(len(pool.candidates)) if n not in set(rows)])
    return tuple(first + others[: pool.budget - len(first)].tolist())
