"""The one training loop of language models: the warm-up of LESS and fine-tuning both run it.

Knows no Ray: several workers meet only in `reduce_gradients`. Suffix: B examples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nncift_ray.core.network.training import ReduceGradients
from nncift_ray.core.teaching.less import learning_rate_at
from nncift_ray.errors import ModelError
from nncift_ray.models.batching import cut_batches
from nncift_ray.models.trainable_model import TrainableModel, TrainingExample

#: Padded tokens of one forward and backward pass; the passes of a step add up.
PASS_TOKENS = {"cpu": 1024, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train: AdamW without decay, a linear rise and fall of the learning rate."""

    num_epochs: int
    learning_rate: float  # the peak of the schedule
    lr_warmup_fraction: float  # share of the steps in which it rises
    batch_size: int  # examples of one step, over all workers together
    seed: int  # of the order of the examples and of dropout


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """What an epoch came to."""

    epoch: int  # from 1
    num_steps: int  # optimiser steps so far
    mean_learning_rate: float  # over the epoch's steps
    train_loss: float  # nats a response token, over the epoch's examples by their weights


#: Says how much each example of a batch counts; a step's loss is the weighted mean.
Weigh = Callable[[TrainingExample], float]


def alike(example: TrainingExample) -> float:
    """Let every example count alike, however long its response."""
    return 1.0


def by_length(example: TrainingExample) -> float:
    """Let every response token count alike."""
    return float(example.num_response_tokens)


@dataclass(frozen=True)
class Workers:
    """The place of this worker among those that train one model together."""

    rank: int = 0
    world: int = 1
    #: Replaces `.grad` of each given parameter by its mean over the workers.
    reduce_gradients: ReduceGradients | None = None


ALONE = Workers()


def train(
    model: TrainableModel,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    *,
    learning_rate_key: str,
    weigh: Weigh = alike,
    max_gradient_norm: float | None = None,
    workers: Workers = ALONE,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[EpochSummary, torch.optim.Optimizer], None] | None = None,
) -> list[EpochSummary]:
    """Train the model in place and return what each epoch came to.

    On n workers each gives the same arguments but its own rank, and takes a slice of every batch,
    weighted so that the mean of the gradients over workers is the gradient of the whole batch.
    Without dropout they end as one worker would, up to rounding; with it, every rank draws masks of
    its own.

    Args:
        model: The model, the same on all workers.
        examples: What to train on.
        settings: How to train.
        learning_rate_key: The recipe's key to change if the loss stops being finite.
        weigh: How much an example counts in its step.
        max_gradient_norm: Longer gradients of a step are scaled down to this norm; None: never.
        workers: Who else trains.
        on_step: Called after each step with the steps done and their number.
        on_epoch: Called after each epoch with its summary and the optimiser.

    Raises:
        ValueError: If there is no example, or several workers have no ``reduce_gradients``.
        ModelError: If the loss stops being finite.
    """
    if not examples:
        raise ValueError("there is no example to train on")
    if workers.world > 1 and workers.reduce_gradients is None:
        raise ValueError(f"{workers.world} workers need reduce_gradients, or each trains alone")
    parameters = list(model.parameters.values())
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    order = torch.Generator().manual_seed(settings.seed)
    total_steps = math.ceil(len(examples) / settings.batch_size) * settings.num_epochs
    total_weight = math.fsum(map(weigh, examples))
    summaries: list[EpochSummary] = []
    step = 0
    with _training(model, settings.seed + workers.rank):
        for epoch in range(1, settings.num_epochs + 1):
            rates: list[float] = []
            total_loss = 0.0
            for rows in torch.randperm(len(examples), generator=order).split(settings.batch_size):
                rates.append(
                    learning_rate_at(
                        step, total_steps, settings.learning_rate, settings.lr_warmup_fraction
                    )
                )
                optimiser.param_groups[0]["lr"] = rates[-1]
                batch = [examples[n] for n in rows.tolist()]
                loss, weight = _differentiate(model, batch, weigh, workers)
                if not math.isfinite(loss):
                    raise ModelError(
                        f"the training loss is {loss} at step {step + 1} of {total_steps}: lower "
                        f"{learning_rate_key}, or take a dtype of more range"
                    )
                if max_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
                optimiser.step()
                total_loss += loss * weight
                step += 1
                if on_step is not None:
                    on_step(step, total_steps)
            mean_rate = math.fsum(rates) / len(rates)
            summaries.append(EpochSummary(epoch, step, mean_rate, total_loss / total_weight))
            if on_epoch is not None:
                on_epoch(summaries[-1], optimiser)
    return summaries


def _differentiate(
    model: TrainableModel, batch: Sequence[TrainingExample], weigh: Weigh, workers: Workers
) -> tuple[float, float]:
    """Set the gradient of a batch's weighted mean loss; return that loss and the batch's weight.

    The loss travels with the gradients, so that all workers see the same and stop together.
    """
    parameters = list(model.parameters.values())
    for parameter in parameters:  # never None: a worker may have no example of a short batch
        parameter.grad = torch.zeros_like(parameter)
    loss = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    loss.grad = torch.zeros_like(loss)
    weight = math.fsum(map(weigh, batch))
    mine = batch[workers.rank :: workers.world]
    lengths = [len(example.input_ids) for example in mine]
    for rows in cut_batches(lengths, 0, PASS_TOKENS.get(model.device.type, PASS_TOKENS["cpu"])):
        part = [mine[n] for n in rows]
        shares = [workers.world * weigh(example) / weight for example in part]
        passed = (model.losses(part) * torch.tensor(shares, device=model.device)).sum()
        passed.backward()
        loss.grad += float(passed.detach())
    if workers.reduce_gradients is not None:
        workers.reduce_gradients([*parameters, loss])
    return float(loss.grad), weight


@contextmanager
def _training(model: TrainableModel, seed: int) -> Iterator[None]:
    """Switch dropout on, with random numbers of its own that leave the process's alone."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.model.train()
        try:
            yield
        finally:
            model.model.eval()
