"""Reading the drawn rows of a test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.storage.output import StageOutput


def read_drawn(
    tests: StageOutput, table: str, numbers: NDArray[np.int64], columns: Sequence[str]
) -> pa.Table:
    """Read some rows of a test set, opening only what holds them.

    Args:
        tests: Output of the deduplicate stage of the test set.
        table: Its table that holds the rows.
        numbers: Sorted row numbers, at least one.
        columns: Columns to read.
    """
    low, high = int(numbers[0]), int(numbers[-1]) + 1
    return tests.read_range(table, low, high, columns).take(pa.array(numbers - low, pa.int64()))
