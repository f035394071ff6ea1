"""LESS: projected gradients per second, in batches and by the loop of batch size 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import gradients_one_by_one, project_row
from benchmarks.teacher.texts import choose
from nncift_ray.corpus.examples import Example
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import SegmentTokenizer, TrainingExample
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.teachers.gradients import RademacherProjector, project_gradients

TOKENS = (20, 120)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BATCH_TOKENS = 512
ROWS_PROJECTED_ALONE = 1  # the loop's projection is slow: it is timed on few rows
ADAPTER_DEVIATION = 0.02  # fresh adapters have a zero half, and so a zero gradient


def measure(
    model_path: str | Path,
    rows: Sequence[Example],
    count: int,
    rank: int,
    projection_dim: int,
    repeats: int,
) -> dict[str, Any]:
    """Take and project the same rows' gradients both ways; the largest difference is told."""
    less = LessConfig(rank=rank, alpha=4.0 * rank, dropout=0.0, target_modules=TARGETS)
    model = LoraModel(model_path, less, template="paper")
    generator = np.random.default_rng(0)
    model.load_adapter(
        {
            name: generator.normal(0.0, ADAPTER_DEVIATION, value.shape).astype(np.float32)
            for name, value in model.adapter_state().items()
        }
    )
    encode = SegmentTokenizer(model_path).encode
    encoded = [model.encode(row) for row in choose(rows, encode, TOKENS, count)]
    examples = [one for one in encoded if isinstance(one, TrainingExample)]
    projector = RademacherProjector(model.num_adapter_parameters, projection_dim, seed=0)

    def batched() -> torch.Tensor:
        return torch.as_tensor(
            project_gradients(model, examples, projector, adam=None, batch_tokens=BATCH_TOKENS)
        )

    def loop() -> torch.Tensor:
        return gradients_one_by_one(model.model, list(model.parameters.values()), examples)

    projector.project(torch.zeros(1, model.num_adapter_parameters))  # compiles
    batched_seconds, features = _best(batched, repeats)
    loop_seconds, gradients = _best(loop, repeats)
    sweep_seconds, projected = _best(lambda: projector.project(gradients), 1)
    row_seconds, _ = _best(lambda: project_row(gradients[0], projection_dim), ROWS_PROJECTED_ALONE)
    wanted = torch.nn.functional.normalize(projected, dim=1)
    gradient_seconds = batched_seconds - sweep_seconds
    return {
        "less_rows": len(examples),
        "less_adapter_parameters": model.num_adapter_parameters,
        "less_projection_dim": projection_dim,
        "less_features_per_second": len(examples) / batched_seconds,
        "less_gradients_per_second": len(examples) / gradient_seconds,
        "less_loop_gradients_per_second": len(examples) / loop_seconds,
        "less_projection_seconds": sweep_seconds,
        "less_row_by_row_projection_seconds": row_seconds * len(examples),
        "less_vs_batch_1_loop": loop_seconds / gradient_seconds,
        "less_features_vs_row_by_row_loop": (
            (loop_seconds + row_seconds * len(examples)) / batched_seconds
        ),
        "less_max_difference": float((features - wanted).abs().max()),
    }


def _best(take: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Return the seconds of the fastest of some runs, and its result."""
    found: list[tuple[float, torch.Tensor]] = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = take()
        found.append((time.perf_counter() - started, result))
    return min(found, key=lambda pair: pair[0])
