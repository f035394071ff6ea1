"""How many epochs a small sample is trained, on labels of a made-up teacher."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network import step as block_training
from nncift_ray.network import step as fit
from nncift_ray.network.step import (
    NUM_FOLDS,
    BlockLabels,
    FittedBlock,
    best_epoch,
    fit_block,
    score_labelled,
    split_unseen,
)
from nncift_ray.recipe.sections import NetworkConfig

DIM = 6
LEARNT_CORRELATION = 0.9  # labels without noise, 42 of them
WORKER_TOLERANCE = 1e-4  # labels of size 1; workers add gradients in another order
QUICK = NetworkConfig(
    kind="paper", num_hidden=8, num_epochs=2, batch_size=16, learning_rate=1e-2, patience=1, seed=4
)


def make_block(rows: int = 15, columns: int = 12) -> BlockLabels:
    """Make a block labelled whole, with row and column effects that are only noise."""
    rng = np.random.default_rng(0)
    helped, helper = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
    count = rows * columns
    split = np.full(count, TRAIN, dtype=object)
    split[rng.permutation(count)[: count // 5]] = VALIDATION
    split[rng.permutation(count)[: count // 5]] = "Q1"
    utility = rng.standard_normal(rows)[helped] + rng.standard_normal(columns)[helper]
    return BlockLabels(
        helped_ED=rng.standard_normal((rows, DIM)).astype(np.float32),
        helper_ED=rng.standard_normal((columns, DIM)).astype(np.float32),
        sample_ND=np.zeros((0, DIM), np.float32),
        widths=(DIM,),
        helped_pos=helped,
        helper_pos=helper,
        helped_index=helped * 10,
        helper_index=helper * 10 + 1,
        split=split,
        utility=utility.astype(np.float32),
    )


def make_points(rows: int = 60) -> BlockLabels:
    """Make labels of single examples that are their embedding's first number."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((rows, DIM)).astype(np.float32)
    split = np.full(rows, TRAIN, dtype=object)
    split[:12], split[12:18] = "Q4", VALIDATION
    return BlockLabels(
        helped_ED=vectors,
        helper_ED=None,
        sample_ND=vectors,
        widths=(DIM,),
        helped_pos=np.arange(rows),
        helper_pos=None,
        helped_index=np.arange(rows) * 10,
        helper_index=None,
        split=split,
        utility=vectors[:, 0].copy(),
    )


def train(data: BlockLabels, min_steps: int, **workers: Any) -> FittedBlock:
    return fit_block(data, "cross", QUICK.model_copy(update={"min_steps": min_steps}), **workers)


def test_no_row_or_column_of_a_training_pair_is_the_reason_another_is_held_out() -> None:
    for pairs, held_out in split_unseen(make_block(), "cross", 0):
        old_rows, old_columns = set(pairs.helped_pos), set(pairs.helper_pos)
        for row, column in zip(held_out.helped_pos, held_out.helper_pos, strict=True):
            assert row not in old_rows or column not in old_columns


def test_progress_counts_the_epochs_of_all_folds() -> None:
    told: list[tuple[int, int]] = []
    fitted = train(make_block(), 10_000, progress=lambda done, most: told.append((done, most)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][0] > len(fitted.history)
    assert {most for _, most in told} == {told[0][1]}
    assert len(told) <= told[0][1]


def test_measuring_splits_are_in_no_fold() -> None:
    data = make_block()
    folds = split_unseen(data, "cross", 0)
    usable = int(np.isin(data.split, [TRAIN, VALIDATION]).sum())
    assert [len(pairs) + len(held_out) for pairs, held_out in folds] == [usable] * NUM_FOLDS


def test_a_sample_that_memorises_stops_before_its_validation_pairs_would_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_block()
    unseen = train(data, min_steps=800)
    monkeypatch.setattr(block_training, "split_unseen", lambda *_, **__: [])
    drawn = train(data, min_steps=800)
    assert len(unseen.history) < best_epoch(drawn.history)
    assert best_epoch(unseen.history) == len(unseen.history)


def test_a_large_sample_trains_as_the_paper_with_no_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        block_training, "split_unseen", lambda *_, **__: pytest.fail("no fold is needed")
    )
    assert len(train(make_block(), min_steps=0).history) <= QUICK.num_epochs


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (1, 9), (30, 4)])
def test_a_tiny_block_stops_on_its_validation_pairs(rows: int, columns: int) -> None:
    data = make_block(rows, columns)
    data.split[0] = TRAIN
    fitted = train(data, min_steps=40)
    assert len(split_unseen(data, "cross", 0)) == 0
    assert all(np.isfinite(array).all() for array in fitted.network.to_state().values())


def test_same_seed_trains_the_same_bits() -> None:
    one, same = (train(make_block(), min_steps=100) for _ in range(2))
    assert one.history == same.history
    assert all(
        np.array_equal(array, same.network.to_state()[name])
        for name, array in one.network.to_state().items()
    )


def test_two_workers_choose_the_epochs_of_one() -> None:
    data = make_block()
    single = train(data, min_steps=100)
    barrier, slots = threading.Barrier(2, timeout=60), [None, None]
    results: list[FittedBlock | None] = [None, None]

    def work(rank: int) -> None:
        def reduce(parameters: list[torch.nn.Parameter]) -> None:
            slots[rank] = [p.grad.clone() for p in parameters]
            barrier.wait()
            means = [sum(grads) / 2 for grads in zip(*slots, strict=True)]
            barrier.wait()
            for p, mean in zip(parameters, means, strict=True):
                p.grad.copy_(mean)

        results[rank] = train(data, min_steps=100, shard=(rank, 2), reduce_gradients=reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert len(result.history) == len(single.history)
        for name, array in single.network.to_state().items():
            np.testing.assert_allclose(
                result.network.to_state()[name], array, atol=WORKER_TOLERANCE
            )


def test_a_pointwise_network_learns_single_examples() -> None:
    data = make_points()
    network = train(data, min_steps=300).network
    assert network.pointwise
    held_out = data.split == "Q4"
    found = np.corrcoef(score_labelled(network, data)[held_out], data.utility[held_out])[0, 1]
    assert found > LEARNT_CORRELATION


def test_folds_of_single_examples_share_none_with_training() -> None:
    folds = split_unseen(make_points(), "cross", 0)
    assert len(folds) == NUM_FOLDS
    assert all(not set(pairs.helped_pos) & set(held.helped_pos) for pairs, held in folds)


def test_the_rule_of_stopping_is_part_of_the_fingerprint() -> None:
    nothing = SimpleNamespace(steps={})
    stage = fit.FitStage(None, nothing, ("cross",), QUICK)  # type: ignore[arg-type]
    assert stage.settings()["stop"] == {"num_folds": 5, "patience_share": 0.05}
    assert stage.version == 6
