"""Loading a causal language model into vLLM: its options, its memory, its adapter."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift_ray.errors import ModelError
from nncift_ray.models.engine_sizing import (
    EngineSize,
    ModelShape,
    cache_remedy,
    shape_of,
    size_for_cpu,
    size_for_gpu,
)
from nncift_ray.models.host_memory import free_memory_bytes
from nncift_ray.models.model_files import (
    Adapter,
    count_parameters,
    longest_request,
    read_adapter,
    read_config,
)

CPU_BLOCK_TOKENS = 32  # the smallest block the CPU build takes; only whole blocks are reused
MAX_TOP_LOGPROBS = 1
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM knows
OUTPUT_LAYER = "lm_head"
GPU_OVERHEAD_BYTES = 1 << 30  # activations and the like, to explain a failure


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What a user may say about a model in vLLM; see ``VllmEngine`` for the meaning."""

    dtype: str
    max_length: int
    revision: str | None
    enable_prefix_caching: bool
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float
    batch_tokens: int | None
    tensor_parallel_size: int
    quantization: str | None
    adapter: str | Path | None
    seed: int
    generates: bool = False  # writes answers; else it scores prompts


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in vLLM with what the engine needs to know of it."""

    llm: Any
    lora_request: Any  # None without an adapter
    max_length: int
    vocabulary_size: int
    num_parameters: int
    block_tokens: int
    size: EngineSize


def vllm_available() -> bool:
    """Say whether vLLM is installed, without importing it (that takes seconds)."""
    return importlib.util.find_spec("vllm") is not None


def load_vllm(model_path: str | Path, options: VllmOptions, num_threads: int | None) -> LoadedModel:
    """Load a model into vLLM.

    Raises:
        ModelError: If vLLM cannot load the model or the adapter, or they do not fit into memory.
    """
    # In an actor the engine core needs no process of its own, and starts ten times faster. Several
    # GPUs need one process each, and the core one of its own beside them.
    alone = options.tensor_parallel_size == 1
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if alone else "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import torch

    if num_threads is not None:  # before vLLM, which forbids it from then on
        torch.set_num_threads(num_threads)
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # Compiling a small function, for ranks nobody reads, takes half a minute of a core.
        type(current_platform).simple_compile_backend = "eager"
    config = read_config(model_path, options.revision)
    adapter = None if options.adapter is None else read_adapter(options.adapter)
    _require_safetensors(model_path)
    max_length = longest_request(config, options.max_length)
    quantised = bool(options.quantization or getattr(config, "quantization_config", None))
    num_parameters = count_parameters(config)
    shape = shape_of(config, num_parameters, options.dtype, quantised=quantised)
    device_bytes = free_memory_bytes() if on_cpu else current_platform.get_device_total_memory()
    size = _size_engine(shape, max_length, device_bytes, options, on_cpu=on_cpu)
    arguments = _vllm_arguments(options, max_length, size, adapter, on_cpu=on_cpu)
    remedy = _find_remedy(shape, max_length, device_bytes, size, options.tensor_parallel_size)
    llm = _start_vllm(model_path, arguments, remedy)
    return LoadedModel(
        llm=llm,
        lora_request=None if adapter is None else _add_adapter(llm, adapter),
        max_length=max_length,
        vocabulary_size=shape.vocabulary_size,
        num_parameters=num_parameters,
        block_tokens=int(llm.llm_engine.vllm_config.cache_config.block_size),
        size=size,
    )


def _require_safetensors(model_path: str | Path) -> None:
    """Refuse a folder of pickled weights: vLLM would read some of them."""
    folder = Path(model_path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"no language model can be loaded from {folder}: it holds no .safetensors file"
        )


def _require_quantization(quantization: str | None) -> None:
    if quantization is None:
        return
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # may add methods
    if quantization not in QUANTIZATION_METHODS:
        raise ModelError(
            f"teacher.quantization {quantization!r} is unknown to the installed vLLM, which knows "
            f"{', '.join(sorted(QUANTIZATION_METHODS))}; bitsandbytes needs the package "
            "vllm-bnb-plugin beside it, or teacher.engine: transformers"
        )


def _size_engine(
    shape: ModelShape,
    max_length: int,
    device_bytes: int,
    options: VllmOptions,
    *,
    on_cpu: bool,
) -> EngineSize:
    if on_cpu:
        return size_for_cpu(
            shape,
            max_length,
            device_bytes,
            batch_tokens=options.batch_tokens,
            kv_cache_memory_bytes=options.kv_cache_memory_bytes,
            generates=options.generates,
        )
    return size_for_gpu(
        shape,
        device_bytes,
        options.gpu_memory_utilization,
        tensor_parallel_size=options.tensor_parallel_size,
        batch_tokens=options.batch_tokens,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        generates=options.generates,
    )


def _vllm_arguments(
    options: VllmOptions,
    max_length: int,
    size: EngineSize,
    adapter: Adapter | None,
    *,
    on_cpu: bool,
) -> dict[str, Any]:
    """Return what vLLM's constructor is given beside the model."""
    _require_quantization(options.quantization)
    bitsandbytes = options.quantization == "bitsandbytes"
    arguments: dict[str, Any] = {
        "revision": options.revision,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "load_format": "bitsandbytes" if bitsandbytes else "safetensors",
        "max_model_len": max_length + 1,  # one token must be generated
        "skip_tokenizer_init": not options.generates,  # but to find where an answer is to stop
        "trust_remote_code": False,
        # Steps of one token a request are bound by their launches on a GPU: graphs pay there.
        "enforce_eager": on_cpu or not options.generates,
        "enable_prefix_caching": options.enable_prefix_caching,
        "distributed_executor_backend": "uni" if options.tensor_parallel_size == 1 else "mp",
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_logprobs": MAX_TOP_LOGPROBS,
        "seed": options.seed,
        "max_num_batched_tokens": size.max_num_batched_tokens,
        "max_num_seqs": size.max_num_seqs,
        "kv_cache_memory_bytes": size.kv_cache_memory_bytes,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments["block_size"] = CPU_BLOCK_TOKENS
        # vLLM 0.29 cannot wind back a seeded request's generator on a CPU, as it does after it has
        # computed a part of a prompt.
        arguments["enable_chunked_prefill"] = not options.generates
    else:
        arguments["gpu_memory_utilization"] = size.gpu_memory_utilization
    if adapter is not None:
        arguments |= _adapter_arguments(adapter)
    return arguments


def _adapter_arguments(adapter: Adapter) -> dict[str, Any]:
    """Return what vLLM is told of an adapter: its rank, and the layers it changes.

    Left to itself vLLM prepares every layer for an adapter, and an output layer so prepared gives
    logits of the last token only: it fails when it is asked for those of a prompt.
    """
    if OUTPUT_LAYER in adapter.modules:
        raise ModelError(
            f"teacher.adapter: {adapter.path} changes the output layer, and vLLM cannot score "
            "prompts with that; set teacher.engine to transformers, or merge the adapter into the "
            "model's weights"
        )
    rank = min((rank for rank in LORA_RANKS if rank >= adapter.rank), default=adapter.rank)
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": rank,
        "lora_target_modules": list(adapter.modules),
    }


