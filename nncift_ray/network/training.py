"""Training the InfluenceNetwork: Adam on the squared error, early stop on held-out loss.

Knows no Ray: several workers meet only in `reduce_gradients`. Suffixes: E examples, D embedding,
B pairs of a batch.
Source: NN-CIFT, arXiv 2502.09969, section 3 (Adam, 1e-4, 20 epochs, batches of 64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
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

Integers = NDArray[np.integer]
Floats = NDArray[np.floating]
ReduceGradients = Callable[[list[torch.nn.Parameter]], None]

EVALUATION_PAIRS = 65_536  # pairs scored at once outside training: 26 MB at 100 hidden units


@dataclass(frozen=True, slots=True, eq=False)
class PairData:
    """Labelled pairs: positions in the embeddings, and the teacher's utility (raw and signed)."""

    helped_pos: Integers
    helper_pos: Integers | None  # None in pointwise data
    utility: Floats

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.utility)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; the defaults are the paper's, but for the early stop."""

    num_epochs: int = 20  # most passes over the training pairs
    batch_size: int = 64  # pairs of one step, over all workers together
    learning_rate: float = 1e-4  # of Adam
    patience: int = 5  # epochs without a better held-out loss before stopping
    seed: int = 0  # of the order of the pairs
    num_threads: int = 1  # of torch; another number may change the last bits of the weights
    #: Whether labels have mean 0 and deviation 1 while learning; the paper's have not.
    standardise: bool = True


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Mean squared errors of one epoch, in squared label unit."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's batches, while learning
    validation_loss: float  # NaN without held-out pairs
    best: bool  # whether these weights were the best so far


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs as torch reads them, with the embeddings they name."""

    helped_ED: Tensor
    helper_ED: Tensor | None
    helped_pos: Tensor
    helper_pos: Tensor | None
    label: Tensor  # standardised


def train_network(
    network: InfluenceNetwork,
    helped_ED: Floats,
    helper_ED: Floats | None,
    pairs: PairData,
    validation: PairData,
    config: TrainingConfig,
    *,
    early_stop: bool = True,
    reduce_gradients: ReduceGradients | None = None,
    shard: tuple[int, int] = (0, 1),
    on_epoch: Callable[[], None] = lambda: None,
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
        reduce_gradients: Replaces `.grad` of each given parameter by its mean over the workers.
        shard: (rank, number of workers).
        on_epoch: Called behind every epoch.

    Raises:
        ValueError: If there is no training pair, a utility is not finite, a position is outside
            the embeddings, the configuration is out of range, or the loss stops being finite.
        ShapeError: If embeddings or pairs do not fit the network.
    """
    _check_config(config, shard, reduce_gradients)
    _check_pairs("training", network, helped_ED, helper_ED, pairs)
    _check_pairs("validation", network, helped_ED, helper_ED, validation)
    if len(pairs) == 0:
        raise ValueError("there is no training pair: label more pairs or lower validation_fraction")
    mean, scale = _standardisation(pairs.utility) if config.standardise else (0.0, 1.0)
    unit = scale or 1.0
    helped, helper = _tensor(helped_ED), None if helper_ED is None else _tensor(helper_ED)
    train_pairs, held_out = (
        _Pairs(
            helped,
            helper,
            torch.from_numpy(data.helped_pos.astype(np.int64)),
            None if data.helper_pos is None else torch.from_numpy(data.helper_pos.astype(np.int64)),
            _tensor((data.utility.astype(np.float64) - mean) / unit),
        )
        for data in (pairs, validation)
    )
    reduce = reduce_gradients or _keep_gradients
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    history: list[EpochRecord] = []
    best_loss, best_state, best_epoch = math.inf, _copy_state(network), 0
    with _torch_threads(config.num_threads):
        for epoch in range(1, config.num_epochs + 1):
            order = torch.randperm(len(pairs), generator=generator)
            batches = order.split(config.batch_size)
            train_loss = _train_epoch(network, optimiser, train_pairs, batches, reduce, shard)
            loss = _mean_over_workers(_evaluate(network, held_out), reduce)
            improved = not early_stop or len(validation) == 0 or loss < best_loss
            if improved:
                best_loss, best_state, best_epoch = loss, _copy_state(network), epoch
            if not math.isfinite(train_loss):
                raise ValueError(
                    f"the loss of epoch {epoch} is not finite: lower the learning rate"
                )
            history.append(EpochRecord(epoch, train_loss * unit**2, loss * unit**2, improved))
            on_epoch()
            if epoch - best_epoch >= config.patience:
                break
    network.load_state_dict(best_state)
    network.rescale(mean, scale)
    return history


