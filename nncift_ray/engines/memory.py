"""What a model's files tell before it is loaded, and how much of it fits the memory.

vLLM's own memory profile leaves out the logits of prompt tokens, so its steps are sized here.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nncift_ray.engines.base import Engine
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.runtime.step import GPU_SHARE_VARIABLE

GIB = 1 << 30
LOGIT_BYTES = 4
MAX_LOGITS_BYTES_ON_CPU = 1 << 30  # larger steps compute no faster there
MIN_STEP_TOKENS = 64
STEP_TOKENS_MULTIPLE = 32  # whole cache blocks
TOKENS_PER_SEQUENCE = 16  # a request has hardly ever fewer new tokens
MAX_SEQUENCES = 256
MIN_SEQUENCES = 8
CACHED_REQUESTS_ON_CPU = 4  # of the greatest length: a helper's prefix and what runs beside it
CACHED_ANSWERS_ON_CPU = 8  # of the greatest length; most are far shorter, so more are in work
CACHE_SHARE = 1 / 2  # of the memory that weights and logits leave free
BYTES_PER_QUANTISED_WEIGHT = 0.5  # at the least
#: Rows of prompt logits that version 2 of vLLM's runner holds at a time.
CHUNK_ROWS = 1024
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a step of vLLM may take on a kind of device."""

    #: How often the model runner of vLLM 0.29 holds the logits of a prompt, at its worst moment:
    #: raw and as log-probabilities, for the prompt before it too. Not compiled, the comparison that
    #: ranks them takes two copies more (4.3 were measured on a CPU).
    logit_copies: int
    max_step_tokens: int
    answers_at_once: int  # on a CPU two cores compute no faster beyond that


CPU = Hardware(logit_copies=5, max_step_tokens=2048, answers_at_once=64)
GPU = Hardware(logit_copies=3, max_step_tokens=8192, answers_at_once=256)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes."""

    vocabulary_size: int
    num_parameters: int
    bytes_per_weight: float
    cache_bytes_per_token: int  # keys and values of all layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights; of quantised ones a lower bound."""
        return math.ceil(self.num_parameters * self.bytes_per_weight)

    def logit_bytes(self, step_tokens: int, copies: int) -> int:
        """Bytes that a step of prompt tokens takes for their log-probabilities."""
        return copies * LOGIT_BYTES * self.vocabulary_size * step_tokens


@dataclass(frozen=True, slots=True)
class EngineSize:
    """Settings of vLLM that its memory depends on."""

    max_num_batched_tokens: int  # computed in one step
    max_num_seqs: int  # requests in one step
    kv_cache_memory_bytes: int | None  # None: what the GPU's share leaves
    gpu_memory_utilization: float | None  # None on a CPU


def gpu_share() -> float:
    """Return the share of a GPU that this process may take, 1 for all of one."""
    return float(os.environ.get(GPU_SHARE_VARIABLE, "1"))


def shape_of(config: Any, num_parameters: int, dtype: str, *, quantised: bool) -> ModelShape:
    """Return a model's shape, read off its transformers configuration.

    Layers that look back over a window only count as layers that look back over everything, so
    ``cache_bytes_per_token`` is an upper bound for such models.
    """
    num_heads = getattr(config, "num_attention_heads", None)
    if not num_heads:  # a state of fixed size in place of a cache
        numbers = 0
    elif getattr(config, "kv_lora_rank", None):  # latent attention: one small vector
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        numbers = 2 * num_kv_heads * head_dim
    return ModelShape(
        vocabulary_size=int(config.vocab_size),
        num_parameters=num_parameters,
        bytes_per_weight=BYTES_PER_QUANTISED_WEIGHT if quantised else DTYPE_BYTES[dtype],
        cache_bytes_per_token=config.num_hidden_layers * numbers * DTYPE_BYTES[dtype],
    )


