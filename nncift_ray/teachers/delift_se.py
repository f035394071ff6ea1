"""DELIFT (SE): sentence embeddings in place of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from nncift_ray.teachers.base import LabelRequest, Measurement, MeasurementFailure, TeacherContext


class DeliftSeTeacher:
    """DELIFT (SE): the cosine of two examples' sentence embeddings, not rescaled."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = True
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @classmethod
    def from_context(cls, context: TeacherContext) -> DeliftSeTeacher:
        """Make a teacher; it takes nothing from the context."""
        del context
        return cls()

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the cosine in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return the cosine as it is."""
        del baseline
        return value

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _measure_one(self, request: LabelRequest) -> Measurement | MeasurementFailure:
        if request.helped_embedding is None or request.helper_embedding is None:
            return MeasurementFailure("no_embedding", "an example of the pair has no embedding")
        # Vectors may be stored as float16, whose norm is 1 to three digits only.
        helped_D = np.asarray(request.helped_embedding, dtype=np.float64)
        helper_D = np.asarray(request.helper_embedding, dtype=np.float64)
        norms = float(np.linalg.norm(helped_D) * np.linalg.norm(helper_D))
        if not np.isfinite(norms) or norms == 0.0:
            return MeasurementFailure("bad_embedding", "an embedding is zero or not finite")
        return Measurement(float(np.clip(helped_D @ helper_D / norms, -1.0, 1.0)))
