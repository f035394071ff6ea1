"""Asking a model the rows of a test set: how likely are the references, what does it answer?

The untuned model may be shown examples before each question, the nearest of a subset; a fine-tuned
one is asked bare.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example, prompt_key
from nncift_ray.engines.base import (
    Engine,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    row_seed,
)
from nncift_ray.engines.models import EngineFactory
from nncift_ray.engines.tokens import PROMPT_END, SegmentTokenizer
from nncift_ray.evaluation.tune import members_digest, tuned_files
from nncift_ray.recipe.sections import GenerationConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowStage, Shard, Worker

EXAMPLE_END = "\n\n"
TEST_ROWS = "targets"  # the table of a test set's rows
TEST_STREAM = 32  # random stream of the draw of test rows, apart from those of training samples
DIGITS = 6  # cosines that agree to so many are equal
QUERIES = 32  # compared at once with all vectors
PromptIds = tuple[int, ...]
Row = dict[str, Any]
Request = TypeVar("Request")
Result = TypeVar("Result")


# The test sets.


def draw_test_rows(num_rows: int, max_rows: int | None, seed: int) -> NDArray[np.int64]:
    """Return sorted row numbers [min(num_rows, max_rows)], the same for whoever asks with a seed.

    Draws are nested: fewer rows are a subset of more, so that a larger study contains a smaller one
    and differences between methods stay paired.
    """
    if max_rows is None or max_rows >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    sequence = np.random.SeedSequence([seed, TEST_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_rows)
    return np.sort(order[:max_rows]).astype(np.int64)


@dataclass(frozen=True)
class TestSet:
    """Rows that models are tested on; candidates that hold one of them are left out at ingest."""

    __test__ = False  # pytest collects no class that is named like this

    name: str
    output: StageOutput  # read as a corpus is: table targets

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The rows' ids."""
        column = self.output.read(TEST_ROWS, ["example_id"])["example_id"]
        return np.asarray(column.to_pylist(), dtype=np.str_)

    def notices(self, examples: StageOutput) -> list[str]:
        """Say how many rows are also targets, which steer a selection but teach no model."""
        targets, rows = (
            output.read(TEST_ROWS, ["example_id", "prompt"]).to_pylist()
            for output in (examples, self.output)
        )
        ids = {row["example_id"] for row in targets}
        prompts = {prompt_key(row["prompt"]) for row in targets}
        count = sum(r["example_id"] in ids or prompt_key(r["prompt"]) in prompts for r in rows)
        if not count:
            return []
        return [
            f"test set '{self.name}': {count:,} of its {len(rows):,} rows are also targets, or "
            "have a target's prompt. They stay, but methods that use targets have seen them: "
            "better test on others"
        ]


