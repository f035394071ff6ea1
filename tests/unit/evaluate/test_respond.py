"""Responding: every drawn row has an answer or an error row, and no answer is written twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.embedders import EmbedPromptsStage
from nncift_ray.engines.base import (
    Generation,
    GenerationRequest,
    ScoringFailure,
    row_seed,
)
from nncift_ray.engines.models import ResolvedModel, TunedModel
from nncift_ray.evaluation.ask import RespondStage, RetrieveStage, ShownExamples, draw_test_rows
from nncift_ray.recipe.sections import GenerationConfig, PoolConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from tests.fake_engines import FakeGenerator
from tests.hash_embedder import HashEmbedder

SETTINGS = GenerationConfig(max_tokens=20, temperature=0.5, min_p=0.1, seed=7)
NUM_TESTS = 300


def run(stage: Stage, folder: Path, execute: Any = execute_here) -> StageOutput:
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute, reporter=SilentReporter())


def deduplicate(folder: Path, rows: list[tuple[str, str]], role: str) -> StageOutput:
    folder.mkdir(exist_ok=True)
    path = folder / f"{role}.jsonl"
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ([str(path)], []) if role == "candidates" else ([], [str(path)])
    return run(DeduplicateStage(run(IngestStage(find_sources(*files)), folder)), folder)


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> StageOutput:
    rows = [(f"question {n}", f"secret {n}") for n in range(NUM_TESTS)]
    return deduplicate(tmp_path_factory.mktemp("tests"), rows, "targets")


class Watched(FakeGenerator):
    """Remembers what it was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        self.requests.extend(requests)
        return super().generate(requests)


@dataclass(frozen=True)
class Generators:
    """Loads a generator that is there already."""

    generator: FakeGenerator
    model: str = "fake"

    def __call__(self, tuned: TunedModel | None) -> FakeGenerator:
        return self.generator

    def settings(self) -> dict[str, str]:
        return {"model": self.model}


def make(tests: StageOutput, generator: FakeGenerator, **options: Any) -> RespondStage:
    rows, shard_rows = options.pop("max_rows", None), options.pop("shard_rows", None)
    writing = options.pop("generation", SETTINGS)
    section = writing.model_copy(
        update={"max_rows": rows, "pool": PoolConfig(shard_rows=shard_rows)}
    )
    engine: Any = Generators(generator, options.pop("model", "fake"))
    return RespondStage(tests, engine, section, **{"max_length": 500} | options)


def test_every_row_is_asked_alone_with_a_stream_of_its_own(
    tests: StageOutput, tmp_path: Path
) -> None:
    generator = Watched(reply=lambda prompt: prompt.upper().strip())
    rows = run(make(tests, generator), tmp_path).read("responses").to_pylist()
    examples = tests.read("targets").to_pylist()
    assert [row["row_index"] for row in rows] == list(range(NUM_TESTS))
    for row, example, request in zip(rows, examples, generator.requests, strict=True):
        assert row["response"] == example["prompt"].upper()
        assert row["example_id"] == example["example_id"]
        assert row["num_prompt_tokens"] == len(example["prompt"]) + 1
        assert (row["num_tokens"], row["finish_reason"]) == (len(example["prompt"]) + 1, "stop")
        assert bytes(request.prompt_ids).decode() == example["prompt"] + "\n"
        assert request.seed == row_seed(7, example["example_id"])
        assert (request.max_tokens, request.temperature, request.min_p) == (20, 0.5, 0.1)
        assert request.stop_text == ""
    assert len({request.seed for request in generator.requests}) == NUM_TESTS


def test_neither_shards_nor_the_draw_change_an_answer(tests: StageOutput, tmp_path: Path) -> None:
    def responses(folder: str, **options: Any) -> list[dict[str, Any]]:
        stage = make(tests, FakeGenerator(), **options)
        return run(stage, tmp_path / folder).read("responses").to_pylist()

    whole = responses("whole", shard_rows=10**6)
    assert responses("cut", shard_rows=1) == whole
    rows = draw_test_rows(NUM_TESTS, 40, SETTINGS.seed).tolist()
    assert responses("drawn", max_rows=40) == [whole[row] for row in rows]
    other = GenerationConfig(max_tokens=20, temperature=0.5, min_p=0.1, seed=8)
    again = responses("other", generation=other)
    assert all(a["response"] != b["response"] for a, b in zip(again, whole, strict=True))