def size_engine(
    shape: ModelShape,
    max_length: int,
    memory_bytes: int,
    options: EngineConfig,
    *,
    on_cpu: bool,
    generates: bool = False,
    in_chunks: bool = False,
) -> EngineSize:
    """Return the size of a vLLM engine whose steps and cache fit into the memory.

    On a GPU the logits are taken off the share that vLLM is told of; it measures the rest itself
    and gives to the cache what is left.

    Args:
        shape: The model, not loaded yet.
        max_length: Tokens of the longest request.
        memory_bytes: Memory of one GPU, or what is free on the machine.
        options: What the user says of ``batch_tokens`` and ``kv_cache_memory_bytes``; on GPUs the
            share to take and the number of them (each may hold whole logits).
        on_cpu: Whether the machine's memory is shared.
        generates: Whether it generates answers, and so needs no logits of prompts.
        in_chunks: Whether the runner makes the logits of a step CHUNK_ROWS at a time.

    Raises:
        ModelError: If the weights, the logits of a step or, on a CPU, the cache of one request do
            not fit.
    """
    hardware, num_gpus = CPU if on_cpu else GPU, options.tensor_parallel_size
    utilization = 1.0 if on_cpu else options.gpu_memory_utilization
    left = _require_weights(shape, int(memory_bytes * utilization), num_gpus)
    if generates:
        tokens = options.batch_tokens or hardware.max_step_tokens
        if on_cpu:  # whole prompts: vLLM cannot take back what a seeded request draws behind half
            tokens = max(tokens, max_length + 1)
        rows = sequences = min(tokens, hardware.answers_at_once)
    else:
        budget = min(memory_bytes / 10, left / 2)
        if on_cpu:
            budget = min(MAX_LOGITS_BYTES_ON_CPU, left / 8)
        most = hardware.max_step_tokens if in_chunks else _step_tokens(shape, hardware, budget)
        rows = tokens = options.batch_tokens or most
        fitting = max(MIN_SEQUENCES, tokens // TOKENS_PER_SEQUENCE)
        sequences = min(tokens, MAX_SEQUENCES, fitting)
    rows = min(rows, CHUNK_ROWS) if in_chunks else rows
    logits = shape.logit_bytes(rows, hardware.logit_copies)
    if logits >= left:
        raise ModelError(
            f"not enough memory: the log-probabilities of {rows} tokens of a step take "
            f"{_gib(logits)} with a vocabulary of {shape.vocabulary_size}, and {_gib(left)} are "
            "left beside the weights; lower teacher.batch_tokens, or choose a smaller teacher.model"
        )
    cache = options.kv_cache_memory_bytes
    if not on_cpu:
        return EngineSize(tokens, sequences, cache, utilization - logits / memory_bytes)
    if cache is None:
        request = shape.cache_bytes_per_token * (max_length + STEP_TOKENS_MULTIPLE)
        wanted = CACHED_ANSWERS_ON_CPU if generates else CACHED_REQUESTS_ON_CPU
        cache = min(wanted * request, int((left - logits) * CACHE_SHARE))
        if cache < request:
            raise _cache_too_large(request, max_length, cache, memory_bytes)
    return EngineSize(tokens, sequences, cache, None)


def fit_batch_tokens(shape: ModelShape, max_length: int, free_bytes: int, batch_tokens: int) -> int:
    """Return how many tokens one key-value cache may hold: ``batch_tokens``, or what fits.

    Args:
        shape: The model, not loaded yet.
        max_length: Tokens of the longest request.
        free_bytes: Memory free on the device it will be loaded to.
        batch_tokens: Tokens wanted.

    Raises:
        ModelError: If the weights or the cache of one request do not fit.
    """
    # A layer's cache is held twice while a token is put to its end.
    cache_bytes = _require_weights(shape, free_bytes) * CACHE_SHARE
    fitting = int(cache_bytes) // max(1, shape.cache_bytes_per_token)
    if fitting < max_length:
        request = shape.cache_bytes_per_token * max_length
        raise _cache_too_large(request, max_length, cache_bytes, free_bytes)
    return min(batch_tokens, fitting)


def cache_remedy(shape: ModelShape, max_length: int, cache_bytes: float) -> str | None:
    """Return what to change where a cache of at most so many bytes cannot hold one request."""
    request = shape.cache_bytes_per_token * (max_length + 1)
    if request <= cache_bytes:
        return None
    return (
        f"the key-value cache of one request of {max_length} tokens takes {_gib(request)} and "
        f"{_gib(max(0, cache_bytes))} are left for it: lower teacher.max_length, raise "
        "teacher.kv_cache_memory_bytes or teacher.gpu_memory_utilization, set "
        "teacher.quantization, or raise teacher.tensor_parallel_size"
    )


def _require_weights(shape: ModelShape, free_bytes: int, num_devices: int = 1) -> int:
    """Return the bytes that the weights leave free on each device."""
    left = free_bytes - shape.weight_bytes // num_devices
    if left <= 0:
        raise ModelError(
            f"not enough memory: the weights take {_gib(shape.weight_bytes)} on {num_devices} "
            f"device(s), each with {_gib(free_bytes)} for them; choose a smaller teacher.model or "
            "a dtype of fewer bytes, set teacher.quantization, or on GPUs raise "
            "teacher.tensor_parallel_size or teacher.gpu_memory_utilization"
        )
    return left


def _cache_too_large(
    request_bytes: int, max_length: int, cache_bytes: float, free_bytes: int
) -> ModelError:
    return ModelError(
        f"not enough memory: the key-value cache of one request of {max_length} tokens takes "
        f"{_gib(request_bytes)}, and only {_gib(cache_bytes)} of {_gib(free_bytes)} may be taken "
        "for it; lower teacher.max_length, choose a smaller teacher.model or a dtype of fewer bytes"
    )


def _step_tokens(shape: ModelShape, hardware: Hardware, budget: float) -> int:
    tokens = int(budget // shape.logit_bytes(1, hardware.logit_copies))
    whole = tokens // STEP_TOKENS_MULTIPLE * STEP_TOKENS_MULTIPLE
    return max(MIN_STEP_TOKENS, min(hardware.max_step_tokens, whole))


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


CGROUPS = Path("/sys/fs/cgroup")
#: Limit, use and statistics of control groups version 2 and version 1, with the statistic that
#: counts cached files, which make room when memory is asked for.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the bytes that the machine, and the container if this is one, still have."""
    free = int(psutil.virtual_memory().available)
    for limit_name, used_name, statistics_name, cached_key in _CGROUP_FILES:
        try:
            limit = int((cgroups / limit_name).read_text())  # "max": no limit
            used = int((cgroups / used_name).read_text())
            statistics = (cgroups / statistics_name).read_text().split()
        except (OSError, ValueError):
            continue
        cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cached_key, "0")
        free = min(free, max(0, limit - used + int(cached)))
    return free


# What a model's files and those of an adapter tell.

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoadedEngine(Engine):
    """An engine whose model is loaded here."""

    def _read_files(
        self, kind: str, model_path: str | Path, options: EngineConfig, *, on_cpu: bool
    ) -> tuple[EngineConfig, ModelShape]:
        """Load the tokenizer and read the model's shape; return the options with a dtype."""
        if options.dtype == "auto":
            dtype = "float32" if on_cpu else "bfloat16"
            options = options.model_copy(update={"dtype": dtype})
        self._tokenizer = SegmentTokenizer(
            model_path, template=options.template, turns=options.turns
        )
        config = read_config(model_path)
        self.max_length = longest_request(config, options.max_length)
        self.num_parameters = count_parameters(config)
        self.busy_seconds = 0.0
        parts = [kind, Path(model_path).name, options.dtype, options.quantization]
        parts += [f"adapter {Path(options.adapter).name}"] if options.adapter else []
        self.name = ":".join(part for part in parts if part)
        quantised = bool(options.quantization or getattr(config, "quantization_config", None))
        shape = shape_of(config, self.num_parameters, options.dtype, quantised=quantised)
        self._vocabulary_size = shape.vocabulary_size
        return options, shape


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in a local folder, as PEFT writes it."""

    path: Path
    rank: int  # the largest of its matrices
    modules: tuple[str, ...]  # last part of the names of the layers it changes


def read_config(model_path: str | Path) -> Any:
    """Return the configuration of a model's language part.

    Raises:
        ModelError: If there is none, or its kind of model is unknown to transformers.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(model_path), trust_remote_code=False, local_files_only=True
        ).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model configuration can be read from {model_path}: {error}"
        ) from error