class TableStage(RowStage):
    """A stage that reads rows, does some of them together, and writes one table."""

    table: ClassVar[str]
    schema: ClassVar[pa.Schema]
    #: Rows done together: they shape the last digits, and so belong to the settings.
    atom_rows: ClassVar[int]
    excerpt: ClassVar[str] = "prompt"  # what an error row shows of a row

    def __init__(
        self,
        num_rows: int,
        inputs: Mapping[str, StageOutput],
        settings: Mapping[str, Any],
        shard_rows: int | None,
    ) -> None:
        """Do ``num_rows`` rows of the inputs; the settings are what else shapes the table."""
        self._num_rows, self.inputs, self._settings = num_rows, dict(inputs), dict(settings)
        self.produces = {self.table: self.schema}
        self._atoms = RowAtoms((("rows", num_rows),), self.atom_rows)
        self._shard_rows = shard_rows or 4 * self.atom_rows

    def settings(self) -> dict[str, Any]:
        """What shapes the table, and what is done together."""
        return self._settings | {"atom_rows": self.atom_rows}

    def row_numbers(self, start: int, stop: int) -> range:
        """Rows of some atoms, in one count."""
        return range(start * self.atom_rows, min(stop * self.atom_rows, self._num_rows))

    @abstractmethod
    def load(self) -> Any:
        """Load what the rows are done with; only actors call it."""

    @abstractmethod
    def read(self, rows: range) -> Sequence[Row]:
        """Read some rows."""

    @abstractmethod
    def do(self, rows: Sequence[Row], tools: Any, sink: Sink) -> Iterable[Row]:
        """Return the table's rows of some rows that were read; ``tools`` is what was loaded."""

    def make_worker(self) -> Worker:
        """Load what the rows are done with; a row that killed a worker becomes an error row."""
        tools = self.load()

        def work(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                numbers = shard.wanted(self.row_numbers(atom, atom + 1))
                if not numbers:
                    continue
                living: list[Row] = []
                for number, row in zip(numbers, self.read(numbers), strict=True):
                    if number in shard.skip:
                        self.refuse(row, ScoringFailure(KILLED_WORKER, shard.skip[number]), sink)
                    else:
                        living.append(row)
                sink.write_rows(self.table, [*self.do(living, tools, sink)], self.schema)

        return work

    def refuse(self, row: Row, why: ScoringFailure, sink: Sink) -> None:
        """Write an error row in place of what a row should have given."""
        example_id, excerpt = row["example_id"], row[self.excerpt]
        sink.error(why.reason, why.message, example_id=example_id, excerpt=excerpt)

    def ask_all(
        self,
        rows: Sequence[Row],
        make_request: Callable[[Row], Request | ScoringFailure],
        ask: Callable[[Sequence[Request]], Sequence[Result | ScoringFailure]],
        sink: Sink,
    ) -> Iterator[tuple[Row, Request, Result]]:
        """Ask about some rows in one engine call and yield what was asked and what came of it.

        One that cannot be asked about, or fails, becomes an error row.
        """
        asked: list[tuple[Row, Request]] = []
        for row in rows:
            request = make_request(row)
            if isinstance(request, ScoringFailure):
                self.refuse(row, request, sink)
            else:
                asked.append((row, request))
        results = ask([request for _, request in asked]) if asked else []
        for (row, request), result in zip(asked, results, strict=True):
            if isinstance(result, ScoringFailure):
                self.refuse(row, result, sink)
            else:
                yield row, request, result


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


class Asked(NamedTuple):
    """What questions are asked with: an engine, and the examples of each row; None: none."""

    engine: Engine
    shown: Mapping[int, Sequence[Example]] | None


class QuestionStage(TableStage):
    """A stage that asks a model the drawn rows of a test set."""

    divisible: ClassVar[bool] = True
    can_use_gpu = True
    single_threaded = False
    columns: ClassVar[Sequence[str]]  # what is read of a row of the test set

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
        **settings: Any,
    ) -> None:
        """Draw the rows to ask.

        Args:
            tests: A test set's output.
            make_engine: Loads the engine.
            tuned: Output of a tune stage; None: the model as it came.
            shown: The examples before each question; None: there are none.
            max_length: Most tokens of a prompt and its answer together.
            max_rows: Most rows, drawn with ``seed``; None: all.
            seed: Of the draw.
            shard_rows: Rows a shard.
            settings: What else shapes what comes of it.

        Raises:
            ValueError: If a tuned model would be shown examples: that would measure both at once.
        """
        if tuned is not None and shown is not None:
            raise ValueError("examples are shown to the untuned model only")
        self._tests, self._make_engine = tests, make_engine
        self._tuned, self._shown = tuned, shown
        self._max_length, self.seed = max_length, seed
        self._rows = draw_test_rows(tests.num_rows(TEST_ROWS), max_rows, seed)
        inputs = {"tests": tests} | ({"tuned": tuned} if tuned is not None else {})
        if shown is not None:
            inputs |= {"contexts": shown.contexts, "candidates": shown.candidates}
        settings |= {"max_length": max_length, "max_rows": max_rows, "seed": seed}
        settings["engine"] = make_engine.settings()
        super().__init__(len(self._rows), inputs, settings, shard_rows)

    def load(self) -> Asked:
        """Load the engine and the examples to show."""
        with tuned_files(self._tuned) as tuned:
            engine = self._make_engine(tuned)
        return Asked(engine, None if self._shown is None else self._shown.load(self._rows))

    def read(self, rows: range) -> Sequence[Row]:
        """Read some of the drawn rows, opening only what holds them."""
        numbers = self._rows[rows.start : rows.stop]
        low, high = int(numbers[0]), int(numbers[-1]) + 1
        found = self._tests.read_range(TEST_ROWS, low, high, self.columns)
        return found.take(pa.array(numbers - low, pa.int64())).to_pylist()

    def _find_shown(self, row: Row, tools: Asked) -> Sequence[Example] | ScoringFailure:
        """Return the examples before a question, nearest first; none where none are shown."""
        if tools.shown is None:
            return ()
        examples = tools.shown.get(row["row_index"], ())
        missing = "no examples were retrieved for this question"
        return examples or ScoringFailure("no_context", missing)

    def _question(
        self, row: Row, examples: Sequence[Example], engine: Engine, reserve: int
    ) -> PromptIds | ScoringFailure:
        """Tokenise a question behind its examples, cut from the left of those.

        Nothing of the question is cut, nor of the ``reserve`` tokens of its answer.
        """
        longest = min(self._max_length, engine.max_length)
        if engine.chat is None:
            return build_prompt_ids(
                engine, row["prompt"], examples, max_length=longest, reserve=reserve
            )
        question = Example(row["example_id"], row["prompt"], "", row["conversation"])
        made = engine.chat.fit(question, longest - reserve, examples[::-1], ask=True)
        return made if isinstance(made, ScoringFailure) else tuple(made.input_ids)


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
    table, schema = "likelihoods", schemas.LIKELIHOODS
    atom_rows: ClassVar[int] = 64
    columns: ClassVar[Sequence[str]] = ("row_index", *EXAMPLE_COLUMNS)

    def do(self, rows: Sequence[Row], tools: Asked, sink: Sink) -> Iterator[Row]:
        """Score the references of some rows."""
        engine = tools.engine

        def make_request(row: Row) -> ScoringRequest | ScoringFailure:
            examples = self._find_shown(row, tools)
            if isinstance(examples, ScoringFailure):
                return examples
            if engine.chat is not None:
                example = Example(*(row[name] for name in EXAMPLE_COLUMNS))
                longest = min(self._max_length, engine.max_length)
                return engine.chat.request(example, longest, examples[::-1])
            response = engine.encode(row["response"])
            if not response:
                return ScoringFailure("no_response", "the reference answer has no tokens")
            made = self._question(row, examples, engine, len(response) + 1)
            if isinstance(made, ScoringFailure):
                return made
            return ScoringRequest(made, (*response, engine.eos_id))

        result: ScoringResult
        for row, request, result in self.ask_all(rows, make_request, engine.score, sink):
            sink.count("tokens", result.num_tokens)
            sink.count("cached_tokens", result.num_cached_tokens)
            yield {
                "row_index": row["row_index"],
                "example_id": row["example_id"],
                "nll": float(-result.log_probs.mean()),
                "num_tokens": len(request.scored),
                "num_prompt_tokens": len(request.prompt_ids),
            }


