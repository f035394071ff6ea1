from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.errors import ShapeError
from nncift_ray.labels.sample import unseen_folds
from nncift_ray.network.network import (
    EpochRecord,
    InfluenceNetwork,
    PairData,
    TrainingConfig,
    train_network,
)

DIM, HIDDEN = 6, 8
WORKER_TOLERANCE = 1e-5  # raw labels of size 0.03; workers add gradients in another order
TRAJECTORY_TOLERANCE = 1e-3  # float32; sums over inputs are taken in another order
LABEL_MEAN, LABEL_SIZE = 0.4, 0.03  # as small and as far from 0 as real utilities
FAST = TrainingConfig(num_epochs=8, batch_size=16, learning_rate=1e-2)


def make_data(num_pairs: int = 200, seed: int = 0) -> tuple[np.ndarray, PairData]:
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((20, DIM)).astype(np.float32)
    helped, helper = rng.integers(0, 20, num_pairs), rng.integers(0, 20, num_pairs)
    utility = LABEL_MEAN + LABEL_SIZE * np.tanh(e[helped, 0] + e[helper, 1])
    return e, PairData(helped, helper, utility.astype(np.float32))


def part(data: PairData, start: int, stop: int) -> PairData:
    return PairData(
        data.helped_pos[start:stop], data.helper_pos[start:stop], data.utility[start:stop]
    )


def predict(network: InfluenceNetwork, e: np.ndarray, data: PairData) -> np.ndarray:
    with torch.no_grad():
        t = torch.from_numpy(e)
        return network(t[data.helped_pos], t[data.helper_pos]).numpy()


def fit(
    config: TrainingConfig = FAST, **options: Any
) -> tuple[InfluenceNetwork, list[EpochRecord], np.ndarray, PairData]:
    e, data = make_data()
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    held_out = part(data, 150, 200)
    history = train_network(network, e, e, part(data, 0, 150), held_out, config, **options)
    return network, history, e, held_out


def held_out_mse(network: InfluenceNetwork, e: np.ndarray, held_out: PairData) -> float:
    return float(np.mean((predict(network, e, held_out) - held_out.utility) ** 2))


def test_network_learns_and_answers_in_the_raw_unit_of_the_labels() -> None:
    network, history, e, held_out = fit()
    error = held_out_mse(network, e, held_out)
    assert error < 0.3 * held_out.utility.var()
    assert error == pytest.approx(min(r.validation_loss for r in history), rel=1e-3)


def test_early_stop_restores_the_best_held_out_weights() -> None:
    """Published error 7: stopping on anything but the held-out loss."""
    e, data = make_data(40)
    rng = np.random.default_rng(1)
    noise = PairData(data.helped_pos, data.helper_pos, rng.standard_normal(40).astype(np.float32))
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    config = TrainingConfig(num_epochs=200, batch_size=4, learning_rate=1e-2, patience=3)
    history = train_network(network, e, e, part(noise, 0, 20), part(noise, 20, 40), config)
    losses = [r.validation_loss for r in history]
    assert len(history) == int(np.argmin(losses)) + 1 + config.patience
    assert held_out_mse(network, e, part(noise, 20, 40)) == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < losses[-1]


def test_without_early_stop_the_last_weights_are_kept_and_held_out_loss_is_still_measured() -> None:
    e, data = make_data(40)
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    held_out = part(data, 20, 40)
    noise = np.random.default_rng(1).standard_normal(20).astype(np.float32)
    pairs = PairData(data.helped_pos[:20], data.helper_pos[:20], noise)
    config = TrainingConfig(num_epochs=30, batch_size=4, learning_rate=1e-2, patience=1)
    history = train_network(network, e, e, pairs, held_out, config, early_stop=False)
    assert len(history) == config.num_epochs
    last = history[-1].validation_loss
    assert last > min(r.validation_loss for r in history)
    assert held_out_mse(network, e, held_out) == pytest.approx(last, rel=1e-3)


def grid_folds(rows: int, columns: int, same: bool, seed: int = 0) -> tuple[np.ndarray, ...]:
    helped, helper = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
    folds = unseen_folds(helped, helper, same_examples=same, num_folds=5, seed=seed)
    return helped, helper, np.array(folds)


