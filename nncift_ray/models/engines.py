"""Which scoring engine to use, and making it."""

from __future__ import annotations

from pathlib import Path

from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.models.engine import ScoringEngine
from nncift_ray.models.vllm_engine import VllmEngine
from nncift_ray.models.vllm_loading import vllm_available

ENGINE_KINDS = ("auto", "vllm", "transformers")


def resolve_engine_kind(kind: str) -> str:
    """Return "vllm" or "transformers"; "auto" is vLLM where it is installed.

    Raises:
        ConfigError: If ``kind`` is none of ENGINE_KINDS.
    """
    if kind not in ENGINE_KINDS:
        raise ConfigError(f"engine {kind!r} is unknown; choose one of {', '.join(ENGINE_KINDS)}")
    if kind != "auto":
        return kind
    return "vllm" if vllm_available() else "transformers"


def make_engine(
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
    seed: int = 0,
) -> ScoringEngine:
    """Load a language model into the engine of a kind; arguments as in the engines' constructors.

    ``device`` is for transformers (vLLM's build decides its own); the cache's size, the share of
    the GPU's memory and the number of GPUs are for vLLM.

    Raises:
        ConfigError: If ``kind`` is unknown.
        ModelError: If the engine is not installed, cannot do what is asked, or the model cannot be
            loaded.
    """
    if resolve_engine_kind(kind) == "vllm":
        return VllmEngine(
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
            seed=seed,
        )
    if tensor_parallel_size != 1:
        raise ModelError(
            f"teacher.tensor_parallel_size {tensor_parallel_size} needs teacher.engine vllm: the "
            "transformers engine keeps a model on one device"
        )
    # Imported here because torch takes seconds, and most callers only ask for the kind.
    from nncift_ray.models.transformers_engine import TransformersEngine

    return TransformersEngine(
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
