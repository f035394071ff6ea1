"""LESS: how far a training step on one example lowers another's loss, by projected gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ConfigError, ShapeError
from nncift_ray.teachers.base import LabelRequest, Measurement, MeasurementFailure, TeacherContext

if TYPE_CHECKING:
    from torch import Tensor


def checkpoint_weights(mean_learning_rates: Sequence[float]) -> tuple[float, ...]:
    """Return the weight of each checkpoint: its epoch's mean learning rate, scaled to sum to 1.

    Raises:
        ValueError: If there is no checkpoint, a rate is negative or not finite, or all are 0.
    """
    rates = np.asarray(mean_learning_rates, dtype=np.float64)
    if rates.size == 0 or not np.isfinite(rates).all() or (rates < 0).any() or rates.sum() == 0:
        msg = f"mean learning rates must be finite, not negative and not all 0: {rates.tolist()}"
        raise ValueError(msg)
    return tuple(float(weight) for weight in rates / rates.sum())


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: a line up to the peak, then a line down to nothing.

    The rise takes ceil(warmup_fraction * total_steps) steps and starts above 0, so that no step is
    wasted; the fall would reach 0 one step after the last.

    Args:
        step: From 0 to total_steps - 1.
        total_steps: Optimiser steps of the whole training.
        peak: The highest learning rate.
        warmup_fraction: Share of the steps in which it rises, in [0, 1).

    Raises:
        ValueError: If the step or the fraction is outside its range.
    """
    if not 0 <= step < total_steps or not 0 <= warmup_fraction < 1:
        msg = f"step {step} of {total_steps}, warm-up fraction {warmup_fraction} (below 1)"
        raise ValueError(msg)
    rising = min(math.ceil(warmup_fraction * total_steps), total_steps - 1)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * (total_steps - step) / (total_steps - rising)


def precondition(
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    num_steps: int,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> Tensor:
    """Return the direction of Adam's next step, were this gradient the next one.

    With t = num_steps + 1, m = beta1 * exp_avg + (1 - beta1) g and v likewise with g^2:

        (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    This is what torch.optim.Adam subtracts, divided by the learning rate. The code published with
    the paper leaves both corrections out and puts epsilon under the root.

    Args:
        gradient: [*shape] or [B, *shape].
        exp_avg: First moment [*shape].
        exp_avg_sq: Second moment [*shape].
        num_steps: Steps that the moments have seen.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root.

    Returns:
        A new tensor of the gradient's shape.

    Raises:
        ShapeError: If the moments do not fit the gradient's last dimensions.

    Source: LESS, section 3.1; Adam, arXiv 1412.6980, algorithm 1.
    """
    shape = exp_avg.shape
    if exp_avg_sq.shape != shape or gradient.shape[gradient.ndim - len(shape) :] != shape:
        msg = (
            f"gradient {tuple(gradient.shape)} does not end in the shape of the moments "
            f"{tuple(shape)}, {tuple(exp_avg_sq.shape)}"
        )
        raise ShapeError(msg)
    step = num_steps + 1
    mean = (beta1 * exp_avg).add(gradient, alpha=1 - beta1).div_(1 - beta1**step)
    root = (beta2 * exp_avg_sq).addcmul(gradient, gradient, value=1 - beta2)
    return mean.div_(root.div_(1 - beta2**step).sqrt_().add_(epsilon))


def less_score(
    helped_CP: NDArray[np.floating],
    helper_CP: NDArray[np.floating],
    weights_C: NDArray[np.floating] | Sequence[float],
) -> float:
    """Return the influence of a helper: the weighted sum over checkpoints of two features' cosine.

    Args:
        helped_CP: Projected plain gradients of the helped example, one a checkpoint.
        helper_CP: Projected Adam directions of the helper.
        weights_C: Weight of each checkpoint, as ``checkpoint_weights`` gives them.

    Returns:
        Sum over c of weight_c * cos(helped_c, helper_c), in [-1, 1] for weights that sum to 1.

    Raises:
        ShapeError: If the three do not fit together.
        ValueError: If a feature is zero or not finite: it has no direction.

    Source: LESS, definition 3.1.
    """
    helped, helper = np.asarray(helped_CP, np.float64), np.asarray(helper_CP, np.float64)
    weights = np.asarray(weights_C, np.float64)
    if helped.ndim != 2 or helped.shape != helper.shape or weights.shape != helped.shape[:1]:
        msg = f"features {helped.shape} and {helper.shape} with weights {weights.shape}"
        raise ShapeError(msg)
    norms = np.linalg.norm(helped, axis=1) * np.linalg.norm(helper, axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        msg = "a projected gradient is zero or not finite"
        raise ValueError(msg)
    cosines = np.clip(np.einsum("cp,cp->c", helped, helper) / norms, -1.0, 1.0)
    return float(weights @ cosines)


# LESS: how far a training step on one example lowers another's loss, by projected gradients.


class LessTeacher:
    """LESS: weighted cosines of projected gradients over the warm-up's checkpoints (2402.04333)."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, checkpoint_weights: Sequence[float]) -> None:
        """Make a teacher that weights the checkpoints so (they sum to 1)."""
        self._weights_C = tuple(checkpoint_weights)

    @classmethod
    def from_context(cls, context: TeacherContext) -> LessTeacher:
        """Make a teacher with the warm-up's checkpoint weights."""
        if not context.checkpoint_weights:
            raise ConfigError("teacher less needs the checkpoints of a warm-up, none were given")
        return cls(context.checkpoint_weights)

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the influence in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return the influence as it is."""
        del baseline
        return value

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _measure_one(self, request: LabelRequest) -> Measurement | MeasurementFailure:
        helped_CP, helper_CP = request.helped_gradients, request.helper_gradients
        if helped_CP is None or helper_CP is None:
            return MeasurementFailure("no_gradient", "an example of the pair has no gradient")
        try:
            return Measurement(less_score(helped_CP, helper_CP, self._weights_C))
        except ValueError as error:  # a feature without a direction, or of another warm-up
            return MeasurementFailure("bad_gradient", str(error))
