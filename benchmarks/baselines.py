"""The loops that published code runs, written plainly: what the teachers' speeds are compared with.

Suffix legend: B requests of a batch, S tokens (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nncift_ray.engines.base import ScoringRequest
from nncift_ray.engines.tokens import TrainingExample


def score_in_batches(
    model: Any, requests: Sequence[ScoringRequest], batch_size: int
) -> list[np.ndarray]:
    """Score whole prompts batch by batch: no prefix is shared, all positions get logits."""
    answers: list[np.ndarray] = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        texts = [[*request.prompt_ids, *request.response_ids] for request in batch]
        width = max(map(len, texts))
        ids_BS = torch.zeros((len(batch), width), dtype=torch.long)
        mask_BS = torch.zeros((len(batch), width), dtype=torch.long)
        for b, text in enumerate(texts):
            ids_BS[b, : len(text)] = torch.tensor(text)
            mask_BS[b, : len(text)] = 1
        with torch.inference_mode():
            logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
            log_probs_BSV = torch.log_softmax(logits_BSV.float(), dim=-1)
        for b, (text, request) in enumerate(zip(texts, batch, strict=True)):
            last = len(text) - 1
            rows = torch.arange(last - len(request.response_ids), last)
            answers.append(log_probs_BSV[b, rows, torch.tensor(request.response_ids)].numpy())
    return answers


def gradients_one_by_one(
    model: Any, parameters: Sequence[torch.nn.Parameter], examples: Sequence[TrainingExample]
) -> torch.Tensor:
    """Take the gradient of each example's mean loss with a batch size of 1: [N, parameters]."""
    rows: list[torch.Tensor] = []
    for example in examples:
        ids_1S = torch.tensor([example.input_ids])
        labels_1S = ids_1S.clone()
        labels_1S[0, : example.response_start] = -100
        for parameter in parameters:
            parameter.grad = None
        model(input_ids=ids_1S, labels=labels_1S, use_cache=False).loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def project_row(gradient: torch.Tensor, output_dim: int, chunk: int = 16_384) -> torch.Tensor:
    """Project one gradient [D] with random signs written out chunk by chunk: [P]."""
    generator = torch.Generator().manual_seed(0)
    total_P = torch.zeros(output_dim)
    for part in gradient.split(chunk):
        signs = torch.randint(0, 2, (len(part), output_dim), generator=generator, dtype=torch.int8)
        total_P += part @ (signs.float() * 2 - 1)
    return total_P / output_dim**0.5
