"""How the labels of one block become a network: how long to train, on what, and how many members.

Knows no Ray and reads nothing: the fit stage gives it labels, and so can a benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.network.folds import unseen_folds
from nncift_ray.core.network.influence_network import InfluenceNetwork
from nncift_ray.core.network.row_offsets import fit_row_offsets
from nncift_ray.core.network.sampling import TRAIN, VALIDATION
from nncift_ray.core.network.training import (
    EpochRecord,
    PairData,
    ReduceGradients,
    TrainingConfig,
    train_network,
)
from nncift_ray.errors import StageError
from nncift_ray.stages.network.block_labels import BlockLabels
from nncift_ray.storage.schemas import WITHIN

NUM_FOLDS = 5  # of unseen examples; one alone is a few examples and far too noisy
PATIENCE_SHARE = 0.1  # of the epochs a fold may train
MEMBER_SEED_STEP = 1_000_003  # between the members of an ensemble


class Workers(TypedDict):
    """Which worker this is, and how all meet."""

    shard: tuple[int, int]
    reduce_gradients: ReduceGradients | None


@dataclass(frozen=True)
class BlockTraining:
    """What network is trained, and how."""

    num_hidden: int
    training: TrainingConfig
    min_steps: int = 0
    centre_rows: bool = False  # train on what row means leave; a ridge regression adds them back
    ensemble_size: int = 1


@dataclass(frozen=True)
class FittedBlock:
    """The trained members of a block's network, and how training of the first went."""

    members: list[FactoredNetwork]
    history: list[EpochRecord]

    @property
    def network(self) -> FactoredNetwork:
        """The network that answers with the mean of the members."""
        return FactoredNetwork.mean_of(self.members)


def fit_block(
    data: BlockLabels,
    block: str,
    network: BlockTraining,
    *,
    shard: tuple[int, int] = (0, 1),
    reduce_gradients: ReduceGradients | None = None,
) -> FittedBlock:
    """Train the members of one block's network, which differ by their seed alone.

    Raises:
        StageError: If rows are to be centred or ordered, and examples have labels of their own.
    """
    if data.pointwise and (network.centre_rows or network.training.loss == "row_order"):
        raise StageError(
            "the teacher labels examples, not pairs: there are no rows for network.centre_rows and "
            "network.loss row_order; leave both out"
        )
    offsets = None
    if network.centre_rows:
        known = np.isin(data.split, (TRAIN, VALIDATION))
        offsets = fit_row_offsets(data.helped_ED, data.helped_pos[known], data.utility[known])
        centred = data.utility - offsets.mean_E[data.helped_pos]
        data = dataclasses.replace(data, utility=centred.astype(np.float32))

    def maker(seed: int) -> Callable[[], InfluenceNetwork]:
        dim = data.helped_ED.shape[1]
        return lambda: InfluenceNetwork(dim, network.num_hidden, data.pointwise, seed=seed)

    workers: Workers = {"shard": shard, "reduce_gradients": reduce_gradients}
    first = network.training
    training, early_stop = choose_epochs(
        data, block, first, network.min_steps, maker(first.seed), **workers
    )
    trained = [
        _train(
            data, data.pairs(TRAIN), data.pairs(VALIDATION), member, maker(member.seed),
            early_stop=early_stop, **workers,
        )
        for member in _member_settings(training, network.ensemble_size)
    ]  # fmt: skip
    members = [member.factored() for member, _ in trained]
    if offsets is not None:
        members = [m.with_row_term(offsets.weight_D, offsets.bias) for m in members]
    return FittedBlock(members, trained[0][1])


