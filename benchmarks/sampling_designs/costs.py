"""What a design costs a DELIFT teacher: tokens computed, worked out and checked on the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.sampling_designs.labels import LabelMatrix
from benchmarks.sampling_designs.trials import Pairs
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher


@dataclass(frozen=True)
class TokenCost:
    """Tokens that a teacher computes for some pairs, from what it computed for the whole matrix.

    Every row costs its request without an example. Every helper costs the prefix that its pairs
    share, once; a pair costs what is left. (Pairs come by helper, as the sample stage orders them.)
    """

    baseline_I: np.ndarray
    prefix_J: np.ndarray
    rest_IJ: np.ndarray

    @classmethod
    def of(cls, matrix: LabelMatrix) -> TokenCost:
        """Read the costs off a matrix."""
        asked = matrix.num_tokens > 0
        # The usual request reads the helper's prefix: the first of a helper computes it, and a
        # few read more, where another query of the same template came before.
        cached = np.where(asked, matrix.num_cached, np.nan)
        prefix_J = np.nanmedian(cached, axis=0).astype(np.int64)
        return cls(matrix.baseline_tokens, prefix_J, matrix.num_tokens - prefix_J[None])

    def __call__(self, pairs: Pairs) -> float:
        """Return the tokens computed for some pairs."""
        rows, columns = pairs
        return float(
            self.baseline_I[np.unique(rows)].sum()
            + self.prefix_J[np.unique(columns)].sum()
            + self.rest_IJ[rows, columns].sum()
        )


@dataclass(frozen=True)
class MeasuredCost:
    """What the engine computed for a part of a design, beside what was worked out for it."""

    num_pairs: int
    num_rows: int
    num_columns: int
    tokens: int
    expected_tokens: float
    seconds: float


def measure_cost(
    teacher: DeliftTeacher, matrix: LabelMatrix, cost: TokenCost, pairs: Pairs, most: int
) -> MeasuredCost:
    """Ask for whole helpers of a design, at most about so many pairs, and their rows' baselines."""
    rows, columns = pairs
    helpers = np.random.default_rng(0).permutation(np.unique(columns))
    counts = np.cumsum([np.sum(columns == helper) for helper in helpers])
    chosen = helpers[: max(1, int(np.searchsorted(counts, most, side="right")))]
    taken = np.isin(columns, chosen)
    rows, columns = rows[taken][:most], columns[taken][:most]
    order = np.lexsort((rows, columns))
    rows, columns = rows[order], columns[order]
    pair_requests = [LabelRequest(matrix.helped[i], matrix.helpers[j])
                     for i, j in zip(rows, columns, strict=True)]  # fmt: skip
    alone = [LabelRequest(matrix.helped[i]) for i in np.unique(rows)]
    started = time.perf_counter()
    tokens = _computed(teacher, alone) + _computed(teacher, pair_requests)
    seconds = time.perf_counter() - started
    return MeasuredCost(
        len(rows), len(alone), len(np.unique(columns)), tokens, cost((rows, columns)), seconds
    )


def _computed(teacher: DeliftTeacher, requests: Sequence[LabelRequest]) -> int:
    answers = teacher.measure(requests)
    return sum(
        one.num_tokens - one.num_cached_tokens for one in answers if isinstance(one, Measurement)
    )