def _check_config(
    config: TrainingConfig, shard: tuple[int, int], reduce_gradients: ReduceGradients | None
) -> None:
    rank, world = shard
    if not 0 <= rank < world:
        raise ValueError(f"shard is (rank, world) with 0 <= rank < world, got {shard}")
    if world > 1 and reduce_gradients is None:
        raise ValueError(
            f"{world} workers need reduce_gradients, or each would train a network of its own"
        )
    counts = (config.num_epochs, config.batch_size, config.patience, config.num_threads)
    if min(counts) < 1 or not config.learning_rate > 0:
        raise ValueError(
            f"epochs, batch, patience and threads must be >= 1, learning rate > 0: {config}"
        )


def _check_pairs(
    name: str,
    network: InfluenceNetwork,
    helped_ED: Floats,
    helper_ED: Floats | None,
    pairs: PairData,
) -> None:
    """Raise ShapeError or ValueError, saying which ``name``d pairs do not fit the network."""
    if (helper_ED is None) != network.pointwise or (pairs.helper_pos is None) != network.pointwise:
        raise ShapeError(f"{name}: helpers are needed by a pairwise network and by no other")
    bad = np.flatnonzero(~np.isfinite(pairs.utility))
    if len(bad):
        raise ValueError(f"{name}: utility of pair {bad[0]} is not finite ({len(bad)} such pairs)")
    for role, pos, e_ED in (
        ("helped", pairs.helped_pos, helped_ED),
        ("helper", pairs.helper_pos, helper_ED),
    ):
        if pos is None or e_ED is None:
            continue
        if e_ED.ndim != 2 or e_ED.shape[1] != network.embedding_dim:
            raise ShapeError(
                f"{role} embeddings {e_ED.shape}, the network reads {network.embedding_dim}"
            )
        if len(pos) != len(pairs):
            raise ShapeError(f"{name}: {len(pos)} {role} positions for {len(pairs)} utilities")
        outside = np.flatnonzero((pos < 0) | (pos >= len(e_ED)))
        if len(outside):
            at = outside[0]
            raise ValueError(f"{name}: pair {at} names {role} {pos[at]}, there are {len(e_ED)}")


def _train_epoch(
    network: InfluenceNetwork,
    optimiser: torch.optim.Optimizer,
    pairs: _Pairs,
    batches: tuple[Tensor, ...],
    reduce: ReduceGradients,
    shard: tuple[int, int],
) -> float:
    """Take one pass over the pairs; return the mean loss over all of them."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = 0.0
    rank, world = shard
    for batch in batches:
        mine = batch[rank::world]
        error = _forward(network, pairs, mine) - pairs.label[mine]
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
def _evaluate(network: InfluenceNetwork, pairs: _Pairs) -> float:
    """Return the mean squared error over all pairs; NaN when there are none."""
    network.eval()
    if len(pairs.label) == 0:
        return math.nan
    total = 0.0
    for batch in torch.arange(len(pairs.label)).split(EVALUATION_PAIRS):
        error = _forward(network, pairs, batch) - pairs.label[batch]
        total += float(error.double().square().sum())
    return total / len(pairs.label)


def _forward(network: InfluenceNetwork, pairs: _Pairs, batch: Tensor) -> Tensor:
    """Predict pairs of a batch, of which each example is projected once if they share any."""
    rows, row_pos = _examples_of(pairs.helped_ED, pairs.helped_pos[batch])
    if pairs.helper_ED is None or pairs.helper_pos is None:
        return network.forward_pairs(rows, row_pos)
    columns, column_pos = _examples_of(pairs.helper_ED, pairs.helper_pos[batch])
    return network.forward_pairs(rows, row_pos, columns, column_pos)


def _examples_of(e_ED: Tensor, pos_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings to project, no more than pairs or examples, and each pair's place in them.

    Which examples a batch names twice is not looked for: sorting costs more than it saves.
    """
    if len(pos_B) >= len(e_ED):
        return e_ED, pos_B
    return e_ED.index_select(0, pos_B), torch.arange(len(pos_B))


def _keep_gradients(parameters: list[torch.nn.Parameter]) -> None:
    del parameters  # one worker: its gradient is the mean


def _mean_over_workers(value: float, reduce: ReduceGradients) -> float:
    """Average a number through the gradients' own channel, so that all workers see the same bits.

    Workers on different processors may round differently; a stop decided apart would hang them.
    """
    carrier = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    carrier.grad = torch.tensor([value], dtype=torch.float64)
    reduce([carrier])
    return float(carrier.grad[0])


def _standardisation(utility: Floats) -> tuple[float, float]:
    """Return mean and standard deviation, the latter 0 for labels equal but for rounding."""
    labels = utility.astype(np.float64)
    scale = float(labels.std())
    tiny = 1e-7 * max(float(np.abs(labels).max()), np.finfo(np.float32).tiny)
    return float(labels.mean()), scale if scale > tiny else 0.0


def _copy_state(network: InfluenceNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


@contextmanager
def _torch_threads(num_threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
