"""What is compared: the paper's way, ours, and each option on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.training_options.matrix import LabelMatrix
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network.network import InfluenceNetwork
from nncift_ray.network.step import (
    BlockLabels,
    BlockTraining,
    FittedBlock,
    fit_block,
    score_labelled,
    spread_of_members,
    train_block,
)
from nncift_ray.network.training import TrainingConfig, fit_row_offsets
from nncift_ray.runtime.schemas import CROSS

RANK = 8  # of the interaction term
MEMBERS = 5

#: Steps of the benchmark: larger than a recipe's, and as many epochs as folds ask for.
BENCHMARK = BlockTraining(
    100, TrainingConfig(num_epochs=20, batch_size=512, learning_rate=2e-3), min_steps=450
)


@dataclass(frozen=True)
class Prediction:
    """What a variant says of all pairs, and how far its members differ (None of one network)."""

    influence: np.ndarray
    spread: np.ndarray | None = None


Variant = Callable[[LabelMatrix, BlockLabels, int], Prediction]


class InteractionNetwork(InfluenceNetwork):
    """The InfluenceNetwork plus u_i . v_j of rank 8: bilinear in the embeddings, and factorable."""

    def __init__(self, dim: int, num_hidden: int, pointwise: bool, *, seed: int) -> None:
        """Make an untrained network whose interaction starts near 0."""
        super().__init__(dim, num_hidden, pointwise, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        u, v = (0.3 * torch.randn(dim, RANK, generator=generator) for _ in range(2))
        self.u_DR, self.v_DR = nn.Parameter(u), nn.Parameter(v)

    def forward_pairs(
        self,
        helped_UD: Tensor,
        helped_pos_B: Tensor,
        helper_VD: Tensor | None = None,
        helper_pos_B: Tensor | None = None,
    ) -> Tensor:
        """Return the influence [B] of pairs given by positions."""
        score_B = super().forward_pairs(helped_UD, helped_pos_B, helper_VD, helper_pos_B)
        left, right = helped_UD @ self.u_DR, helper_VD @ self.v_DR
        return score_B + (left[helped_pos_B] * right[helper_pos_B]).sum(dim=1)

    @torch.no_grad()
    def rescale(self, mean: float, scale: float) -> None:
        """Make the network answer mean + scale times what it answers now."""
        super().rescale(mean, scale)
        self.u_DR.mul_(scale)


def fit_with(**changes: object) -> Variant:
    """Return a variant of the product's own training with some settings changed."""

    def fit(matrix: LabelMatrix, data: BlockLabels, seed: int) -> Prediction:
        fitted = _train(data, seed, changes)
        return Prediction(score_labelled(fitted.network, data), spread_of_members(fitted, data))

    return fit


def fit_lengths(matrix: LabelMatrix, data: BlockLabels, seed: int) -> Prediction:
    """Train on embeddings with two lengths appended."""
    longer = matrix.with_lengths()
    data = dataclasses.replace(data, helped_ED=longer.helped_ID, helper_ED=longer.helper_JD)
    return Prediction(score_labelled(_train(data, seed, {}).network, data))


def fit_interaction(matrix: LabelMatrix, data: BlockLabels, seed: int) -> Prediction:
    """Train with a low-rank interaction beside the hidden units."""
    training = dataclasses.replace(BENCHMARK.training, seed=seed)
    dim, hidden = data.helped_ED.shape[1], BENCHMARK.num_hidden
    network, _ = train_block(
        data, CROSS, training, BENCHMARK.min_steps,
        lambda: InteractionNetwork(dim, hidden, pointwise=False, seed=seed),
    )  # fmt: skip
    helped, helper = (torch.from_numpy(e) for e in (data.helped_ED, data.helper_ED))
    rows, columns = (torch.from_numpy(pos) for pos in (data.helped_pos, data.helper_pos))
    with torch.no_grad():
        return Prediction(network.forward_pairs(helped, rows, helper, columns).numpy())


def fit_linear(matrix: LabelMatrix, data: BlockLabels, seed: int) -> Prediction:
    """Fit no network: a ridge regression of row means and one of what columns leave."""
    known = np.isin(data.split, (TRAIN, VALIDATION))
    rows, columns, utility = data.helped_pos[known], data.helper_pos[known], data.utility[known]
    by_row = fit_row_offsets(data.helped_ED, rows, utility)
    by_column = fit_row_offsets(data.helper_ED, columns, utility - by_row.mean_E[rows])
    row_E, column_E = by_row.predict(data.helped_ED), by_column.predict(data.helper_ED)
    return Prediction(row_E[data.helped_pos] + column_E[data.helper_pos])


VARIANTS: dict[str, Variant] = {
    "network": fit_with(),
    "raw labels (paper)": fit_with(standardise=False),
    "centre_rows": fit_with(centre_rows=True),
    "row_order loss": fit_with(loss="row_order"),
    "ensemble of 5": fit_with(ensemble_size=MEMBERS),
    "ensemble of 5, centre_rows": fit_with(ensemble_size=MEMBERS, centre_rows=True),
    "interaction of rank 8": fit_interaction,
    "lengths as inputs": fit_lengths,
    "no network: ridge of rows + of columns": fit_linear,
}


def _train(data: BlockLabels, seed: int, changes: dict[str, object]) -> FittedBlock:
    of_training = {f.name for f in dataclasses.fields(TrainingConfig)}
    settings = BENCHMARK
    for name, value in {"seed": seed, **changes}.items():
        if name in of_training:
            training = dataclasses.replace(settings.training, **{name: value})
            settings = dataclasses.replace(settings, training=training)
        else:
            settings = dataclasses.replace(settings, **{name: value})
    return fit_block(data, CROSS, settings)
