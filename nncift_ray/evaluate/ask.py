"""Questions: the drawn rows of a test set, asked of a model, some rows in one engine call.

The untuned model may be shown examples before each question; a fine-tuned one is asked bare.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    row_seed,
)
from nncift_ray.engines.load import TunedModel
from nncift_ray.engines.tokens import EXAMPLE_END, Prompt, build_prompt_ids
from nncift_ray.evaluate.metrics import draw_test_rows
from nncift_ray.evaluate.nearest import Nearest, NearestVectors
from nncift_ray.evaluate.tune import members_digest, tuned_files
from nncift_ray.recipe.sections import GenerationConfig
from nncift_ray.runtime import schemas as evaluation_schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowStage, Shard, Worker

EXAMPLE_COLUMNS = ["example_id", "prompt", "response"]


@dataclass(frozen=True)
class ShownExamples:
    """Where the examples of every question are."""

    contexts: StageOutput  # of the retrieve stage
    candidates: StageOutput  # of the deduplicate stage

    def load(self, rows: NDArray[np.int64]) -> dict[int, list[Example]]:
        """Read the examples of some rows of the test set, nearest first.

        Rows that the retrieve stage has no examples for are left out.

        Memory: the texts that are shown with these rows, each once.
        """
        wanted = set(rows.tolist())
        columns = ["row_index", "example_index"]
        found: dict[int, list[int]] = {
            row["row_index"]: row["example_index"]
            for batch in self.contexts.iter_batches("contexts", columns)
            for row in batch.to_pylist()
            if row["row_index"] in wanted
        }
        shown = np.unique([index for indices in found.values() for index in indices])
        examples: dict[int, Example] = {}
        if shown.size:
            table = self.candidates.take_rows("candidates", shown, EXAMPLE_COLUMNS)
            for index, row in zip(shown.tolist(), table.to_pylist(), strict=True):
                examples[index] = Example(**row)
        return {row: [examples[index] for index in indices] for row, indices in found.items()}


# Reading the drawn rows of a test set.


def read_drawn(
    tests: StageOutput, table: str, numbers: NDArray[np.int64], columns: Sequence[str]
) -> pa.Table:
    """Read some rows of a test set, opening only what holds them.

    Args:
        tests: Output of the deduplicate stage of the test set.
        table: Its table that holds the rows.
        numbers: Sorted row numbers, at least one.
        columns: Columns to read.
    """
    low, high = int(numbers[0]), int(numbers[-1]) + 1
    return tests.read_range(table, low, high, columns).take(pa.array(numbers - low, pa.int64()))


# Questions: the drawn rows of a test set, asked of a model, some rows in one engine call.

DEFAULT_SHARD_ROWS = 256
DRAWN = "rows"

Question = Mapping[str, Any]
Request = TypeVar("Request")
Result = TypeVar("Result")
#: Asks some questions in one engine call and writes what comes of them.
Asker = Callable[[Sequence[Question], Sink], None]


class QuestionStage(RowStage):
    """A stage that asks a model the drawn rows of a test set."""

    divisible: ClassVar[bool] = True
    #: Rows of one engine call: they shape the last digits, and so belong to the settings.
    atom_rows: ClassVar[int]
    #: What is read of a row of the test set.
    columns: ClassVar[Sequence[str]]

    def __init__(
        self,
        tests: StageOutput,
        make_engine: Callable[[TunedModel | None], Engine],
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
        """Draw the rows to ask.

        Args:
            tests: Output of the deduplicate stage of the test set.
            make_engine: Loads the engine, with the tuned model where there is one.
            engine_settings: What of it shapes the numbers: model, revision, engine, dtype.
            table: The test set's table that holds the rows.
            tuned: Output of a tune stage; None: the model as it came.
            shown: The examples before each question; None: there are none.
            max_length: Most tokens of a prompt and its answer together.
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
        self._atoms = RowAtoms(((DRAWN, len(self._rows)),), self.atom_rows)

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
            "atom_rows": self.atom_rows,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Drawn rows of some atoms, in one count over the draw."""
        return range(start * self.atom_rows, min(stop * self.atom_rows, len(self._rows)))

    @abstractmethod
    def make_asker(self, engine: Engine, examples: ExamplesOf) -> Asker:
        """Return what asks an engine some questions at once."""

    def make_worker(self) -> Worker:
        """Load the engine and the examples to show."""
        with tuned_files(self._tuned) as tuned:
            engine = self._make_engine(tuned)
        shown = None if self._shown is None else self._shown.load(self._rows)
        ask = self.make_asker(engine, ExamplesOf(shown))

        def ask_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if not rows:
                    continue
                numbers = self._rows[rows.start : rows.stop]
                drawn = read_drawn(self._tests, self._table, numbers, self.columns).to_pylist()
                questions: list[Question] = []
                for row, question in zip(rows, drawn, strict=True):
                    if row in shard.skip:
                        refuse(question, ScoringFailure(KILLED_WORKER, shard.skip[row]), sink)
                    else:
                        questions.append(question)
                ask(questions, sink)

        return ask_shard


class ExamplesOf:
    """The examples that a question is shown with."""

    def __init__(self, shown: Mapping[int, Sequence[Example]] | None) -> None:
        """Of every row of the test set that has some; None: no question is shown any."""
        self._shown = shown

    def __call__(self, question: Question) -> Sequence[Example] | ScoringFailure:
        """Return a question's examples, nearest first; none where none are shown at all."""
        if self._shown is None:
            return ()
        if question["row_index"] not in self._shown:
            return ScoringFailure("no_context", "no examples were retrieved for this question")
        return self._shown[question["row_index"]]