def train_block(
    data: BlockLabels,
    block: str,
    training: TrainingConfig,
    min_steps: int,
    make: Callable[[], InfluenceNetwork],
    *,
    shard: tuple[int, int] = (0, 1),
    reduce_gradients: ReduceGradients | None = None,
) -> tuple[InfluenceNetwork, list[EpochRecord]]:
    """Train one network on a block's labels as they are; ``make`` makes it, each time the same."""
    workers: Workers = {"shard": shard, "reduce_gradients": reduce_gradients}
    training, early_stop = choose_epochs(data, block, training, min_steps, make, **workers)
    return _train(
        data, data.pairs(TRAIN), data.pairs(VALIDATION), training, make,
        early_stop=early_stop, **workers,
    )  # fmt: skip


def choose_epochs(
    data: BlockLabels,
    block: str,
    training: TrainingConfig,
    min_steps: int,
    make: Callable[[], InfluenceNetwork],
    **workers: Unpack[Workers],
) -> tuple[TrainingConfig, bool]:
    """Return how to train on all of a block, and whether its validation pairs stop it.

    A sample too small for ``min_steps`` within its epochs is trained longer, for as many epochs as
    suited examples left out of training; any other, or one of too few examples to leave some out,
    stops on its validation pairs.
    """
    stretched = stretch(training, int((data.split == TRAIN).sum()), min_steps)
    folds = [] if stretched == training else split_unseen(data, block, training.seed)
    if not folds:
        return stretched, True
    patience = max(training.patience, round(PATIENCE_SHARE * stretched.num_epochs))
    trial = dataclasses.replace(stretched, patience=patience)
    best = [
        best_epoch(_train(data, pairs, held_out, trial, make, early_stop=True, **workers)[1])
        for pairs, held_out in folds
    ]
    # Folds differ tenfold, being few examples each: the geometric mean follows the minimum of
    # their mean loss, where a median follows one fold.
    num_epochs = round(float(np.exp(np.mean(np.log(best)))))
    return dataclasses.replace(stretched, num_epochs=num_epochs), False


def _train(
    data: BlockLabels,
    pairs: PairData,
    held_out: PairData,
    training: TrainingConfig,
    make: Callable[[], InfluenceNetwork],
    *,
    early_stop: bool,
    **workers: Unpack[Workers],
) -> tuple[InfluenceNetwork, list[EpochRecord]]:
    network = make()
    history = train_network(
        network, data.helped_ED, data.helper_ED, pairs, held_out, training,
        early_stop=early_stop, **workers,
    )  # fmt: skip
    return network, history


def _member_settings(training: TrainingConfig, size: int) -> list[TrainingConfig]:
    seeds = (training.seed + MEMBER_SEED_STEP * number for number in range(size))
    return [dataclasses.replace(training, seed=seed) for seed in seeds]


def split_unseen(data: BlockLabels, block: str, seed: int) -> list[tuple[PairData, PairData]]:
    """Return (training, held-out) pairs a fold, sharing no row and no column with a held-out one.

    Only training and validation pairs are used: Q1..Q4 measure and must decide nothing. Empty
    where the block has too few examples.
    """
    block_pairs = np.flatnonzero((data.split == TRAIN) | (data.split == VALIDATION))
    masks = unseen_folds(
        data.helped_index[block_pairs],
        None if data.helper_index is None else data.helper_index[block_pairs],
        same_examples=block == WITHIN,
        num_folds=NUM_FOLDS,
        seed=seed,
    )
    return [(data.pairs_at(block_pairs[~mask]), data.pairs_at(block_pairs[mask])) for mask in masks]


def best_epoch(history: list[EpochRecord]) -> int:
    """Return the epoch whose weights were kept."""
    return max(record.epoch for record in history if record.best)


def stretch(training: TrainingConfig, num_pairs: int, min_steps: int) -> TrainingConfig:
    """Allow a small sample more epochs, and as much more patience, to make ``min_steps`` steps.

    The paper's 20 epochs are hundreds of thousands of steps on its samples; on a thousand pairs
    they are three hundred, and the network ends near the mean of the labels.
    """
    steps = training.num_epochs * -(-num_pairs // training.batch_size)
    factor = max(1, -(-min_steps // steps))
    return dataclasses.replace(
        training, num_epochs=training.num_epochs * factor, patience=training.patience * factor
    )
