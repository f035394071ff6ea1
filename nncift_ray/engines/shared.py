"""What engines that load a model do alike: read its files and those of an adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift_ray.engines.base import Engine
from nncift_ray.engines.memory import ModelShape, shape_of
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig

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
