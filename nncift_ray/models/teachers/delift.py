"""DELIFT: how much an example in context helps a language model answer another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal

from nncift_ray.core.teaching import delift
from nncift_ray.errors import ConfigError
from nncift_ray.models.engine import (
    ScoringEngine,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    minimal_tokens,
)
from nncift_ray.models.teachers.protocol import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    TeacherContext,
)

TOKENISED_TEXTS = 8192  # texts whose tokens are remembered: an example is asked about many times


class DeliftTeacher:
    """DELIFT: the distance to certainty that an example in context takes away (2411.04425)."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = True
    version: ClassVar[int] = 2

    def __init__(self, engine: ScoringEngine) -> None:
        """Make a teacher of a language model."""
        self._engine = engine
        self._encode = lru_cache(maxsize=TOKENISED_TEXTS)(lambda text: tuple(engine.encode(text)))

    @classmethod
    def from_context(cls, context: TeacherContext) -> DeliftTeacher:
        """Load the context's engine and make a teacher of it."""
        if len(context.engine_factories) != 1:
            raise ConfigError(
                "teacher delift needs one language model, "
                f"{len(context.engine_factories)} were given"
            )
        return cls(context.engine_factories[0]())

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure d_i in [0, 1] of every request, with its helper in context or alone."""
        answers: dict[int, Measurement | MeasurementFailure] = {}
        prepared: dict[int, ScoringRequest] = {}
        for i, request in enumerate(requests):
            outcome = self._prepare(request)
            if isinstance(outcome, MeasurementFailure):
                answers[i] = outcome
            else:
                prepared[i] = outcome
        asked = list(prepared.values())
        least = minimal_tokens(asked, self._engine.block_tokens)
        for i, result, tokens in zip(prepared, self._engine.score(asked), least, strict=True):
            answers[i] = _measure_distance(result, tokens)
        return [answers[i] for i in range(len(requests))]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return d_i alone minus d_i with the example, in [-1, 1]."""
        if baseline is None:
            raise ValueError("a DELIFT utility needs the distance of the helped example alone")
        return delift.utility(baseline, value)

    def close(self) -> None:
        """Free the language model."""
        self._encode.cache_clear()
        self._engine.close()

    def _prepare(self, request: LabelRequest) -> ScoringRequest | MeasurementFailure:
        """Tokenise a request and fit it to the model's window."""
        segments = delift.delift_segments(request.helped, request.helper)
        response_ids = self._encode(segments.response)
        if not response_ids:
            return MeasurementFailure("no_response", "the helped example's response has no tokens")
        before = (*self._engine.start_ids, *self._encode(segments.instruction))
        example = self._encode(segments.example)
        fitted = delift.fit_to_length(
            (*before, *example, *self._encode(segments.bridge)),
            (len(before), len(before) + len(example)),
            self._encode(segments.query),
            (*response_ids, self._engine.eos_id),
            self._engine.max_length,
        )
        if isinstance(fitted, delift.Misfit):
            return MeasurementFailure(fitted.reason, fitted.message)
        return ScoringRequest(
            fitted.prompt_ids, (*response_ids, self._engine.eos_id), fitted.prefix_length
        )


def _measure_distance(
    result: ScoringResult | ScoringFailure, least_tokens: int
) -> Measurement | MeasurementFailure:
    if isinstance(result, ScoringFailure):
        return MeasurementFailure(result.reason, result.message)
    value = delift.distance(result.log_probs)
    return Measurement(value, result.num_tokens, result.num_cached_tokens, least_tokens)