class RespondStage(QuestionStage):
    """Write ``responses``: one answer for each drawn row of a test set."""

    name: ClassVar[str] = "respond"
    title: ClassVar[str] = "write answers"
    table, schema = "responses", schemas.RESPONSES
    atom_rows: ClassVar[int] = 256  # many, so that few steps at a call's end are half empty
    #: The conversation has the answer, too, which is never shown.
    columns: ClassVar[Sequence[str]] = ("row_index", "example_id", "prompt", "conversation")

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
        self._generation = generation
        super().__init__(
            tests,
            make_engine,
            tuned=tuned,
            shown=shown,
            max_length=max_length,
            max_rows=generation.max_rows,
            seed=generation.seed,
            shard_rows=generation.pool.shard_rows,
            **generation.model_dump(include={"max_tokens", "temperature", "min_p"}),
        )

    def do(self, rows: Sequence[Row], tools: Asked, sink: Sink) -> Iterator[Row]:
        """Answer some questions."""
        how = self._generation

        def make_request(row: Row) -> GenerationRequest | ScoringFailure:
            examples = self._find_shown(row, tools)
            if isinstance(examples, ScoringFailure):
                return examples
            prompt = self._question(row, examples, tools.engine, how.max_tokens)
            if isinstance(prompt, ScoringFailure):
                return prompt
            # Examples end with a blank line, so that is what a model which goes on in their manner
            # ends its answer with; where an example has one inside, it is no such sign.
            plain = examples and tools.engine.chat is None
            ends = plain and not any(EXAMPLE_END in each.response for each in examples)
            seed = row_seed(how.seed, row["example_id"])
            return GenerationRequest(
                prompt, how.max_tokens, how.temperature, how.min_p, seed,
                EXAMPLE_END if ends else "",
            )  # fmt: skip

        result: Generation
        for row, _, result in self.ask_all(rows, make_request, tools.engine.generate, sink):
            sink.count("tokens", result.num_prompt_tokens + result.num_tokens)
            yield {
                "row_index": row["row_index"],
                "example_id": row["example_id"],
                "response": result.text,
                "num_prompt_tokens": result.num_prompt_tokens,
                "num_tokens": result.num_tokens,
                "finish_reason": result.finish_reason,
            }


