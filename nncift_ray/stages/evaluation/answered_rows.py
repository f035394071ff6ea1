"""The answers of a respond stage beside the rows of the test set that they answer."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import TABLE_OF_ROLE, TARGET

ANSWERS, TEST_ROWS = "responses", TABLE_OF_ROLE[TARGET]


def read_answers(responses: StageOutput, start: int, stop: int) -> pa.Table:
    """Read the answers [start, stop) in their own count, failed ones not among them."""
    return responses.read_range(ANSWERS, start, stop)


def read_test_rows(answers: pa.Table, test: StageOutput, columns: Sequence[str]) -> pa.Table:
    """Read the test rows of some answers, in the order of the answers.

    Raises:
        StageError: If an answer is to another example than the test set has in its place.
    """
    wanted = ["example_id", *columns]
    rows = test.take_rows(TEST_ROWS, answers["row_index"].to_numpy(), wanted)
    if rows["example_id"].to_pylist() != answers["example_id"].to_pylist():
        raise StageError("the answers are to another test set than the one given")
    return rows.select(list(columns))
