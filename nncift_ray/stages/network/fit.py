"""Fit: train the InfluenceNetwork of each block on the labels, with Ray Train.

The training itself is ``core.network.training`` and knows no Ray; here it is given workers, and its
result is measured pair by pair against the baselines that say whether anything was learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.network.fidelity import NETWORK, FidelityRow, fidelity_table, spearman
from nncift_ray.core.network.sampling import TRAIN
from nncift_ray.core.network.training import ReduceGradients
from nncift_ray.core.pairs.pair_scores import score_points
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.network.block_labels import BlockLabels, read_block_labels
from nncift_ray.stages.network.block_training import (
    NUM_FOLDS,
    PATIENCE_SHARE,
    BlockTraining,
    FittedBlock,
    best_epoch,
    fit_block,
    train_block,
)
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import write_network
from nncift_ray.storage.output import Sink, StageOutput

__all__ = ["FitJob", "FitStage", "Trainer", "best_epoch", "train_block", "train_here"]

PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True)
class FitJob:
    """All a training worker needs; small, since data are read where they are used."""

    labels: StageOutput
    embeddings: StageOutput
    blocks: tuple[str, ...]
    network: BlockTraining
    num_workers: int = 1  # sums over other numbers of workers round otherwise


Trainer = Callable[[FitJob], Mapping[str, FittedBlock]]


class FitStage(Stage):
    """Write a network a block, its training history, predictions and fidelity."""

    name: ClassVar[str] = "fit"
    version: ClassVar[int] = 3
    placement: ClassVar[Literal["pool", "driver"]] = "driver"
    unit: ClassVar[str] = "runs"

    def __init__(self, job: FitJob, train: Trainer) -> None:
        """Train with ``train``: Ray Train, or ``train_here`` with no Ray at all."""
        self._job, self._train = job, train
        self.seed = job.network.training.seed

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """History, predictions, fidelity."""
        return {
            "history": schemas.TRAINING_HISTORY,
            "predictions": schemas.PREDICTIONS,
            "fidelity": schemas.FIDELITY,
        }

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Labels and embeddings."""
        return {"labels": self._job.labels, "embeddings": self._job.embeddings}

    def settings(self) -> dict[str, Any]:
        """Network and training; not the number of workers."""
        network = dataclasses.asdict(self._job.network)
        network["training"].pop("num_threads")
        return {
            "blocks": list(self._job.blocks),
            "network": network,
            "num_workers": self._job.num_workers,
            "stop": {"num_folds": NUM_FOLDS, "patience_share": PATIENCE_SHARE},
        }

    def num_items(self) -> int:
        """One run trains all blocks: starting workers costs more than training."""
        return 1

    def make_worker(self) -> Worker:
        """Return the run."""

        def fit(shard: Shard, sink: Sink) -> None:
            fitted = self._train(self._job)
            for block in self._job.blocks:
                write_block(
                    sink,
                    block,
                    read_block_labels(self._job.labels, self._job.embeddings, block),
                    fitted[block],
                    self.seed,
                )

        return fit


def train_here(
    job: FitJob,
    *,
    shard: tuple[int, int] = (0, 1),
    reduce_gradients: ReduceGradients | None = None,
) -> dict[str, FittedBlock]:
    """Train all blocks in this process, as worker ``shard`` = (rank, number of workers)."""
    return {
        block: fit_block(
            read_block_labels(job.labels, job.embeddings, block),
            block,
            job.network,
            shard=shard,
            reduce_gradients=reduce_gradients,
        )
        for block in job.blocks
    }


def write_block(sink: Sink, block: str, data: BlockLabels, fitted: FittedBlock, seed: int) -> None:
    """Write what one block's training gave."""
    network = fitted.network
    influence = score_labelled(network, data)
    spread = spread_of_members(fitted, data)
    history = [dataclasses.asdict(record) | {"block": block} for record in fitted.history]
    write_network(
        sink,
        block,
        network,
        {
            "block": block,
            "input": "[e]" if data.pointwise else "[e_helped ; 0 ; e_helper]",
            "embedding_dim": int(data.helped_ED.shape[1]),
            "num_hidden": len(network.w_H),
            "num_members": len(fitted.members),
            "num_train_pairs": int((data.split == TRAIN).sum()),
            "best_epoch": best_epoch(fitted.history),
        },
    )
    sink.write_rows("history", history, schemas.TRAINING_HISTORY)
    sink.write("predictions", _predictions(block, data, influence, spread))
    rows = fidelity_table(
        data.utility, influence, data.split, data.helped_index, data.helper_index, seed
    )
    fidelity = [
        row.flat()
        | {"block": block, "spread_spearman": _spread_spearman(row, data, influence, spread)}
        for row in rows
    ]
    sink.write_rows("fidelity", fidelity, schemas.FIDELITY)


def spread_of_members(fitted: FittedBlock, data: BlockLabels) -> np.ndarray | None:
    """Return how far an ensemble's members differ [B]: their standard deviation; None of one."""
    if len(fitted.members) < 2:
        return None
    return np.std([score_labelled(member, data) for member in fitted.members], axis=0)


def _spread_spearman(
    row: FidelityRow, data: BlockLabels, influence: np.ndarray, spread: np.ndarray | None
) -> float | None:
    """Return how well the spread of the members ranks the errors of their mean on a split."""
    if spread is None or row.model != NETWORK:
        return None
    at = data.split == row.split
    return spearman(np.abs(data.utility[at] - influence[at]), spread[at])


def score_labelled(network: FactoredNetwork, data: BlockLabels) -> np.ndarray:
    """Return the network's influence [B] for the labelled pairs, a bounded number at a time."""
    a_EH = network.project_rows(data.helped_ED)
    if data.helper_ED is None or data.helper_pos is None:
        return score_points(a_EH, network.w_H, network.bias)[data.helped_pos]
    b_EH = network.project_columns(data.helper_ED)
    influence = np.empty(len(data.utility), np.float32)
    for start in range(0, len(influence), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        hidden_BH = np.maximum(a_EH[data.helped_pos[part]] + b_EH[data.helper_pos[part]], 0)
        influence[part] = hidden_BH @ network.w_H + network.bias
    return influence


def _predictions(
    block: str, data: BlockLabels, influence: np.ndarray, spread: np.ndarray | None
) -> pa.Table:
    count = len(data.utility)
    return pa.table(
        {
            "block": pa.array([block] * count, pa.string()),
            "helped_index": pa.array(data.helped_index, pa.int64()),
            "helper_index": pa.nulls(count, pa.int64())
            if data.helper_index is None
            else pa.array(data.helper_index, pa.int64()),
            "split": pa.array(data.split, pa.string()),
            "utility": pa.array(data.utility, pa.float32()),
            "influence": pa.array(influence, pa.float32()),
            "spread": pa.nulls(count, pa.float32())
            if spread is None
            else pa.array(spread, pa.float32()),
        },
        schema=schemas.PREDICTIONS,
    )