@pytest.mark.parametrize(("rows", "columns", "same"), [(23, 11, False), (12, 12, True)])
def test_folds_deal_every_example_once_and_hold_out_each_pair_that_touches_theirs(
    rows: int, columns: int, same: bool
) -> None:
    """Each pair is held out for its row or its column; neither is left to train on then."""
    helped, helper, folds = grid_folds(rows, columns, same)
    out_rows = [set(range(rows)) - set(helped[~mask]) for mask in folds]
    out_columns = [set(range(columns)) - set(helper[~mask]) for mask in folds]
    assert sorted(row for fold in out_rows for row in fold) == list(range(rows))
    assert sorted(column for fold in out_columns for column in fold) == list(range(columns))
    for mask, unseen_rows, unseen_columns in zip(folds, out_rows, out_columns, strict=True):
        touches = np.isin(helped, list(unseen_rows)) | np.isin(helper, list(unseen_columns))
        np.testing.assert_array_equal(mask, touches)
        assert not same or unseen_rows == unseen_columns


@pytest.mark.parametrize(
    ("rows", "columns", "same"), [(2, 2, True), (2, 2, False), (1, 40, False), (40, 4, False)]
)
def test_too_few_examples_make_no_fold(rows: int, columns: int, same: bool) -> None:
    assert len(grid_folds(rows, columns, same)[2]) == 0


