"""The deeper network that a sweep compares with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncift_ray.network.network import DeepInfluenceNetwork, InfluenceNetwork
from nncift_ray.network.training import PairData, TrainingConfig, train_network

DIMENSION, HIDDEN, EXAMPLES = 6, 9, 12
ROUNDING = 1e-6


def examples() -> torch.Tensor:
    return torch.randn(EXAMPLES, DIMENSION, generator=torch.Generator().manual_seed(0))


def test_one_layer_is_the_influence_network() -> None:
    deep = DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=1, seed=3)
    plain = InfluenceNetwork(DIMENSION, HIDDEN, seed=3)
    e = examples()
    assert torch.equal(deep(e, e.flip(0)), plain(e, e.flip(0)))
    assert (deep.factored().w_row_HD == plain.factored().w_row_HD).all()


@pytest.mark.parametrize("depth", [2, 3])
def test_pairs_by_position_are_the_concatenated_pairs(depth: int) -> None:
    network, e = DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=depth, seed=1), examples()
    helped, helper = torch.tensor([0, 5, 5, 11]), torch.tensor([3, 3, 8, 0])
    by_position = network.forward_pairs(e, helped, e, helper)
    assert torch.allclose(by_position, network(e[helped], e[helper]), atol=ROUNDING)


def test_depth_adds_layers_and_leaves_the_first_and_last_alone() -> None:
    plain = InfluenceNetwork(DIMENSION, HIDDEN, seed=2).state_dict()
    deep = DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=3, seed=2).state_dict()
    assert all(torch.equal(deep[name], weights) for name, weights in plain.items())
    assert sum(w.numel() for n, w in deep.items() if n not in plain) == 2 * (HIDDEN + 1) * HIDDEN


def test_deep_scores_do_not_factor() -> None:
    with pytest.raises(ValueError, match="2 hidden layers does not factor"):
        DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=2, seed=0).factored()


def test_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=0)


def test_training_answers_in_the_unit_of_the_labels() -> None:
    network = DeepInfluenceNetwork(DIMENSION, HIDDEN, depth=2, seed=0)
    positions = np.arange(EXAMPLES)
    labels = 100.0 + positions.astype(np.float64) / EXAMPLES
    pairs = PairData(positions, positions, labels)
    e = examples().numpy()
    train_network(network, e, e, pairs, pairs, TrainingConfig(num_epochs=1))
    with torch.no_grad():
        predicted = network(examples(), examples())
    assert predicted.min() > 95
