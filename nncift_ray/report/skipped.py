"""The strong examples that a selection left out, each with the pick that took its place."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

from nncift_ray.report.data import ExampleText, SkippedExample
from nncift_ray.storage import schemas
from nncift_ray.storage.output import StageOutput

TEXT_COLUMNS = ["row_index", "prompt", "response", "source", "line"]


def collect_skipped(
    examples: StageOutput, select: StageOutput, ranking: pa.Table, most: int
) -> tuple[SkippedExample, ...]:
    """Look up the skipped examples of highest worth, at most one for each pick.

    Without that rule one pick that stands for many copies would fill the page.
    """
    found = cast("list[dict[str, Any]]", select.read("skipped", schema=schemas.SKIPPED).to_pylist())
    rows = list(
        {row["taken_by"]: row for row in reversed(found) if row["taken_by"] is not None}.values()
    )
    rows = sorted(rows, key=lambda row: -row["alone_gain"])[:most]
    skipped = find_example_texts(
        examples, "candidates", np.array([row["row_index"] for row in rows], int)
    )
    takers = find_example_texts(
        examples, "candidates", np.array([row["taken_by"] for row in rows], int)
    )
    return tuple(
        SkippedExample(
            example=example,
            alone_gain=row["alone_gain"],
            final_gain=row["final_gain"],
            taker=taker,
            taker_rank=row["taken_by_rank"],
            taken_share=row["taken_share"],
            cosine=row["cosine"],
        )
        for row, example, taker in zip(rows, skipped, takers, strict=True)
    )


def find_example_texts(examples: StageOutput, table: str, rows: np.ndarray) -> list[ExampleText]:
    """Look up the texts of some rows, in the order given."""
    if not rows.size:
        return []
    found = examples.take_rows(table, rows, TEXT_COLUMNS).to_pylist()
    return [ExampleText(**row) for row in found]