def test_folds_depend_on_the_seed_alone() -> None:
    one, same, other = (grid_folds(20, 20, False, seed)[2] for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_same_seed_gives_the_same_bits_and_another_seed_other_weights() -> None:
    (one, *_), (same, *_) = fit(), fit()
    other, *_ = fit(TrainingConfig(num_epochs=8, batch_size=16, learning_rate=1e-2, seed=5))
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    assert not torch.equal(one.hidden.weight, other.hidden.weight)


class ThreadedMean:
    """Averages gradients over threads that play the workers of a cluster."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=60)
        self.world, self.slots = world, [None] * world

    def of(self, rank: int) -> Callable[[list[torch.nn.Parameter]], None]:
        def reduce(parameters: list[torch.nn.Parameter]) -> None:
            self.slots[rank] = [p.grad.clone() for p in parameters]
            self.barrier.wait()
            means = [sum(grads) / self.world for grads in zip(*self.slots, strict=True)]
            self.barrier.wait()
            for p, mean in zip(parameters, means, strict=True):
                p.grad.copy_(mean)

        return reduce


@pytest.mark.parametrize("world", [2, 3])
def test_several_workers_train_the_network_of_one(world: int) -> None:
    single, history, e, held_out = fit(FAST)
    mean, results = ThreadedMean(world), [None] * world

    def work(rank: int) -> None:
        results[rank] = fit(FAST, reduce_gradients=mean.of(rank), shard=(rank, world))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for network, records, *_ in results:
        np.testing.assert_allclose(
            predict(network, e, held_out), predict(single, e, held_out), atol=WORKER_TOLERANCE
        )
        losses = [r.train_loss for r in records]
        np.testing.assert_allclose(losses, [r.train_loss for r in history], rtol=1e-3)
        assert [r.validation_loss for r in records] == [r.validation_loss for r in results[0][1]]


def test_raw_labels_are_learnt_as_they_are_where_the_recipe_asks_for_it() -> None:
    """As the paper trains: its first loss is that of a fresh network in the labels' own unit."""
    e, data = make_data()
    raw = dataclasses.replace(FAST, num_epochs=1, learning_rate=1e-9, standardise=False)
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    before = np.mean((predict(network, e, data) - data.utility) ** 2)
    history = train_network(network, e, e, data, part(data, 0, 9), raw)
    assert history[0].train_loss == pytest.approx(before, rel=1e-3)


class ConcatenatedNetwork(InfluenceNetwork):
    """Forms [e_i ; 0 ; e_j] of every pair of a batch, as the paper writes it."""

    def forward_pairs(
        self,
        helped_UD: torch.Tensor,
        helped_pos_B: torch.Tensor,
        helper_VD: torch.Tensor | None = None,
        helper_pos_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self(helped_UD[helped_pos_B], helper_VD[helper_pos_B])


def test_factored_training_is_that_of_the_concatenated_network() -> None:
    e, data = make_data()
    ours, papers = InfluenceNetwork(DIM, HIDDEN, seed=1), ConcatenatedNetwork(DIM, HIDDEN, seed=1)
    histories = [train_network(n, e, e, data, part(data, 0, 50), FAST) for n in (ours, papers)]
    losses = [[record.train_loss for record in history] for history in histories]
    np.testing.assert_allclose(*losses, rtol=TRAJECTORY_TOLERANCE)
    for one, other in zip(ours.parameters(), papers.parameters(), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.detach(), other.detach(), atol=1e-4)


def test_gradients_are_those_of_the_concatenated_network() -> None:
    e, data = make_data()
    t, i, j = torch.from_numpy(e), *map(torch.from_numpy, (data.helped_pos, data.helper_pos))
    ours, papers = InfluenceNetwork(DIM, HIDDEN, seed=1), InfluenceNetwork(DIM, HIDDEN, seed=1)
    ours.forward_pairs(t, i, t, j).square().sum().backward()
    papers(t[i], t[j]).square().sum().backward()
    for one, other in zip(ours.parameters(), papers.parameters(), strict=True):
        np.testing.assert_allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_no_array_holds_a_row_of_inputs_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def forward_pairs(self: InfluenceNetwork, *given: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(given[0]), len(given[2]))
        return original(self, *given)

    original = InfluenceNetwork.forward_pairs
    monkeypatch.setattr(InfluenceNetwork, "forward_pairs", forward_pairs)
    e, data = make_data(num_pairs=2000)
    large = TrainingConfig(num_epochs=1, batch_size=1000)
    train_network(InfluenceNetwork(DIM, HIDDEN, seed=1), e, e, data, part(data, 0, 900), large)
    assert largest == len(e)  # examples, however many pairs


def test_labels_that_do_not_vary_make_a_constant_network() -> None:
    e, data = make_data(30)
    constant = PairData(data.helped_pos, data.helper_pos, np.full(30, 0.1, np.float32))
    network = InfluenceNetwork(DIM, HIDDEN, seed=1)
    train_network(network, e, e, constant, part(constant, 0, 5), FAST)
    assert (predict(network, e, data) == np.float32(0.1)).all()


def test_without_held_out_pairs_all_epochs_run_and_the_loss_is_unknown() -> None:
    e, data = make_data(30)
    history = train_network(
        InfluenceNetwork(DIM, HIDDEN, seed=1), e, e, data, part(data, 0, 0), FAST
    )
    assert len(history) == FAST.num_epochs
    assert all(np.isnan(r.validation_loss) for r in history)


def test_pointwise_network_trains_without_helpers() -> None:
    e, data = make_data()
    points = PairData(data.helped_pos, None, e[data.helped_pos, 0])
    network = InfluenceNetwork(DIM, HIDDEN, pointwise=True, seed=1)
    history = train_network(network, e, None, points, points, FAST)
    assert history[-1].validation_loss < 0.3 * points.utility.var()


def test_number_of_torch_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    fit(TrainingConfig(num_epochs=1, num_threads=before + 1))
    assert torch.get_num_threads() == before


def test_a_utility_that_is_not_finite_is_named() -> None:
    e, data = make_data(10)
    data.utility[4] = np.nan
    with pytest.raises(ValueError, match="training: utility of pair 4 is not finite"):
        train_network(InfluenceNetwork(DIM, HIDDEN), e, e, data, part(data, 0, 0), FAST)


def test_positions_of_another_table_are_refused() -> None:
    """Published error 5: the indices of one set applied to the other."""
    e, data = make_data(10)
    with pytest.raises(ValueError, match="names helper"):
        train_network(InfluenceNetwork(DIM, HIDDEN), e, e[:1], data, part(data, 0, 0), FAST)


def test_workers_without_a_way_to_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="need reduce_gradients"):
        fit(shard=(0, 2))


def test_no_training_pair_is_refused() -> None:
    e, data = make_data(10)
    with pytest.raises(ValueError, match="no training pair"):
        train_network(InfluenceNetwork(DIM, HIDDEN), e, e, part(data, 0, 0), data, FAST)


def test_embeddings_of_another_length_are_refused() -> None:
    e, data = make_data(10)
    with pytest.raises(ShapeError, match="the network reads 7"):
        train_network(InfluenceNetwork(7, HIDDEN), e, e, data, part(data, 0, 0), FAST)


def test_folds_of_single_examples_hold_each_out_once() -> None:
    rows = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    masks = unseen_folds(rows, None, same_examples=False, num_folds=4, seed=0)
    assert np.sum(masks, axis=0).tolist() == [1] * len(rows)
    assert all(mask[1] == mask[3] for mask in masks)  # both are example 1


def test_fewer_examples_than_folds_make_none() -> None:
    assert unseen_folds(np.arange(3), None, same_examples=False, num_folds=4, seed=0) == []
