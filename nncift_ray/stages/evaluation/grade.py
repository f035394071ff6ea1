"""Grade: answers beside their references, by metrics that ask no language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from nncift_ray.core.evaluation.exact_match import exact_match
from nncift_ray.core.evaluation.rouge import Rouge
from nncift_ray.errors import StageError
from nncift_ray.models.embedded import ResolvedModel
from nncift_ray.models.embedder import Embedder
from nncift_ray.stages.driving.atoms import RowAtoms, RowStage
from nncift_ray.stages.driving.stage import Shard, Worker
from nncift_ray.stages.evaluation.answered_rows import ANSWERS, read_answers, read_test_rows
from nncift_ray.storage.evaluation_schemas import GRADES
from nncift_ray.storage.output import Sink, StageOutput

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