def _find_remedy(
    shape: ModelShape, max_length: int, device_bytes: int, size: EngineSize, num_gpus: int
) -> str | None:
    """Say whether a failure to load can be one of memory, and what to change then."""
    cache = size.kv_cache_memory_bytes
    if cache is None:
        share = device_bytes * (size.gpu_memory_utilization or 0.0) - GPU_OVERHEAD_BYTES
        return cache_remedy(shape, max_length, num_gpus * share - shape.weight_bytes)
    return cache_remedy(shape, max_length, num_gpus * cache)


def _start_vllm(model_path: str | Path, arguments: dict[str, Any], remedy: str | None) -> Any:
    import torch
    import vllm
    from safetensors import SafetensorError

    try:
        return vllm.LLM(model=str(model_path), **arguments)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"vLLM cannot load {model_path}: not enough memory ({error}); lower "
            "teacher.gpu_memory_utilization where others use the GPU, set teacher.quantization, or "
            "raise teacher.tensor_parallel_size"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = f"{error}\n{remedy}" if remedy else str(error)
        raise ModelError(f"vLLM cannot load {model_path}: {reason}") from error


def _add_adapter(llm: Any, adapter: Adapter) -> Any:
    """Load an adapter now, so that a bad one fails here and not in a request."""
    from vllm.lora.request import LoRARequest

    request = LoRARequest(adapter.path.name, 1, str(adapter.path.resolve()))
    try:
        llm.llm_engine.add_lora(request)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"teacher.adapter: vLLM cannot load {adapter.path}: {error}") from error
    return request
