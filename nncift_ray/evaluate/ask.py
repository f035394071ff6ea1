"""Asking a model the rows of a test set: how likely are the references, what does it answer?

The untuned model may be shown examples before each question, the nearest of a subset; a fine-tuned
one is asked bare.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

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
from nncift_ray.engines.load import EngineFactory
from nncift_ray.engines.tokens import PROMPT_END, SegmentTokenizer
from nncift_ray.evaluate.hold_out import TEST_ROWS, draw_test_rows
from nncift_ray.evaluate.tune import EXAMPLE_COLUMNS, members_digest, tuned_files
from nncift_ray.recipe.sections import GenerationConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowStage, Shard, Worker

DRAWN = "rows"
EXAMPLE_END = "\n\n"
DIGITS = 6  # cosines that agree to so many are equal
QUERIES = 32  # compared at once with all vectors
PromptIds = tuple[int, ...]
Row = Mapping[str, Any]
Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ShownExamples:
    """Where the examples of every question are."""

    contexts: StageOutput  # of the retrieve stage
    candidates: StageOutput  # of the deduplicate stage

    def load(self, rows: NDArray[np.int64]) -> dict[int, list[Example]]:
        """Read the examples of some rows of the test set, nearest first; of some there are none.

        Memory: the texts that are shown with these rows, each once.
        """
        table = self.contexts.read("contexts", ["row_index", "example_index"]).to_pylist()
        wanted = set(rows.tolist())
        found = {r["row_index"]: r["example_index"] for r in table if r["row_index"] in wanted}
        shown = np.unique([index for indices in found.values() for index in indices]).astype(int)
        examples: dict[int, Example] = {}
        if shown.size:
            texts = self.candidates.take_rows("candidates", shown, EXAMPLE_COLUMNS).to_pylist()
            examples = {
                index: Example(**row) for index, row in zip(shown.tolist(), texts, strict=True)
            }
        return {row: [examples[index] for index in indices] for row, indices in found.items()}


def read_drawn(tests: StageOutput, numbers: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read rows of a test set by their sorted numbers, opening only what holds them."""
    low, high = int(numbers[0]), int(numbers[-1]) + 1
    rows = tests.read_range(TEST_ROWS, low, high, columns)
    return rows.take(pa.array(numbers - low, pa.int64()))


def ask_all(
    questions: Sequence[Row],
    make_request: Callable[[Row], Request | ScoringFailure],
    ask: Callable[[Sequence[Request]], Sequence[Result | ScoringFailure]],
    sink: Sink,
    *,
    excerpt: str = "prompt",
) -> Iterator[tuple[Row, Request, Result]]:
    """Ask some questions in one engine call and yield what was asked and what came of it.

    One that cannot be asked or fails becomes an error row, which shows the text ``excerpt``.
    """
    asked: list[tuple[Row, Request]] = []
    for question in questions:
        request = make_request(question)
        if isinstance(request, ScoringFailure):
            refuse(question, request, sink, excerpt=excerpt)
        else:
            asked.append((question, request))
    results = ask([request for _, request in asked]) if asked else []
    for (question, request), result in zip(asked, results, strict=True):
        if isinstance(result, ScoringFailure):
            refuse(question, result, sink, excerpt=excerpt)
        else:
            yield question, request, result


def refuse(row: Row, failure: ScoringFailure, sink: Sink, *, excerpt: str = "prompt") -> None:
    """Write an error row in place of what a row should have given."""
    sink.error(failure.reason, failure.message, example_id=row["example_id"], excerpt=row[excerpt])


def keep_living(
    rows: range, read: Sequence[Row], shard: Shard, sink: Sink, *, excerpt: str = "prompt"
) -> list[Row]:
    """Leave out the rows that killed a worker: each becomes an error row."""
    living: list[Row] = []
    for number, row in zip(rows, read, strict=True):
        if number in shard.skip:
            failure = ScoringFailure(KILLED_WORKER, shard.skip[number])
            refuse(row, failure, sink, excerpt=excerpt)
        else:
            living.append(row)
    return living


