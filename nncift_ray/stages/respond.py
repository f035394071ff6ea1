"""Respond: the answers that a model writes to held-out questions.

The untuned model may be shown examples before each question; a fine-tuned one is asked bare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.generation import GenerationEngine, GenerationRequest, GenerationSettings
from nncift_ray.models.prompting import EXAMPLE_END, Prompt, build_prompt_ids
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.stages.atoms import RowAtoms, RowStage
from nncift_ray.stages.drawn_rows import read_drawn
from nncift_ray.stages.shown_examples import ShownExamples
from nncift_ray.stages.stage import KILLED_WORKER, Shard, Worker
from nncift_ray.stages.tuned_files import tuned_files
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink, StageOutput

#: Rows of one engine call: many, so that few steps at its end are half empty.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 256
DRAWN = "rows"
COLUMNS = ["row_index", "example_id", "prompt"]  # never the answer

GeneratorFactory = Callable[[TunedModel | None], GenerationEngine]
Question = Mapping[str, Any]


class RespondStage(RowStage):
    """Write ``responses``: one answer for each drawn row of a test set."""

    name: ClassVar[str] = "respond"
    divisible: ClassVar[bool] = True

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
        if tuned is not None and shown is not None:
            raise ValueError("examples are shown to the untuned model only")
        self._tests, self._table = tests, table
        self._make_generator, self._engine_settings = make_generator, dict(engine_settings)
        self._generation, self.seed = generation, generation.seed
        self._tuned, self._shown = tuned, shown
        self._max_length, self._max_rows = max_length, max_rows
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._rows = draw_test_rows(tests.num_rows(table), max_rows, generation.seed)
        self._atoms = RowAtoms(((DRAWN, len(self._rows)),), ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Responses."""
        return {"responses": evaluation_schemas.RESPONSES}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The test set, and the tuned model or the examples where there are some."""
        inputs = {"tests": self._tests}
        if self._tuned is not None:
            inputs["tuned"] = self._tuned
        if self._shown is not None:
            inputs |= {"contexts": self._shown.contexts, "candidates": self._shown.candidates}
        return inputs

    def settings(self) -> dict[str, Any]:
        """The engine, how it writes, the draw, and what is computed together."""
        return {
            "engine": self._engine_settings,
            "generation": asdict(self._generation),
            "table": self._table,
            "max_length": self._max_length,
            "max_rows": self._max_rows,
            "atom_rows": ATOM_ROWS,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Drawn rows of some atoms, in one count over the draw."""
        return range(start * ATOM_ROWS, min(stop * ATOM_ROWS, len(self._rows)))

    def make_worker(self) -> Worker:
        """Load the engine and the examples to show."""
        with tuned_files(self._tuned) as tuned:
            engine = self._make_generator(tuned)
        shown = None if self._shown is None else self._shown.load(self._rows)

        def answer_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if not rows:
                    continue
                numbers = self._rows[rows.start : rows.stop]
                questions = read_drawn(self._tests, self._table, numbers, COLUMNS).to_pylist()
                asked: list[Question] = []
                for row, question in zip(rows, questions, strict=True):
                    if row in shard.skip:
                        _refuse(question, ScoringFailure(KILLED_WORKER, shard.skip[row]), sink)
                    else:
                        asked.append(question)
                self._answer(asked, engine, shown, sink)

        return answer_shard

    def _answer(
        self,
        questions: Sequence[Question],
        engine: GenerationEngine,
        shown: Mapping[int, Sequence[Example]] | None,
        sink: Sink,
    ) -> None:
        """Answer some questions in one engine call; one that fails is an error row."""
        asked: list[Question] = []
        requests: list[GenerationRequest] = []
        for question in questions:
            request = make_request(question, engine, shown, self._generation, self._max_length)
            if isinstance(request, ScoringFailure):
                _refuse(question, request, sink)
            else:
                asked.append(question)
                requests.append(request)
        answers = engine.generate(requests) if requests else []
        rows: list[dict[str, Any]] = []
        for question, answer in zip(asked, answers, strict=True):
            if isinstance(answer, ScoringFailure):
                _refuse(question, answer, sink)
                continue
            sink.count("tokens", answer.num_prompt_tokens + answer.num_tokens)
            rows.append(
                {
                    "row_index": question["row_index"],
                    "example_id": question["example_id"],
                    "response": answer.text,
                    "num_prompt_tokens": answer.num_prompt_tokens,
                    "num_tokens": answer.num_tokens,
                    "finish_reason": answer.finish_reason,
                }
            )
        sink.write_rows("responses", rows, evaluation_schemas.RESPONSES)


def make_request(
    question: Question,
    engine: GenerationEngine,
    shown: Mapping[int, Sequence[Example]] | None,
    generation: GenerationSettings,
    max_length: int,
) -> GenerationRequest | ScoringFailure:
    """Tokenise a question behind its examples.

    Examples end with a blank line and not with an end token, so a blank line is what a model that
    goes on in their manner ends its answer with: the next thing it writes is a question of its own.
    Where an example has a blank line inside its answer, it is no such sign.
    """
    examples: Sequence[Example] = ()
    if shown is not None:
        if question["row_index"] not in shown:
            return ScoringFailure("no_context", "no examples were retrieved for this question")
        examples = shown[question["row_index"]]
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


def _refuse(question: Question, failure: ScoringFailure, sink: Sink) -> None:
    sink.error(
        failure.reason,
        failure.message,
        example_id=question["example_id"],
        excerpt=question["prompt"],
    )
