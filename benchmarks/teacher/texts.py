"""Real rows for the teachers to label, chosen by how long they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nncift_ray.corpus.examples import Example
from nncift_ray.teachers.base import LabelRequest

MAX_ROWS = 4000


@dataclass(frozen=True)
class Setting:
    """Lengths in tokens of the examples in context and of queries with their responses."""

    name: str
    helper_tokens: tuple[int, int]
    query_tokens: tuple[int, int]


#: Examples at least four times as long as query and response, and examples shorter than they are.
LONG = Setting("long", (320, 480), (25, 75))
SHORT = Setting("short", (15, 55), (60, 130))


def read_rows(path: Path) -> list[Example]:
    """Read the first rows of the corpus."""
    if not path.is_file():
        raise SystemExit(f"{path} is not there; give the folder of t0_train.jsonl.gz with --data")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for _, line in zip(range(MAX_ROWS), lines, strict=False)]
    return [
        Example(str(n), record["prompt"], record["completion"]) for n, record in enumerate(records)
    ]


def choose(
    rows: Sequence[Example],
    encode: Callable[[str], list[int]],
    bounds: tuple[int, int],
    count: int,
) -> list[Example]:
    """Return the first rows whose prompt and response have so many tokens together."""
    found: list[Example] = []
    for row in rows:
        length = len(encode(row.prompt)) + len(encode(row.response))
        if bounds[0] <= length <= bounds[1] and row.response.strip():
            found.append(row)
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} of {count} rows have {bounds[0]} to {bounds[1]} tokens")


def choose_pairs(
    rows: Sequence[Example],
    encode: Callable[[str], list[int]],
    setting: Setting,
    num_helpers: int,
    num_queries: int,
) -> list[LabelRequest]:
    """Return all pairs of some queries with some helpers, those of a helper together."""
    helpers = choose(rows, encode, setting.helper_tokens, num_helpers)
    queries = choose(rows[::-1], encode, setting.query_tokens, num_queries)
    return [LabelRequest(query, helper) for helper in helpers for query in queries]
