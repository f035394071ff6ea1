"""A causal language model to train on instruction examples: their tokens and their losses.

Suffixes: B examples of a batch, S tokens (padded on the right), R response tokens of the batch,
D hidden size, V vocabulary.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.prompting import PROMPT_END
from nncift_ray.models.tokenization import SegmentTokenizer
from nncift_ray.models.transformers_loading import find_dtype, load_language_model, pick_device

PROBE_TOKENS = 8
PROBE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A tokenised example; the loss is on input_ids[response_start:], end token included."""

    input_ids: array[int]  # packed, since a subset may have millions: 4 bytes a token
    response_start: int

    @property
    def num_response_tokens(self) -> int:
        """Tokens that the loss is on."""
        return len(self.input_ids) - self.response_start


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model to train is loaded.

    Attributes:
        revision: Commit on the hub.
        dtype: A torch dtype by name, of the weights that are not trained.
        autocast: A torch dtype by name that matrix products are computed in, over weights of
            another; None: as the weights are.
        device: "auto" (CUDA if there is one), "cpu", "cuda", ...
        quantization: "bitsandbytes" holds the frozen weights in 4 bits (NF4).
        max_length: Most tokens of an example; lowered to what the model's positions hold.
        num_threads: CPU threads of torch; None leaves them alone.
        section: The recipe's section that all this comes from, for messages.
    """

    revision: str | None = None
    dtype: str = "float32"
    autocast: str | None = None
    device: str = "auto"
    quantization: str | None = None
    max_length: int = 2048
    num_threads: int | None = None
    section: str = "teacher.less"


class TrainableModel:
    """A causal language model some of whose weights are trained; subclasses say which."""

    def __init__(self, model_path: str | Path, options: ModelOptions) -> None:
        """Load model and tokenizer.

        Raises:
            ModelError: If they cannot be loaded.
        """
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        self.device = pick_device(options.device)
        self.tokenizer = SegmentTokenizer(model_path, options.revision)
        self.model: Any = load_language_model(
            model_path,
            self.device,
            dtype=options.dtype,
            revision=options.revision,
            quantization=options.quantization,
        )
        _keep_differentiable(self.model)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(options.max_length, positions) if positions else options.max_length
        self._autocast = None if options.autocast is None else find_dtype(options.autocast)
        self._choose_parameters(model_path, options)
        self.model.eval()  # fresh adapters are in training mode
        self._parameters = {
            self._public_name(name): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        self.parameter_names = tuple(self._parameters)
        self._has_plain_head = self._probe_plain_head()

    def _choose_parameters(self, model_path: str | Path, options: ModelOptions) -> None:
        """Leave ``requires_grad`` at exactly the weights to train, in float32."""
        raise NotImplementedError

    def _public_name(self, name: str) -> str:
        return name

    def save(self, folder: Path, base_name: str) -> None:
        """Write what was trained, as safetensors and JSON, for other programs to load.

        Args:
            folder: An existing folder.
            base_name: The base model's name in the recipe, for those who read the files.
        """
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that are trained by name, in their fixed order; float32."""
        return self._parameters

    def encode(self, example: Example) -> TrainingExample | ScoringFailure:
        r"""Tokenise ``prompt + "\n"`` and ``response + end token``.

        Nothing is cut: half a response would be another example.

        Returns:
            The tokens, or a failure for the reason "no_response" or "too_long".
        """
        response = self.tokenizer.encode(example.response)
        if not response:
            return ScoringFailure("no_response", "the response has no tokens")
        prompt = (*self.tokenizer.start_ids, *self.tokenizer.encode(example.prompt + PROMPT_END))
        input_ids = (*prompt, *response, self.tokenizer.eos_id)
        if len(input_ids) > self.max_length:
            return ScoringFailure(
                "too_long", f"{len(input_ids)} tokens, the limit is {self.max_length}"
            )
        return TrainingExample(array("i", input_ids), len(prompt))

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
        targets_R = torch.cat([torch.arange(e.response_start, len(e.input_ids)) for e in batch])
        answers_R = ids_BS[rows_R, targets_R].to(self.device)
        # The token at t is predicted by the state at t - 1.
        where_R = rows_R.to(self.device), (targets_R - 1).to(self.device)
        with self._arithmetic():
            logits_RV = self._logits_at(ids_BS.to(self.device), where_R).float()
        losses_R = nn.functional.cross_entropy(logits_RV, answers_R, reduction="none")
        return torch.stack([part.mean() for part in losses_R.split(lengths)])

    def close(self) -> None:
        """Free the model's memory; it cannot be used afterwards."""
        self.model = None
        self._parameters = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, dtype=self._autocast, enabled=self._autocast is not None
        )

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


class WholeModel(TrainableModel):
    """A causal language model all of whose weights are trained, in float32."""

    def _choose_parameters(self, model_path: str | Path, options: ModelOptions) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def save(self, folder: Path, base_name: str) -> None:
        """Write the whole model with its tokenizer, as ``from_pretrained`` and vLLM load it."""
        self.model.save_pretrained(folder)  # safetensors only, since version 5
        self.tokenizer.save(folder)


def _keep_differentiable(model: Any) -> None:
    """Keep 4-bit layers from repacking themselves for inference.

    On some processors bitsandbytes does so in evaluation mode, and the kernel for the repacked
    weights has no backward pass: gradients through the layer would be lost without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
