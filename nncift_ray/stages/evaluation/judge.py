"""Judge: a language model grades answers from 1 to 5."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.core.evaluation.judging import DEFAULT_RUBRIC, build_question, parse_verdict
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.generation import Generation, GenerationEngine, GenerationRequest
from nncift_ray.stages.driving.atoms import RowAtoms, RowStage
from nncift_ray.stages.driving.stage import KILLED_WORKER, Shard, Worker
from nncift_ray.stages.evaluation.answered_rows import ANSWERS, read_answers, read_test_rows
from nncift_ray.stages.evaluation.questions import refuse
from nncift_ray.storage.evaluation_schemas import VERDICTS
from nncift_ray.storage.output import Sink, StageOutput

#: Answers of one engine call.
ATOM_ROWS = 64
DEFAULT_SHARD_ROWS = 64

JudgeFactory = Callable[[], GenerationEngine]
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
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._num_rows = responses.num_rows(ANSWERS)
        self._atoms = RowAtoms(((ANSWERS, self._num_rows),), ATOM_ROWS)

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
            "atom_rows": ATOM_ROWS,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Answers of some atoms, in their own count."""
        return range(start * ATOM_ROWS, min(stop * ATOM_ROWS, self._num_rows))

    def make_worker(self) -> Worker:
        """Load the judge."""
        judge = self._make_judge()

        def judge_shard(shard: Shard, sink: Sink) -> None:
            for atom in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(atom, atom + 1))
                if rows:
                    self._judge_rows(rows, shard.skip, judge, sink)

        return judge_shard

    def _judge_rows(
        self, rows: range, skip: Mapping[int, str], judge: GenerationEngine, sink: Sink
    ) -> None:
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
    answered: Answered, judge: GenerationEngine, rubric: str, max_tokens: int
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
