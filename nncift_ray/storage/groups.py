"""Which group each candidate is of: its source file, or the value of a field of its record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from nncift_ray.storage.output import StageOutput

NO_GROUP = "(none)"  # of a record that has no such field


def iter_groups(examples: StageOutput, field: str | None) -> Iterator[str]:
    """Yield the group of every candidate in row order.

    Args:
        examples: Of the deduplicate stage.
        field: Field of the original record; None: the name of the source file.
    """
    column = "source" if field is None else "record"
    for batch in examples.iter_batches("candidates", [column]):
        for value in cast("list[str]", batch.column(0).to_pylist()):
            yield value.rsplit("/", 1)[-1] if field is None else _field_of(value, field)


def _field_of(record: str, field: str) -> str:
    parsed: object = json.loads(record)
    found = cast("dict[str, Any]", parsed).get(field) if isinstance(parsed, dict) else None
    return NO_GROUP if found is None else str(found)
