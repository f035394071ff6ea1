from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift_ray.engines.base import (
    NextTokenRequest,
    ScoringFailure,
    ScoringRequest,
)
from nncift_ray.engines.memory import MAX_LOGITS_BYTES_ON_CPU
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig
from tests.scoring_requests import delift_requests, stack_log_probs
from tests.tiny_models import (
    make_tiny_adapter,
    make_tiny_llama,
    poison_weights,
    write_model,
    write_tokenizer,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

NATS_TOLERANCE = 1e-3  # between the two engines
WIDE_VOCABULARY = 150_000
LONG_PROMPT = 2048


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


def test_an_adapter_gives_the_same_scores_in_both_engines(tiny_path: Path, tmp_path: Path) -> None:
    options = EngineConfig(adapter=str(make_tiny_adapter(tiny_path, tmp_path)))
    adapted = VllmEngine(tiny_path, options)
    merged = TransformersEngine(tiny_path, options, device="cpu")
    bare = TransformersEngine(tiny_path, device="cpu")
    requests = delift_requests(bare)
    found, expected = (stack_log_probs(engine.score(requests)) for engine in (adapted, merged))
    adapted.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=NATS_TOLERANCE)
    change = np.abs(expected - stack_log_probs(bare.score(requests)))
    assert change.max() > 100 * NATS_TOLERANCE


def test_weights_that_are_not_numbers_give_failures_not_scores(tmp_path: Path) -> None:
    engine = VllmEngine(poison_weights(make_tiny_llama(tmp_path)))
    requests = delift_requests(engine)
    asked = [NextTokenRequest(r.prompt_ids, [1, 2]) for r in requests]
    for answers in (engine.score(requests), engine.score(asked)):
        assert {a.reason for a in answers if isinstance(a, ScoringFailure)} == {"not_finite"}
        assert all(isinstance(a, ScoringFailure) for a in answers)
    engine.close()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_a_long_prompt_of_a_large_vocabulary_stays_within_its_memory(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    write_tokenizer(tmp_path)
    config = LlamaConfig(
        vocab_size=WIDE_VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=LONG_PROMPT + 1,
        tie_word_embeddings=True,
    )
    engine = VllmEngine(write_model(tmp_path, config))
    ids = np.random.default_rng(0).integers(0, WIDE_VOCABULARY, LONG_PROMPT).tolist()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak_bytes()
    answers = engine.score([ScoringRequest(ids[:40], ids[40:])])
    risen = _peak_bytes() - before
    engine.close()
    assert len(stack_log_probs(answers)) == LONG_PROMPT - 40
    unbounded = 2 * 4 * WIDE_VOCABULARY * LONG_PROMPT  # logits and log-probabilities, no more
    assert risen < MAX_LOGITS_BYTES_ON_CPU < unbounded / 2


def test_what_cannot_be_loaded_says_why(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        VllmEngine(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="model configuration"):
        VllmEngine(tmp_path)
    (tmp_path / "config.json").write_text((tiny_path / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="no .safetensors file"):
        VllmEngine(tmp_path)
    with pytest.raises(ModelError, match=r"teacher\.quantization 'q17'.*vllm-bnb-plugin"):
        VllmEngine(tiny_path, EngineConfig(quantization="q17"))


def test_a_cache_too_small_for_one_request_names_the_keys(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher\.kv_cache_memory_bytes"):
        VllmEngine(tiny_path, EngineConfig(kv_cache_memory_bytes=100_000))
