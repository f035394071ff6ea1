"""A causal language model with LoRA adapters, for the warm-up of LESS and its gradients.

Suffixes: B examples of a batch, S tokens (padded on the right), R response tokens of the batch,
D hidden size, V vocabulary.
Source: LESS, arXiv 2402.04333, section 4.1; LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.core.examples import Example
from nncift_ray.errors import ModelError
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.tokenization import SegmentTokenizer
from nncift_ray.models.transformers_loading import load_language_model, pick_device

ADAPTER = "default"  # what PEFT calls the one adapter of a model
PROBE_TOKENS = 8
PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Where the LoRA matrices sit and how they start."""

    rank: int
    alpha: float  # LoRA's scale is alpha / rank
    dropout: float  # of the inputs of the adapters, while training
    target_modules: tuple[str, ...]  # names of the linear layers that get an adapter
    seed: int  # of the first weights


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A tokenised example; the loss is on input_ids[response_start:], end token included."""

    input_ids: tuple[int, ...]
    response_start: int


class LoraModel:
    """A frozen causal language model (16 or 32 bits, or 4) with float32 LoRA adapters."""

    def __init__(
        self,
        model_path: str | Path,
        spec: AdapterSpec,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        quantization: str | None = None,
        max_length: int = 2048,
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer and give it fresh adapters.

        The adapters' first weights depend on ``spec`` and the model's shapes only.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            spec: The adapters.
            revision: Commit on the hub.
            dtype: A torch dtype by name, of the frozen weights.
            device: "auto" (CUDA if there is one), "cpu", "cuda", ...
            quantization: "bitsandbytes" holds the frozen weights in 4 bits (NF4).
            max_length: Most tokens of an example; lowered to what the model's positions hold.
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded, or has no layer of the
                names in ``spec.target_modules``.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.device = pick_device(device)
        self._tokenizer = SegmentTokenizer(model_path, revision)
        self.model: Any = load_language_model(
            model_path, self.device, dtype=dtype, revision=revision, quantization=quantization
        )
        _keep_differentiable(self.model)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(max_length, positions) if positions else max_length
        _add_adapters(self.model, spec, model_path)
        self.model.eval()  # fresh adapters are in training mode
        self._parameters = {
            name.replace(f".{ADAPTER}.", "."): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        self.parameter_names = tuple(self._parameters)
        self.num_adapter_parameters = sum(p.numel() for p in self._parameters.values())
        self._has_plain_head = self._probe_plain_head()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA matrices by name, in their fixed order; float32."""
        return self._parameters

    def adapted_layers(self) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """Yield each adapted layer's name with its two linear halves, down (A) and up (B).

        Their weights are ``parameters[name + ".lora_A.weight"]`` and ``".lora_B.weight"``.
        """
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and ADAPTER in module.lora_A:
                yield name, module.lora_A[ADAPTER], module.lora_B[ADAPTER]

    def encode(self, example: Example) -> TrainingExample | ScoringFailure:
        r"""Tokenise ``prompt + "\n"`` and ``response + end token``.

        Nothing is cut: the gradient of half a response would be another example's.

        Returns:
            The tokens, or a failure for the reason "no_response" or "too_long".
        """
        response = self._tokenizer.encode(example.response)
        if not response:
            return ScoringFailure("no_response", "the response has no tokens")
        prompt = (*self._tokenizer.start_ids, *self._tokenizer.encode(example.prompt + "\n"))
        input_ids = (*prompt, *response, self._tokenizer.eos_id)
        if len(input_ids) > self.max_length:
            return ScoringFailure(
                "too_long", f"{len(input_ids)} tokens, the limit is {self.max_length}"
            )
        return TrainingExample(input_ids, len(prompt))

    def losses(self, batch: Sequence[TrainingExample]) -> Tensor:
        """Return each example's loss [B]: nats a response token, mean over its own tokens.

        Padding stands on the right, where causal attention cannot see it, so that no mask is
        needed. The output layer is computed at response positions only where the model allows it.

        Memory: R * V * 4 bytes for the logits with a plain output layer, B * S * V * 4 without.
        """
        ids_BS = torch.zeros((len(batch), max(len(e.input_ids) for e in batch)), dtype=torch.long)
        for b, example in enumerate(batch):
            ids_BS[b, : len(example.input_ids)] = torch.tensor(example.input_ids)
        lengths = [len(example.input_ids) - example.response_start for example in batch]
        rows_R = torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths))
        targets_R = torch.cat([torch.arange(e.response_start, len(e.input_ids)) for e in batch])
        answers_R = ids_BS[rows_R, targets_R].to(self.device)
        # The token at t is predicted by the state at t - 1.
        where_R = rows_R.to(self.device), (targets_R - 1).to(self.device)
        logits_RV = self._logits_at(ids_BS.to(self.device), where_R).float()
        losses_R = nn.functional.cross_entropy(logits_RV, answers_R, reduction="none")
        return torch.stack([part.mean() for part in losses_R.split(lengths)])

    def adapter_state(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the LoRA matrices by name."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self._parameters.items()}

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace the LoRA matrices.

        Raises:
            ModelError: If names or shapes are not those of this model's adapter.
        """
        expected = {name: tuple(p.shape) for name, p in self._parameters.items()}
        given = {name: tuple(array.shape) for name, array in state.items()}
        if given != expected:
            odd = next(
                name for name in (*expected, *given) if given.get(name) != expected.get(name)
            )
            raise ModelError(
                f"the adapter is of another model or another rank: {odd} is {given.get(odd)}, "
                f"this model has {expected.get(odd)}"
            )
        for name, parameter in self._parameters.items():
            parameter.copy_(torch.tensor(state[name]))  # copied: it may be read-only

    def close(self) -> None:
        """Free the model's memory; it cannot be used afterwards."""
        self.model = None
        self._parameters = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _logits_at(self, ids_BS: Tensor, where_R: tuple[Tensor, Tensor]) -> Tensor:
        if not self._has_plain_head:
            return self.model(input_ids=ids_BS, use_cache=False).logits[where_R]
        states_BSD = self.model.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(states_BSD[where_R])

    @torch.no_grad()
    def _probe_plain_head(self) -> bool:
        """Say whether logits are the output embedding of the last state and nothing else.

        Some families scale or cap their logits on the way.
        """
        head = self.model.get_output_embeddings()
        if head is None:
            return False
        num_tokens = min(PROBE_TOKENS, self.model.config.get_text_config().vocab_size)
        ids = torch.arange(num_tokens, device=self.device)[None]
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        short = head(states).float()
        return whole.shape == short.shape and torch.allclose(
            whole, short, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE
        )


def _keep_differentiable(model: Any) -> None:
    """Keep 4-bit layers from repacking themselves for inference.

    On some processors bitsandbytes does so in evaluation mode, and the kernel for the repacked
    weights has no backward pass: gradients through the layer would be lost without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _add_adapters(model: Any, spec: AdapterSpec, model_path: str | Path) -> None:
    """Inject LoRA layers and start them as LoRA does: A from Kaiming's uniform, B at zero.

    Drawn here, on the CPU from a generator of its own, so that the first weights do not depend on
    the device or on what was drawn before.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=spec.dropout,
        target_modules=list(spec.target_modules),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ModelError(
            f"{model_path} cannot be adapted at {', '.join(spec.target_modules)}; set "
            f"teacher.less.target_modules to names of its linear layers: {error}"
        ) from error
    generator = torch.Generator().manual_seed(spec.seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        first = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        parameter.data = first.to(parameter.device)
