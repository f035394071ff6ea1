"""The networks of a sweep: trained on parts of the labels, in several sizes, and measured."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network.fidelity import fidelity_table
from nncift_ray.network.inputs import ExampleInputs
from nncift_ray.network.step import (
    BlockLabels,
    best_epoch,
    fit_block,
    read_block_labels,
    score_labelled,
)
from nncift_ray.recipe.sections import NetworkConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, fingerprint
from nncift_ray.runtime.schemas import WITHIN
from nncift_ray.runtime.step import Shard, Stage, Worker

Integers = NDArray[np.integer]

CELLS_TABLE = "cells"
#: What of a pair has to be kept for it to mean in the smaller sample what its split says.
_NEEDS_ROW = (TRAIN, VALIDATION, "Q1", "Q3")
_NEEDS_COLUMN = (TRAIN, VALIDATION, "Q1", "Q2")
_PER_PAIR = ("helped_pos", "helper_pos", "helped_index", "helper_index", "split", "utility")


def keep_share(
    helped: Integers,
    helper: Integers | None,
    split: NDArray[np.str_] | NDArray[np.object_],
    share: float,
    *,
    same_examples: bool,
    seed: int,
) -> NDArray[np.bool_]:
    """Return which pairs [P] of a label sample a smaller one keeps.

    A share in (0, 1] of the seen rows and the same share of the seen columns are kept, in one
    random order: a smaller share keeps a part of what a larger one keeps. With ``same_examples``
    rows and columns are one table, and an example has one place in the order. Examples that a
    held-out pair names come first in it, so that small samples can still be measured in every
    quadrant. A held-out pair is kept where it still means what its quadrant says; Q4 is always
    kept whole, and so is the same for every share.

    Raises:
        ValueError: If ``share`` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    axes = [helped] if helper is None else [helped, helper]
    size = 1 + max(int(axis.max(initial=0)) for axis in axes)
    needed = [np.isin(split, _NEEDS_ROW), np.isin(split, _NEEDS_COLUMN)]
    first = np.zeros((len(axes), size), np.bool_)
    for axis, measured in enumerate((("Q1", "Q3"), ("Q1", "Q2"))[: len(axes)]):
        first[axis, axes[axis][np.isin(split, measured)]] = True
    if same_examples:
        first[:] = first.any(axis=0)
    kept = np.ones(len(split), np.bool_)
    for axis, indices in enumerate(axes):
        generator = np.random.default_rng([seed, 0 if same_examples else axis])
        rank = np.empty(size, np.int64)
        rank[np.lexsort((generator.permutation(size), ~first[axis]))] = np.arange(size)
        seen = np.unique(indices[needed[axis]])
        order = seen[np.argsort(rank[seen])]
        chosen = order[: max(1 + same_examples, round(share * len(seen)))]
        kept &= np.isin(indices, chosen) | ~needed[axis]
    return kept


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One network of a sweep."""

    block: str
    fraction: float  # of the rows and of the columns of all pairs
    num_hidden: int
    seed: int  # of the weights and of the order of the pairs


class SweepStage(Stage):
    """Write ``cells``: the fidelity of every network by split, beside the baselines."""

    name: ClassVar[str] = "sweep"
    title: ClassVar[str] = "train networks on parts of the labels"
    produces = {CELLS_TABLE: schemas.SWEEP_CELLS}
    unit: ClassVar[str] = "networks"

    def __init__(
        self,
        labels: StageOutput,
        inputs: ExampleInputs,
        cells: Sequence[Cell],
        network: NetworkConfig,
        labelled: Mapping[str, float],
    ) -> None:
        """Train each cell on its part of the labels.

        Size and seed of a network are its cell's; the rest is as ``network`` says. ``labelled`` is
        by block the fraction that all labels together are.
        """
        self._labels, self._inputs = labels, inputs
        self._cells, self._network, self._labelled = tuple(cells), network, dict(labelled)
        #: Rows of cells that another sweep of the same ``base`` has measured.
        self.known: Mapping[Cell, Sequence[Mapping[str, Any]]] = {}
        self.inputs = {"labels": labels, **inputs.steps}

    @property
    def base(self) -> str:
        """The fingerprint of what all cells share: a cell of the same base has the same rows."""
        inputs = {name: output.fingerprint for name, output in self.inputs.items()}
        return fingerprint(self.name, self.version, self._training_settings(), inputs)

    def _training_settings(self) -> dict[str, Any]:
        return self._network.model_dump(mode="json", exclude={"num_hidden", "num_workers", "seed"})

    def settings(self) -> dict[str, Any]:
        """The cells and how they are trained."""
        cells = [dataclasses.asdict(cell) for cell in self._cells]
        return {"cells": cells, "training": self._training_settings()}

    def num_items(self) -> int:
        """Cells."""
        return len(self._cells)

    def make_worker(self) -> Worker:
        """Return what trains a run of cells."""
        base = self.base

        @functools.cache
        def read(block: str) -> BlockLabels:
            return read_block_labels(self._labels, self._inputs, block, self._network.seed)

        def train_cells(shard: Shard, sink: Sink) -> None:
            for cell in self._cells[shard.start : shard.stop]:
                rows = self.known.get(cell)
                if rows is None:
                    share = min(1.0, cell.fraction / self._labelled[cell.block])
                    rows = measure_cell(read(cell.block), cell, share, self._network)
                named = [dict(row) | {"base": base} for row in rows]
                sink.write_rows(CELLS_TABLE, named, schemas.SWEEP_CELLS)

        return train_cells


def measure_cell(
    data: BlockLabels, cell: Cell, share: float, network: NetworkConfig
) -> list[dict[str, Any]]:
    """Train one network on a share of the labels and measure it; one row a split and model.

    Errors are scaled by the range of all labels, the same for every share.
    """
    pairs, same = (data.helped_index, data.helper_index, data.split), cell.block == WITHIN
    mask = keep_share(*pairs, share, same_examples=same, seed=0)
    arrays = {name: getattr(data, name) for name in _PER_PAIR}
    kept = dataclasses.replace(
        data, **{name: array[mask] for name, array in arrays.items() if array is not None}
    )
    started = time.perf_counter()
    size_and_seed = {"num_hidden": cell.num_hidden, "seed": cell.seed}
    fitted = fit_block(kept, cell.block, network.model_copy(update=size_and_seed))
    influence = score_labelled(fitted.network, kept)
    learnt = kept.split == TRAIN
    helped, helper = kept.helped_index, kept.helper_index
    facts = dataclasses.asdict(cell) | {
        "num_train_rows": len(np.unique(helped[learnt])),
        "num_train_columns": 0 if helper is None else len(np.unique(helper[learnt])),
        "num_train_pairs": int(learnt.sum()),
        "num_epochs": best_epoch(fitted.history) if fitted.history else 0,
        "seconds": time.perf_counter() - started,
    }
    width = float(np.ptp(data.utility))
    rows = fidelity_table(
        kept.utility,
        influence,
        kept.split,
        helped,
        helper,
        kept.features(fitted.network),
        cell.seed,
    )

    def scaled(mse: float | None) -> float | None:
        return None if mse is None else mse / width**2 if width > 0 else float("nan")

    return [dataclasses.asdict(row) | facts | {"scaled_mse": scaled(row.mse)} for row in rows]
