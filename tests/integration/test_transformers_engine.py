from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.errors import ModelError
from nncift_ray.models.engine import (
    ScoringEngine,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
)
from nncift_ray.models.transformers_engine import TransformersEngine
from tests.tiny_models import make_tiny_llama, write_model, write_tokenizer

NATS_TOLERANCE = 1e-5
PREFIX = "Use the following example as a guide to answer the query. " * 2
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "bos_token_id": 0,
}


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> TransformersEngine:
    return TransformersEngine(tiny_path, device="cpu")


def _other_family(folder: Path, family: str) -> Path:
    from transformers import GPT2Config, GraniteConfig, MistralConfig

    size = {**SMALL, "vocab_size": write_tokenizer(folder)}
    grouped = {**size, "intermediate_size": 64, "num_key_value_heads": 1}
    makers = {
        "learned_positions": lambda: GPT2Config(**size),
        "scaled_logits": lambda: GraniteConfig(**grouped, logits_scaling=8.0),
        "sliding_window": lambda: MistralConfig(**grouped, sliding_window=16),
    }
    return write_model(folder, makers[family]())


def _requests(engine: ScoringEngine) -> list[ScoringRequest]:
    """Return requests of two helpers and of none, of many lengths, in mixed order."""
    end = engine.eos_id
    heads = [engine.encode(PREFIX + text) for text in ("one\n", "another\n")]
    shared = [
        ScoringRequest(head + engine.encode("q " * k + "\n"), [*engine.encode("ab " * m), end], n)
        for k, m in ((9, 1), (1, 7), (4, 3))
        for head in heads
        for n in (len(head),)
    ]
    lone = ScoringRequest(engine.encode("Query: x\n"), [*engine.encode("Paris"), end])
    return [lone, *shared, lone, ScoringRequest([end], engine.encode("4"), 1)]


def _unbatched(model: Any, request: ScoringRequest) -> np.ndarray:
    """Score one request the plain way: the state at t - 1 predicts the token at t."""
    prompt, response = list(request.prompt_ids), list(request.response_ids)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return np.array([log_probs[t, y].item() for t, y in zip(at, response, strict=True)])


def _assert_unbatched(engine: TransformersEngine, requests: Sequence[ScoringRequest]) -> None:
    for request, answer in zip(requests, engine.score(requests), strict=True):
        assert isinstance(answer, ScoringResult), answer
        expected = _unbatched(engine._model, request)
        np.testing.assert_allclose(answer.log_probs, expected, rtol=0, atol=NATS_TOLERANCE)


def test_batches_score_as_each_request_alone(engine: TransformersEngine) -> None:
    assert isinstance(engine, ScoringEngine)
    _assert_unbatched(engine, _requests(engine))


@pytest.mark.parametrize("family", ["learned_positions", "scaled_logits", "sliding_window"])
def test_other_families_score_as_each_request_alone(tmp_path: Path, family: str) -> None:
    engine = TransformersEngine(_other_family(tmp_path, family), device="cpu")
    _assert_unbatched(engine, _requests(engine))


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batch_size_changes_no_score(tiny_path: Path, batch_tokens: int) -> None:
    engine = TransformersEngine(tiny_path, device="cpu", batch_tokens=batch_tokens)
    _assert_unbatched(engine, _requests(engine))


def test_a_shared_prefix_is_computed_once(engine: TransformersEngine) -> None:
    requests = [r for r in _requests(engine) if r.prefix_length > 1]
    prefix_length = requests[0].prefix_length
    answers = engine.score(requests[::2])  # every other one: those of the first helper
    cached = sorted(a.num_cached_tokens for a in answers if isinstance(a, ScoringResult))
    assert cached == [0, prefix_length, prefix_length]


def test_a_prefix_that_is_the_whole_prompt_still_scores(engine: TransformersEngine) -> None:
    prompt = engine.encode(PREFIX)
    twins = [ScoringRequest(prompt, engine.encode(text), len(prompt)) for text in ("a b", "c")]
    _assert_unbatched(engine, twins)


def test_one_bad_request_leaves_its_neighbours_alone(engine: TransformersEngine) -> None:
    good = _requests(engine)[:2]
    bad = [ScoringRequest([1], [10**6]), ScoringRequest([1] * 700, [1]), ScoringRequest([1], [])]
    answers = engine.score([good[0], *bad, good[1]])
    reasons = [a.reason for a in answers if isinstance(a, ScoringFailure)]
    assert reasons == ["bad_token", "too_long", "empty_response"]
    for request, answer in zip(good, (answers[0], answers[-1]), strict=True):
        assert isinstance(answer, ScoringResult)
        expected = _unbatched(engine._model, request)
        np.testing.assert_allclose(answer.log_probs, expected, rtol=0, atol=NATS_TOLERANCE)


def test_a_batch_too_large_for_memory_is_halved(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine._score_batch
    sizes: list[int] = []

    def limited(batch: list[ScoringRequest], cache: Any, skip: int) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("made up")
        return whole(batch, cache, skip)

    monkeypatch.setattr(engine, "_score_batch", limited)
    _assert_unbatched(engine, _requests(engine))
    assert max(sizes) > 1


def test_weights_that_are_not_numbers_give_failures_not_scores(tiny_path: Path) -> None:
    engine = TransformersEngine(tiny_path, device="cpu")
    with torch.no_grad():
        engine._model.lm_head.weight[5] = float("nan")
    answers = engine.score(_requests(engine))
    assert {a.reason for a in answers if isinstance(a, ScoringFailure)} == {"not_finite"}
    assert not any(isinstance(a, ScoringResult) for a in answers)


def test_max_length_is_lowered_to_the_models_positions(engine: TransformersEngine) -> None:
    assert engine.max_length == 639  # 640 positions, one of them for vLLM's generated token


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        TransformersEngine(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="language model"):
        TransformersEngine(tmp_path)


def test_an_unknown_dtype_is_a_model_error(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match="float32, bfloat16 or float16"):
        TransformersEngine(tiny_path, dtype="float31")
