"""The likelihood stage on an engine of no weight: prompts, failures, draws, shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.engines.base import Engine, ScoringRequest, ScoringResult
from nncift_ray.engines.models import TunedModel
from nncift_ray.evaluation.ask import LikelihoodStage, ShownExamples, draw_test_rows
from nncift_ray.runtime import schemas
from nncift_ray.runtime import schemas as evaluation_schemas
from nncift_ray.runtime.driver import stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import Shard
from tests.fake_engines import FakeEngine
from tests.stages import GivenStage
from tests.unit.teachers.less_chain import CorpusStage, make_row, run

LONG = 10_000


class Recorder(FakeEngine):
    """Remembers what it was asked."""

    def __init__(self, max_length: int = LONG, name: str = "fake") -> None:
        super().__init__(max_length)
        self.name = name
        self.requests: list[ScoringRequest] = []
        self.tuned: list[TunedModel | None] = []

    def __call__(self, tuned: TunedModel | None) -> Engine:
        self.tuned.append(tuned)
        return self

    def settings(self) -> dict[str, str]:
        return {"engine": self.name}

    def score(self, requests: Any) -> Any:
        self.requests += requests
        return super().score(requests)


def make_tests(folder: Path, **changes: Callable[[list[dict[str, Any]]], None]) -> StageOutput:
    rows = [make_row("targets", at) for at in range(20)]
    for change in changes.values():
        change(rows)
    table = pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)
    return run(GivenStage("tests", {"targets": table}), folder)


def make_shown(folder: Path, found: Mapping[int, list[int]]) -> ShownExamples:
    rows = [
        {"row_index": row, "example_index": indices, "cosine": [0.5] * len(indices)}
        for row, indices in found.items()
    ]
    table = pa.Table.from_pylist(rows, schema=evaluation_schemas.CONTEXTS)
    return ShownExamples(
        run(GivenStage("retrieve", {"contexts": table}), folder), run(CorpusStage(), folder)
    )


def text_of(ids: Any) -> str:
    return bytes(ids).decode()


def run_likelihood(
    folder: Path, tests: StageOutput, recorder: Recorder, **options: Any
) -> StageOutput:
    stage = LikelihoodStage(tests, recorder, **{"max_length": LONG} | options)
    return run(stage, folder)


def read_rows(output: StageOutput) -> list[dict[str, Any]]:
    return output.read("likelihoods", schema=evaluation_schemas.LIKELIHOODS).to_pylist()


def test_a_row_is_the_mean_over_its_reference_and_end_token(tmp_path: Path) -> None:
    recorder = Recorder()
    tests = make_tests(tmp_path)
    rows = read_rows(run_likelihood(tmp_path, tests, recorder))
    assert [row["row_index"] for row in rows] == list(range(20))
    for at, (row, request) in enumerate(zip(rows, recorder.requests, strict=True)):
        question = make_row("targets", at)
        assert text_of(request.prompt_ids) == question["prompt"] + "\n"
        assert list(request.response_ids) == [*question["response"].encode(), recorder.eos_id]
        answer = FakeEngine(LONG).score([request])[0]
        assert isinstance(answer, ScoringResult)
        assert row["nll"] == -float(np.mean(answer.log_probs))
        assert row["example_id"] == question["example_id"]
        assert row["num_tokens"] == len(question["response"]) + 1
        assert row["num_prompt_tokens"] == len(question["prompt"]) + 1


def test_examples_stand_before_the_question_of_the_untuned_model(tmp_path: Path) -> None:
    recorder = Recorder()
    tests = make_tests(tmp_path)
    shown = make_shown(tmp_path, {row: [row % 12, (row + 5) % 12] for row in range(20)})
    run_likelihood(tmp_path, tests, recorder, shown=shown)
    assert recorder.tuned == [None]  # never the model that was fine-tuned
    near, far = make_row("candidates", 3), make_row("candidates", 8)
    blocks = "".join(f"{each['prompt']}\n{each['response']}\n\n" for each in (far, near))
    assert text_of(recorder.requests[3].prompt_ids) == (
        blocks + make_row("targets", 3)["prompt"] + "\n"
    )


def test_examples_for_a_tuned_model_are_refused(tmp_path: Path) -> None:
    tests = make_tests(tmp_path)
    shown = make_shown(tmp_path, {0: [1]})
    with pytest.raises(ValueError, match="untuned"):
        LikelihoodStage(tests, Recorder(), tuned=tests, shown=shown, max_length=LONG)


@pytest.mark.parametrize("limit_of", ["recipe", "engine"])
def test_what_is_too_long_loses_the_left_of_its_examples_and_never_the_question(
    tmp_path: Path, limit_of: str
) -> None:
    limit = 60
    recorder = Recorder(limit if limit_of == "engine" else LONG)
    tests = make_tests(tmp_path)
    shown = make_shown(tmp_path, {row: list(range(10)) for row in range(20)})
    output = run_likelihood(
        tmp_path, tests, recorder, shown=shown, max_length=limit if limit_of == "recipe" else LONG
    )
    assert len(read_rows(output)) == 20
    for at, request in enumerate(recorder.requests):
        question = make_row("targets", at)
        assert request.num_tokens == limit
        assert list(request.response_ids[:-1]) == list(question["response"].encode())
        near = make_row("candidates", 0)
        tail = f"{near['response']}\n\n{question['prompt']}\n"
        assert text_of(request.prompt_ids).endswith(tail)


def test_unfit_rows_are_error_rows_and_shift_nobody(tmp_path: Path) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[2]["response"] = ""
        rows[5]["prompt"] *= 100
        rows[7]["response"] = "\0"  # the fake engine's NaN

    recorder = Recorder()
    tests = make_tests(tmp_path, spoil=spoil)
    shown = make_shown(tmp_path, {row: [0] for row in range(20) if row != 11})
    output = run_likelihood(tmp_path, tests, recorder, shown=shown, max_length=300)
    errors = output.read("errors", schema=schemas.ERRORS).to_pylist()
    assert {row["example_id"]: row["reason"] for row in errors} == {
        "targets-2": "no_response",
        "targets-5": "too_long",
        "targets-7": "not_finite",
        "targets-11": "no_context",
    }
    rows = read_rows(output)
    assert [row["row_index"] for row in rows] == [r for r in range(20) if r not in (2, 5, 7, 11)]
    assert all(row["example_id"] == f"targets-{row['row_index']}" for row in rows)


def test_only_the_drawn_rows_are_asked(tmp_path: Path) -> None:
    recorder = Recorder()
    output = run_likelihood(tmp_path, make_tests(tmp_path), recorder, max_rows=7, seed=4)
    drawn = draw_test_rows(20, 7, 4).tolist()
    assert [row["row_index"] for row in read_rows(output)] == drawn
    assert len(recorder.requests) == 7
    tokens = sum(row["num_prompt_tokens"] + row["num_tokens"] for row in read_rows(output))
    assert output.manifest.counts() == {"tokens": tokens, "cached_tokens": 0}


def test_shards_do_not_show_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LikelihoodStage, "atom_rows", 3)
    tests = make_tests(tmp_path)
    tables = [
        read_rows(run_likelihood(tmp_path / str(rows), tests, Recorder(), shard_rows=rows))
        for rows in (3, 6, 100)
    ]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == 20


def test_a_row_that_kills_is_left_out_alone(tmp_path: Path) -> None:
    tests = make_tests(tmp_path)
    recorder = Recorder()
    stage = LikelihoodStage(tests, recorder, max_length=LONG)
    sink = Sink(Location.of(str(tmp_path / "out")), stage.name, 0, 1, stage.check_schema)
    stage.make_worker()(Shard(0, 1, range(4, 9), {6: "killed"}), sink)
    record = sink.finish(0.0)
    assert record.num_failures == 1
    assert len(recorder.requests) == 4
    assert stage.row_numbers(0, 1) == range(20)


def test_the_fingerprint_holds_what_shapes_the_rows(tmp_path: Path) -> None:
    tests = make_tests(tmp_path)

    def fingerprint(**options: Any) -> str:
        engine: Any = Recorder(name=options.pop("engine", "fake"))
        return stage_fingerprint(LikelihoodStage(tests, engine, **{"max_length": LONG} | options))

    assert fingerprint(shard_rows=7) == fingerprint()
    others = [
        fingerprint(max_rows=5),
        fingerprint(max_rows=5, seed=1),
        fingerprint(max_length=100),
        fingerprint(engine="other"),
        fingerprint(tuned=tests),
        fingerprint(shown=make_shown(tmp_path, {0: [1]})),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)
