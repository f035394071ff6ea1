"""Respond: the answers that a model writes to held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.generation import (
    Generation,
    GenerationEngine,
    GenerationRequest,
    GenerationSettings,
)
from nncift_ray.models.prompting import EXAMPLE_END, Prompt, build_prompt_ids
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.stages.evaluation.questions import (
    Asker,
    ExamplesOf,
    Question,
    QuestionStage,
    ask_all,
)
from nncift_ray.stages.evaluation.shown_examples import ShownExamples
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink, StageOutput

GeneratorFactory = Callable[[TunedModel | None], GenerationEngine]


class RespondStage(QuestionStage[GenerationEngine]):
    """Write ``responses``: one answer for each drawn row of a test set."""

    name: ClassVar[str] = "respond"
    atom_rows: ClassVar[int] = 256  # many, so that few steps at a call's end are half empty
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt")  # never the answer

    def __init__(
        self,
        tests: StageOutput,
        make_generator: GeneratorFactory,
        engine_settings: Mapping[str, Any],
        generation: GenerationSettings,
        *,
        table: str = "targets",
        tuned: StageOutput | None = None,
        shown: ShownExamples | None = None,
        max_length: int,
        max_rows: int | None = None,
        shard_rows: int | None = None,
    ) -> None:
        """Answer the questions of a test set.

        Args:
            tests: Output of the deduplicate stage of the test set.
            make_generator: Loads the engine, with the tuned model where there is one.
            engine_settings: What of it shapes the answers: model, revision, engine, dtype.
            generation: How answers are written; its seed is that of the draw too.
            table: The test set's table that holds the rows.
            tuned: Output of a tune stage; None: the model as it came.
            shown: The examples before each question; None: there are none.
            max_length: Most tokens of a prompt and its longest answer together.
            max_rows: Most rows, drawn; None: all.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If a tuned model would be shown examples: that would measure both at once.
        """
        super().__init__(
            tests,
            make_generator,
            engine_settings,
            table=table,
            tuned=tuned,
            shown=shown,
            max_length=max_length,
            max_rows=max_rows,
            seed=generation.seed,
            shard_rows=shard_rows,
        )
        self._generation = generation

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Responses."""
        return {"responses": evaluation_schemas.RESPONSES}

    def settings(self) -> dict[str, Any]:
        """The engine, how it writes, the draw, and what is computed together."""
        return super().settings() | {"generation": asdict(self._generation)}

    def make_asker(self, engine: GenerationEngine, examples: ExamplesOf) -> Asker:
        """Return what answers some rows at once."""

        def make(question: Question) -> GenerationRequest | ScoringFailure:
            return make_request(question, engine, examples, self._generation, self._max_length)

        def ask(questions: Sequence[Question], sink: Sink) -> None:
            rows: list[dict[str, Any]] = []
            for question, _, result in ask_all(questions, make, engine.generate, sink):
                sink.count("tokens", result.num_prompt_tokens + result.num_tokens)
                rows.append(_response(question, result))
            sink.write_rows("responses", rows, evaluation_schemas.RESPONSES)

        return ask


def make_request(
    question: Question,
    engine: GenerationEngine,
    examples_of: ExamplesOf,
    generation: GenerationSettings,
    max_length: int,
) -> GenerationRequest | ScoringFailure:
    """Tokenise a question behind its examples.

    Examples end with a blank line and not with an end token, so a blank line is what a model that
    goes on in their manner ends its answer with: the next thing it writes is a question of its own.
    Where an example has a blank line inside its answer, it is no such sign.
    """
    examples = examples_of(question)
    if isinstance(examples, ScoringFailure):
        return examples
    prompt = build_prompt_ids(
        engine,
        question["prompt"],
        examples,
        max_length=min(max_length, engine.max_length),
        reserve=generation.max_tokens,
    )
    if not isinstance(prompt, Prompt):
        return prompt
    ends_alike = examples and not any(EXAMPLE_END in example.response for example in examples)
    stop_text = EXAMPLE_END if ends_alike else ""
    return generation.request(prompt.ids, question["example_id"], stop_text)


def _response(question: Question, result: Generation) -> dict[str, Any]:
    return {
        "row_index": question["row_index"],
        "example_id": question["example_id"],
        "response": result.text,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_tokens": result.num_tokens,
        "finish_reason": result.finish_reason,
    }
