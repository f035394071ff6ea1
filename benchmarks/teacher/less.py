"""LESS: projected gradients per second, in batches and by the loop of batch size 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import gradients_one_by_one
from benchmarks.teacher.texts import choose
from nncift_ray.core.examples import Example
from nncift_ray.core.projection import RademacherProjector
from nncift_ray.models.lora_model import AdapterSpec, LoraModel, TrainingExample
from nncift_ray.models.per_example import project_gradients

TOKENS = (20, 120)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BATCH_TOKENS = 1024


def measure(
    model_path: str | Path,
    rows: Sequence[Example],
    count: int,
    rank: int,
    projection_dim: int,
    repeats: int,
) -> dict[str, Any]:
    """Take and project the same rows' gradients both ways; the largest difference is told."""
    spec = AdapterSpec(rank, 4.0 * rank, 0.0, TARGETS, seed=0)
    model = LoraModel(model_path, spec)
    encoded = [model.encode(row) for row in choose(rows, _tokens_of(model), TOKENS, count)]
    examples = [one for one in encoded if isinstance(one, TrainingExample)]
    projector = RademacherProjector(model.num_adapter_parameters, projection_dim, seed=0)

    def batched() -> torch.Tensor:
        return torch.as_tensor(
            project_gradients(
                model, examples, projector, precondition=None, batch_tokens=BATCH_TOKENS
            )
        )

    def one_by_one() -> torch.Tensor:
        gradients = gradients_one_by_one(model.module, model.parameters, examples)
        return torch.nn.functional.normalize(projector.project(gradients), dim=1)

    batched_seconds, batched_features = _best(batched, repeats)
    loop_seconds, loop_features = _best(one_by_one, repeats)
    return {
        "less_rows": len(examples),
        "less_adapter_parameters": model.num_adapter_parameters,
        "less_gradients_per_second": len(examples) / batched_seconds,
        "less_loop_gradients_per_second": len(examples) / loop_seconds,
        "less_vs_batch_1_loop": loop_seconds / batched_seconds,
        "less_max_difference": float((batched_features - loop_features).abs().max()),
    }


def _tokens_of(model: LoraModel) -> Callable[[str], list[int]]:
    return model.tokenizer.encode


def _best(take: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Return the seconds of the fastest of some runs, and its result."""
    found: list[tuple[float, torch.Tensor]] = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = take()
        found.append((time.perf_counter() - started, result))
    return min(found, key=lambda pair: pair[0])