class QuestionStage(RowStage):
    """A stage that asks a model the drawn rows of a test set."""

    divisible: ClassVar[bool] = True
    can_use_gpu = True
    single_threaded = False
    #: Rows of one engine call: they shape the last digits, and so belong to the settings.
    atom_rows: ClassVar[int]
    #: What is read of a row of the test set.
    columns: ClassVar[Sequence[str]]

    def __init__(
        self,
        tests: StageOutput,
        make_engine: EngineFactory,
        *,
        tuned: StageOutput | None = None,
        shown: ShownExamples | None = None,
        max_length: int,
        max_rows: int | None = None,
        seed: int = 0,
        shard_rows: int | None = None,
    ) -> None:
        """Draw the rows to ask.

        Args:
            tests: Output of the hold_out stage.
            make_engine: Loads the engine.
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
        self._tests, self._make_engine = tests, make_engine
        self._tuned, self._shown = tuned, shown
        self._max_length, self._max_rows, self.seed = max_length, max_rows, seed
        self._shard_rows = shard_rows or 256
        self._rows = draw_test_rows(tests.num_rows(TEST_ROWS), max_rows, seed)
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
            "engine": self._make_engine.settings(),
            "max_length": self._max_length,
            "max_rows": self._max_rows,
            "seed": self.seed,
            "atom_rows": self.atom_rows,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Drawn rows of some atoms, in one count over the draw."""
        return range(start * self.atom_rows, min(stop * self.atom_rows, len(self._rows)))

    def make_worker(self) -> Worker:
        """Load the engine and the examples to show."""
        with tuned_files(self._tuned) as tuned:
            engine = self._make_engine(tuned)
        shown = None if self._shown is None else self._shown.load(self._rows)

        def ask_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if rows:
                    numbers = self._rows[rows.start : rows.stop]
                    read = read_drawn(self._tests, numbers, self.columns).to_pylist()
                    self._ask(keep_living(rows, read, shard, sink), engine, shown, sink)

        return ask_shard

    @abstractmethod
    def _ask(
        self,
        questions: Sequence[Row],
        engine: Any,
        shown: Mapping[int, Sequence[Example]] | None,
        sink: Sink,
    ) -> None:
        """Ask some questions in one engine call and write what comes of them."""

    def _prompt(
        self,
        question: Row,
        engine: Engine,
        shown: Mapping[int, Sequence[Example]] | None,
        reserve: int,
    ) -> tuple[PromptIds, Sequence[Example]] | ScoringFailure:
        """Tokenise a question behind its examples, cut from the left of those.

        Nothing of the question is cut, nor of the ``reserve`` tokens of its answer.
        """
        examples: Sequence[Example] = ()
        if shown is not None:
            examples = shown.get(question["row_index"], ())
            if not examples:
                return ScoringFailure("no_context", "no examples were retrieved for this question")
        most = min(self._max_length, engine.max_length)
        prompt = build_prompt_ids(
            engine, question["prompt"], examples, max_length=most, reserve=reserve
        )
        return (prompt, examples) if isinstance(prompt, tuple) else prompt


def build_prompt_ids(
    encoder: Engine | SegmentTokenizer,
    question: str,
    examples: Sequence[Example] = (),
    *,
    max_length: int,
    reserve: int,
) -> PromptIds | ScoringFailure:
    """Return a prompt: start tokens, the examples with the nearest last, the question.

    What does not fit is cut off the examples, token by token from the left of the whole, so that
    what stands next to the question stays. Where the question and the answer alone do not fit, it
    is a failure: the question is never cut.

    Args:
        encoder: Whose tokens.
        question: The prompt of the row that is asked.
        examples: What to show before it, nearest first, as the table ``contexts`` has them.
        max_length: Most tokens of prompt and answer together.
        reserve: Tokens to keep free for the answer, its end token included.
    """
    start_ids = encoder.start_ids
    question_ids = encoder.encode(question + PROMPT_END)
    room = max_length - reserve - len(start_ids) - len(question_ids)
    if room < 0:
        return ScoringFailure(
            "too_long",
            f"{max_length - room} tokens without any example ({reserve} of them for the answer), "
            f"the limit is {max_length}",
        )
    shown_ids = [token for each in reversed(examples) for token in encode_shown(encoder, each)]
    return (*start_ids, *shown_ids[max(0, len(shown_ids) - room) :], *question_ids)


