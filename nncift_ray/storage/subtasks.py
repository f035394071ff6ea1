"""Which subtask each target belongs to: the value of a field of its original record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import DataError
from nncift_ray.storage.output import StageOutput

MAX_SUBTASKS = 1000  # each costs a sum for every candidate and shard; an id as key would have all
FIELDS_NAMED = 10  # of a record, in a message


@dataclass(frozen=True, slots=True, eq=False)
class Subtasks:
    """Names of the subtasks, sorted, and which of them each target is of [I]."""

    names: tuple[str | None, ...]  # (None,) where all targets are one
    group_I: npt.NDArray[np.int64]

    @classmethod
    def one(cls, num_rows: int) -> Subtasks:
        """Return one subtask without a name, for all rows."""
        return cls((None,), np.zeros(num_rows, np.int64))


def read_subtasks(examples: StageOutput, key: str) -> Subtasks:
    """Read the subtask of every target from the field ``key`` of its original record.

    Raises:
        DataError: If a target has no such field, or there are too many subtasks to be any.
    """
    values = list(_values(examples, key))
    names = sorted(set(values))
    if len(names) > MAX_SUBTASKS:
        raise DataError(
            f"data.subtask_by: the field '{key}' has {len(names):,} values in {len(values):,} "
            f"targets, more than {MAX_SUBTASKS:,}: name a field that says which part of the target "
            "a row belongs to"
        )
    place = {name: at for at, name in enumerate(names)}
    return Subtasks(tuple(names), np.array([place[value] for value in values], np.int64))


def _values(examples: StageOutput, key: str) -> Iterator[str]:
    row = 0
    for batch in examples.iter_batches("targets", ["record", "source", "line"]):
        for target in batch.to_pylist():
            record = json.loads(target["record"])
            fields = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
            value = fields.get(key)
            if value is None:
                known = ", ".join(list(fields)[:FIELDS_NAMED]) or "none"
                raise DataError(
                    f"data.subtask_by: target {row} ({target['source']}:{target['line']}) has no "
                    f"field '{key}'; its fields are {known}. Name a field that every target has, "
                    "or leave data.subtask_by out."
                )
            yield value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            row += 1