def ask_all(
    questions: Sequence[Question],
    make_request: Callable[[Question], Request | ScoringFailure],
    ask: Callable[[Sequence[Request]], Sequence[Result | ScoringFailure]],
    sink: Sink,
) -> Iterator[tuple[Question, Request, Result]]:
    """Ask some questions in one engine call; one that cannot be asked or fails is an error row.

    Yields:
        What was asked and what came of it, failures left out.
    """
    asked: list[tuple[Question, Request]] = []
    for question in questions:
        request = make_request(question)
        if isinstance(request, ScoringFailure):
            refuse(question, request, sink)
        else:
            asked.append((question, request))
    results = ask([request for _, request in asked]) if asked else []
    for (question, request), result in zip(asked, results, strict=True):
        if isinstance(result, ScoringFailure):
            refuse(question, result, sink)
        else:
            yield question, request, result


def refuse(row: Question, failure: ScoringFailure, sink: Sink, *, excerpt: str = "prompt") -> None:
    """Write an error row in place of what a row should have given, with a text of it to show."""
    sink.error(failure.reason, failure.message, example_id=row["example_id"], excerpt=row[excerpt])


# Likelihood: how likely a model finds the reference answers of held-out rows, teacher-forced.


class LikelihoodStage(QuestionStage):
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

    def make_asker(self, engine: Engine, examples: ExamplesOf) -> Asker:
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
    question: Question, engine: Engine, examples_of: ExamplesOf, max_length: int
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


# Respond: the answers that a model writes to held-out questions.

#: Keys of ``evaluation.generation`` that shape an answer.
SHAPING_KEYS = {"max_tokens", "temperature", "min_p", "seed"}

GeneratorFactory = Callable[[TunedModel | None], Engine]


