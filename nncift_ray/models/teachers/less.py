"""LESS: how far a training step on one example lowers another's loss, by projected gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from nncift_ray.core.teaching import less
from nncift_ray.errors import ConfigError
from nncift_ray.models.teachers.protocol import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    TeacherContext,
)


class LessTeacher:
    """LESS: weighted cosines of projected gradients over the warm-up's checkpoints (2402.04333)."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, checkpoint_weights: Sequence[float]) -> None:
        """Make a teacher that weights the checkpoints so (they sum to 1)."""
        self._weights_C = tuple(checkpoint_weights)

    @classmethod
    def from_context(cls, context: TeacherContext) -> LessTeacher:
        """Make a teacher with the warm-up's checkpoint weights."""
        if not context.checkpoint_weights:
            raise ConfigError("teacher less needs the checkpoints of a warm-up, none were given")
        return cls(context.checkpoint_weights)

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the influence in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return the influence as it is."""
        del baseline
        return value

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _measure_one(self, request: LabelRequest) -> Measurement | MeasurementFailure:
        helped_CP, helper_CP = request.helped_gradients, request.helper_gradients
        if helped_CP is None or helper_CP is None:
            return MeasurementFailure("no_gradient", "an example of the pair has no gradient")
        try:
            return Measurement(less.less_score(helped_CP, helper_CP, self._weights_C))
        except ValueError as error:  # a feature without a direction, or of another warm-up
            return MeasurementFailure("bad_gradient", str(error))
