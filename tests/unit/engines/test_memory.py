from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from nncift_ray.engines import models
from nncift_ray.engines.memory import (
    CHUNK_ROWS,
    CPU,
    GIB,
    GPU,
    ModelShape,
    cache_remedy,
    fit_batch_tokens,
    free_memory_bytes,
    shape_of,
    size_engine,
)
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.runtime import ray_pool
from nncift_ray.runtime.step import GPU_SHARE_VARIABLE, Resources

LLAMA_8B = ModelShape(
    vocabulary_size=128_256,
    num_parameters=8_030_261_248,
    bytes_per_weight=2,
    cache_bytes_per_token=32 * 2 * 8 * 128 * 2,
)
SMOLLM2 = ModelShape(49_152, 134_515_008, 4, 30 * 2 * 3 * 64 * 4)
AUTO = EngineConfig()
WIDE = ModelShape(151_936, 10_000_000, 4, 1024)


size_for_cpu = partial(size_engine, on_cpu=True)
size_for_gpu = partial(size_engine, on_cpu=False)


def test_a_shape_is_read_off_the_configuration() -> None:
    config = SimpleNamespace(
        vocab_size=128_256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    assert shape_of(config, LLAMA_8B.num_parameters, "bfloat16", quantised=False) == LLAMA_8B
    quantised = shape_of(config, LLAMA_8B.num_parameters, "bfloat16", quantised=True)
    assert quantised.weight_bytes == pytest.approx(LLAMA_8B.weight_bytes / 4)


def test_latent_attention_and_models_without_a_cache_have_their_own_size() -> None:
    latent = SimpleNamespace(
        vocab_size=10,
        num_hidden_layers=2,
        num_attention_heads=16,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
    )
    assert shape_of(latent, 1, "float16", quantised=False).cache_bytes_per_token == 2 * 576 * 2
    recurrent = SimpleNamespace(vocab_size=10, num_hidden_layers=2)
    assert shape_of(recurrent, 1, "float16", quantised=False).cache_bytes_per_token == 0


@pytest.mark.parametrize("shape", [WIDE, SMOLLM2, LLAMA_8B])
@pytest.mark.parametrize("free", [20 * GIB, 64 * GIB])
def test_a_step_on_a_cpu_takes_at_most_a_gib_of_logits(shape: ModelShape, free: int) -> None:
    size = size_for_cpu(shape, 2048, free, AUTO)
    logits = shape.logit_bytes(size.max_num_batched_tokens, CPU.logit_copies)
    assert logits <= GIB
    assert size.max_num_seqs <= size.max_num_batched_tokens
    assert size.kv_cache_memory_bytes is not None
    assert size.kv_cache_memory_bytes + logits + shape.weight_bytes < free
    assert size.kv_cache_memory_bytes >= 2048 * shape.cache_bytes_per_token


def test_the_bytes_of_logits_grow_with_the_vocabulary() -> None:
    assert SMOLLM2.logit_bytes(10, 3) == 10 * 3 * 4 * 49_152


def test_what_the_user_says_is_taken() -> None:
    size = size_for_cpu(
        SMOLLM2, 2048, 8 * GIB, EngineConfig(batch_tokens=96, kv_cache_memory_bytes=GIB)
    )
    assert (size.max_num_batched_tokens, size.kv_cache_memory_bytes) == (96, GIB)


def test_on_a_gpu_the_logits_come_off_the_share_that_vllm_is_told_of() -> None:
    device = 80 * GIB
    size = size_for_gpu(LLAMA_8B, 2048, device, AUTO)
    logits = LLAMA_8B.logit_bytes(size.max_num_batched_tokens, GPU.logit_copies)
    assert size.gpu_memory_utilization == pytest.approx(0.9 - logits / device)
    assert 2048 <= size.max_num_batched_tokens <= 8192
    assert logits <= device / 10
    assert size.kv_cache_memory_bytes is None


def test_several_gpus_hold_what_one_cannot() -> None:
    with pytest.raises(ModelError, match="tensor_parallel_size"):
        size_for_gpu(LLAMA_8B, 2048, 12 * GIB, AUTO)
    assert size_for_gpu(
        LLAMA_8B, 2048, 12 * GIB, EngineConfig(tensor_parallel_size=4)
    ).max_num_batched_tokens


def test_steps_shrink_where_weights_leave_little() -> None:
    roomy = size_for_gpu(LLAMA_8B, 2048, 24 * GIB, AUTO)
    tight = size_for_gpu(LLAMA_8B, 2048, 24 * GIB, EngineConfig(gpu_memory_utilization=0.65))
    assert tight.max_num_batched_tokens < roomy.max_num_batched_tokens
    assert tight.gpu_memory_utilization is not None
    assert tight.gpu_memory_utilization * 24 * GIB > LLAMA_8B.weight_bytes


@pytest.mark.parametrize(
    ("free", "batch_tokens", "key"),
    [
        (14 * GIB, None, "teacher.model"),  # weights
        (15 * GIB + (300 << 20), None, "teacher.max_length"),  # cache
        (16 * GIB, 4096, "teacher.batch_tokens"),  # logits
    ],
)
def test_too_little_memory_on_a_cpu_names_what_to_change(
    free: int, batch_tokens: int | None, key: str
) -> None:
    with pytest.raises(ModelError, match=key):
        size_for_cpu(LLAMA_8B, 2048, free, EngineConfig(batch_tokens=batch_tokens))


def test_a_cache_too_small_for_one_request_names_all_that_helps() -> None:
    remedy = cache_remedy(LLAMA_8B, 2048, 2047 * LLAMA_8B.cache_bytes_per_token)
    assert remedy is not None
    for key in ("max_length", "kv_cache_memory_bytes", "gpu_memory_utilization", "quantization"):
        assert f"teacher.{key}" in remedy
    assert cache_remedy(LLAMA_8B, 2048, 2049 * LLAMA_8B.cache_bytes_per_token) is None


def test_generating_needs_the_logits_of_the_answers_only_and_a_cache_for_many() -> None:
    free = 8 * GIB
    scoring, generating = (size_for_cpu(WIDE, 2048, free, AUTO, generates=g) for g in (False, True))
    assert generating.max_num_batched_tokens > scoring.max_num_batched_tokens
    assert generating.max_num_seqs == 64
    assert generating.kv_cache_memory_bytes == 2 * (scoring.kv_cache_memory_bytes or 0)
    # A step takes the longest prompt whole, whatever the user says.
    assert size_for_cpu(WIDE, 3000, free, AUTO, generates=True).max_num_batched_tokens == 3001
    small = size_for_cpu(WIDE, 3000, free, EngineConfig(batch_tokens=64), generates=True)
    assert (small.max_num_batched_tokens, small.max_num_seqs) == (3001, 64)
    on_gpu = size_for_gpu(LLAMA_8B, 2048, 80 * GIB, AUTO, generates=True)
    assert (on_gpu.max_num_batched_tokens, on_gpu.max_num_seqs) == (8192, 256)
    logits = GPU.logit_copies * 4 * 128_256 * 256
    assert on_gpu.gpu_memory_utilization == pytest.approx(0.9 - logits / (80 * GIB))


def test_a_batch_holds_what_half_the_free_memory_can_cache() -> None:
    weights, token = SMOLLM2.weight_bytes, SMOLLM2.cache_bytes_per_token
    assert fit_batch_tokens(SMOLLM2, 2048, 24 * GIB, 16_384) == 16_384
    assert fit_batch_tokens(SMOLLM2, 2048, weights + 2 * 3000 * token, 16_384) == 3000
    with pytest.raises(ModelError, match="one request of 2048 tokens takes 0.09 GiB"):
        fit_batch_tokens(SMOLLM2, 2048, weights + 2 * 2000 * token, 16_384)
    with pytest.raises(ModelError, match="weights take 0.50 GiB on 1 device"):
        fit_batch_tokens(SMOLLM2, 2048, weights, 16_384)


@pytest.mark.parametrize(
    ("names", "cached_key"),
    [
        (("memory.max", "memory.current", "memory.stat"), "inactive_file"),
        (
            (
                "memory/memory.limit_in_bytes",
                "memory/memory.usage_in_bytes",
                "memory/memory.stat",
            ),
            "total_inactive_file",
        ),
    ],
)
def test_a_containers_limit_bounds_the_free_memory(
    tmp_path: Path, names: tuple[str, str, str], cached_key: str
) -> None:
    (tmp_path / "memory").mkdir()
    limit, used, statistics = (tmp_path / name for name in names)
    limit.write_text("5000000\n")
    used.write_text("4000000\n")
    statistics.write_text(f"anon 17\n{cached_key} 1500000\n")
    assert free_memory_bytes(tmp_path) == 2_500_000


def test_without_a_limit_the_machines_memory_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    free = free_memory_bytes(tmp_path)
    assert 0 < free <= psutil.virtual_memory().total
    assert free > 5_000_000


def test_a_runner_that_makes_logits_in_chunks_takes_whole_steps_and_reserves_a_chunk() -> None:
    device = 80 * GIB
    size = size_for_gpu(WIDE, 2048, device, AUTO, in_chunks=True)
    assert size.max_num_batched_tokens == GPU.max_step_tokens
    logits = WIDE.logit_bytes(CHUNK_ROWS, GPU.logit_copies)
    assert size.gpu_memory_utilization == pytest.approx(0.9 - logits / device)
    small = size_for_gpu(WIDE, 2048, device, EngineConfig(batch_tokens=96), in_chunks=True)
    assert small.max_num_batched_tokens == 96
    assert small.gpu_memory_utilization == pytest.approx(
        0.9 - WIDE.logit_bytes(96, GPU.logit_copies) / device
    )


def test_processes_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(models, "locate_model", lambda model, role, weights: model)
    monkeypatch.setattr(
        models,
        "load_engine",
        lambda path, options, **_: told.append(options.gpu_memory_utilization),
    )
    factory = models.EngineFactory(ResolvedModel("m", "m", "1"), EngineConfig())
    monkeypatch.delenv(GPU_SHARE_VARIABLE, raising=False)
    factory()
    for num_gpus in (0.25, 1.0, 4.0, 0.0):
        for name in (GPU_SHARE_VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
            monkeypatch.setenv(name, "1")  # so that it is put back at the end
        ray_pool._limit_process(Resources(num_gpus=num_gpus))
        factory()
    assert told == pytest.approx([0.9, 0.9 * 0.25, 0.9, 0.9, 0.9])
