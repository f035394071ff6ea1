"""Find an example of a run by the beginning of its id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.errors import DataError
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import CANDIDATE, TARGET

NUM_NEAR, MAX_AMBIGUOUS = 3, 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands: its role and its number in that role."""

    role: str
    row_index: int


def find_example(examples: StageOutput, wanted: str) -> list[Place]:
    """Find an example by the beginning of its id, as candidate, target, or both.

    Raises:
        DataError: With ids near it if there is none, or those it could be if there are several.
    """
    found: dict[str, list[Place]] = {}
    for role, row_index, name in _matching(examples, wanted.strip().lower()):
        found.setdefault(name, []).append(Place(role, row_index))
        if len(found) > MAX_AMBIGUOUS:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        shown = ", ".join(list(found)[:MAX_AMBIGUOUS])
        more = ", ..." if len(found) > MAX_AMBIGUOUS else ""
        raise DataError(f"'{wanted}' begins several ids: {shown}{more}. Give more of it.")
    raise DataError(
        f"no example of this run has an id that begins with '{wanted}'. Ids are the 32 hexadecimal "
        "digits under `_nncift.example_id` in export/subset.jsonl and `example_id` in the tables "
        f"of deduplicate; near it are: {', '.join(_nearest(examples, wanted.strip().lower()))}"
    )


def _ids(examples: StageOutput) -> Iterator[tuple[str, int, pa.Array]]:
    """Yield (role, row of the first id, ids) batch by batch, candidates first."""
    for role in (CANDIDATE, TARGET):
        first = 0
        for batch in examples.iter_batches(f"{role}s", ["example_id"]):
            yield role, first, batch.column(0)
            first += batch.num_rows


def _matching(examples: StageOutput, prefix: str) -> Iterator[tuple[str, int, str]]:
    for role, first, ids in _ids(examples):
        for row in np.flatnonzero(pc.starts_with(ids, prefix).to_numpy(zero_copy_only=False)):
            yield role, first + int(row), str(ids[int(row)])


def _nearest(examples: StageOutput, wanted: str) -> list[str]:
    """Return the ids that share the longest beginning with what was asked for."""

    def shared(name: str) -> int:
        pairs = enumerate(zip(wanted, name, strict=False))
        return next((at for at, (a, b) in pairs if a != b), min(len(wanted), len(name)))

    best: list[str] = []
    for _, _, ids in _ids(examples):
        names = {*best, *cast("list[str]", ids.to_pylist())}
        best = sorted(names, key=lambda name: (-shared(name), name))[:NUM_NEAR]
    return best
