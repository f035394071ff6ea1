"""Writing answers with a model of transformers: one batch, token by token, with its own cache.

Suffixes: B requests still being written, P prompt tokens (padded on the left), V vocabulary.

The model's own ``generate`` is not used: it draws all requests of a batch from one stream, reads
sampling settings out of the model's files, and computes finished requests to the end of the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift_ray.models.generation import GenerationRequest
from nncift_ray.models.sampling import choose_tokens

#: Says whether the last of a request's tokens ended its answer.
IsEnded = Callable[[GenerationRequest, Sequence[int]], bool]


@dataclass(slots=True)
class Writing:
    """A request and what is written of its answer."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list[int])
    is_broken: bool = False  # its logits were not finite
    _uniform: np.random.Generator | None = None

    def draw(self) -> float:
        """Return the next number of the request's stream; 0 where nothing is drawn."""
        if self.request.temperature == 0:
            return 0.0
        if self._uniform is None:
            self._uniform = np.random.Generator(np.random.PCG64(self.request.seed))
        return float(self._uniform.random())

    def add(self, token_id: int, is_ended: IsEnded) -> bool:
        """Take a token; say whether another one is to follow."""
        self.token_ids.append(token_id)
        is_full = len(self.token_ids) == self.request.max_tokens
        return not is_full and not is_ended(self.request, self.token_ids)


def write_batch(
    model: Any,
    requests: Sequence[GenerationRequest],
    is_ended: IsEnded,
    device: torch.device,
) -> list[Writing]:
    """Write the answers of one batch, in order; each ends where it is told or at its limit.

    Args:
        model: A causal language model.
        requests: Sound requests.
        is_ended: Says where an answer ends.
        device: Where the model is.
    """
    from transformers import DynamicCache

    writings = [Writing(request) for request in requests]
    step = _Step(model, DynamicCache(config=model.config), _accepted(model))
    active = list(writings)
    ids_BP, mask_BP = _pad_left([writing.request.prompt_ids for writing in active])
    mask_BP = mask_BP.to(device)
    logits_BV = step(ids_BP.to(device), mask_BP, (mask_BP.cumsum(1) - 1).clamp(min=0))
    while True:
        token_B, kept = _choose(logits_BV, active, is_ended)
        if not kept:
            return writings
        if len(kept) < len(active):
            active = [active[b] for b in kept]
            kept_B = torch.tensor(kept, device=device)
            step.cache.batch_select_indices(kept_B)
            token_B, mask_BP = token_B[kept_B], mask_BP[kept_B]
        mask_BP = torch.cat([mask_BP, mask_BP.new_ones((len(active), 1))], dim=1)
        logits_BV = step(token_B[:, None], mask_BP, mask_BP.sum(1, keepdim=True) - 1)


@dataclass(frozen=True)
class _Step:
    """Runs the model over new tokens behind its cache."""

    model: Any
    cache: Any
    accepted: frozenset[str]

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Return the logits behind the last token [B, V]."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        )
        return output.logits[:, -1]


def _accepted(model: Any) -> frozenset[str]:
    """Return what the model's forward can be told: not every family knows everything."""
    return frozenset(inspect.signature(model.forward).parameters)


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [B, P]: all prompts end in the last column."""
    width = max(map(len, prompts))
    ids_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt_ids in enumerate(prompts):
        ids_BP[b, width - len(prompt_ids) :] = torch.tensor(list(prompt_ids))
        mask_BP[b, width - len(prompt_ids) :] = 1
    return ids_BP, mask_BP


def _choose(
    logits_BV: Tensor, active: Sequence[Writing], is_ended: IsEnded
) -> tuple[Tensor, list[int]]:
    """Give every request its next token; return the tokens [B] and who is to go on."""
    finite = torch.isfinite(logits_BV.amax(dim=1)).tolist()

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_BV.device)

    token_B = choose_tokens(
        torch.nan_to_num(logits_BV) if not all(finite) else logits_BV,
        column([writing.request.temperature for writing in active]),
        column([writing.request.min_p for writing in active]),
        column([writing.draw() for writing in active]),
    )
    kept: list[int] = []
    for b, (writing, token_id) in enumerate(zip(active, token_B.tolist(), strict=True)):
        if not finite[b]:
            writing.is_broken = True
        elif writing.add(token_id, is_ended):
            kept.append(b)
    return token_B, kept
