from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nncift_ray.errors import ShapeError
from nncift_ray.teachers.base import checkpoint_weights
from nncift_ray.teachers.gradients import learning_rate_at, precondition
from nncift_ray.teachers.less import less_score

SAME = 1e-6
BASE = 1e-2  # learning rate of the optimisers that are the oracle


def test_weights_are_proportional_to_learning_rates_and_sum_to_one() -> None:
    assert checkpoint_weights([3e-5, 1e-5]) == pytest.approx((0.75, 0.25), abs=SAME)


@pytest.mark.parametrize("rates", [[], [0.0, 0.0], [1e-5, -1e-5], [float("nan")]])
def test_weights_refuse_rates_that_weigh_nothing(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="learning rates"):
        checkpoint_weights(rates)


def test_score_is_the_weighted_sum_of_cosines_whatever_the_lengths() -> None:
    helped = np.array([[1.0, 0.0], [2.0, 0.0]])
    helper = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert less_score(helped, helper, (0.75, 0.25)) == pytest.approx(0.75 * 0.6, abs=SAME)


def test_score_refuses_a_feature_without_a_direction() -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        less_score(np.ones((1, 3)), np.zeros((1, 3)), (1.0,))


def test_score_refuses_features_of_another_number_of_checkpoints() -> None:
    with pytest.raises(ShapeError):
        less_score(np.ones((2, 3)), np.ones((2, 3)), (1.0,))


@pytest.mark.parametrize("optimiser_class", [torch.optim.Adam, torch.optim.AdamW])
def test_precondition_without_epsilon_is_the_next_step_of_torch_divided_by_its_learning_rate(
    optimiser_class: type[torch.optim.Optimizer],
) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimiser = optimiser_class([weight], lr=BASE, eps=0.0, weight_decay=0.0)  # pyright: ignore[reportCallIssue]
    for _ in range(3):
        weight.grad = torch.randn_like(weight) * 1e-6
        optimiser.step()
    state = {key: value.clone() for key, value in optimiser.state[weight].items()}
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight) * 1e-6
    optimiser.step()
    moments = (state["exp_avg"], state["exp_avg_sq"], 3)
    direction = precondition(weight.grad, *moments, epsilon=0.0)
    torch.testing.assert_close((before - weight) / BASE, direction, rtol=SAME, atol=SAME)


def test_epsilon_stands_under_the_root_as_in_the_paper() -> None:
    # m = 0.1 g and v = 0.001 g^2, and at the first step both corrections give g and g^2 back.
    gradient, none = torch.tensor([1e-4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    direction = precondition(gradient, none, none, 0)
    assert direction.item() == pytest.approx(1e-4 / math.sqrt(1e-8 + 1e-8))


def test_precondition_treats_each_example_of_a_batch_as_if_alone() -> None:
    torch.manual_seed(0)
    batch, mean, square = torch.randn(5, 2, 3), torch.randn(2, 3), torch.rand(2, 3)
    together = precondition(batch, mean, square, 7)
    alone = torch.stack([precondition(one, mean, square, 7) for one in batch])
    torch.testing.assert_close(together, alone, rtol=SAME, atol=SAME)


def test_precondition_refuses_moments_of_another_shape() -> None:
    with pytest.raises(ShapeError):
        precondition(torch.ones(5, 2, 3), torch.ones(3, 2), torch.ones(3, 2), 1)


def test_learning_rate_rises_to_the_peak_then_falls_evenly_and_never_vanishes() -> None:
    rates = [learning_rate_at(step, 10, 1.0, 0.2) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert np.diff(rates[2:]) == pytest.approx(-1 / 8)
    assert min(rates) > 0


def test_learning_rate_of_a_single_step_is_the_peak() -> None:
    assert learning_rate_at(0, 1, 2e-5, 0.03) == 2e-5


def test_learning_rate_refuses_a_step_outside_the_schedule() -> None:
    with pytest.raises(ValueError, match="step 10 of 10"):
        learning_rate_at(10, 10, 1.0, 0.0)
