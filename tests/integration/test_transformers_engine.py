from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.engines.base import (
    Engine,
    NextTokenRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
)
from nncift_ray.engines.tokens import Job
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.errors import EngineDiedError, ModelError
from nncift_ray.recipe.sections import EngineConfig
from tests.tiny_models import (
    make_tiny_adapter,
    make_tiny_llama,
    poison_weights,
    write_model,
    write_tokenizer,
)

NATS_TOLERANCE = 1e-5
FOUR_BIT_NATS = 1.0  # the weights are random and large, and so is the noise of rounding them
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


def _requests(engine: Engine) -> list[ScoringRequest]:
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
    assert isinstance(engine, Engine)
    _assert_unbatched(engine, _requests(engine))


@pytest.mark.parametrize("family", ["learned_positions", "scaled_logits", "sliding_window"])
def test_other_families_score_as_each_request_alone(tmp_path: Path, family: str) -> None:
    engine = TransformersEngine(_other_family(tmp_path, family), device="cpu")
    _assert_unbatched(engine, _requests(engine))


@pytest.mark.parametrize("batch_tokens", [32, 100, 100_000])
def test_batch_size_changes_no_score(tiny_path: Path, batch_tokens: int) -> None:
    engine = TransformersEngine(tiny_path, EngineConfig(batch_tokens=batch_tokens), device="cpu")
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
    whole = engine._run_batch
    sizes: list[int] = []

    def limited(batch: list[Job], cache: Any, skip: int) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("made up")
        return whole(batch, cache, skip)

    monkeypatch.setattr(engine, "_run_batch", limited)
    _assert_unbatched(engine, _requests(engine))
    assert max(sizes) > 1


def test_weights_that_are_not_numbers_give_failures_not_scores(tmp_path: Path) -> None:
    engine = TransformersEngine(poison_weights(make_tiny_llama(tmp_path)), device="cpu")
    requests = _requests(engine)
    asked = [NextTokenRequest(r.prompt_ids, [1, 2]) for r in requests]
    for answers in (engine.score(requests), engine.score(asked)):
        assert {a.reason for a in answers if isinstance(a, ScoringFailure)} == {"not_finite"}
        assert all(isinstance(a, ScoringFailure) for a in answers)


def test_next_tokens_are_those_of_a_plain_forward(engine: TransformersEngine) -> None:
    wanted = [7, 3, 3, 300]
    requests = [NextTokenRequest(r.prompt_ids, wanted, r.prefix_length) for r in _requests(engine)]
    for request, answer in zip(requests, engine.score(requests), strict=True):
        assert isinstance(answer, ScoringResult), answer
        expected = [_unbatched(engine._model, _one_token(request, token))[0] for token in wanted]
        np.testing.assert_allclose(answer.log_probs, expected, rtol=0, atol=NATS_TOLERANCE)


def _one_token(request: NextTokenRequest, token: int) -> ScoringRequest:
    return ScoringRequest(request.prompt_ids, [token])


def test_bad_next_token_requests_leave_their_neighbours_alone(engine: TransformersEngine) -> None:
    good = NextTokenRequest([1, 2, 3], [4])
    bad = [
        NextTokenRequest([], [1]),
        NextTokenRequest([1] * 700, [1]),
        NextTokenRequest([1], [10**6]),
        NextTokenRequest([1], []),
    ]
    first, *failures, last = engine.score([good, *bad, good])
    reasons = [a.reason for a in failures if isinstance(a, ScoringFailure)]
    assert reasons == ["empty_prompt", "too_long", "bad_token", "no_wanted_token"]
    assert isinstance(first, ScoringResult)
    assert isinstance(last, ScoringResult)
    np.testing.assert_allclose(first.log_probs, last.log_probs, rtol=0, atol=NATS_TOLERANCE)


@pytest.mark.parametrize("change", ["no_reuse", "reversed"])
def test_neither_reuse_nor_order_changes_a_score(engine: TransformersEngine, change: str) -> None:
    requests = _requests(engine)
    usual = engine.score(requests)
    if change == "reversed":
        others = engine.score(requests[::-1])[::-1]
    else:
        others = engine.score([ScoringRequest(r.prompt_ids, r.response_ids) for r in requests])
    for one, other in zip(usual, others, strict=True):
        assert isinstance(one, ScoringResult)
        assert isinstance(other, ScoringResult)
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=0, atol=NATS_TOLERANCE)


def test_parameters_are_counted_once_and_time_in_the_model_is_kept(
    engine: TransformersEngine,
) -> None:
    assert engine.num_parameters == sum(p.numel() for p in engine._model.parameters())
    before = engine.busy_seconds
    engine.score(_requests(engine))
    assert engine.busy_seconds > before
    assert engine.block_tokens == 1


def test_an_adapter_changes_scores_as_its_unmerged_layers_do(
    tiny_path: Path, tmp_path: Path, engine: TransformersEngine
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_tiny_adapter(tiny_path, tmp_path)
    adapted = TransformersEngine(tiny_path, EngineConfig(adapter=str(folder)), device="cpu")
    dressed = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path), folder)
    request = _requests(engine)[1]
    answer, bare = adapted.score([request])[0], engine.score([request])[0]
    assert isinstance(answer, ScoringResult)
    assert isinstance(bare, ScoringResult)
    expected = _unbatched(dressed.eval(), request)
    np.testing.assert_allclose(answer.log_probs, expected, rtol=0, atol=NATS_TOLERANCE)
    assert np.abs(answer.log_probs - bare.log_probs).max() > 100 * NATS_TOLERANCE
    assert adapted.num_parameters == engine.num_parameters


@pytest.mark.parametrize("with_adapter", [False, True])
def test_four_bit_weights_score_near_the_whole_ones(
    tiny_path: Path, tmp_path: Path, engine: TransformersEngine, *, with_adapter: bool
) -> None:
    adapter = str(make_tiny_adapter(tiny_path, tmp_path)) if with_adapter else None
    whole = TransformersEngine(tiny_path, EngineConfig(adapter=adapter), device="cpu")
    packed = TransformersEngine(
        tiny_path, EngineConfig(quantization="bitsandbytes", adapter=adapter), device="cpu"
    )
    requests = _requests(engine)
    _assert_unbatched(packed, requests)
    errors = [
        np.abs(one.log_probs - other.log_probs).mean()
        for one, other in zip(packed.score(requests), whole.score(requests), strict=True)
        if isinstance(one, ScoringResult) and isinstance(other, ScoringResult)
    ]
    assert len(errors) == len(requests)
    assert 0 < np.mean(errors) < FOUR_BIT_NATS
    assert packed.num_parameters == whole.num_parameters


def test_a_quantisation_that_only_vllm_knows_names_its_key(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher\.quantization 'awq'"):
        TransformersEngine(tiny_path, EngineConfig(quantization="awq"))


def test_a_model_without_a_pad_token_scores(engine: TransformersEngine) -> None:
    assert engine._tokenizer._tokenizer.pad_token_id is None
    assert engine._model.config.pad_token_id is None
    _assert_unbatched(engine, _requests(engine))


def test_a_failed_accelerator_is_told_from_a_bad_request(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: made up")

    monkeypatch.setattr(engine, "_run_batch", fail)
    with pytest.raises(EngineDiedError, match=r"transformers:.* died"):
        engine.score(_requests(engine))


def test_max_length_is_lowered_to_the_models_positions(engine: TransformersEngine) -> None:
    assert engine.max_length == 639  # 640 positions, one of them for vLLM's generated token


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        TransformersEngine(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="model configuration"):
        TransformersEngine(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="language model"):
        TransformersEngine(tmp_path)
