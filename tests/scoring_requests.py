"""Scoring requests that tests of several engines share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.teachers.base import LabelRequest
from nncift_ray.teachers.delift import DeliftTeacher

HELPERS = [
    Example(f"j{n}", f"What is {n} and {n}? Answer in one word, in the same style.", "two " * n)
    for n in range(3, 6)
]
HELPED = [Example(f"i{n}", f"Query {n}: the capital?", "Paris " * (1 + n % 4)) for n in range(8)]


def delift_requests(engine: Engine) -> list[ScoringRequest]:
    """Return the requests of all pairs, those of a helper back to back, as one call has them."""
    teacher = DeliftTeacher(engine)
    prepared = [teacher._prepare(LabelRequest(i, j)) for j in HELPERS for i in HELPED]
    assert all(isinstance(request, ScoringRequest) for request in prepared)
    return [request for request in prepared if isinstance(request, ScoringRequest)]


def stack_log_probs(answers: Sequence[ScoringResult | ScoringFailure]) -> np.ndarray:
    found = [a.log_probs for a in answers if isinstance(a, ScoringResult)]
    assert len(found) == len(answers), answers
    return np.concatenate(found)
