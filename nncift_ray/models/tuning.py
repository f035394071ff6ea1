"""Fine-tuning a model on a subset, in one process of possibly several; knows no Ray.

The loss is the one that fine-tuning libraries take: the mean over the response tokens of a batch,
end token included, prompt and padding left out. Gradients longer than 1 are scaled down, as
transformers' Trainer does by default, and QLoRA's authors (arXiv 2305.14314) to a shorter norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nncift_ray.errors import ModelError
from nncift_ray.models.trainable_model import TrainableModel, TrainingExample
from nncift_ray.models.training_loop import ALONE, TrainingSettings, Workers, by_length, train

LEARNING_RATE_KEY = "evaluation.tuning.learning_rate"
MAX_GRADIENT_NORM = 1.0
QLORA, LORA, FULL = "qlora", "lora", "full"


@dataclass(frozen=True, slots=True)
class TuningSummary:
    """What fine-tuning came to."""

    num_tokens: int  # of one epoch, prompts included
    num_steps: int  # optimiser steps, all epochs
    train_loss: tuple[float, ...]  # by epoch, nats a response token
    seconds: float


def tune(
    model: TrainableModel,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    *,
    workers: Workers = ALONE,
    on_step: Callable[[int, int], None] | None = None,
) -> TuningSummary:
    """Fine-tune a model in place; arguments are those of ``training_loop.train``.

    Raises:
        ModelError: If the loss stops being finite, or the device has not enough memory.
    """
    start = time.perf_counter()
    try:
        epochs = train(
            model,
            examples,
            settings,
            learning_rate_key=LEARNING_RATE_KEY,
            weigh=by_length,
            max_gradient_norm=MAX_GRADIENT_NORM,
            workers=workers,
            on_step=on_step,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"fine-tuning does not fit into the memory of {model.device}: set "
            "evaluation.tuning.method to qlora, lower evaluation.tuning.max_length, or choose a "
            f"smaller evaluation.model ({error})"
        ) from error
    return TuningSummary(
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_steps=epochs[-1].num_steps,
        train_loss=tuple(epoch.train_loss for epoch in epochs),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What weights are held in and what is computed in; names of torch dtypes."""

    dtype: str  # of the weights that are not trained
    autocast: str | None  # of the matrix products; None: as the weights are


def choose_arithmetic(method: str, dtype: str, *, on_gpu: bool) -> Arithmetic:
    """Say how a method computes in "float32" or "bfloat16".

    What is trained is float32 either way. On a GPU frozen weights are held in bfloat16. On a CPU
    they stay float32 and only matrix products are taken in bfloat16: as fast, and sums and norms
    lose nothing.
    """
    if dtype == "float32":
        return Arithmetic("float32", None)
    if method == FULL or not on_gpu:
        return Arithmetic("float32", dtype)
    return Arithmetic(dtype, None)
