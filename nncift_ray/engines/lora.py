"""A causal language model with LoRA adapters, for the warm-up of LESS.

Source: LoRA, arXiv 2106.09685; on 4-bit weights: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import gc
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.memory import count_parameters
from nncift_ray.engines.tokens import SegmentTokenizer, TrainingExample, encode_example
from nncift_ray.engines.transformers import (
    free_gpu_bytes,
    has_plain_head,
    keep_four_bit_input_whole,
    load_language_model,
    pick_device,
)
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import LessConfig, TaughtTurns, Template

#: A larger model computes the activations of its layers again on the way back: of an 8B model they
#: take 289 kB a token and layer, and 8 kB so.
CHECKPOINTED_PARAMETERS = 1_000_000_000
PROBE_TOKENS = 512
MOST_PASS_TOKENS = 16_384
PASS_SHARE = 0.8  # of the free memory, for one pass

Result = TypeVar("Result")


def is_checkpointed(config: Any, wanted: bool | None) -> bool:
    """Return whether a model recomputes activations: as wanted, or where it is large."""
    return count_parameters(config) > CHECKPOINTED_PARAMETERS if wanted is None else wanted


def fit_pass_tokens(peak_bytes: float, free_bytes: float) -> int:
    """Return how many tokens a forward and a backward pass may have together.

    Args:
        peak_bytes: What a pass of PROBE_TOKENS took; others are taken to need their share of it.
        free_bytes: What there is.
    """
    fitting = int(PASS_SHARE * free_bytes * PROBE_TOKENS / max(1.0, peak_bytes))
    return max(PROBE_TOKENS, min(MOST_PASS_TOKENS, fitting // PROBE_TOKENS * PROBE_TOKENS))


ADAPTER = "default"  # what PEFT calls the one adapter of a model


class LoraModel:
    """A frozen causal language model (16 or 32 bits, or 4) with float32 LoRA adapters.

    Attributes:
        parameters: The LoRA matrices by name, in their fixed order; all that is trained.
    """

    def __init__(
        self,
        model_path: str | Path,
        less: LessConfig,
        *,
        dtype: str = "float32",
        device: str = "auto",
        num_threads: int | None = None,
        template: Template = "auto",
        turns: TaughtTurns = "all",
    ) -> None:
        """Load model and tokenizer and give it fresh adapters.

        The adapters' first weights depend on ``less`` and the model's shapes only.

        Args:
            model_path: A local folder.
            less: The adapters, how the base is quantised, and the longest example, which is
                lowered to what the model's positions hold.
            dtype: A torch dtype by name, of the weights that are not trained.
            device: "auto" (CUDA if there is one), "cpu", "cuda", ...
            num_threads: CPU threads of torch; None leaves them alone.
            template: As ``teacher.template``.
            turns: As ``teacher.turns``.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded, or has no layer of the
                names in ``less.target_modules``.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.device = pick_device(device)
        self.tokenizer = SegmentTokenizer(model_path, template=template, turns=turns)
        self.model: Any = load_language_model(
            model_path, self.device, dtype=dtype, quantization=less.quantization
        )
        keep_four_bit_input_whole(self.model)
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        self._checkpointed: list[nn.Module] = []
        if is_checkpointed(config, less.gradient_checkpointing):
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self._checkpointed = [
                module
                for module in self.model.modules()
                if getattr(module, "gradient_checkpointing", False)
            ]
        self._pass_tokens: int | None = None
        self.max_length = min(less.max_length, positions or less.max_length)
        self.parameters = _add_adapters(self.model, model_path, less)
        self.num_adapter_parameters = sum(p.numel() for p in self.parameters.values())
        self.model.eval()  # fresh adapters are in training mode
        self._has_plain_head = has_plain_head(self.model, self.device)

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

    def encode(self, example: Example) -> TrainingExample | ScoringFailure:
        """Tokenise an example (``encode_example``)."""
        return encode_example(self.tokenizer, example, self.max_length)

    def losses(self, batch: Sequence[TrainingExample]) -> Tensor:
        """Return each example's loss [B]: nats a response token, mean over its own tokens.

        Padding stands on the right, where causal attention cannot see it, so that no mask is
        needed. The output layer is computed at response positions only where the model allows it.

        Memory: R * V * 4 bytes for the logits with a plain output layer, B * S * V * 4 without.
        """
        ids_BS = torch.zeros((len(batch), max(len(e.input_ids) for e in batch)), dtype=torch.long)
        for b, example in enumerate(batch):
            ids_BS[b, : len(example.input_ids)] = torch.tensor(example.input_ids)
        lengths = [example.num_response_tokens for example in batch]
        rows_R = torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths))
        targets_R = torch.tensor([at for example in batch for at in example.taught])
        answers_R = ids_BS[rows_R, targets_R].to(self.device)
        # The token at t is predicted by the state at t - 1.
        where_R = rows_R.to(self.device), (targets_R - 1).to(self.device)
        logits_RV = self._logits_at(ids_BS.to(self.device), where_R).float()
        losses_R = nn.functional.cross_entropy(logits_RV, answers_R, reduction="none")
        return torch.stack([part.mean() for part in losses_R.split(lengths)])

    def disable_dropout(self) -> None:
        """Switch to evaluation, but let layers recompute their activations if they are to."""
        self.model.eval()
        for module in self._checkpointed:  # their own flag alone, not that of what is in them
            module.training = True

    def in_passes(self, attempt: Callable[[int], Result], batch_tokens: int | None) -> Result:
        """Return what ``attempt`` gives, told how many padded tokens a pass may have.

        That is ``batch_tokens``, or else what a small pass shows to fit; half of it as often as
        memory does not suffice, and from then on.

        Raises:
            ModelError: If not even one example of the greatest length fits.
        """
        tokens = self._pass_tokens or batch_tokens or self._probe_pass_tokens()
        while True:
            self._pass_tokens = tokens
            try:
                return attempt(tokens)
            except torch.OutOfMemoryError as error:
                if tokens <= min(self.max_length, PROBE_TOKENS):
                    raise ModelError(
                        f"a pass of {tokens} tokens does not fit into the memory of {self.device}: "
                        "set gradient_checkpointing to true and quantization to bitsandbytes, or "
                        f"lower max_length ({error})"
                    ) from error
            # Outside the handler: the traceback would keep the failed pass's tensors alive.
            tokens //= 2
            torch.cuda.empty_cache()

    def _probe_pass_tokens(self) -> int:
        if self.device.type != "cuda":
            return PROBE_TOKENS
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        length = min(PROBE_TOKENS, self.max_length)
        example = TrainingExample(array("i", [0]) * length, ((1, length),))
        self.losses([example] * (PROBE_TOKENS // length)).sum().backward()
        for parameter in self.parameters.values():
            parameter.grad = None
        peak = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        return fit_pass_tokens(peak, free_gpu_bytes(self.device))

    def close(self) -> None:
        """Free the model's memory; it cannot be used afterwards."""
        self.model = None
        self._checkpointed = []
        self.parameters = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _logits_at(self, ids_BS: Tensor, where_R: tuple[Tensor, Tensor]) -> Tensor:
        if not self._has_plain_head:
            return self.model(input_ids=ids_BS, use_cache=False).logits[where_R]
        states_BSD = self.model.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(states_BSD[where_R])


def _add_adapters(model: Any, model_path: str | Path, less: LessConfig) -> dict[str, nn.Parameter]:
    """Inject LoRA layers and start them as LoRA does: A from Kaiming's uniform, B at zero.

    Drawn here, on the CPU from a generator of its own, so that the first weights do not depend on
    the device or on what was drawn before.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=less.rank,
        lora_alpha=less.alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=less.dropout,
        target_modules=list(less.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ModelError(
            f"{model_path} cannot be adapted at {', '.join(less.target_modules)}; set "
            f"teacher.less.target_modules to names of its linear layers: {error}"
        ) from error
    generator = torch.Generator().manual_seed(less.seed)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        first = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        parameter.data = first.to(parameter.device)
        found[name.replace(f".{ADAPTER}.", ".")] = parameter
    return found
