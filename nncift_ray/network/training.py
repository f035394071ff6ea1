"""Training the InfluenceNetwork: Adam on the squared error, early stop on held-out loss.

Knows no Ray: several workers meet only in `reduce_gradients`. Suffixes: E examples, D embedding,
B pairs of a batch.
Source: NN-CIFT, arXiv 2502.09969, section 3 (Adam, 1e-4, 20 epochs, batches of 64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncift_ray.errors import ShapeError
from nncift_ray.network.network import InfluenceNetwork

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false


@dataclass(frozen=True, slots=True, eq=False)
class PairData:
    """Labelled pairs: positions in the embeddings, and the teacher's utility (raw and signed)."""

    helped_pos: NDArray[np.integer]
    helper_pos: NDArray[np.integer] | None  # None in pointwise data
    utility: NDArray[np.floating]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.utility)


def check_pairs(
    name: str,
    network: InfluenceNetwork,
    helped_ED: NDArray[np.floating],
    helper_ED: NDArray[np.floating] | None,
    pairs: PairData,
) -> None:
    """Raise ShapeError or ValueError, saying which ``name``d pairs do not fit the network."""
    if (helper_ED is None) != network.pointwise or (pairs.helper_pos is None) != network.pointwise:
        msg = f"{name}: helpers are needed by a pairwise network and by no other"
        raise ShapeError(msg)
    bad = np.flatnonzero(~np.isfinite(pairs.utility))
    if len(bad):
        msg = f"{name}: utility of pair {bad[0]} is not finite ({len(bad)} such pairs)"
        raise ValueError(msg)
    for role, positions, embeddings in (
        ("helped", pairs.helped_pos, helped_ED),
        ("helper", pairs.helper_pos, helper_ED),
    ):
        if positions is None or embeddings is None:
            continue
        if embeddings.ndim != 2 or embeddings.shape[1] != network.embedding_dim:
            msg = f"{role} embeddings {embeddings.shape}, the network reads {network.embedding_dim}"
            raise ShapeError(msg)
        if len(positions) != len(pairs):
            msg = f"{name}: {len(positions)} {role} positions for {len(pairs)} utilities"
            raise ShapeError(msg)
        outside = np.flatnonzero((positions < 0) | (positions >= len(embeddings)))
        if len(outside):
            msg = (
                f"{name}: pair {outside[0]} names {role} {positions[outside[0]]},"
                f" there are {len(embeddings)}"
            )
            raise ValueError(msg)


EVALUATION_PAIRS = 65_536  # pairs scored at once outside training: 26 MB at 100 hidden units

