"""Which scoring engine to use, and making it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from nncift_ray.engines.base import GenerationEngine, ScoringEngine
from nncift_ray.engines.vllm import VllmEngine, VllmGenerator, vllm_available
from nncift_ray.errors import ConfigError, ModelError

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
    from nncift_ray.engines.transformers import TransformersEngine

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


# Making a generation engine.


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
    from nncift_ray.engines.transformers import TransformersGenerator

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


# A fine-tuned model on this machine, and how an engine loads it.

TRANSFORMERS = "transformers"


class LoadOptions(TypedDict):
    """What an engine is told of its weights; keywords of ``make_engine`` and ``make_generator``."""

    model_path: str | Path
    adapter: Path | None
    quantization: str | None


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The files of a tuning: an adapter for the base model, or a whole model."""

    folder: Path
    is_adapter: bool
    #: How the base was quantised while the adapter was trained.
    quantization: str | None = None


def load_options(tuned: TunedModel | None, base: str | Path, engine_kind: str) -> LoadOptions:
    """Say what an engine loads to be the tuned model, or the base where there is none.

    An adapter that was trained on a 4-bit base is put on one, where the engine is transformers.
    vLLM takes the base as it is: it needs a plugin to quantise while loading, and adapters are
    commonly served so.

    Args:
        tuned: The tuned model.
        base: Folder or hub id of the base model.
        engine_kind: "vllm" or "transformers".
    """
    if tuned is None:
        return LoadOptions(model_path=base, adapter=None, quantization=None)
    if not tuned.is_adapter:
        return LoadOptions(model_path=tuned.folder, adapter=None, quantization=None)
    quantization = tuned.quantization if engine_kind == TRANSFORMERS else None
    return LoadOptions(model_path=base, adapter=tuned.folder, quantization=quantization)
