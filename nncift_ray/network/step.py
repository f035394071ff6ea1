"""Fit: make the network of each block from the labels, and measure what it learnt.

The pair network is fitted by least squares, in this process; the paper's is trained, by Ray Train
where the recipe asks for several workers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.errors import StageError
from nncift_ray.labels.sample import TRAIN, VALIDATION, unseen_folds
from nncift_ray.network.factored import FactoredNetwork, Inputs, cosine_network, write_network
from nncift_ray.network.fidelity import PairFeatures, fidelity_table
from nncift_ray.network.network import (
    EpochRecord,
    InfluenceNetwork,
    PairData,
    ReduceGradients,
    TrainingConfig,
    train_network,
)
from nncift_ray.network.pair import fit_pair
from nncift_ray.profiles.blocks import SCALARS, ExampleInputs
from nncift_ray.recipe.sections import COSINE, NetworkConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import StepProgress, describe_steps
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import POINTS, WITHIN, helped_role
from nncift_ray.runtime.session import RayWorkers, average_gradients, train_on_ray
from nncift_ray.runtime.step import Shard, Stage, Worker


@dataclass(frozen=True)
class BlockLabels:
    """The labelled pairs of one block with the inputs of the examples they name.

    Labels of a pointwise teacher have no helpers; each then speaks of its helped example alone.
    """

    helped_ED: np.ndarray
    helper_ED: np.ndarray | None
    sample_ND: np.ndarray  # of examples like those that will be scored
    widths: tuple[int, ...]  # of the embedding and the blocks of a profile
    helped_pos: np.ndarray  # row of helped_ED, per pair
    helper_pos: np.ndarray | None
    helped_index: np.ndarray  # row_index, per pair
    helper_index: np.ndarray | None
    split: np.ndarray
    utility: np.ndarray

    @property
    def pointwise(self) -> bool:
        """Whether examples are labelled, not pairs."""
        return self.helper_index is None

    def features(self, network: FactoredNetwork) -> PairFeatures:
        """Return what the network's rivals are given of the pairs: what it reads itself."""
        helped_ED, helper_ED = self.helped_ED, self.helper_ED
        if network.inputs is not None and helper_ED is not None:
            helped_ED = network.inputs.prepare(helped_ED)
            helper_ED = network.inputs.prepare(helper_ED)
        dim = self.widths[0]
        return PairFeatures(helped_ED, self.helped_pos, helper_ED, self.helper_pos, dim)

    def pairs(self, split: str) -> PairData:
        """Return the pairs of a split."""
        return self.pairs_at(self.split == split)

    def pairs_at(self, at: np.ndarray) -> PairData:
        """Return the pairs of a mask [P]."""
        helper_pos = None if self.helper_pos is None else self.helper_pos[at]
        return PairData(self.helped_pos[at], helper_pos, self.utility[at])


def read_block_labels(
    labels: StageOutput, inputs: ExampleInputs, block: str, seed: int = 0
) -> BlockLabels:
    """Read the labels of a block and the inputs of the examples they name.

    Raises:
        StageError: If no label is left to train on.
    """
    table = labels.read("labels", schema=schemas.LABELS)
    table = table.filter(pc.equal(table["block"], pa.scalar(block)))
    helped = table["helped_index"].to_numpy()
    helper = None if block == POINTS else table["helper_index"].to_numpy()
    split = np.array(table["split"].to_pylist(), dtype=object)
    if not (split == TRAIN).any():
        raise StageError(f"no label of the block '{block}' is left to train on; see label's errors")
    helped_rows, helped_pos = np.unique(helped, return_inverse=True)
    helper_ED = helper_pos = None
    if helper is not None:
        helper_rows, helper_pos = np.unique(helper, return_inverse=True)
        helper_ED = inputs.take("candidates", helper_rows)
    helped_table = f"{helped_role(block)}s"
    helped_ED = inputs.take(helped_table, helped_rows)
    blocks = inputs.block_widths()
    num_scalars = 0 if inputs.profiles is None else len(SCALARS)
    return BlockLabels(
        helped_ED=helped_ED,
        helper_ED=helper_ED,
        sample_ND=_sample(inputs, {helped_table, "candidates"}, seed),
        widths=(helped_ED.shape[1] - sum(blocks) - num_scalars, *blocks),
        helped_pos=helped_pos,
        helper_pos=helper_pos,
        helped_index=helped,
        helper_index=helper,
        split=split,
        utility=table["utility"].to_numpy(),
    )