ReduceGradients = Callable[[list[torch.nn.Parameter]], None]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; the defaults are the paper's, but for the early stop."""

    num_epochs: int = 20
    """Most passes over the training pairs."""
    batch_size: int = 64
    """Pairs of one step, over all workers together."""
    learning_rate: float = 1e-4
    """Of Adam."""
    patience: int = 5
    """Epochs without a better held-out loss before stopping."""
    seed: int = 0
    """Of the order of the pairs."""
    num_threads: int = 1
    """Torch threads; another number may change the last bits of the weights."""
    standardise: bool = True
    """Whether labels have mean 0 and deviation 1 while learning; the paper's have not."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Mean squared errors of one epoch, in squared label unit."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's batches, while learning
    validation_loss: float  # NaN without held-out pairs
    best: bool  # whether these weights were the best so far


@dataclass(slots=True)
class _Pairs:
    helped_pos: Tensor
    helper_pos: Tensor | None
    label: Tensor  # standardised


def train_network(
    network: InfluenceNetwork,
    helped_ED: NDArray[np.floating],
    helper_ED: NDArray[np.floating] | None,
    pairs: PairData,
    validation: PairData,
    config: TrainingConfig,
    *,
    early_stop: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    reduce_gradients: ReduceGradients | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[EpochRecord]:
    """Train a fresh network in place, restore its best weights and return the history.

    Labels are standardised (by default) by the mean and standard deviation of the training pairs
    while learning, because raw utilities are tiny (DELIFT: 0.03) beside a fresh network's outputs;
    at the end this is folded into the output layer, so that the network answers in the raw unit.
    Training labels that do not vary make a network that answers their one value.
    The best epoch is the one of least mean squared error on `validation`; without held-out pairs,
    or without `early_stop`, the last weights are kept and nothing stops early.

    On n workers each gives the same arguments but its own `shard`, and takes a slice of every
    global batch; its loss is weighted so that the mean of the gradients over workers is the
    gradient of the whole batch. All workers must start from the same weights (`seed` of the
    network) and they end with the same, up to rounding, as one worker would.

    Args:
        network: Untrained network; changed in place.
        helped_ED: Embeddings that `helped_pos` points into.
        helper_ED: Embeddings that `helper_pos` points into (may be the same array); None when
            the network is pointwise.
        pairs: Training pairs.
        validation: Held-out pairs.
        config: How to train.
        early_stop: Whether `validation` decides which weights are kept; if not, it is measured.
        on_epoch: Called after each epoch.
        reduce_gradients: Replaces `.grad` of each given parameter by its mean over the workers.
        shard: (rank, number of workers).

    Returns:
        One record an epoch.

    Raises:
        ValueError: If there is no training pair, a utility is not finite, a position is outside
            the embeddings, the configuration is out of range, or the loss stops being finite.
        ShapeError: If embeddings or pairs do not fit the network.
    """
    _check_config(config, shard, reduce_gradients)
    check_pairs("training", network, helped_ED, helper_ED, pairs)
    check_pairs("validation", network, helped_ED, helper_ED, validation)
    if len(pairs) == 0:
        msg = "there is no training pair: label more pairs or lower validation_fraction"
        raise ValueError(msg)
    mean, scale = _standardisation(pairs.utility) if config.standardise else (0.0, 1.0)
    unit = scale or 1.0
    helped, helper = _tensor(helped_ED), None if helper_ED is None else _tensor(helper_ED)
    train_pairs = _standardised(pairs, mean, unit)
    held_out = _standardised(validation, mean, unit)
    reduce = reduce_gradients or _keep_gradients
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    history: list[EpochRecord] = []
    best_loss, best_state, best_epoch = math.inf, _copy_state(network), 0
    with _torch_threads(config.num_threads):
        for epoch in range(1, config.num_epochs + 1):
            train_loss = _train_epoch(
                network, optimiser, helped, helper, train_pairs, config, generator, reduce, shard,
            )  # fmt: skip
            loss = _mean_over_workers(_evaluate(network, helped, helper, held_out), reduce)
            improved = not early_stop or len(validation) == 0 or loss < best_loss
            if improved:
                best_loss, best_state, best_epoch = loss, _copy_state(network), epoch
            record = EpochRecord(epoch, train_loss * unit**2, loss * unit**2, improved)
            _check_loss(record)
            history.append(record)
            if on_epoch is not None:
                on_epoch(record)
            if epoch - best_epoch >= config.patience:
                break
    network.load_state_dict(best_state)
    network.rescale(mean, scale)
    return history


def _train_epoch(
    network: InfluenceNetwork,
    optimiser: torch.optim.Optimizer,
    helped: Tensor,
    helper: Tensor | None,
    pairs: _Pairs,
    config: TrainingConfig,
    generator: torch.Generator,
    reduce: ReduceGradients,
    shard: tuple[int, int],
) -> float:
    """Take one pass over the pairs in a new random order; return the mean loss over all of them."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = 0.0
    rank, world = shard
    for batch in torch.randperm(len(pairs.label), generator=generator).split(config.batch_size):
        mine = batch[rank::world]
        error = _forward(network, helped, helper, pairs, mine) - pairs.label[mine]
        # The mean over workers of their parts times their number is the loss of the whole batch,
        # also where parts differ in length or are empty.
        loss = error.square().sum() / len(batch) * world
        optimiser.zero_grad()
        loss.backward()
        reduce(parameters)
        optimiser.step()
        total += float(loss.detach()) * len(batch)
    return _mean_over_workers(total / len(pairs.label), reduce)


@torch.no_grad()
def _evaluate(
    network: InfluenceNetwork, helped: Tensor, helper: Tensor | None, pairs: _Pairs
) -> float:
    """Return the mean squared error over all pairs; NaN when there are none."""
    network.eval()
    if len(pairs.label) == 0:
        return math.nan
    total = 0.0
    for batch in torch.arange(len(pairs.label)).split(EVALUATION_PAIRS):
        error = _forward(network, helped, helper, pairs, batch) - pairs.label[batch]
        total += float(error.double().square().sum())
    return total / len(pairs.label)


def _forward(
    network: InfluenceNetwork, helped: Tensor, helper: Tensor | None, pairs: _Pairs, batch: Tensor
) -> Tensor:
    """Predict pairs of a batch, of which each example is projected once if they share any."""
    rows, row_pos = _examples_of(helped, pairs.helped_pos[batch])
    if helper is None or pairs.helper_pos is None:
        return network.forward_pairs(rows, row_pos)
    return network.forward_pairs(rows, row_pos, *_examples_of(helper, pairs.helper_pos[batch]))


