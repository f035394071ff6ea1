"""The warm-up of LESS: LoRA trained on a few examples, one checkpoint an epoch.

Source: LESS, arXiv 2402.04333, section 4.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nncift_ray.models.lora_model import LoraModel
from nncift_ray.models.trainable_model import TrainingExample
from nncift_ray.models.training_loop import ALONE, EpochSummary, TrainingSettings, Workers, train

Arrays = dict[str, NDArray[np.float32]]


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
    settings: TrainingSettings,
    *,
    workers: Workers = ALONE,
    on_step: Callable[[int, int], None] | None = None,
) -> list[WarmupCheckpoint]:
    """Train the model's fresh adapter in place and return each epoch's state.

    The loss of a step is the mean over its examples of each one's mean over its response tokens:
    the same per-example loss whose gradients are taken later. Arguments and errors are those of
    ``training_loop.train``.

    Memory: on the host 12 bytes for every adapter parameter and epoch.
    """
    checkpoints: list[WarmupCheckpoint] = []

    def keep(summary: EpochSummary, optimiser: torch.optim.Optimizer) -> None:
        checkpoints.append(
            WarmupCheckpoint(
                adapter=model.adapter_state(),
                exp_avg=_moments(model, optimiser, "exp_avg"),
                exp_avg_sq=_moments(model, optimiser, "exp_avg_sq"),
                **dataclasses.asdict(summary),
            )
        )

    train(
        model,
        examples,
        settings,
        learning_rate_key="teacher.less.learning_rate",
        workers=workers,
        on_step=on_step,
        on_epoch=keep,
    )
    return checkpoints


def _moments(model: LoraModel, optimiser: torch.optim.Optimizer, kind: str) -> Arrays:
    """Return a copy of one of Adam's moments for every LoRA matrix."""
    return {
        name: optimiser.state[parameter][kind].detach().cpu().numpy().copy()
        for name, parameter in model.parameters.items()
    }