def _sample(inputs: ExampleInputs, tables: set[str], seed: int) -> np.ndarray:
    """Return the inputs of up to ``SAMPLED`` examples a table."""
    generator, parts = np.random.default_rng(seed), []
    for table in sorted(tables):
        drawn = generator.permutation(inputs.embeddings.num_rows(table))[:SAMPLED]
        parts.append(inputs.take(table, np.sort(drawn)))
    return np.concatenate(parts)


# How the labels of one block become a network: how long to train, and on what.

SAMPLED = 2048  # examples a side that stand for all that will be scored
NUM_FOLDS = 5  # of unseen examples; one alone is a few examples and far too noisy
PATIENCE_SHARE = 0.05  # of the epochs a fold may train


@dataclass(frozen=True)
class FittedBlock:
    """The trained network of a block, and how its training went."""

    network: FactoredNetwork
    history: list[EpochRecord]  # none of a pair network
    weights: Sequence[float] = ()  # of a pair network: of the embedding and of each block


def fit_block(
    data: BlockLabels,
    block: str,
    network: NetworkConfig,
    *,
    shard: tuple[int, int] = (0, 1),
    reduce_gradients: ReduceGradients | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FittedBlock:
    """Return the network of one block, trained on its labels.

    A sample too small for ``min_steps`` within its epochs is trained longer, for as many epochs as
    suited examples left out of training; any other, or one of too few examples to leave some out,
    stops on its validation pairs.

    Args:
        data: The block's labels.
        block: Its name.
        network: Size and training, as the recipe has them.
        shard: (rank, number of workers).
        reduce_gradients: Averages gradients over the workers, where there are several.
        progress: Told behind each epoch how many are done, and how many there may be.
    """
    if is_pair(network, data):
        return fit_pair_block(data, network)
    dim, epochs = data.helped_ED.shape[1], itertools.count(1)

    def on_epoch() -> None:
        if progress is not None:
            progress(next(epochs), most)

    def train(
        pairs: PairData, held_out: PairData, training: TrainingConfig, *, early_stop: bool
    ) -> tuple[InfluenceNetwork, list[EpochRecord]]:
        made = InfluenceNetwork(dim, network.num_hidden, data.pointwise, seed=network.seed)
        history = train_network(
            made, data.helped_ED, data.helper_ED, pairs, held_out, training,
            early_stop=early_stop, shard=shard, reduce_gradients=reduce_gradients,
            on_epoch=on_epoch,
        )  # fmt: skip
        return made, history

    plain = training_config(network)
    training = stretch(plain, int((data.split == TRAIN).sum()), network.min_steps)
    folds = [] if training == plain else split_unseen(data, block, network.seed)
    most = training.num_epochs * (len(folds) + 1)
    if folds:
        patience = max(plain.patience, round(PATIENCE_SHARE * training.num_epochs))
        trial = dataclasses.replace(training, patience=patience)
        best = [best_epoch(train(*fold, trial, early_stop=True)[1]) for fold in folds]
        # Folds differ tenfold, being few examples each: the geometric mean follows the minimum of
        # their mean loss, where a median follows one fold.
        num_epochs = round(float(np.exp(np.mean(np.log(best)))))
        training = dataclasses.replace(training, num_epochs=num_epochs)
    pairs, held_out = data.pairs(TRAIN), data.pairs(VALIDATION)
    trained, history = train(pairs, held_out, training, early_stop=not folds)
    return FittedBlock(trained.factored(), history)


def is_pair(network: NetworkConfig, data: BlockLabels) -> bool:
    """Return whether a block's network is a pair network; a pointwise teacher has no pairs."""
    return network.kind == "pair" and not data.pointwise


def fit_pair_block(data: BlockLabels, network: NetworkConfig) -> FittedBlock:
    """Return the pair network of one block: Q1..Q4 measure and decide nothing."""
    inputs = Inputs.fit(data.sample_ND, data.widths)
    block_pairs = np.flatnonzero((data.split == TRAIN) | (data.split == VALIDATION))
    assert data.helper_ED is not None  # noqa: S101
    assert data.helper_pos is not None  # noqa: S101
    made, weights = fit_pair(
        inputs,
        inputs.prepare(data.helped_ED),
        inputs.prepare(data.helper_ED),
        data.helped_pos[block_pairs],
        data.helper_pos[block_pairs],
        data.utility[block_pairs].astype(np.float64),
        inputs.prepare(data.sample_ND),
        network.num_hidden,
        network.seed,
    )
    return FittedBlock(made, [], weights)


def training_config(network: NetworkConfig) -> TrainingConfig:
    """Return how the recipe says to train."""
    return TrainingConfig(
        num_epochs=network.num_epochs,
        batch_size=network.batch_size,
        learning_rate=network.learning_rate,
        patience=network.patience,
        seed=network.seed,
        standardise=network.standardise,
    )


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


PAIRS_AT_ONCE = 65_536


class FitStage(Stage):
    """Write a network a block, its training history, predictions and fidelity."""

    name: ClassVar[str] = "fit"
    title: ClassVar[str] = "train the network"
    produces = {
        "history": schemas.TRAINING_HISTORY,
        "predictions": schemas.PREDICTIONS,
        "fidelity": schemas.FIDELITY,
    }
    version: ClassVar[int] = 6
    unit: ClassVar[str] = "runs"

    def __init__(
        self,
        labels: StageOutput,
        inputs: ExampleInputs,
        blocks: Sequence[str],
        network: NetworkConfig,
        workers: RayWorkers | None = None,
    ) -> None:
        """Train with Ray Train's workers, or in one process where there are none."""
        self._labels, self._inputs, self._blocks = labels, inputs, tuple(blocks)
        self._network, self._workers = network, workers
        self.hands_over = workers is not None
        self.seed = network.seed
        self.inputs = {"labels": labels, **inputs.steps}

    def settings(self) -> dict[str, Any]:
        """Network and training, the number of workers among it: other sums round otherwise."""
        return {
            "blocks": list(self._blocks),
            "network": self._network.model_dump(mode="json"),
            "stop": {"num_folds": NUM_FOLDS, "patience_share": PATIENCE_SHARE},
        }

    def progress(self, folder: Location) -> str:
        """Say how many epochs are done."""
        return describe_steps(folder)

    def make_worker(self) -> Worker:
        """Return the run."""

        def fit(shard: Shard, sink: Sink) -> None:
            data = {
                block: read_block_labels(self._labels, self._inputs, block, self.seed)
                for block in self._blocks
            }
            if self._workers is None:
                progress = StepProgress(sink.folder)
                fitted = {
                    name: fit_block(each, name, self._network, progress=progress)
                    for name, each in data.items()
                }
            else:
                arguments = (self._labels, self._inputs, self._blocks, self._network)
                train = functools.partial(train_as_one_of_several, *arguments)
                fitted = train_on_ray(train, self._workers)
            for block in self._blocks:
                write_block(sink, block, data[block], fitted[block], self.seed)

        return fit


class CosineStage(Stage):
    """Write a network a block that knows no label: s_ij = max(cosine(e_i, e_j), 0)^2.

    It is the pair network before anything is learnt, without effects and of the embedding alone,
    brought to length 1.
    """

    name: ClassVar[str] = FitStage.name
    title: ClassVar[str] = "compare embeddings"
    produces = FitStage.produces
    unit: ClassVar[str] = FitStage.unit

    def __init__(self, inputs: ExampleInputs, blocks: Sequence[str]) -> None:
        """Compare what a network would read, the embeddings alone."""
        self._inputs, self._blocks = inputs, tuple(blocks)
        self.inputs = {**inputs.steps}

    def settings(self) -> dict[str, Any]:
        """Which blocks there are."""
        return {"blocks": list(self._blocks), "teacher": COSINE}

    def make_worker(self) -> Worker:
        """Return what writes them."""

        def write(shard: Shard, sink: Sink) -> None:
            width = self._inputs.read("candidates", 0, 1).shape[1]
            network = cosine_network(width)
            facts = {"kind": COSINE, "num_inputs": width, "num_hidden": network.num_hidden}
            for block in self._blocks:
                write_network(sink, block, network, {"block": block} | facts)
            for table, schema in self.produces.items():
                sink.write_rows(table, [], schema)

        return write


def train_as_one_of_several(
    labels: StageOutput,
    inputs: ExampleInputs,
    blocks: Sequence[str],
    network: NetworkConfig,
    rank: int,
    num_workers: int,
) -> dict[str, FittedBlock]:
    """Train all blocks as one of Ray Train's workers, which read the labels themselves."""
    reduce_gradients = average_gradients if num_workers > 1 else None
    return {
        block: fit_block(
            read_block_labels(labels, inputs, block, network.seed),
            block,
            network,
            shard=(rank, num_workers),
            reduce_gradients=reduce_gradients,
        )
        for block in blocks
    }


def write_block(sink: Sink, block: str, data: BlockLabels, fitted: FittedBlock, seed: int) -> None:
    """Write what one block's training gave."""
    network = fitted.network
    influence = score_labelled(network, data)
    history = [dataclasses.asdict(record) | {"block": block} for record in fitted.history]
    write_network(
        sink,
        block,
        network,
        {
            "block": block,
            "kind": "paper" if network.inputs is None else "pair",
            "num_inputs": network.num_inputs,
            "num_hidden": network.num_hidden,
            "num_train_pairs": int((data.split == TRAIN).sum()),
        }
        | ({"best_epoch": best_epoch(fitted.history)} if fitted.history else {})
        | ({"weights": list(fitted.weights)} if fitted.weights else {}),
    )
    sink.write_rows("history", history, schemas.TRAINING_HISTORY)
    predictions = {
        "block": [block] * len(influence),
        "helped_index": data.helped_index,
        "helper_index": data.helper_index,
        "split": data.split,
        "utility": data.utility,
        "influence": influence,
    }
    if data.helper_index is None:
        predictions["helper_index"] = pa.nulls(len(influence), pa.int64())
    sink.write("predictions", pa.table(predictions, schema=schemas.PREDICTIONS))
    helped, helper = data.helped_index, data.helper_index
    rows = fidelity_table(
        data.utility, influence, data.split, helped, helper, data.features(network), seed
    )
    fidelity = [dataclasses.asdict(row) | {"block": block} for row in rows]
    sink.write_rows("fidelity", fidelity, schemas.FIDELITY)


def score_labelled(network: FactoredNetwork, data: BlockLabels) -> np.ndarray:
    """Return the network's influence [B] for the labelled pairs, a bounded number at a time."""
    a_EH = network.project_rows(data.helped_ED)
    if data.helper_ED is None or data.helper_pos is None:
        return network.score_points(a_EH)[data.helped_pos]
    b_EH = network.project_columns(data.helper_ED)
    influence = np.empty(len(data.utility), np.float32)
    for start in range(0, len(influence), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        rows_BH, columns_BH = a_EH[data.helped_pos[part]], b_EH[data.helper_pos[part]]
        influence[part] = network.score_pairs(rows_BH, columns_BH)
    return influence