def _examples_of(e_ED: Tensor, pos_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings to project, no more than pairs or examples, and each pair's place in them.

    Which examples a batch names twice is not looked for: sorting costs more than it saves.
    """
    if len(pos_B) >= len(e_ED):
        return e_ED, pos_B
    return e_ED.index_select(0, pos_B), torch.arange(len(pos_B))


def _keep_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    del parameters  # one worker: its gradient is the mean


def _mean_over_workers(value: float, reduce: ReduceGradients) -> float:
    """Average a number through the gradients' own channel, so that all workers see the same bits.

    Workers on different processors may round differently; a stop decided apart would hang them.
    """
    carrier = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    carrier.grad = torch.tensor([value], dtype=torch.float64)
    reduce([carrier])
    return float(carrier.grad[0])


def _standardisation(utility: NDArray[np.floating]) -> tuple[float, float]:
    """Return mean and standard deviation, the latter 0 for labels equal but for rounding."""
    labels = utility.astype(np.float64)
    scale = float(labels.std())
    tiny = 1e-7 * max(float(np.abs(labels).max()), np.finfo(np.float32).tiny)
    return float(labels.mean()), scale if scale > tiny else 0.0


def _standardised(pairs: PairData, mean: float, scale: float) -> _Pairs:
    return _Pairs(
        torch.from_numpy(pairs.helped_pos.astype(np.int64)),
        None if pairs.helper_pos is None else torch.from_numpy(pairs.helper_pos.astype(np.int64)),
        torch.from_numpy(((pairs.utility.astype(np.float64) - mean) / scale).astype(np.float32)),
    )


def _copy_state(network: InfluenceNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _tensor(embeddings: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(embeddings, dtype=np.float32, order="C"))


@contextmanager
def _torch_threads(num_threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_config(
    config: TrainingConfig, shard: tuple[int, int], reduce_gradients: ReduceGradients | None
) -> None:
    rank, world = shard
    if not 0 <= rank < world:
        msg = f"shard is (rank, world) with 0 <= rank < world, got {shard}"
        raise ValueError(msg)
    if world > 1 and reduce_gradients is None:
        msg = f"{world} workers need reduce_gradients, or each would train a network of its own"
        raise ValueError(msg)
    counts = (config.num_epochs, config.batch_size, config.patience, config.num_threads)
    if min(counts) < 1 or not config.learning_rate > 0:
        msg = f"epochs, batch, patience and threads must be >= 1, learning rate > 0: {config}"
        raise ValueError(msg)


def _check_loss(record: EpochRecord) -> None:
    if not math.isfinite(record.train_loss):
        msg = f"the loss of epoch {record.epoch} is not finite: lower the learning rate"
        raise ValueError(msg)


# Folds of unseen examples: what decides how long a small sample is trained.


def unseen_folds(
    helped: NDArray[np.integer],
    helper: NDArray[np.integer] | None,
    *,
    same_examples: bool,
    num_folds: int,
    seed: int,
) -> list[NDArray[np.bool_]]:
    """Deal the examples of some pairs into folds and say which pairs each fold holds out.

    A fold holds out every pair that touches one of its rows or columns, so that a network trained
    on the others meets it as it will meet nearly all pairs it scores: with examples it never saw.
    Pairs held out at random share both examples with training and let memorising look like
    learning.

    Args:
        helped: Row of each pair [P], any numbering.
        helper: Column of each pair [P]; the numbering of `helped` where `same_examples`. None in
            pointwise data: the rows alone are dealt.
        same_examples: Rows and columns are one set of examples: each goes to one fold on both axes.
        num_folds: Folds, at least 2.
        seed: Of the deal.

    Returns:
        Held-out mask [P] a fold; none where an axis has fewer examples than folds, or a fold would
        leave nothing to train on or nothing to measure.
    """
    generator = np.random.default_rng(seed)
    axes = [helped] if helper is None else [helped, helper]
    if same_examples:
        axes = [np.concatenate(axes)]
    if min(len(np.unique(axis)) for axis in axes) < num_folds:
        return []
    dealt = np.concatenate([_deal(axis, num_folds, generator) for axis in axes])
    fold_AP = dealt.reshape(-1, len(helped))  # a row of folds for each axis
    masks = [(fold_AP == fold).any(axis=0) for fold in range(num_folds)]
    return [] if any(mask.all() or not mask.any() for mask in masks) else masks


def _deal(
    examples: NDArray[np.integer], num_folds: int, generator: np.random.Generator
) -> NDArray[np.integer]:
    """Return a fold for each entry, the same for equal entries, folds of nearly equal size."""
    distinct, place = np.unique(examples, return_inverse=True)
    return (generator.permutation(len(distinct)) % num_folds)[place]