# The examples of a subset that are nearest to a question.


def find_nearest(
    query_ID: NDArray[np.float32],
    vector_JD: NDArray[np.float64],
    rank_J: NDArray[np.int64],
    num_wanted: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places [I, K] and rounded cosines [I, K] of the nearest of some unit vectors.

    K = num_wanted, or all if they are fewer; of equally near ones the lower rank comes first.

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
    return place_IK, cosine_IK


class RetrieveStage(TableStage):
    """Write ``contexts``: the nearest members of a subset for each row of a test set."""

    name: ClassVar[str] = "retrieve"
    title: ClassVar[str] = "find the examples nearest to each question"
    table, schema = "contexts", schemas.CONTEXTS
    single_threaded = False
    atom_rows: ClassVar[int] = 256

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
        digest = members_digest(candidates, self._members)
        super().__init__(
            tests.num_rows(TEST_ROWS),
            {"candidates": candidates, "tests": tests},
            {"members": digest, "num_examples": num_examples},
            shard_rows,
        )

    def load(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Read the subset's vectors, and the order of their ids.

        Memory: 8 bytes for each number of the vectors.
        """
        columns = ["example_id", "embedding"]
        subset = self._candidates.take_rows("candidates", self._members, columns)
        ids = np.array(subset["example_id"].to_pylist(), dtype=str)
        return column_matrix(subset["embedding"]).astype(np.float64), np.argsort(np.argsort(ids))

    def read(self, rows: range) -> Sequence[Row]:
        """Read the vectors of some questions."""
        found = self._tests.read_range(TEST_ROWS, rows.start, rows.stop, ["embedding"])
        vectors = column_matrix(found["embedding"])
        return [{"row_index": n, "vector": v} for n, v in zip(rows, vectors, strict=True)]

    def do(self, rows: Sequence[Row], tools: Any, sink: Sink) -> Iterator[Row]:
        """Find the members nearest to some questions."""
        (vectors_JD, rank_J), queries_ID = tools, np.stack([row["vector"] for row in rows])
        place_IK, cosine_IK = find_nearest(queries_ID, vectors_JD, rank_J, self._num_examples)
        for row, place_K, cosine_K in zip(rows, place_IK, cosine_IK, strict=True):
            near = {"example_index": self._members[place_K].tolist(), "cosine": cosine_K.tolist()}
            yield {"row_index": row["row_index"], **near}