def is_head_plain(config: Any, quantization: str | None) -> bool:
    """Return whether a model's output layer is known not to be quantised.

    ``quantization`` is what is done to it while it is loaded.
    """
    method = getattr(config, "quantization_config", None)
    if quantization is not None or method is None:
        return quantization is None
    method = method if isinstance(method, dict) else vars(method)
    spared = [*(method.get("ignore") or ()), *(method.get("modules_to_not_convert") or ())]
    return any("lm_head" in str(name) for name in spared)


def count_parameters(config: Any) -> int:
    """Return how many parameters a causal language model has, without its weights; tied ones once.

    The count does not depend on the engine, nor on how the weights are quantised or split.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())


def longest_request(config: Any, max_length: int) -> int:
    """Return how many tokens a request may have, given the positions that the model knows.

    One position stays free: vLLM needs it for the token it must generate, and all engines are to
    refuse the same requests.
    """
    positions = getattr(config, "max_position_embeddings", None)
    return min(max_length, positions - 1) if positions else max_length


def read_adapter(folder: str | Path) -> Adapter:
    """Return the LoRA adapter in a folder, checked that it can be loaded safely.

    Raises:
        ModelError: If the folder, its configuration or its safetensors file is missing or broken,
            or it is an adapter of another kind.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"teacher.adapter: {path} is not a folder on this machine")
    if not (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"teacher.adapter: {path} holds no {ADAPTER_CONFIG}")
    try:
        settings: Any = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = settings["peft_type"]
        ranks = [settings["r"], *(settings.get("rank_pattern") or {}).values()]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"teacher.adapter: {path / ADAPTER_CONFIG} is not the configuration of a LoRA adapter "
            f"as PEFT writes it ({error!r})"
        ) from error
    if kind != "LORA":
        raise ModelError(f"teacher.adapter: {path} is a {kind} adapter; only LORA is supported")
    return Adapter(path, max(ranks), _adapted_modules(path))


def _adapted_modules(path: Path) -> tuple[str, ...]:
    """Read the names of the adapted layers off the weights: the configuration may give a regex."""
    from safetensors import SafetensorError, safe_open

    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ModelError(
            f"teacher.adapter: {path} holds no {ADAPTER_WEIGHTS}; pickled weights (.bin) are never "
            "read: save the adapter again with safe_serialization=True"
        )
    try:
        with safe_open(weights, framework="np") as tensors:
            names: list[str] = list(tensors.keys())
    except SafetensorError as error:
        raise ModelError(f"teacher.adapter: {weights} cannot be read: {error}") from error
    layers = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    return tuple(sorted({layer.rpartition(".")[2] for layer in layers}))
