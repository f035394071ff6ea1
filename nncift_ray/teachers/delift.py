"""DELIFT: how much an example in context helps a language model answer another.

Source: DELIFT, arXiv 2411.04425; DELIFT (SE) puts sentence embeddings in the model's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ROUNDING, Engine, ScoringRequest, minimal_tokens
from nncift_ray.engines.tokens import CUT_STEP
from nncift_ray.errors import ConfigError, ShapeError
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
)

# The two templates are constants of the method: one changed character is another teacher.
BASELINE_TEMPLATE = (
    "Instruction: Please generate a response to the following query.\n\n\nQuery: {query}\n"
)
EXAMPLE_TEMPLATE = (
    "Instruction:\nUse the following example as a guide to answer the query in the same format and "
    "style, providing a clear and concise response.\n\n\nExample:\n{example_prompt}\n"
    "{example_response}\n\n\nQuery:\n{query}\n"
)

TOKENISED_TEXTS = 8192  # texts whose tokens are remembered: an example is asked about many times


class DeliftTeacher(Teacher):
    """DELIFT: the distance to certainty that an example in context takes away."""

    needs_baseline: ClassVar[bool] = True
    needs_engine: ClassVar[bool] = True
    version: ClassVar[int] = 2

    def __init__(self, engine: Engine) -> None:
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
        prepared = [self._prepare(request) for request in requests]
        asked = [request for request in prepared if isinstance(request, ScoringRequest)]
        least = minimal_tokens(asked, self._engine.block_tokens)
        measured = iter(
            [
                result
                if isinstance(result, MeasurementFailure)
                else Measurement(
                    distance(result.log_probs), result.num_tokens, result.num_cached_tokens, minimal
                )
                for result, minimal in zip(self._engine.score(asked), least, strict=True)
            ]
        )
        return [
            request if isinstance(request, MeasurementFailure) else next(measured)
            for request in prepared
        ]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return d_i alone minus d_i with the example, in [-1, 1]: above 0 where it helps."""
        if baseline is None:
            raise ValueError("a DELIFT utility needs the distance of the helped example alone")
        return baseline - value

    def close(self) -> None:
        """Free the language model."""
        self._encode.cache_clear()
        self._engine.close()

    def _prepare(self, request: LabelRequest) -> ScoringRequest | MeasurementFailure:
        """Tokenise a request and fit it to the model's window.

        In a chat template the helper is an earlier exchange of the helped example's conversation.
        """
        if (chat := self._engine.chat) is not None:
            shown = [request.helper] if request.helper else []
            return chat.request(request.helped, self._engine.max_length, shown)
        segments = delift_segments(request.helped, request.helper)
        response_ids = self._encode(segments.response)
        if not response_ids:
            return MeasurementFailure("no_response", "the helped example's response has no tokens")
        before = (*self._engine.start_ids, *self._encode(segments.instruction))
        example = self._encode(segments.example)
        return fit_to_length(
            (*before, *example, *self._encode(segments.bridge)),
            (len(before), len(before) + len(example)),
            self._encode(segments.query),
            (*response_ids, self._engine.eos_id),
            self._engine.max_length,
        )


class Segments(NamedTuple):
    """The texts of one request; each is tokenised on its own and the tokens are concatenated.

    Cutting at fixed places makes the tokens of the first three the same for every query of one
    helper, which is what lets an engine compute them once.
    """

    instruction: str
    example: str  # empty for the baseline
    bridge: str  # what stands between the example and the query; empty for the baseline
    query: str
    response: str


def delift_segments(helped: Example, helper: Example | None) -> Segments:
    """Return the texts that measure ``helped`` alone or after ``helper``, as the paper writes them.

    In the baseline the space before the query belongs to the query segment: byte-pair tokenizers
    join a space to the word behind it, and a lone space would be a token they never saw in text.
    """
    if helper is None:
        instruction, after = BASELINE_TEMPLATE.split(" {query}")
        return Segments(instruction, "", "", f" {helped.prompt}{after}", helped.response)
    instruction, rest = EXAMPLE_TEMPLATE.split("{example_prompt}\n{example_response}")
    bridge, after = rest.split("{query}")
    example = f"{helper.prompt}\n{helper.response}"
    return Segments(instruction, example, bridge, f"{helped.prompt}{after}", helped.response)


def fit_to_length(
    head_ids: Sequence[int],
    example_span: tuple[int, int],
    query_ids: Sequence[int],
    response_ids: Sequence[int],
    max_length: int,
) -> ScoringRequest | MeasurementFailure:
    """Join the segments' tokens, cutting the example from its left where they are too many.

    A response that is cut would score as if it were easy (a response cut to nothing has distance
    0, "perfect"), and a query that is cut is another query: neither is ever touched. A pair whose
    example would vanish fails too, since its label would say nothing about the example. The cut is
    a multiple of ``CUT_STEP`` where that leaves some of the example.

    Args:
        head_ids: Tokens of instruction, example and bridge.
        example_span: Start and stop of the example inside ``head_ids``; empty for the baseline.
        query_ids: Tokens of the query with what follows it in the template.
        response_ids: Tokens of the response, the end-of-text token included.
        max_length: Tokens that prompt and response may have together.

    Raises:
        ShapeError: If ``example_span`` does not lie inside ``head_ids``.
    """
    start, stop = example_span
    if not 0 <= start <= stop <= len(head_ids):
        raise ShapeError(f"example_span {example_span} is outside a head of {len(head_ids)} tokens")
    total = len(head_ids) + len(query_ids) + len(response_ids)
    fixed = total - (stop - start)
    if fixed > max_length:
        return MeasurementFailure(
            "too_long",
            f"query and response need {fixed} tokens with the template, the limit is {max_length}",
        )
    num_cut = max(total - max_length, 0)
    if num_cut and num_cut >= stop - start:
        return MeasurementFailure(
            "no_room_for_example",
            f"query and response leave no room for the example in {max_length} tokens",
        )
    stepped = -(-num_cut // CUT_STEP) * CUT_STEP
    num_cut = stepped if stepped < stop - start else num_cut
    head = (*head_ids[:start], *head_ids[start + num_cut :])
    return ScoringRequest((*head, *query_ids), tuple(response_ids), len(head))


def distance(log_probs_T: npt.NDArray[np.float64]) -> float:
    """Return d = ||1 - p||_2 / sqrt(T): 0 if every token is certain, 1 if none has any mass.

    Args:
        log_probs_T: Natural log of the probability of each response token [T], teacher-forced.

    Raises:
        ShapeError: If there is no token: an empty response must not score as perfect.
        ValueError: If a log-probability is not a finite number or is above 0.
    """
    if log_probs_T.ndim != 1 or log_probs_T.size == 0:
        raise ShapeError(f"log_probs must be [T] with T >= 1, got shape {log_probs_T.shape}")
    if not np.isfinite(log_probs_T).all() or log_probs_T.max() > ROUNDING:
        raise ValueError("log-probabilities must be finite and at most 0")
    missing_T = -np.expm1(np.minimum(log_probs_T.astype(np.float64), 0.0))
    return float(np.sqrt(np.mean(missing_T**2)))


class DeliftSeTeacher(Teacher):
    """DELIFT (SE): the cosine of two examples' sentence embeddings, not rescaled."""

    needs_embeddings: ClassVar[bool] = True

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the cosine in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

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
