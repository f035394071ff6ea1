"""The InfluenceNetwork: two embeddings in, the influence of one example on the other out; training.

Training is Adam on the squared error with an early stop on held-out loss. It knows no Ray: several
workers meet only in `reduce_gradients`. Suffixes: B pairs of a batch, E examples, U distinct
helped, V distinct helpers, N examples, D embedding, H hidden units.
Source: NN-CIFT, arXiv 2502.09969, section 3 (Adam, 1e-4, 20 epochs, batches of 64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false

Integers = NDArray[np.integer]
Floats = NDArray[np.floating]
ReduceGradients = Callable[[list[torch.nn.Parameter]], None]

EVALUATION_PAIRS = 65_536  # pairs scored at once outside training: 26 MB at 100 hidden units


class FirstLayer(torch.autograd.Function):
    """W_row e_i + W_col e_j + bias of pairs, each distinct example projected once."""

    @staticmethod
    def forward(
        ctx: Any,
        weight_HX: Tensor,
        bias_H: Tensor,
        helped_UD: Tensor,
        helped_pos_B: Tensor,
        helper_VD: Tensor | None,
        helper_pos_B: Tensor | None,
    ) -> Tensor:
        """Return the sums [B, H]."""
        dim = helped_UD.shape[1]
        row_UH = torch.addmm(bias_H, helped_UD, weight_HX[:, :dim].t())
        sum_BH = row_UH.index_select(0, helped_pos_B)
        if helper_VD is not None and helper_pos_B is not None:
            sum_BH += (helper_VD @ weight_HX[:, dim + 1 :].t()).index_select(0, helper_pos_B)
        ctx.save_for_backward(helped_UD, helped_pos_B, helper_VD, helper_pos_B)
        ctx.inputs = weight_HX.shape[1]
        return sum_BH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight and bias; the separator's weights, which never act, 0."""
        (grad_BH,) = grads
        helped_UD, helped_pos_B, helper_VD, helper_pos_B = ctx.saved_tensors
        dim = helped_UD.shape[1]
        grad_HX = grad_BH.new_zeros(grad_BH.shape[1], ctx.inputs)
        sides = [(helped_UD, helped_pos_B, grad_HX[:, :dim])]
        if helper_VD is not None:
            sides.append((helper_VD, helper_pos_B, grad_HX[:, dim + 1 :]))
        for e_ND, pos_B, out_HD in sides:
            grad_NH = grad_BH.new_zeros(len(e_ND), grad_BH.shape[1])
            grad_NH.index_add_(0, pos_B, grad_BH)
            torch.mm(grad_NH.t(), e_ND, out=out_HD)
        return grad_HX, grad_BH.sum(dim=0), None, None, None, None


class InfluenceNetwork(nn.Module):
    """A network of one hidden layer over [e_i ; 0 ; e_j] (pairwise) or [e_i] (pointwise).

    Pairwise: 2D + 1 inputs, H ReLU units, one output: 205,101 parameters at D = 1024, H = 100.
    The output is in the unit of the labels it was trained on.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_hidden: int = 100,
        pointwise: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        """Make an untrained network over embeddings of length D, with H hidden units.

        With ``seed`` the weights come from a generator of their own, so that every worker starts
        the same; None takes torch's global generator.
        """
        super().__init__()
        self.embedding_dim, self.num_hidden, self.pointwise = embedding_dim, num_hidden, pointwise
        num_inputs = embedding_dim if pointwise else 2 * embedding_dim + 1
        self.hidden = nn.Linear(num_inputs, num_hidden)
        self.output = nn.Linear(num_hidden, 1)
        if seed is not None:
            # As torch's own Linear draws: uniform within 1 / sqrt(inputs), biases too.
            generator = torch.Generator().manual_seed(seed)
            for layer in (self.hidden, self.output):
                bound = 1.0 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, helped_BD: Tensor, helper_BD: Tensor | None = None) -> Tensor:
        """Return the influence [B] of each helper on its helped example, as the paper writes it.

        Raises:
            ShapeError: If a pairwise network gets no helpers, or a pointwise one gets some.
        """
        self._check_sides(helper_BD is not None)
        inputs = helped_BD
        if helper_BD is not None:
            separator_B1 = helped_BD.new_zeros(len(helped_BD), 1)
            inputs = torch.cat([helped_BD, separator_B1, helper_BD], dim=1)
        return self._output(self.hidden(inputs))

    def forward_pairs(
        self,
        helped_UD: Tensor,
        helped_pos_B: Tensor,
        helper_VD: Tensor | None = None,
        helper_pos_B: Tensor | None = None,
    ) -> Tensor:
        """Return the influence [B] of pairs given by positions: each distinct example goes once.

        Equal to `forward` on the gathered embeddings, up to rounding, at a fraction of the work
        where pairs share examples. Embeddings get no gradient.

        Raises:
            ShapeError: If a pairwise network gets no helpers, or a pointwise one gets some.
        """
        self._check_sides(helper_VD is not None and helper_pos_B is not None)
        layer = self.hidden
        hidden_BH: Tensor = FirstLayer.apply(
            layer.weight, layer.bias, helped_UD, helped_pos_B, helper_VD, helper_pos_B
        )
        return self._output(hidden_BH)

    def _check_sides(self, has_helpers: bool) -> None:
        if has_helpers == self.pointwise:
            raise ShapeError("a pointwise network reads one embedding, a pairwise network two")

    def _output(self, hidden_BH: Tensor) -> Tensor:
        return self.output(torch.relu(hidden_BH)).squeeze(1)

    @torch.no_grad()
    def rescale(self, mean: float, scale: float) -> None:
        """Make the network answer mean + scale times what it answers now."""
        self.output.weight.mul_(scale)
        self.output.bias.mul_(scale).add_(mean)

    def factored(self) -> FactoredNetwork:
        """Return a copy of the weights cut into row, column and output parts, for scoring."""
        weight, dim = _numpy(self.hidden.weight), self.embedding_dim
        return FactoredNetwork(
            w_row_HD=weight[:, :dim].copy(),
            b_row_H=_numpy(self.hidden.bias),
            w_col_HD=(weight[:, :0] if self.pointwise else weight[:, dim + 1 :]).copy(),
            w_H=_numpy(self.output.weight)[0],
            bias=float(self.output.bias.detach()[0]),
        )


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy."""
    return cast("NDArray[np.float32]", tensor.detach().cpu().numpy().copy())


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
