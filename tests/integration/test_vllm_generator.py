from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nncift_ray.engines.base import Engine, Generation, GenerationRequest, ScoringFailure
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.errors import EngineDiedError
from nncift_ray.recipe.sections import EngineConfig
from tests.tiny_models import make_tiny_adapter, make_tiny_llama, poison_weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

CACHE_BYTES = 64 << 20
TEXTS = ["two?", "The capital of France is", "Query: " + "one two three " * 9, "x", "1. one 2. two"]


def _load(path: Path, **options: Any) -> VllmEngine:
    return VllmEngine(
        path, EngineConfig(kv_cache_memory_bytes=CACHE_BYTES, **options), generates=True
    )


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_adapter(tiny_path, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def oracle(tiny_path: Path) -> TransformersEngine:
    return TransformersEngine(tiny_path, device="cpu", num_threads=1)


@pytest.fixture(scope="module")
def generator(tiny_path: Path) -> Iterator[VllmEngine]:
    generator = _load(tiny_path)
    yield generator
    generator.close()


def _requests(generator: Engine, **settings: Any) -> list[GenerationRequest]:
    """Return prompts of many lengths with answers of many lengths."""
    made = GenerationRequest([1], 20, **settings)
    return [
        replace(
            made,
            prompt_ids=generator.encode(text + "\n"),
            max_tokens=12 + 5 * (n % 3),
            seed=n,
        )
        for n, text in enumerate(TEXTS)
    ]


def test_greedy_answers_are_those_of_transformers(
    generator: VllmEngine, oracle: TransformersEngine
) -> None:
    assert isinstance(generator, Engine)
    assert generator.max_length == oracle.max_length
    requests = _requests(generator)
    assert requests == _requests(oracle)
    answers = generator.generate(requests)
    assert answers == oracle.generate(requests)
    assert len({a.text for a in answers if isinstance(a, Generation)}) == len(TEXTS)
    before = generator.busy_seconds
    generator.generate(requests[:1])
    assert generator.busy_seconds > before


def test_a_stop_text_of_one_token_or_several_ends_an_answer_in_both_engines(
    generator: VllmEngine, oracle: TransformersEngine
) -> None:
    requests = _requests(oracle)
    whole = [a for a in oracle.generate(requests) if isinstance(a, Generation)]
    # Tokens are a byte or two, so most of these are written in several.
    runs = [re.search(r"[ -~]{2,5}", answer.text[3:]) for answer in whole]
    stops = [run.group() for run in runs if run]
    assert max(map(len, stops)) > 2
    stopping = [replace(r, stop_text=stop) for r, stop in zip(requests, stops, strict=True)]
    answers = generator.generate(stopping)
    assert answers == oracle.generate(stopping)
    for answer, full, stop in zip(answers, whole, stops, strict=True):
        assert isinstance(answer, Generation)
        assert answer.text == full.text.partition(stop)[0]
        assert answer.finish_reason == "stop"
        assert answer.num_tokens < full.num_tokens


def test_sampling_is_repeatable_and_does_not_depend_on_the_batch(generator: VllmEngine) -> None:
    requests = _requests(generator, temperature=1.0, min_p=0.02)
    expected = generator.generate(requests)
    assert generator.generate(requests) == expected
    assert generator.generate(requests[::-1])[::-1] == expected
    assert [generator.generate([request])[0] for request in requests] == expected
    others = [replace(request, seed=request.seed + 100) for request in requests]
    assert all(a != b for a, b in zip(generator.generate(others), expected, strict=True))


def test_more_prompts_than_a_step_takes_are_answered_as_each_alone(tiny_path: Path) -> None:
    # 700 and more tokens of prompts, 640 a step: one prompt would be computed in two parts.
    small = _load(tiny_path, batch_tokens=64)
    ids = small.encode("The capital of France is Paris. " * 40)
    requests = [
        GenerationRequest(ids[n : n + 90 + 7 * n], 6, temperature, 0.02, seed=n)
        for n in range(9)
        for temperature in (0.0, 1.0)
    ]
    answers = small.generate(requests)
    alone = [small.generate([request])[0] for request in requests]
    small.close()
    assert all(isinstance(answer, Generation) for answer in answers)
    assert answers == alone


def test_min_p_1_leaves_the_likeliest_token_only(generator: VllmEngine) -> None:
    greedy = generator.generate(_requests(generator))
    assert generator.generate(_requests(generator, temperature=1.0, min_p=1.0)) == greedy
    assert generator.generate(_requests(generator, temperature=1.0)) != greedy


def test_one_bad_request_leaves_its_neighbours_alone(generator: VllmEngine) -> None:
    good = _requests(generator)[:2]
    bad = [GenerationRequest([], 5), GenerationRequest([1] * 635, 5), GenerationRequest([10**6], 5)]
    answers = generator.generate([good[0], *bad, good[1]])
    reasons = [answer.reason for answer in answers if isinstance(answer, ScoringFailure)]
    assert reasons == ["empty_prompt", "too_long", "bad_token"]
    assert [answers[0], answers[-1]] == generator.generate(good)
    assert generator.generate([]) == []


def test_an_answer_may_fill_all_positions(
    generator: VllmEngine, oracle: TransformersEngine
) -> None:
    requests = [GenerationRequest([5] * 629, 10)]
    assert generator.generate(requests) == oracle.generate(requests)


def test_an_adapter_changes_the_answers_as_in_transformers(
    generator: VllmEngine, tiny_path: Path, adapter: Path
) -> None:
    tuned = _load(tiny_path, adapter=str(adapter))
    merged = TransformersEngine(
        tiny_path, EngineConfig(adapter=str(adapter)), device="cpu", num_threads=1
    )
    requests = _requests(generator)
    answers = tuned.generate(requests)
    tuned.close()
    assert answers == merged.generate(requests)
    plain = generator.generate(requests)  # still alive beside one that was closed
    assert all(a != b for a, b in zip(answers, plain, strict=True))


def test_weights_that_are_not_numbers_give_failures_not_answers(tmp_path: Path) -> None:
    path = poison_weights(make_tiny_llama(tmp_path))
    broken = _load(path)
    answers = broken.generate(_requests(broken))
    broken.close()
    assert [a.reason for a in answers if isinstance(a, ScoringFailure)] == ["not_finite"] * 5


@pytest.mark.parametrize("kind", ["process", "step"])
def test_a_dead_engine_is_told_from_a_bad_request(
    generator: VllmEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    def die() -> None:
        raise EngineDeadError if kind == "process" else RuntimeError("CUDA error: made up")

    dead = SimpleNamespace(step=die, add_request=lambda *_, **__: None)
    llm = SimpleNamespace(llm_engine=dead, reset_prefix_cache=lambda: True)
    monkeypatch.setattr(generator, "_llm", llm)
    with pytest.raises(EngineDiedError, match="vllm:.* died"):
        generator.generate([GenerationRequest([1, 2], 3)])
