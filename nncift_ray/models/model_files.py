"""What the engines read of a model's or an adapter's files before they load it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift_ray.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in a local folder, as PEFT writes it."""

    path: Path
    rank: int  # the largest of its matrices
    modules: tuple[str, ...]  # last part of the names of the layers it changes


def read_config(model_path: str | Path, revision: str | None) -> Any:
    """Read the configuration of a model's language part.

    Raises:
        ModelError: If there is none, or its kind of model is unknown to transformers.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(model_path),
            revision=revision,
            trust_remote_code=False,
            local_files_only=Path(model_path).is_dir(),
        ).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model configuration can be read from {model_path}: {error}"
        ) from error


def read_end_ids(model_path: str | Path, revision: str | None) -> frozenset[int]:
    """Read the tokens that a model's files say end what it writes; none where they say nothing.

    Chat models often have one for the end of a turn beside the one for the end of a text.
    """
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(
            str(model_path),
            revision=revision or "main",
            local_files_only=Path(model_path).is_dir(),
        )
    except (OSError, ValueError):  # not every model has such a file
        return frozenset()
    ids: Any = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(map(int, ids)) if isinstance(ids, list) else frozenset({int(ids)})


def count_parameters(config: Any) -> int:
    """Count the parameters of a causal language model without its weights, tied ones once.

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


def engine_name(
    engine: str,
    model_path: str | Path,
    dtype: str,
    quantization: str | None,
    adapter: str | Path | None,
) -> str:
    """Name an engine with what it has loaded, for reports."""
    parts = [engine, Path(model_path).name, dtype]
    parts += [quantization] if quantization else []
    parts += [f"adapter {Path(adapter).name}"] if adapter else []
    return ":".join(parts)


def read_adapter(folder: str | Path) -> Adapter:
    """Check that a folder holds a LoRA adapter that can be loaded safely.

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
