"""Likelihood: how likely a model finds the reference answers of held-out rows, teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.models.engine import ScoringEngine, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.models.prompting import Prompt, build_prompt_ids
from nncift_ray.stages.evaluation.questions import (
    Asker,
    ExamplesOf,
    Question,
    QuestionStage,
    ask_all,
)
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink


class LikelihoodStage(QuestionStage[ScoringEngine]):
    """Write ``likelihoods``: how likely the reference answer of each drawn row is.

    ``max_length`` is of prompt and answer together.
    """

    name: ClassVar[str] = "likelihood"
    atom_rows: ClassVar[int] = 64
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt", "response")

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Likelihoods."""
        return {"likelihoods": evaluation_schemas.LIKELIHOODS}

    def settings(self) -> dict[str, Any]:
        """The engine, the draw with its seed, and what is computed together."""
        return super().settings() | {"seed": self.seed}

    def make_asker(self, engine: ScoringEngine, examples: ExamplesOf) -> Asker:
        """Return what scores the references of some rows at once."""

        def make(question: Question) -> ScoringRequest | ScoringFailure:
            return make_request(question, engine, examples, self._max_length)

        def ask(questions: Sequence[Question], sink: Sink) -> None:
            rows: list[dict[str, Any]] = []
            for question, request, result in ask_all(questions, make, engine.score, sink):
                sink.count("tokens", result.num_tokens)
                sink.count("cached_tokens", result.num_cached_tokens)
                rows.append(_likelihood(question, request, result))
            sink.write_rows("likelihoods", rows, evaluation_schemas.LIKELIHOODS)

        return ask


def make_request(
    question: Question, engine: ScoringEngine, examples_of: ExamplesOf, max_length: int
) -> ScoringRequest | ScoringFailure:
    """Tokenise a row: examples, question, reference answer and end token.

    Nothing of question or answer is cut: a part of an answer is another answer.
    """
    response_ids = engine.encode(question["response"])
    if not response_ids:
        return ScoringFailure("no_response", "the reference answer has no tokens")
    examples = examples_of(question)
    if isinstance(examples, ScoringFailure):
        return examples
    prompt = build_prompt_ids(
        engine,
        question["prompt"],
        examples,
        max_length=min(max_length, engine.max_length),
        reserve=len(response_ids) + 1,
    )
    if not isinstance(prompt, Prompt):
        return prompt
    return ScoringRequest(prompt.ids, (*response_ids, engine.eos_id))


def _likelihood(
    question: Question, request: ScoringRequest, result: ScoringResult
) -> dict[str, Any]:
    return {
        "row_index": question["row_index"],
        "example_id": question["example_id"],
        "nll": float(-result.log_probs.mean()),
        "num_tokens": len(request.response_ids),
        "num_prompt_tokens": len(request.prompt_ids),
    }
