"""What this machine could do at the most, and so the least time that answers can take.

A step reads every weight once, whatever the number of answers it writes a token of; a token costs
two operations a weight, the output layer for written tokens only. Attention and caches are left
out, so the bound lies below what is possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nncift_ray.engines.base import Generation
from nncift_ray.engines.shared import read_config

READ_BYTES = 1 << 28  # far more than any cache
MATMUL_SIDE = 1024
TRIALS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the threads of this process can do."""

    bytes_per_second: float  # read
    operations_per_second: float  # of matrix products, float32


@dataclass(frozen=True, slots=True)
class Weights:
    """The size of a model."""

    num_bytes: int
    num_inner: int  # weights that every token goes through
    num_output: int  # weights of the output layer


def measure_limits() -> Limits:
    """Measure both now: a shared machine is not always as fast."""
    data = torch.zeros(READ_BYTES // 4)
    side = torch.rand(MATMUL_SIDE, MATMUL_SIDE)
    read = min(_seconds(lambda: data.sum()) for _ in range(TRIALS))
    product = min(_seconds(lambda: side @ side) for _ in range(TRIALS))
    return Limits(READ_BYTES / read, 2 * MATMUL_SIDE**3 / product)


def least_seconds(
    answers: Sequence[Generation], weights: Weights, limits: Limits, *, at_once: bool
) -> dict[str, float]:
    """Return the seconds that reading weights and multiplying them take at the least.

    Args:
        answers: What was written.
        weights: Of the model.
        limits: Of the machine.
        at_once: Whether answers share steps; else each token is a step of its own.
    """
    written = [answer.num_tokens for answer in answers]
    num_steps = max(written) if at_once else sum(written)
    # The last token of an answer is not read again.
    through = sum(answer.num_prompt_tokens + answer.num_tokens - 1 for answer in answers)
    operations = 2 * (weights.num_inner * through + weights.num_output * sum(written))
    return {
        "bandwidth": num_steps * weights.num_bytes / limits.bytes_per_second,
        "matmul": operations / limits.operations_per_second,
    }


def weights_of(model_path: str) -> Weights:
    """Return the size of a model in float32, from its configuration alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        config = read_config(model_path)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    inner = sum(p.numel() for p in model.parameters() if p is not head and p is not table)
    return Weights(4 * (inner + head.numel()), inner, head.numel())


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