class RespondStage(QuestionStage):
    """Write ``responses``: one answer for each drawn row of a test set."""

    name: ClassVar[str] = "respond"
    atom_rows: ClassVar[int] = 256  # many, so that few steps at a call's end are half empty
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt")  # never the answer

    def __init__(
        self,
        tests: StageOutput,
        make_generator: GeneratorFactory,
        engine_settings: Mapping[str, Any],
        generation: GenerationConfig,
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
        return super().settings() | {
            "generation": self._generation.model_dump(include=SHAPING_KEYS)
        }

    def make_asker(self, engine: Engine, examples: ExamplesOf) -> Asker:
        """Return what answers some rows at once."""

        def make(question: Question) -> GenerationRequest | ScoringFailure:
            return make_request_of_respond(
                question, engine, examples, self._generation, self._max_length
            )

        def ask(questions: Sequence[Question], sink: Sink) -> None:
            rows: list[dict[str, Any]] = []
            for question, _, result in ask_all(questions, make, engine.generate, sink):
                sink.count("tokens", result.num_prompt_tokens + result.num_tokens)
                rows.append(_response(question, result))
            sink.write_rows("responses", rows, evaluation_schemas.RESPONSES)

        return ask


def make_request_of_respond(
    question: Question,
    engine: Engine,
    examples_of: ExamplesOf,
    generation: GenerationConfig,
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
    return GenerationRequest(
        prompt.ids,
        generation.max_tokens,
        generation.temperature,
        generation.min_p,
        row_seed(generation.seed, question["example_id"]),
        stop_text,
    )


def _response(question: Question, result: Generation) -> dict[str, Any]:
    return {
        "row_index": question["row_index"],
        "example_id": question["example_id"],
        "response": result.text,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_tokens": result.num_tokens,
        "finish_reason": result.finish_reason,
    }


# Retrieve: the examples of a subset that a held-out question is shown with.

#: Questions that are searched for together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS_of_retrieve = 1024
DRAWN = "rows"
COLUMNS = ["example_id", "embedding"]


class RetrieveStage(RowStage):
    """Write ``contexts``: the nearest members of a subset for each drawn row of a test set."""

    name: ClassVar[str] = "retrieve"

    def __init__(
        self,
        candidates: StageOutput,
        members: NDArray[np.int64],
        tests: StageOutput,
        *,
        num_examples: int,
        table: str = "targets",
        max_rows: int | None = None,
        seed: int = 0,
        shard_rows: int | None = None,
    ) -> None:
        """Find examples for a test set.

        Args:
            candidates: Output of an embed_prompts stage: all candidates, whatever the subset.
            members: The subset: row numbers of candidates, sorted.
            tests: Output of an embed_prompts stage for the test set.
            num_examples: Examples of each question; a smaller subset gives what there is.
            table: The test set's table.
            max_rows: Most rows of the test set, drawn with ``seed``; None: all.
            seed: Of the draw.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If the subset is empty.
        """
        if not len(members):
            raise ValueError("there is no example to retrieve: the subset is empty")
        self._candidates, self._members = candidates, np.asarray(members, dtype=np.int64)
        self._tests, self._table = tests, table
        self._num_examples, self._max_rows, self.seed = num_examples, max_rows, seed
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS_of_retrieve
        self._rows = draw_test_rows(tests.num_rows(table), max_rows, seed)
        self._atoms = RowAtoms(((DRAWN, len(self._rows)),), ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Contexts."""
        return {"contexts": evaluation_schemas.CONTEXTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The vectors of candidates and test set."""
        return {"candidates": self._candidates, "tests": self._tests}

    def settings(self) -> dict[str, Any]:
        """Subset and draw."""
        return {
            "members": members_digest(self._candidates, self._members),
            "num_examples": self._num_examples,
            "table": self._table,
            "max_rows": self._max_rows,
            "seed": self.seed,
            "atom_rows": ATOM_ROWS,
        }

    def make_worker(self) -> Worker:
        """Index the subset.

        Memory: 8 bytes for each number of its vectors.
        """
        subset = self._candidates.take_rows("candidates", self._members, COLUMNS)
        ids = cast("list[str]", subset["example_id"].to_pylist())
        num_threads = max(1, int(self.resources.num_cpus))
        nearest = NearestVectors(column_matrix(subset["embedding"]), ids, num_threads=num_threads)

        def retrieve_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                numbers = self._rows[span.start : span.stop]
                rows = read_drawn(self._tests, self._table, numbers, ["embedding"])
                found = nearest.search(column_matrix(rows["embedding"]), self._num_examples)
                sink.write("contexts", contexts_table(numbers, self._members, found))

        return retrieve_shard


def contexts_table(rows: NDArray[np.int64], members: NDArray[np.int64], found: Nearest) -> pa.Table:
    """Write the examples of some rows."""
    member_IK = members[found.place_IK].astype(np.int32)
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_index": pa.array(list(member_IK), pa.list_(pa.int32())),
            "cosine": pa.array(list(found.cosine_IK), pa.list_(pa.float32())),
        },
        schema=evaluation_schemas.CONTEXTS,
    )
