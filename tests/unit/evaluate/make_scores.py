"""SCORES for tests, written as tables of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from nncift_ray.runtime.schemas import SCORES

Values = Sequence[float | None] | Mapping[int, float | None]


def make_scores(
    method: str,
    values: Values,
    *,
    budget: float = 0.1,
    seed: int = 0,
    mode: str = "tuned",
    test: str = "gsm8k",
    metric: str = "rouge1",
    num_examples: int = 100,
) -> pa.Table:
    """Make the scores of one cell: a value a row, numbered from 0 or by the mapping's keys."""
    named = values if isinstance(values, Mapping) else dict(enumerate(values))
    rows = [
        {
            "method": method,
            "budget": budget,
            "num_examples": num_examples,
            "seed": seed,
            "mode": mode,
            "test": test,
            "metric": metric,
            "row_index": row,
            "example_id": f"{row:032x}",
            "value": value,
        }
        for row, value in named.items()
    ]
    return pa.Table.from_pylist(rows, SCORES)
