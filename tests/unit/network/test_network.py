from __future__ import annotations

import numpy as np
import pytest
import torch

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork, cosine_network
from nncift_ray.network.network import InfluenceNetwork
from nncift_ray.scores.exact import score_block

FACTORED_TOLERANCE = 1e-5
DIM, HIDDEN = 13, 7


def embeddings(num: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    e = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return e / np.linalg.norm(e, axis=1, keepdims=True)


def test_paper_network_has_205101_parameters() -> None:
    assert sum(p.numel() for p in InfluenceNetwork(1024).parameters()) == 205_101


def test_pointwise_network_reads_one_embedding() -> None:
    network = InfluenceNetwork(1024, pointwise=True)
    assert sum(p.numel() for p in network.parameters()) == 1024 * 100 + 100 + 100 + 1
    assert network(torch.zeros(3, 1024)).shape == (3,)


def test_factored_training_forward_matches_concatenation() -> None:
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    e = torch.from_numpy(embeddings(9))
    i, j = torch.tensor([0, 3, 3, 8]), torch.tensor([5, 5, 1, 8])
    concatenated = network(e[i], e[j])
    np.testing.assert_allclose(
        network.forward_pairs(e, i, e, j).detach(), concatenated.detach(), atol=FACTORED_TOLERANCE
    )


def test_factored_network_matches_concatenation_at_the_papers_size() -> None:
    network = InfluenceNetwork(1024, seed=2)
    rows, columns = embeddings(5, 1024, 1), embeddings(6, 1024, 2)
    factored = network.factored()
    scores = score_block(
        factored.project_rows(rows), factored.project_columns(columns), factored.w_H, factored.bias
    )
    for i, row in enumerate(rows):
        repeated = torch.from_numpy(np.tile(row, (6, 1)))
        expected = network(repeated, torch.from_numpy(columns)).detach()
        np.testing.assert_allclose(scores[i], expected, atol=FACTORED_TOLERANCE)


def test_a_point_whose_activation_is_not_finite_is_named() -> None:
    factored = InfluenceNetwork(DIM, HIDDEN, pointwise=True, seed=3).factored()
    activations = factored.project_rows(embeddings(5))
    activations[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 is not finite"):
        factored.score_points(activations)


def test_factored_pointwise_network_matches_torch() -> None:
    network = InfluenceNetwork(DIM, HIDDEN, pointwise=True, seed=3)
    e, factored = embeddings(5), network.factored()
    scores = factored.score_points(factored.project_rows(e))
    np.testing.assert_allclose(
        scores, network(torch.from_numpy(e)).detach(), atol=FACTORED_TOLERANCE
    )


@pytest.mark.parametrize("rows_per_call", [1, 2, 5])
def test_projection_has_the_same_bits_in_calls_of_any_size(rows_per_call: int) -> None:
    factored, e = InfluenceNetwork(DIM, HIDDEN, seed=1).factored(), embeddings(12)
    parts = [
        factored.project_rows(e[n : n + rows_per_call]) for n in range(0, len(e), rows_per_call)
    ]
    assert np.concatenate(parts).tobytes() == factored.project_rows(e).tobytes()


@pytest.mark.parametrize("pointwise", [False, True])
def test_checkpoint_arrays_give_the_network_back(pointwise: bool) -> None:
    factored = InfluenceNetwork(DIM, HIDDEN, pointwise, seed=4).factored()
    back = FactoredNetwork.from_state(factored.to_state())
    assert back.pointwise == pointwise
    for name, array in factored.to_state().items():
        np.testing.assert_array_equal(back.to_state()[name], array)


def test_seed_alone_decides_the_first_weights() -> None:
    one, same, other = (InfluenceNetwork(DIM, HIDDEN, seed=s).hidden.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_helper_and_helped_are_not_interchangeable() -> None:
    network, e = InfluenceNetwork(DIM, HIDDEN, seed=1), torch.from_numpy(embeddings(2))
    assert network(e[:1], e[1:]).item() != network(e[1:], e[:1]).item()


def test_embeddings_of_another_model_are_refused() -> None:
    factored = InfluenceNetwork(DIM, HIDDEN, seed=1).factored()
    with pytest.raises(ShapeError, match=r"the network reads \[N, 13\]"):
        factored.project_rows(embeddings(3, dim=12))


def test_checkpoint_without_an_array_is_refused() -> None:
    state = InfluenceNetwork(DIM, HIDDEN, seed=1).factored().to_state()
    del state["row.bias"]
    with pytest.raises(ShapeError, match="checkpoint holds"):
        FactoredNetwork.from_state(state)


def test_pairwise_network_without_helpers_is_refused() -> None:
    with pytest.raises(ShapeError, match="pairwise network two"):
        InfluenceNetwork(DIM, HIDDEN)(torch.zeros(2, DIM))


def score_all(network: FactoredNetwork, e: np.ndarray) -> np.ndarray:
    rows, columns = network.project_rows(e), network.project_columns(e)
    return score_block(rows, columns, network.w_H, network.bias)


def test_the_network_of_no_label_scores_squared_cosines_of_any_length() -> None:
    rng = np.random.default_rng(0)
    row_ND, column_MD = (rng.standard_normal((n, 5)).astype(np.float32) for n in (4, 4))
    network = cosine_network(5)
    found_N = network.score_pairs(network.project_rows(row_ND), network.project_columns(column_MD))
    length_N = np.linalg.norm(row_ND, axis=1) * np.linalg.norm(column_MD, axis=1)
    cosine_N = (row_ND * column_MD).sum(axis=1) / length_N
    np.testing.assert_allclose(found_N, np.maximum(cosine_N, 0) ** 2, atol=1e-6)
    assert (cosine_N < 0).any()
