from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nncift_ray.engines import vllm as vllm_loading
from nncift_ray.engines.base import EngineSize
from nncift_ray.engines.choose import make_engine
from nncift_ray.engines.models import Adapter
from nncift_ray.engines.vllm import VllmOptions
from nncift_ray.errors import ModelError

OPTIONS = VllmOptions(
    dtype="bfloat16",
    max_length=2048,
    revision=None,
    enable_prefix_caching=True,
    kv_cache_memory_bytes=None,
    gpu_memory_utilization=0.9,
    batch_tokens=None,
    tensor_parallel_size=1,
    quantization=None,
    adapter=None,
    seed=0,
)
GPU_SIZE = EngineSize(4096, 256, None, 0.83)
CPU_SIZE = EngineSize(1024, 64, 1 << 28, None)


def test_one_device_needs_no_other_process_and_several_do() -> None:
    one = vllm_loading._vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert (one["distributed_executor_backend"], one["tensor_parallel_size"]) == ("uni", 1)
    four = replace(OPTIONS, tensor_parallel_size=4)
    several = vllm_loading._vllm_arguments(four, 2048, GPU_SIZE, None, on_cpu=False)
    assert (several["distributed_executor_backend"], several["tensor_parallel_size"]) == ("mp", 4)


def test_a_gpu_is_told_a_share_and_a_cpu_bytes_and_a_block() -> None:
    gpu = vllm_loading._vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert gpu["gpu_memory_utilization"] == 0.83
    assert "block_size" not in gpu
    cpu = vllm_loading._vllm_arguments(OPTIONS, 2048, CPU_SIZE, None, on_cpu=True)
    assert (cpu["kv_cache_memory_bytes"], cpu["block_size"]) == (1 << 28, 32)
    assert (cpu["max_num_batched_tokens"], cpu["max_num_seqs"]) == (1024, 64)
    assert cpu["max_model_len"] == 2049  # one token must be generated


def test_prompts_are_computed_whole_where_a_seeded_draw_cannot_be_taken_back() -> None:
    writing = replace(OPTIONS, generates=True)
    cpu = vllm_loading._vllm_arguments(writing, 2048, CPU_SIZE, None, on_cpu=True)
    assert (cpu["enable_chunked_prefill"], cpu["enforce_eager"]) == (False, True)
    gpu = vllm_loading._vllm_arguments(writing, 2048, GPU_SIZE, None, on_cpu=False)
    assert "enable_chunked_prefill" not in gpu
    assert not gpu["enforce_eager"]
    scoring = vllm_loading._vllm_arguments(OPTIONS, 2048, CPU_SIZE, None, on_cpu=True)
    assert scoring["enable_chunked_prefill"]


def test_only_safetensors_are_read_and_no_code_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = vllm_loading._vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert (arguments["load_format"], arguments["trust_remote_code"]) == ("safetensors", False)
    monkeypatch.setattr(vllm_loading, "_require_quantization", lambda _: None)
    packed = vllm_loading._vllm_arguments(
        replace(OPTIONS, quantization="bitsandbytes"), 2048, GPU_SIZE, None, on_cpu=False
    )
    assert (packed["load_format"], packed["quantization"]) == ("bitsandbytes", "bitsandbytes")


@pytest.mark.parametrize(("rank", "told"), [(4, 8), (8, 8), (24, 32), (512, 512)])
def test_an_adapters_rank_is_rounded_up_to_one_that_vllm_knows(rank: int, told: int) -> None:
    adapter = Adapter(Path("a"), rank, ("q_proj",))
    arguments = vllm_loading._vllm_arguments(OPTIONS, 2048, CPU_SIZE, adapter, on_cpu=True)
    assert arguments["max_lora_rank"] == told
    assert arguments["lora_target_modules"] == ["q_proj"]


def test_an_adapter_of_the_output_layer_names_the_other_engine() -> None:
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*teacher\.engine to transformers"):
        vllm_loading._adapter_arguments(Adapter(Path("a"), 8, ("lm_head", "q_proj")))


def test_the_transformers_engine_refuses_several_gpus() -> None:
    with pytest.raises(ModelError, match=r"teacher\.tensor_parallel_size 2"):
        make_engine("transformers", "some/model", tensor_parallel_size=2)
