from __future__ import annotations

import numpy as np
import torch

from nncift_ray.network.training import CHUNK_PAIRS, Batch, loss_part, shuffled_batches


def draw(num_pairs: int = 300, num_rows: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(0, num_rows, num_pairs))
    return rows, torch.from_numpy(rng.standard_normal(num_pairs).astype(np.float32))


def batches(loss: str, rows: torch.Tensor, seed: int = 1) -> list[Batch]:
    return list(shuffled_batches(loss, rows, 32, torch.Generator().manual_seed(seed)))


def test_every_pair_is_in_one_batch_of_an_epoch() -> None:
    rows, _ = draw()
    for loss in ("squared_error", "row_order"):
        at = torch.cat([batch.at_B for batch in batches(loss, rows)])
        assert sorted(at.tolist()) == list(range(300))


def test_groups_are_pairs_of_one_row_and_batches_have_the_size_asked() -> None:
    rows, _ = draw()
    for batch in batches("row_order", rows):
        assert len(batch.at_B) <= 32
        for group in batch.group_B.unique():
            members = batch.at_B[batch.group_B == group]
            assert len(members) <= CHUNK_PAIRS
            assert len(rows[members].unique()) == 1


def test_another_epoch_compares_other_pairs() -> None:
    rows, _ = draw()
    one, same, other = (batches("row_order", rows, seed)[0].at_B.tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_parts_of_workers_add_up_to_the_loss_of_the_batch() -> None:
    rows, labels = draw()
    for loss in ("squared_error", "row_order"):
        whole = batches(loss, rows)[0]
        scores = torch.linspace(-1, 1, 300)
        parts = [whole.of_worker((rank, 3)) for rank in range(3)]
        summed = sum(loss_part(loss, scores[p.at_B], labels, p, whole) for p in parts)
        expected = loss_part(loss, scores[whole.at_B], labels, whole, whole)
        assert torch.isclose(summed, expected)


def test_order_costs_more_where_it_is_wrong_and_ignores_the_offset_of_a_row() -> None:
    rows, labels = draw()
    whole = batches("row_order", rows)[0]

    def order_loss(scores: torch.Tensor) -> float:
        given = (scores[whole.at_B], labels, whole, whole)
        return float(loss_part("row_order", *given) - loss_part("squared_error", *given))

    right, wrong = order_loss(labels), order_loss(-labels)
    assert right < np.log(2) < wrong
    assert np.isclose(order_loss(labels + 5 * rows), right, atol=1e-4)
