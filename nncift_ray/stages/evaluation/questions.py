"""Questions: the drawn rows of a test set, asked of a model, some rows in one engine call.

The untuned model may be shown examples before each question; a fine-tuned one is asked bare.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.tuned_model import TunedModel
from nncift_ray.stages.driving.atoms import RowAtoms, RowStage
from nncift_ray.stages.driving.stage import KILLED_WORKER, Shard, Worker
from nncift_ray.stages.evaluation.drawn_rows import read_drawn
from nncift_ray.stages.evaluation.shown_examples import ShownExamples
from nncift_ray.stages.evaluation.tuned_files import tuned_files
from nncift_ray.storage.output import Sink, StageOutput

DEFAULT_SHARD_ROWS = 256
DRAWN = "rows"

Question = Mapping[str, Any]
Engine = TypeVar("Engine")
Request = TypeVar("Request")
Result = TypeVar("Result")
#: Asks some questions in one engine call and writes what comes of them.
Asker = Callable[[Sequence[Question], Sink], None]


class QuestionStage(RowStage, Generic[Engine]):
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
