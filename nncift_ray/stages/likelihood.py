"""Likelihood: how likely a model finds the reference answers of held-out rows, teacher-forced.

The untuned model may be shown examples before each question; a fine-tuned one is asked bare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringEngine, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.models.prompting import Prompt, build_prompt_ids
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.stages.atoms import RowAtoms, RowStage
from nncift_ray.stages.drawn_rows import read_drawn
from nncift_ray.stages.shown_examples import ShownExamples
from nncift_ray.stages.stage import KILLED_WORKER, Shard, Worker
from nncift_ray.stages.tuned_files import tuned_files
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink, StageOutput

#: Rows of one engine call.
ATOM_ROWS = 64
DEFAULT_SHARD_ROWS = 256
DRAWN = "rows"
COLUMNS = ["row_index", "example_id", "prompt", "response"]

EngineFactory = Callable[[TunedModel | None], ScoringEngine]
Question = Mapping[str, Any]


class LikelihoodStage(RowStage):
    """Write ``likelihoods``: a row for each drawn row of a test set."""

    name: ClassVar[str] = "likelihood"
    divisible: ClassVar[bool] = True

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
            table: Its table that holds the rows.
            tuned: Output of a tune stage; None: the model as it came.
            shown: The examples before each question; None: there are none.
            max_length: Most tokens of prompt and answer together.
            max_rows: Most rows, drawn with ``seed``; None: all.
            seed: Of the draw.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If a tuned model would be shown examples: that would measure both at once.
        """
        if tuned is not None and shown is not None:
            raise ValueError("examples are shown to the untuned model only")
        self._tests, self._table = tests, table
        self._make_engine, self._engine_settings = make_engine, dict(engine_settings)
        self._tuned, self._shown = tuned, shown
        self._max_length, self._max_rows, self.seed = max_length, max_rows, seed
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._rows = draw_test_rows(tests.num_rows(table), max_rows, seed)
        self._atoms = RowAtoms(((DRAWN, len(self._rows)),), ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Likelihoods."""
        return {"likelihoods": evaluation_schemas.LIKELIHOODS}

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
        """The engine, the draw, and what is computed together."""
        return {
            "engine": self._engine_settings,
            "table": self._table,
            "max_length": self._max_length,
            "max_rows": self._max_rows,
            "seed": self.seed,
            "atom_rows": ATOM_ROWS,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Drawn rows of some atoms, in one count over the draw."""
        return range(start * ATOM_ROWS, min(stop * ATOM_ROWS, len(self._rows)))

    def make_worker(self) -> Worker:
        """Load the engine and the examples to show."""
        with tuned_files(self._tuned) as tuned:
            engine = self._make_engine(tuned)
        shown = None if self._shown is None else self._shown.load(self._rows)

        def score_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if not rows:
                    continue
                numbers = self._rows[rows.start : rows.stop]
                drawn = read_drawn(self._tests, self._table, numbers, COLUMNS).to_pylist()
                questions: list[Question] = []
                for row, question in zip(rows, drawn, strict=True):
                    if row in shard.skip:
                        _refuse(question, ScoringFailure(KILLED_WORKER, shard.skip[row]), sink)
                    else:
                        questions.append(question)
                score_questions(questions, engine, shown, self._max_length, sink)

        return score_shard


def score_questions(
    questions: Sequence[Question],
    engine: ScoringEngine,
    shown: Mapping[int, Sequence[Example]] | None,
    max_length: int,
    sink: Sink,
) -> None:
    """Score the references of some rows in one engine call; a row that fails is an error row."""
    asked: list[Question] = []
    requests: list[ScoringRequest] = []
    for question in questions:
        request = make_request(question, engine, shown, max_length)
        if isinstance(request, ScoringFailure):
            _refuse(question, request, sink)
        else:
            asked.append(question)
            requests.append(request)
    answers = engine.score(requests) if requests else []
    rows: list[dict[str, Any]] = []
    for question, request, answer in zip(asked, requests, answers, strict=True):
        if isinstance(answer, ScoringFailure):
            _refuse(question, answer, sink)
        else:
            sink.count("tokens", answer.num_tokens)
            sink.count("cached_tokens", answer.num_cached_tokens)
            rows.append(_likelihood(question, request, answer))
    sink.write_rows("likelihoods", rows, evaluation_schemas.LIKELIHOODS)


def make_request(
    question: Question,
    engine: ScoringEngine,
    shown: Mapping[int, Sequence[Example]] | None,
    max_length: int,
) -> ScoringRequest | ScoringFailure:
    """Tokenise a row: examples, question, reference answer and end token.

    Nothing of question or answer is cut: a part of an answer is another answer.
    """
    response_ids = engine.encode(question["response"])
    if not response_ids:
        return ScoringFailure("no_response", "the reference answer has no tokens")
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
        reserve=len(response_ids) + 1,
    )
    if not isinstance(prompt, Prompt):
        return prompt
    return ScoringRequest(prompt.ids, (*response_ids, engine.eos_id))


def _likelihood(
    question: Question, request: ScoringRequest, answer: ScoringResult
) -> dict[str, Any]:
    return {
        "row_index": question["row_index"],
        "example_id": question["example_id"],
        "nll": float(-answer.log_probs.mean()),
        "num_tokens": len(request.response_ids),
        "num_prompt_tokens": len(request.prompt_ids),
    }


def _refuse(question: Question, failure: ScoringFailure, sink: Sink) -> None:
    sink.error(
        failure.reason,
        failure.message,
        example_id=question["example_id"],
        excerpt=question["prompt"],
    )
