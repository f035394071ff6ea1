"""The warm-up of LESS: LoRA trained on a few examples, one checkpoint an epoch.

Knows no Ray: several workers meet only in `reduce_gradients`. Suffix: B examples of a batch.
Source: LESS, arXiv 2402.04333, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nncift_ray.core.network.training import ReduceGradients
from nncift_ray.core.teaching.less import learning_rate_at
from nncift_ray.errors import ModelError
from nncift_ray.models.batching import cut_batches
from nncift_ray.models.lora_model import LoraModel, TrainingExample

Arrays = dict[str, NDArray[np.float32]]

#: Padded tokens of one forward and backward pass; the passes of a step add up.
PASS_TOKENS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class WarmupSettings:
    """How to warm up."""

    num_epochs: int
    learning_rate: float  # the peak of the schedule
    lr_warmup_fraction: float  # share of the steps in which it rises
    batch_size: int  # examples of one step, over all workers together
    seed: int  # of the order of the examples and of dropout


@dataclass(frozen=True, slots=True, eq=False)
class WarmupCheckpoint:
    """The state at the end of an epoch; arrays by the names of ``LoraModel.parameter_names``."""

    adapter: Arrays
    exp_avg: Arrays  # Adam's first moment
    exp_avg_sq: Arrays  # Adam's second moment
    epoch: int  # from 1
    num_steps: int  # optimiser steps so far
    mean_learning_rate: float  # over the epoch's steps
    train_loss: float  # nats a response token: mean over the epoch's examples of each one's mean


def warm_up(
    model: LoraModel,
    examples: Sequence[TrainingExample],
    settings: WarmupSettings,
    *,
    shard: tuple[int, int] = (0, 1),
    reduce_gradients: ReduceGradients | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[WarmupCheckpoint]:
    """Train the model's adapter in place with AdamW (no decay) and return each epoch's state.

    The loss of a step is the mean over its examples of each one's mean over its response tokens:
    the same per-example loss whose gradients are taken later.

    On n workers each gives the same arguments but its own `shard`, and takes a slice of every
    batch, weighted so that the mean of the gradients over workers is the gradient of the whole
    batch. Without dropout they end as one worker would, up to rounding; with it, every rank draws
    masks of its own.

    Args:
        model: Model with fresh adapters, the same on all workers.
        examples: What to train on.
        settings: How to train.
        shard: (rank, number of workers).
        reduce_gradients: Replaces `.grad` of each given parameter by its mean over the workers.
        on_step: Called after each step with the steps done and their number.

    Returns:
        One checkpoint an epoch.

    Raises:
        ValueError: If there is no example, or several workers have no ``reduce_gradients``.
        ModelError: If the loss stops being finite.

    Memory: on the host 12 bytes for every adapter parameter and epoch.
    """
    if not examples:
        raise ValueError("there is no example to warm up on")
    if shard[1] > 1 and reduce_gradients is None:
        raise ValueError(f"{shard[1]} workers need reduce_gradients, or each trains on its own")
    parameters = model.parameters
    optimiser = torch.optim.AdamW(parameters.values(), weight_decay=0.0)
    order = torch.Generator().manual_seed(settings.seed)
    total_steps = math.ceil(len(examples) / settings.batch_size) * settings.num_epochs
    checkpoints: list[WarmupCheckpoint] = []
    step = 0
    with _training(model, settings.seed + shard[0]):
        for epoch in range(1, settings.num_epochs + 1):
            rates: list[float] = []
            total_loss = 0.0
            for batch in torch.randperm(len(examples), generator=order).split(settings.batch_size):
                rates.append(
                    learning_rate_at(
                        step, total_steps, settings.learning_rate, settings.lr_warmup_fraction
                    )
                )
                optimiser.param_groups[0]["lr"] = rates[-1]
                mine = [examples[n] for n in batch[shard[0] :: shard[1]].tolist()]
                loss = _differentiate(model, mine, shard[1] / len(batch), reduce_gradients)
                if not math.isfinite(loss):
                    raise ModelError(
                        f"the warm-up's loss is {loss} at step {step + 1} of {total_steps}: lower "
                        "teacher.less.learning_rate, or take a dtype of more range"
                    )
                optimiser.step()
                total_loss += loss * len(batch)
                step += 1
                if on_step is not None:
                    on_step(step, total_steps)
            checkpoints.append(
                WarmupCheckpoint(
                    adapter=model.adapter_state(),
                    exp_avg=_moments(model, optimiser, "exp_avg"),
                    exp_avg_sq=_moments(model, optimiser, "exp_avg_sq"),
                    epoch=epoch,
                    num_steps=step,
                    mean_learning_rate=math.fsum(rates) / len(rates),
                    train_loss=total_loss / len(examples),
                )
            )
    return checkpoints


def _differentiate(
    model: LoraModel,
    examples: Sequence[TrainingExample],
    weight: float,
    reduce_gradients: ReduceGradients | None,
) -> float:
    """Set the gradient of the weighted sum of losses, meant over the workers; return the loss.

    The loss travels with the gradients, so that all workers see the same and stop together.
    """
    parameters = list(model.parameters.values())
    for parameter in parameters:  # never None: a worker may have no example of a short batch
        parameter.grad = torch.zeros_like(parameter)
    loss = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    loss.grad = torch.zeros_like(loss)
    lengths = [len(example.input_ids) for example in examples]
    for rows in cut_batches(lengths, 0, PASS_TOKENS.get(model.device.type, PASS_TOKENS["cpu"])):
        part = model.losses([examples[n] for n in rows]).sum() * weight
        part.backward()
        loss.grad += float(part.detach())
    if reduce_gradients is not None:
        reduce_gradients([*parameters, loss])
    return float(loss.grad)


@contextmanager
def _training(model: LoraModel, seed: int) -> Iterator[None]:
    """Switch dropout on, with random numbers of its own that leave the process's alone."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.model.train()
        try:
            yield
        finally:
            model.model.eval()


def _moments(model: LoraModel, optimiser: torch.optim.Optimizer, kind: str) -> Arrays:
    """Return a copy of one of Adam's moments for every LoRA matrix."""
    return {
        name: optimiser.state[parameter][kind].detach().cpu().numpy().copy()
        for name, parameter in model.parameters.items()
    }
