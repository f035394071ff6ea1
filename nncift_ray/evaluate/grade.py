"""Grade: answers beside their references, by metrics that ask no language model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from nncift_ray.embedders import Embedder
from nncift_ray.engines.base import Engine, Generation, GenerationRequest, ScoringFailure
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.errors import StageError
from nncift_ray.evaluate.ask import refuse
from nncift_ray.evaluate.metrics import (
    DEFAULT_RUBRIC,
    Rouge,
    build_question,
    exact_match,
    parse_verdict,
)
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import GRADES, TABLE_OF_ROLE, TARGET, VERDICTS
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowStage, Shard, Worker

ANSWERS, TEST_ROWS = "responses", TABLE_OF_ROLE[TARGET]


def read_answers(responses: StageOutput, start: int, stop: int) -> pa.Table:
    """Read the answers [start, stop) in their own count, failed ones not among them."""
    return responses.read_range(ANSWERS, start, stop)


def read_test_rows(answers: pa.Table, test: StageOutput, columns: Sequence[str]) -> pa.Table:
    """Read the test rows of some answers, in the order of the answers.

    Raises:
        StageError: If an answer is to another example than the test set has in its place.
    """
    wanted = ["example_id", *columns]
    rows = test.take_rows(TEST_ROWS, answers["row_index"].to_numpy(), wanted)
    if rows["example_id"].to_pylist() != answers["example_id"].to_pylist():
        raise StageError("the answers are to another test set than the one given")
    return rows.select(list(columns))


# Grade: answers beside their references, by metrics that ask no language model.

#: Answers that are embedded together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024
#: What each metric of a recipe writes.
GRADES_OF = {"rouge": ("rouge1", "rougeL"), "bge": ("bge",), "exact_match": ("exact_match",)}

EmbedderFactory = Callable[[], Embedder]
#: Values of one column for some answers and their references; None: it does not apply.
Grader = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float | None]]]


class GradeStage(RowStage):
    """Write ``grades``: a row an answer and metric, answers in their order.

    An answer that was not written (an error of the stage before) has no grade; whoever adds up
    counts it as missing.
    """

    name: ClassVar[str] = "grade"
    isolated: ClassVar[bool] = True

    def __init__(
        self,
        responses: StageOutput,
        test: StageOutput,
        *,
        metrics: Sequence[str],
        model: ResolvedModel | None = None,
        make_embedder: EmbedderFactory | None = None,
        shard_rows: int | None = None,
    ) -> None:
        """Grade the answers of one cell.

        Args:
            responses: The respond stage's output.
            test: The deduplicate stage's output of the test set.
            metrics: Of "rouge", "bge" and "exact_match".
            model: Embedder of "bge".
            make_embedder: Loads it, inside an actor.
            shard_rows: Answers a shard.

        Raises:
            ValueError: If a metric is not known, or "bge" has no embedder.
        """
        strange = set(metrics) - set(GRADES_OF)
        if strange:
            raise ValueError(f"no grades by {', '.join(sorted(strange))}")
        if "bge" in metrics and (model is None or make_embedder is None):
            raise ValueError("bge needs an embedder")
        self._responses, self._test = responses, test
        self._metrics = tuple(name for name in GRADES_OF if name in metrics)
        self._model, self._make_embedder = model, make_embedder
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._atoms = RowAtoms(((ANSWERS, responses.num_rows(ANSWERS)),), ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Grades."""
        return {"grades": GRADES}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The answers, and the test set with the references."""
        return {"responses": self._responses, "test": self._test}

    def settings(self) -> dict[str, Any]:
        """The metrics, and the embedder where it is asked."""
        settings: dict[str, Any] = {"metrics": list(self._metrics)}
        if "bge" in self._metrics and self._model is not None:
            settings |= {
                "model": self._model.name,
                "revision": self._model.revision,
                "atom_rows": ATOM_ROWS,
            }
        return settings

    def make_worker(self) -> Worker:
        """Load what the metrics need."""
        graders = [self._make_grader(metric) for metric in self._metrics]

        def grade_shard(shard: Shard, sink: Sink) -> None:
            spans = list(self._atoms.spans(shard.start, shard.stop))
            first = spans[0].start
            answers = read_answers(self._responses, first, spans[-1].stop)
            rows = read_test_rows(answers, self._test, ["response"])
            references = cast("list[str]", rows["response"].to_pylist())
            for span in spans:
                at = slice(span.start - first, span.stop - first)
                some = answers.slice(at.start, at.stop - at.start)
                sink.write("grades", grade_answers(some, references[at], graders))

        return grade_shard

    def _make_grader(self, metric: str) -> Grader:
        if metric == "rouge":
            return RougeGrader()
        if metric == "bge" and self._make_embedder is not None:  # there is one, see __init__
            return CosineGrader(self._make_embedder())
        return grade_exact_match


def grade_answers(
    answers: pa.Table, references: Sequence[str], graders: Sequence[Grader]
) -> pa.Table:
    """Grade some answers by all metrics: for each answer one row a metric."""
    texts = cast("list[str]", answers["response"].to_pylist())
    values: dict[str, Sequence[float | None]] = {}
    for grader in graders:
        values |= grader(texts, references)
    rows = [
        {"row_index": row_index, "example_id": example_id, "metric": metric, "value": column[at]}
        for at, (row_index, example_id) in enumerate(
            zip(answers["row_index"].to_pylist(), answers["example_id"].to_pylist(), strict=True)
        )
        for metric, column in values.items()
    ]
    return pa.Table.from_pylist(rows, schema=GRADES)


class RougeGrader:
    """ROUGE-1 and ROUGE-L, F measures from 0 to 1."""

    def __init__(self) -> None:
        """Load the library."""
        self._rouge = Rouge()

    def __call__(
        self, answers: Sequence[str], references: Sequence[str]
    ) -> dict[str, list[float | None]]:
        """Grade some answers."""
        scores = [
            self._rouge.score(answer, reference)
            for answer, reference in zip(answers, references, strict=True)
        ]
        return {
            "rouge1": [score.rouge1 for score in scores],
            "rougeL": [score.rouge_l for score in scores],
        }


class CosineGrader:
    """Cosine of the embeddings of answer and reference, -1 to 1; 0 for an empty answer.

    Each text is embedded by itself, without its question; what is longer than the embedder reads
    is cut. An embedder makes a vector of an empty text, too, as near to the reference as any: it
    would reward silence.
    """

    def __init__(self, embedder: Embedder) -> None:
        """Grade with an embedder of unit vectors."""
        self._embedder = embedder

    def __call__(
        self, answers: Sequence[str], references: Sequence[str]
    ) -> dict[str, list[float | None]]:
        """Grade some answers.

        Raises:
            StageError: If a vector is not finite.
        """
        vectors_ND = self._embedder.embed([*answers, *references]).astype(np.float64)
        cosines_N = (vectors_ND[: len(answers)] * vectors_ND[len(answers) :]).sum(axis=1)
        if not np.isfinite(cosines_N).all():
            at = int(np.flatnonzero(~np.isfinite(cosines_N))[0])
            raise StageError(f"the embedding of an answer is not finite: {answers[at][:80]!r}")
        cosines_N = np.clip(cosines_N, -1.0, 1.0)
        return {
            "bge": [
                float(cosine) if answer.strip() else 0.0
                for cosine, answer in zip(cosines_N, answers, strict=True)
            ]
        }


def grade_exact_match(
    answers: Sequence[str], references: Sequence[str]
) -> dict[str, list[float | None]]:
    """Grade some answers 1, 0, or None where the reference is a text."""
    return {"exact_match": [*map(exact_match, answers, references)]}


# Judge: a language model grades answers from 1 to 5.

#: Answers of one engine call.
ATOM_ROWS_of_judge = 64
DEFAULT_SHARD_ROWS_of_judge = 64

JudgeFactory = Callable[[], Engine]
#: An answer with the question and the reference of its test row.
Answered = Mapping[str, Any]


class JudgeStage(RowStage):
    """Write ``verdicts``: a row an answer, with what the judge wrote.

    A verdict in which no grade can be read has the score null, and is kept. An answer that the
    judge could not be asked about (its question is too long) is an error row. The judge sees
    question, reference and answer: neither the method that wrote it nor any other answer.
    """

    name: ClassVar[str] = "judge"
    divisible: ClassVar[bool] = True

    def __init__(
        self,
        responses: StageOutput,
        test: StageOutput,
        make_judge: JudgeFactory,
        judge_settings: Mapping[str, Any],
        *,
        max_tokens: int = 512,
        rubric: str | None = None,
        shard_rows: int | None = None,
    ) -> None:
        """Judge the answers of one cell.

        Args:
            responses: The respond stage's output.
            test: The deduplicate stage's output of the test set.
            make_judge: Loads the judge, inside an actor.
            judge_settings: What of the engine shapes verdicts: model, revision, dtype, max_length.
            max_tokens: Longest verdict; cut off before its grade, it cannot be read.
            rubric: What 1 to 5 mean; None: ``judging.DEFAULT_RUBRIC``.
            shard_rows: Answers a shard.
        """
        self._responses, self._test = responses, test
        self._make_judge, self._judge_settings = make_judge, dict(judge_settings)
        self._max_tokens, self._rubric = max_tokens, rubric or DEFAULT_RUBRIC
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS_of_judge
        self._num_rows = responses.num_rows(ANSWERS)
        self._atoms = RowAtoms(((ANSWERS, self._num_rows),), ATOM_ROWS_of_judge)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Verdicts."""
        return {"verdicts": VERDICTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The answers, and the test set with questions and references."""
        return {"responses": self._responses, "test": self._test}

    def settings(self) -> dict[str, Any]:
        """The judge, its rubric and what is computed together."""
        return {
            "judge": self._judge_settings,
            "rubric": hashlib.sha256(self._rubric.encode()).hexdigest(),
            "max_tokens": self._max_tokens,
            "atom_rows": ATOM_ROWS_of_judge,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Answers of some atoms, in their own count."""
        return range(start * ATOM_ROWS_of_judge, min(stop * ATOM_ROWS_of_judge, self._num_rows))

    def make_worker(self) -> Worker:
        """Load the judge."""
        judge = self._make_judge()

        def judge_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if rows:
                    self._judge_rows(rows, shard.skip, judge, sink)

        return judge_shard

    def _judge_rows(self, rows: range, skip: Mapping[int, str], judge: Engine, sink: Sink) -> None:
        asked: list[Answered] = []
        for row, answered in zip(
            rows, read_answered(self._responses, self._test, rows), strict=True
        ):
            if row in skip:
                refuse(answered, ScoringFailure(KILLED_WORKER, skip[row]), sink, excerpt="response")
            else:
                asked.append(answered)
        requests = [
            make_request(answered, judge, self._rubric, self._max_tokens) for answered in asked
        ]
        write_verdicts(asked, judge.generate(requests) if requests else [], sink)


def read_answered(responses: StageOutput, test: StageOutput, rows: range) -> list[Answered]:
    """Return some answers, each with the question and the reference of its test row."""
    answers = read_answers(responses, rows.start, rows.stop)
    columns = ["row_index", "example_id", "response"]
    test_rows = read_test_rows(answers, test, ["prompt", "response"])
    return [
        answer | {"question": row["prompt"], "reference": row["response"]}
        for answer, row in zip(
            answers.select(columns).to_pylist(), test_rows.to_pylist(), strict=True
        )
    ]


def make_request(
    answered: Answered, judge: Engine, rubric: str, max_tokens: int
) -> GenerationRequest:
    """Write what the judge is asked about one answer; it says what it finds likeliest."""
    question = build_question(
        answered["question"], answered["reference"], answered["response"], rubric
    )
    return GenerationRequest(judge.encode_message(question), max_tokens, temperature=0.0)


def write_verdicts(
    asked: Sequence[Answered], verdicts: Sequence[Generation | ScoringFailure], sink: Sink
) -> None:
    """Write verdicts with the grade that is read in each; a failed one is an error row."""
    rows: list[dict[str, Any]] = []
    for answered, verdict in zip(asked, verdicts, strict=True):
        if isinstance(verdict, ScoringFailure):
            refuse(answered, verdict, sink, excerpt="response")
            continue
        sink.count("tokens", verdict.num_prompt_tokens + verdict.num_tokens)
        score = parse_verdict(verdict.text, answered["response"])
        sink.count("unreadable_verdicts", score is None)
        rows.append(
            {
                "row_index": answered["row_index"],
                "example_id": answered["example_id"],
                "score": score,
                "verdict": verdict.text,
            }
        )
    sink.write_rows("verdicts", rows, VERDICTS)
