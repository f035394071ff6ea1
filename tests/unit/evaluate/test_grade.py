"""Grading: each answer beside the reference of its own row, by each metric that is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nncift_ray.embedders import F32
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.errors import StageError
from nncift_ray.evaluation.metrics import GradeStage, cosines
from nncift_ray.runtime.driver import stage_fingerprint
from nncift_ray.runtime.output import StageOutput
from tests.hash_embedder import HashEmbedder
from tests.unit.evaluate.answers import run, write_answers, write_test_set

MODEL = ResolvedModel("hash", "nowhere", "1")
ROWS = [
    ("how many eggs", "18 and 24\n#### 42"),
    ("capital of France", "Paris"),
    ("say something", "the quick brown fox jumps over the lazy dog"),
    ("unanswered", "nothing"),
]
TOLERANCE = 1e-6


def by_rules(responses: StageOutput, test: StageOutput, rows: int = 1024) -> GradeStage:
    return GradeStage(responses, test, shard_rows=rows)


def by_embedder(responses: StageOutput, test: StageOutput, rows: int = 1024) -> GradeStage:
    return GradeStage(responses, test, MODEL, lambda: HashEmbedder(8), shard_rows=rows)


BOTH = (by_rules, by_embedder)


def grades_of(output: StageOutput) -> dict[tuple[int, str], float | None]:
    rows = output.read("grades").to_pylist()
    return {(row["row_index"], row["metric"]): row["value"] for row in rows}


def test_each_answer_is_graded_beside_its_own_reference(tmp_path: Path) -> None:
    test = write_test_set(tmp_path, ROWS)
    answers = {0: "it is 42", 1: "London", 2: "the quick brown fox jumps over the lazy dog"}
    responses = write_answers(tmp_path, test, answers)
    grades: dict[tuple[int, str], float | None] = {}
    for grade in BOTH:
        grades |= grades_of(run(grade(responses, test), tmp_path))
    names = [metric for row, metric in grades if row == 0]
    assert names == ["rouge1", "rougeL", "exact_match", "bge"]
    assert (grades[0, "exact_match"], grades[1, "exact_match"]) == (1.0, 0.0)
    assert grades[2, "exact_match"] is None  # a text, not an answer
    assert (grades[2, "rouge1"], grades[2, "rougeL"]) == (1.0, 1.0)
    assert grades[2, "bge"] == pytest.approx(1.0, abs=TOLERANCE)
    assert grades[1, "rouge1"] == 0.0
    embed = HashEmbedder(8).embed
    cosine = float(embed(["London"])[0] @ embed(["Paris"])[0])
    assert grades[1, "bge"] == pytest.approx(cosine, abs=TOLERANCE)
    assert not any(row == 3 for row, _ in grades)  # never answered: missing, not 0


@pytest.mark.parametrize(
    ("grade", "names"), zip(BOTH, (("rouge1", "rougeL"), ("bge",)), strict=True)
)
def test_an_empty_answer_is_worth_nothing_and_no_error(
    tmp_path: Path, grade: Callable[..., GradeStage], names: Sequence[str]
) -> None:
    test = write_test_set(tmp_path, ROWS)
    output = run(grade(write_answers(tmp_path, test, {1: "", 2: " \n"}), test), tmp_path)
    grades = grades_of(output)
    assert {grades[row, name] for row in (1, 2) for name in names} == {0.0}
    assert output.manifest.num_failures == 0


@pytest.mark.parametrize("grade", BOTH)
def test_grades_do_not_depend_on_the_shard_size(
    tmp_path: Path, grade: Callable[..., GradeStage]
) -> None:
    rows = [(f"question {i}", f"answer {i} of {i % 7}") for i in range(600)]
    test = write_test_set(tmp_path, rows)
    responses = write_answers(tmp_path, test, {i: f"answer {i % 5} of 3" for i in range(0, 600, 2)})
    small = run(grade(responses, test, rows=1), tmp_path / "a").read("grades")
    large = run(grade(responses, test, rows=9999), tmp_path / "b").read("grades")
    assert small.equals(large)
    num_values = 3 if grade is by_rules else 1
    assert small["row_index"].to_pylist()[::num_values] == list(range(0, 600, 2))


def test_answers_to_another_test_set_are_refused(tmp_path: Path) -> None:
    test = write_test_set(tmp_path / "a", ROWS)
    other = write_test_set(tmp_path / "b", ROWS[::-1])
    with pytest.raises(StageError, match="another test set"):
        run(by_rules(write_answers(tmp_path, test, {0: "42"}), other), tmp_path)


def test_an_embedder_makes_other_grades(tmp_path: Path) -> None:
    test = write_test_set(tmp_path, ROWS)
    responses = write_answers(tmp_path, test, {0: "42"})
    rules, cosine = (grade(responses, test) for grade in BOTH)
    assert stage_fingerprint(rules) != stage_fingerprint(cosine)
    assert (rules.can_use_gpu, cosine.can_use_gpu) == (False, True)


def test_a_vector_that_is_not_finite_is_no_grade() -> None:
    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> F32:
            return np.full((len(texts), self.dimension), np.nan, dtype=np.float32)

    with pytest.raises(StageError, match="not finite"):
        cosines(Broken(), ["an answer"], ["a reference"])
