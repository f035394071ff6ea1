from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray import pipeline
from nncift_ray.engines import vllm as module
from nncift_ray.engines.base import NextTokenRequest, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.engines.models import EngineFactory, find_engine, load_engine
from nncift_ray.engines.vllm import ServerEngine
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.progress import SilentReporter
from tests.fake_server import FakeServer, log_probs, serving
from tests.tiny_models import make_tiny_llama

QUIET: dict[str, Any] = {"execute": execute_here, "reporter": SilentReporter()}
REQUESTS = [ScoringRequest([5, 6, 7], [8, 9 + n]) for n in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


def options(fake: FakeServer, folder: Path, **keys: Any) -> EngineConfig:
    engine = {"url": fake.url, "model": "tiny", **keys}
    return EngineConfig.model_validate({"model": str(folder), "engine": engine})


def engine_of(fake: FakeServer, folder: Path, **keys: Any) -> ServerEngine:
    made = load_engine(folder, options(fake, folder, **keys))
    assert isinstance(made, ServerEngine)
    return made


@pytest.mark.parametrize("ways", [("prompt_logprobs", "echo"), ("echo",)])
def test_scores_are_the_servers_log_probabilities_of_the_response(
    fake: FakeServer, model: Path, ways: tuple[str, ...]
) -> None:
    fake.ways = ways
    requests = [*REQUESTS, ScoringRequest([5, 6], [7, 8, 9], asked=[0, 2])]
    for request, found in zip(requests, engine_of(fake, model).score(requests), strict=True):
        assert isinstance(found, ScoringResult)
        told = log_probs([*request.prompt_ids, *request.response_ids])
        assert found.log_probs.tolist() == [told[at] for at in request.scored]
    assert all(ways[0] in body for body in fake.asked[-len(requests) :])


def test_no_more_requests_wait_at_a_time_than_the_recipe_says(
    fake: FakeServer, model: Path
) -> None:
    engine_of(fake, model, concurrency=3).score(REQUESTS)
    assert 1 <= fake.most_at_once <= 3


def test_a_busy_server_is_asked_again_and_a_refusal_is_one_rows_failure(
    fake: FakeServer, model: Path
) -> None:
    engine = engine_of(fake, model, concurrency=1)
    fake.refuses, fake.faults = 12, [(503, "starting"), (429, "slowly")]
    answers = engine.score(REQUESTS[:8])
    failures = {n: a for n, a in enumerate(answers) if isinstance(a, ScoringFailure)}
    assert list(failures) == [3]
    assert failures[3].reason == "refused"
    assert "this prompt is refused" in failures[3].message
    (alone,) = engine.score([NextTokenRequest([5], [6])])
    assert isinstance(alone, ScoringFailure)
    too_long = engine.score([ScoringRequest([5] * 499, [6])])[0]  # the server takes 500
    assert isinstance(too_long, ScoringFailure)
    assert too_long.reason == "too_long"


@pytest.mark.parametrize(
    ("fault", "keys", "message"),
    [
        ({"ways": ()}, {}, "no log-probabilities of the tokens of a prompt"),
        ({"shift": 1, "ways": ("prompt_logprobs",)}, {}, "tokenizer of teacher.model is not"),
        ({}, {"model": "large"}, "has no model 'large'; name one of tiny, other"),
        ({"token": "abc"}, {}, "NNCIFT_API_TOKEN"),
        ({}, {"url": "http://127.0.0.1:9/v1"}, r"127\.0\.0\.1:9/v1, does not answer"),
    ],
)
def test_what_is_wrong_with_a_server_is_said_before_the_first_request(
    fake: FakeServer, model: Path, fault: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    for name, value in fault.items():
        setattr(fake, name, value)
    with pytest.raises(ModelError, match=message):
        engine_of(fake, model, **keys)


def recipe(fake: FakeServer, tiny: Path, folder: Path, **teacher: Any) -> dict[str, Any]:
    rows = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    engine = {"url": fake.url, "model": "tiny", "token_variable": "FAKE_TOKEN"}
    return {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(folder / "rows.jsonl")]},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "teacher": {"kind": "delift", "model": str(tiny), "engine": engine, **teacher},
        "pair_scores": {"by": "teacher"},
        "selection": {"budget": 4},
    }


def test_a_run_asks_the_server_once_wherever_it_is_and_writes_no_token(
    fake: FakeServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "secret-of-the-server"
    monkeypatch.setenv("FAKE_TOKEN", fake.token)
    tree = recipe(fake, model, tmp_path)
    first = pipeline.run(make_config(tree), until="label", **QUIET)
    labels = first.outputs["label"]
    assert labels.num_rows("labels") == 24 * 23
    assert np.ptp(labels.read("labels", ["utility"])["utility"].to_numpy()) > 0
    assert "profiles" not in first.outputs  # the weights are not here
    asked = len(fake.asked)
    with serving(FakeServer(token=fake.token)) as elsewhere:
        tree["teacher"]["engine"]["url"] = elsewhere.url
        again = pipeline.run(make_config(tree), until="label", **QUIET)
        assert not elsewhere.asked
    assert again.outputs["label"].manifest.fingerprint == labels.manifest.fingerprint
    assert len(fake.asked) == asked
    written = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(fake.token.encode() in content for content in written)


def test_the_served_model_is_part_of_the_key_of_labels(fake: FakeServer, model: Path) -> None:
    def settings(**keys: Any) -> dict[str, Any]:
        found = find_engine(options(fake, model, **keys), has_gpu=False)
        assert isinstance(found, EngineFactory)
        return found.settings()

    assert settings(url="http://elsewhere/v1", concurrency=2) == settings()
    assert settings(model="other") != settings()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"kind": "selectit"}, "a server only tells the likelihood of tokens"),
        ({"model": "auto"}, "name the model it serves"),
        ({"adapter": "lora"}, "adapter, quantization and tensor_parallel_size"),
        ({"engine": {"url": "gpu-1:8000"}}, r"teacher\.engine\.url"),
        ({"engine": {"url": "http://a", "concurency": 3}}, "did you mean 'concurrency'"),
    ],
)
def test_a_recipe_that_a_server_cannot_serve_is_refused(
    fake: FakeServer, model: Path, tmp_path: Path, teacher: dict[str, Any], message: str
) -> None:
    tree = recipe(fake, model, tmp_path, **teacher)
    if teacher.get("kind") == "selectit":
        tree["selection"]["objective"] = "top_k"
    with pytest.raises(ConfigError, match=message):
        pipeline.Blueprint(make_config(tree), fetch=False).check()
