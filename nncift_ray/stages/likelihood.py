"""Likelihood: how likely a model finds the reference answers of held-out rows, teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.models.engine import ScoringEngine, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.models.prompting import Prompt, build_prompt_ids
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.stages.questions import Asker, ExamplesOf, Question, QuestionStage, ask_all
from nncift_ray.stages.shown_examples import ShownExamples
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink, StageOutput

EngineFactory = Callable[[TunedModel | None], ScoringEngine]


class LikelihoodStage(QuestionStage):
    """Write ``likelihoods``: a row for each drawn row of a test set."""

    name: ClassVar[str] = "likelihood"
    atom_rows: ClassVar[int] = 64
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt", "response")

    def __init__(
        self,
        tests: StageOutput,
        make_engine: EngineFactory,
        engine_settings: Mapping[str, Any],
        *,
        table: str = "targets",
        tuned: StageOutput | None = None,
        shown: ShownExamples | None = None,
        max_length: int,
        max_rows: int | None = None,
        seed: int = 0,
        shard_rows: int | None = None,
    ) -> None:
        """Score the reference answers of a test set.

        Args:
            tests: Output of the deduplicate stage of the test set.
            make_engine: Loads the engine, with the tuned model where there is one.
            engine_settings: What of it shapes the numbers: model, revision, engine, dtype.
            table: The test set's table that holds the rows.
            tuned: Output of a tune stage; None: the model as it came.
            shown: The examples before each question; None: there are none.
            max_length: Most tokens of prompt and answer together.
            max_rows: Most rows, drawn with ``seed``; None: all.
            seed: Of the draw.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If a tuned model would be shown examples: that would measure both at once.
        """
        super().__init__(
            tests,
            engine_settings,
            table=table,
            tuned=tuned,
            shown=shown,
            max_length=max_length,
            max_rows=max_rows,
            seed=seed,
            shard_rows=shard_rows,
        )
        self._make_engine = make_engine

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Likelihoods."""
        return {"likelihoods": evaluation_schemas.LIKELIHOODS}

    def settings(self) -> dict[str, Any]:
        """The engine, the draw with its seed, and what is computed together."""
        return super().settings() | {"seed": self.seed}

    def make_asker(self, tuned: TunedModel | None, examples: ExamplesOf) -> Asker:
        """Load the engine; every call scores the references of some rows at once."""
        engine = self._make_engine(tuned)

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