def test_a_second_run_writes_nothing_and_other_settings_write_anew(
    tests: StageOutput, tmp_path: Path
) -> None:
    generator = FakeGenerator()
    first = run(make(tests, generator), tmp_path)
    assert generator.num_requests == NUM_TESTS
    second = run(make(tests, generator, shard_rows=1), tmp_path)
    assert generator.num_requests == NUM_TESTS
    assert second.fingerprint == first.fingerprint
    longer = GenerationConfig(max_tokens=30, temperature=0.5, min_p=0.1, seed=7)
    run(make(tests, generator, generation=longer), tmp_path)
    assert generator.num_requests == 2 * NUM_TESTS
    run(make(tests, generator, model="b"), tmp_path)
    assert generator.num_requests == 3 * NUM_TESTS


def test_a_row_that_fails_is_an_error_row_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    rows = [("one", "a"), ("x" * 90, "b"), ("poison\0", "c"), ("four", "d")]
    tests = deduplicate(tmp_path, rows, "targets")
    output = run(make(tests, FakeGenerator(), max_length=60), tmp_path)
    assert [row["row_index"] for row in output.read("responses").to_pylist()] == [0, 3]
    errors = output.read("errors").to_pylist()
    assert [(row["reason"], row["excerpt"][:3]) for row in errors] == [
        ("too_long", "xxx"),
        ("not_finite", "poi"),
    ]
    ids = tests.read("targets")["example_id"].to_pylist()
    assert [row["example_id"] for row in errors] == ids[1:3]
    answered = output.read("responses").to_pylist()
    tokens = sum(row["num_prompt_tokens"] + row["num_tokens"] for row in answered)
    assert output.manifest.counts() == {"tokens": tokens}


@pytest.fixture
def shown(tests: StageOutput, tmp_path: Path) -> ShownExamples:
    rows = [("question 1 a", "red"), ("question 1", "blue"), ("other 2", "two\n\nparts")]
    folder, model = tmp_path / "corpus", ResolvedModel("hash", "nowhere", "1")
    candidates = deduplicate(folder, rows, "candidates")
    vectors = [
        run(EmbedPromptsStage(examples, model, make_embedder=HashEmbedder, tables=(table,)), folder)
        for examples, table in ((candidates, "candidates"), (tests, "targets"))
    ]
    retrieve = RetrieveStage(vectors[0], np.array([0, 1, 2]), vectors[1], num_examples=2)
    return ShownExamples(run(retrieve, folder), candidates)


def _asked_about(generator: Watched, question: str) -> GenerationRequest:
    (found,) = [r for r in generator.requests if bytes(r.prompt_ids).endswith(question.encode())]
    return found


def test_examples_stand_before_the_question_the_nearest_last(
    tests: StageOutput, tmp_path: Path, shown: ShownExamples
) -> None:
    generator = Watched()
    output = run(make(tests, generator, shown=shown, max_rows=200), tmp_path)
    row = output.read("responses").to_pylist()[0]
    question = tests.read("targets")["prompt"][row["row_index"]].as_py() + "\n"
    request = _asked_about(generator, question)
    context = shown.contexts.read("contexts").to_pylist()[0]
    assert context["row_index"] == row["row_index"]
    texts = shown.candidates.read("candidates").to_pylist()
    far, near = (texts[index] for index in reversed(context["example_index"]))
    blocks = [f"{e['prompt']}\n{e['response']}\n\n" for e in (far, near)]
    assert bytes(request.prompt_ids).decode() == "".join([*blocks, question])


def test_a_blank_line_ends_an_answer_in_context_unless_an_example_has_one_inside(
    tests: StageOutput, tmp_path: Path, shown: ShownExamples
) -> None:
    generator = Watched(reply=lambda _: "a\nb\n\nNext\n")
    output = run(make(tests, generator, shown=shown), tmp_path)
    rows = {row["row_index"]: row for row in output.read("responses").to_pylist()}
    contexts = shown.contexts.read("contexts").to_pylist()
    kinds = {2 in context["example_index"] for context in contexts}
    assert kinds == {True, False}
    for context in contexts:
        expected = "a\nb\n\nNext\n" if 2 in context["example_index"] else "a\nb"
        row = rows[context["row_index"]]
        assert (row["response"], row["finish_reason"]) == (expected, "stop")


def test_a_tuned_model_is_shown_no_examples(tests: StageOutput, shown: ShownExamples) -> None:
    with pytest.raises(ValueError, match="untuned model only"):
        make(tests, FakeGenerator(), shown=shown, tuned=tests)