def encode_shown(encoder: Engine | SegmentTokenizer, example: Example) -> list[int]:
    """Return the tokens of an example as it is shown before a question."""
    prompt_ids = encoder.encode(example.prompt + PROMPT_END)
    return prompt_ids + encoder.encode(example.response + EXAMPLE_END)


class LikelihoodStage(QuestionStage):
    """Write ``likelihoods``: how likely the reference answer of each drawn row is, teacher-forced.

    ``max_length`` is of prompt and answer together.
    """

    name: ClassVar[str] = "likelihood"
    title: ClassVar[str] = "measure how likely the references are"
    atom_rows: ClassVar[int] = 64
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt", "response")

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Likelihoods."""
        return {"likelihoods": schemas.LIKELIHOODS}

    def _ask(
        self,
        questions: Sequence[Row],
        engine: Engine,
        shown: Mapping[int, Sequence[Example]] | None,
        sink: Sink,
    ) -> None:
        def make_request(question: Row) -> ScoringRequest | ScoringFailure:
            response = engine.encode(question["response"])
            if not response:
                return ScoringFailure("no_response", "the reference answer has no tokens")
            made = self._prompt(question, engine, shown, len(response) + 1)
            if isinstance(made, ScoringFailure):
                return made
            return ScoringRequest(made[0], (*response, engine.eos_id))

        rows: list[dict[str, Any]] = []
        result: ScoringResult
        for question, request, result in ask_all(questions, make_request, engine.score, sink):
            sink.count("tokens", result.num_tokens)
            sink.count("cached_tokens", result.num_cached_tokens)
            rows.append(
                {
                    "row_index": question["row_index"],
                    "example_id": question["example_id"],
                    "nll": float(-result.log_probs.mean()),
                    "num_tokens": len(request.response_ids),
                    "num_prompt_tokens": len(request.prompt_ids),
                }
            )
        sink.write_rows("likelihoods", rows, schemas.LIKELIHOODS)


class RespondStage(QuestionStage):
    """Write ``responses``: one answer for each drawn row of a test set."""

    name: ClassVar[str] = "respond"
    title: ClassVar[str] = "write answers"
    atom_rows: ClassVar[int] = 256  # many, so that few steps at a call's end are half empty
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt")  # never the answer

    def __init__(
        self,
        tests: StageOutput,
        make_engine: EngineFactory,
        generation: GenerationConfig,
        *,
        tuned: StageOutput | None = None,
        shown: ShownExamples | None = None,
        max_length: int,
    ) -> None:
        """Answer the questions of a test set as the recipe's section says; see QuestionStage."""
        super().__init__(
            tests,
            make_engine,
            tuned=tuned,
            shown=shown,
            max_length=max_length,
            max_rows=generation.max_rows,
            seed=generation.seed,
            shard_rows=generation.pool.shard_rows,
        )
        self._generation = generation

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Responses."""
        return {"responses": schemas.RESPONSES}

    def settings(self) -> dict[str, Any]:
        """The engine, how it writes, the draw, and what is computed together."""
        keys = {"max_tokens", "temperature", "min_p"}
        return super().settings() | self._generation.model_dump(include=keys)

    def _ask(
        self,
        questions: Sequence[Row],
        engine: Engine,
        shown: Mapping[int, Sequence[Example]] | None,
        sink: Sink,
    ) -> None:
        how = self._generation

        def make_request(question: Row) -> GenerationRequest | ScoringFailure:
            made = self._prompt(question, engine, shown, how.max_tokens)
            if isinstance(made, ScoringFailure):
                return made
            prompt, examples = made
            # Examples end with a blank line, so that is what a model which goes on in their manner
            # ends its answer with; where an example has one inside, it is no such sign.
            ends = examples and not any(EXAMPLE_END in each.response for each in examples)
            stop_text = EXAMPLE_END if ends else ""
            seed = row_seed(how.seed, question["example_id"])
            return GenerationRequest(
                prompt, how.max_tokens, how.temperature, how.min_p, seed, stop_text
            )

        rows: list[dict[str, Any]] = []
        result: Generation
        for question, _, result in ask_all(questions, make_request, engine.generate, sink):
            sink.count("tokens", result.num_prompt_tokens + result.num_tokens)
            rows.append(
                {
                    "row_index": question["row_index"],
                    "example_id": question["example_id"],
                    "response": result.text,
                    "num_prompt_tokens": result.num_prompt_tokens,
                    "num_tokens": result.num_tokens,
                    "finish_reason": result.finish_reason,
                }
            )
        sink.write_rows("responses", rows, schemas.RESPONSES)


class Nearest(NamedTuple):
    """The nearest vectors of each query, nearest first."""

    place_IK: NDArray[np.int64]
    cosine_IK: NDArray[np.float32]  # rounded to DIGITS


def find_nearest(
    query_ID: NDArray[np.float32],
    vector_JD: NDArray[np.float64],
    rank_J: NDArray[np.int64],
    num_wanted: int,
) -> Nearest:
    """Return the nearest of some unit vectors by cosine: K = num_wanted, or all if they are fewer.

    Of equally near ones the lower rank comes first.

    Memory: 8 * QUERIES * J bytes.
    """
    size = min(num_wanted, len(vector_JD))
    place_IK = np.empty((len(query_ID), size), np.int64)
    cosine_IK = np.empty((len(query_ID), size), np.float32)
    for start in range(0, len(query_ID), QUERIES):
        cosine_QJ = np.round(query_ID[start : start + QUERIES] @ vector_JD.T, DIGITS)
        for at, cosine_J in enumerate(cosine_QJ, start):
            near = np.flatnonzero(cosine_J >= np.partition(cosine_J, -size)[-size])
            place_IK[at] = near[np.lexsort((rank_J[near], -cosine_J[near]))[:size]]
            cosine_IK[at] = cosine_J[place_IK[at]]
    return Nearest(place_IK, cosine_IK)


class RetrieveStage(RowStage):
    """Write ``contexts``: the nearest members of a subset for each row of a test set."""

    name: ClassVar[str] = "retrieve"
    title: ClassVar[str] = "find the examples nearest to each question"
    single_threaded = False
    atom_rows: ClassVar[int] = 256  # questions that are searched for together

    def __init__(
        self,
        candidates: StageOutput,
        members: NDArray[np.int64],
        tests: StageOutput,
        *,
        num_examples: int,
        shard_rows: int | None = None,
    ) -> None:
        """Find examples for a test set; a subset smaller than ``num_examples`` gives what there is.

        Args:
            candidates: Output of an embed_prompts stage: all candidates, whatever the subset.
            members: The subset: row numbers of candidates, sorted.
            tests: Output of an embed_prompts stage for the test set.
            num_examples: Examples of each question.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If the subset is empty.
        """
        if not len(members):
            raise ValueError("there is no example to retrieve: the subset is empty")
        self._candidates, self._tests, self._num_examples = candidates, tests, num_examples
        self._members = np.asarray(members, dtype=np.int64)
        self._shard_rows = shard_rows or 1024
        self._atoms = RowAtoms(((DRAWN, tests.num_rows(TEST_ROWS)),), self.atom_rows)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Contexts."""
        return {"contexts": schemas.CONTEXTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The vectors of candidates and test set."""
        return {"candidates": self._candidates, "tests": self._tests}

    def settings(self) -> dict[str, Any]:
        """Subset and number."""
        return {
            "members": members_digest(self._candidates, self._members),
            "num_examples": self._num_examples,
            "atom_rows": self.atom_rows,
        }

    def make_worker(self) -> Worker:
        """Index the subset.

        Memory: 8 bytes for each number of its vectors.
        """
        columns = ["example_id", "embedding"]
        subset = self._candidates.take_rows("candidates", self._members, columns)
        vectors_JD = column_matrix(subset["embedding"]).astype(np.float64)
        rank_J = np.argsort(np.argsort(np.array(subset["example_id"].to_pylist(), dtype=str)))

        def retrieve_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                rows = self._tests.read_range(TEST_ROWS, span.start, span.stop, ["embedding"])
                queries_ID = column_matrix(rows["embedding"])
                found = find_nearest(queries_ID, vectors_JD, rank_J, self._num_examples)
                member_IK = self._members[found.place_IK].astype(np.int32)
                columns = [
                    pa.array(np.arange(span.start, span.stop)),
                    pa.array(list(member_IK), pa.list_(pa.int32())),
                    pa.array(list(found.cosine_IK), pa.list_(pa.float32())),
                ]
                sink.write("contexts", pa.table(columns, schema=schemas.CONTEXTS))

        return retrieve_shard
