"""Making a generation engine."""

from __future__ import annotations

from pathlib import Path

from nncift_ray.errors import ModelError
from nncift_ray.models.engines import resolve_engine_kind
from nncift_ray.models.generation import GenerationEngine
from nncift_ray.models.vllm_generator import VllmGenerator


def make_generator(
    kind: str,
    model_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    max_length: int = 2048,
    revision: str | None = None,
    batch_tokens: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel_size: int = 1,
    quantization: str | None = None,
    adapter: str | Path | None = None,
    num_threads: int | None = None,
) -> GenerationEngine:
    """Load a language model into the engine of a kind; arguments as in the engines' constructors.

    ``kind`` is "vllm", "transformers" or "auto": vLLM where it is installed. ``device`` is for
    transformers (vLLM's build decides its own); the cache's size, the share of the GPU's memory and
    the number of GPUs are for vLLM. ``batch_tokens`` is what each computes at once.

    Raises:
        ConfigError: If ``kind`` is unknown.
        ModelError: If the engine is not installed, cannot do what is asked, or the model cannot be
            loaded.
    """
    if resolve_engine_kind(kind) == "vllm":
        return VllmGenerator(
            model_path,
            dtype=dtype,
            max_length=max_length,
            revision=revision,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            batch_tokens=batch_tokens,
            tensor_parallel_size=tensor_parallel_size,
            quantization=quantization,
            adapter=adapter,
            num_threads=num_threads,
        )
    if tensor_parallel_size != 1:
        raise ModelError(
            f"tensor_parallel_size {tensor_parallel_size} needs the engine vllm: the transformers "
            "engine keeps a model on one device"
        )
    # Imported here because torch takes seconds, and most callers only ask for the kind.
    from nncift_ray.models.transformers_generator import TransformersGenerator

    return TransformersGenerator(
        model_path,
        device=device,
        dtype=dtype,
        max_length=max_length,
        batch_tokens=batch_tokens,
        revision=revision,
        quantization=quantization,
        adapter=adapter,
        num_threads=num_threads,
    )
