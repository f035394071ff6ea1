"""A causal language model with LoRA adapters, for the warm-up of LESS and for fine-tuning.

Source: LoRA, arXiv 2106.09685; on 4-bit weights: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from nncift_ray.errors import ModelError
from nncift_ray.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from nncift_ray.models.trainable_model import ModelOptions, TrainableModel

ADAPTER = "default"  # what PEFT calls the one adapter of a model
ALL_LINEAR = "all-linear"  # what PEFT calls every linear layer but the output layer
SAVED_PREFIX = "base_model.model."  # what PEFT puts before every name in a file


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Where the LoRA matrices sit and how they start."""

    rank: int
    alpha: float  # LoRA's scale is alpha / rank
    dropout: float  # of the inputs of the adapters, while training
    #: Names of the linear layers that get an adapter; None: all but the output layer.
    target_modules: tuple[str, ...] | None
    seed: int  # of the first weights


class LoraModel(TrainableModel):
    """A frozen causal language model (16 or 32 bits, or 4) with float32 LoRA adapters."""

    def __init__(
        self, model_path: str | Path, spec: AdapterSpec, options: ModelOptions | None = None
    ) -> None:
        """Load model and tokenizer and give it fresh adapters.

        The adapters' first weights depend on ``spec`` and the model's shapes only.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            spec: The adapters.
            options: How it is loaded.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded, or has no layer of the
                names in ``spec.target_modules``.
        """
        self.spec = spec
        super().__init__(model_path, options or ModelOptions())
        self.num_adapter_parameters = sum(p.numel() for p in self.parameters.values())

    def adapted_layers(self) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """Yield each adapted layer's name with its two linear halves, down (A) and up (B).

        Their weights are ``parameters[name + ".lora_A.weight"]`` and ``".lora_B.weight"``.
        """
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and ADAPTER in module.lora_A:
                yield name, module.lora_A[ADAPTER], module.lora_B[ADAPTER]

    def adapter_state(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the LoRA matrices by name."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.parameters.items()}

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace the LoRA matrices.

        Raises:
            ModelError: If names or shapes are not those of this model's adapter.
        """
        expected = {name: tuple(p.shape) for name, p in self.parameters.items()}
        given = {name: tuple(array.shape) for name, array in state.items()}
        if given != expected:
            odd = next(
                name for name in (*expected, *given) if given.get(name) != expected.get(name)
            )
            raise ModelError(
                f"the adapter is of another model or another rank: {odd} is {given.get(odd)}, "
                f"this model has {expected.get(odd)}"
            )
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.tensor(state[name]))  # copied: it may be read-only

    def save(self, folder: Path, base_name: str) -> None:
        """Write the adapter as PEFT does, for ``PeftModel.from_pretrained`` and vLLM."""
        tensors = {
            SAVED_PREFIX + name: p.detach().cpu().contiguous()
            for name, p in self.parameters.items()
        }
        safetensors.torch.save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(
            json.dumps(self._peft_settings(base_name), indent=1, sort_keys=True), encoding="utf-8"
        )

    def _peft_settings(self, base_name: str) -> dict[str, Any]:
        """Return the adapter's configuration, its layers by the names they really have."""
        config = _peft_config(self.spec)
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        names = {name.rpartition(".")[2] for name, _, _ in self.adapted_layers()}
        settings = config.to_dict() | {"target_modules": sorted(names)}
        if float(self.spec.alpha).is_integer():  # other programs expect a whole number
            settings["lora_alpha"] = int(self.spec.alpha)
        return settings

    def _public_name(self, name: str) -> str:
        return name.replace(f".{ADAPTER}.", ".")

    def _choose_parameters(self, model_path: str | Path, options: ModelOptions) -> None:
        """Inject LoRA layers and start them as LoRA does: A from Kaiming's uniform, B at zero.

        Drawn here, on the CPU from a generator of its own, so that the first weights do not depend
        on the device or on what was drawn before.
        """
        from peft import inject_adapter_in_model

        try:
            inject_adapter_in_model(_peft_config(self.spec), self.model)
        except ValueError as error:
            raise ModelError(
                f"{model_path} cannot be adapted at "
                f"{', '.join(self.spec.target_modules or ['any linear layer'])}; set "
                f"{options.section}.target_modules to names of its linear layers: {error}"
            ) from error
        generator = torch.Generator().manual_seed(self.spec.seed)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            first = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
            parameter.data = first.to(parameter.device)


def _peft_config(spec: AdapterSpec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=spec.dropout,
        target_modules=ALL_LINEAR if spec.target_modules is None else list(spec.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
