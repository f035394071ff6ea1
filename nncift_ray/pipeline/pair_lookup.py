"""Where the influence of single pairs is looked up: scored anew, or read from the labels.

Suffixes: I rows (helped), J columns (helpers), H hidden units, N examples, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.pair_scores import TopKState, top_k_rows, top_k_vector
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import CANDIDATE, helped_role
from nncift_ray.storage.scores import TEACHER_SCORES

TILE_ROWS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class FoundPairs:
    """The best partners of an example, best first, equal influence by smaller index.

    Where both sides are one table the example itself may be among them.
    """

    index: np.ndarray
    influence: np.ndarray
    num_scored: int  # partners that there is an influence for, the example itself left out


class PairLookup(Protocol):
    """Finds an example's best partners in a block."""

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        ...

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        ...


def pair_lookup(outputs: Mapping[str, StageOutput]) -> PairLookup:
    """Return what knows the pairs of a run: its network, or its teacher's labels."""
    if TEACHER_SCORES in outputs:
        return LabelledPairs(outputs["utility"])
    return PredictedPairs(outputs["project"], outputs["fit"])


@dataclass(frozen=True)
class PredictedPairs:
    """Scores pairs from the projected activations, by the kernel that scored the run.

    So they are exact, also where the run kept no lists (``top_k``) or shorter ones. Activations are
    streamed: memory is one tile of them.
    """

    activations: StageOutput
    networks: StageOutput

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        network = read_network(self.networks, block)
        found = score_helpers(self.activations, network, block, row, top)
        return FoundPairs(*found, self._num_others(block, f"{block}_columns"))

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        network = read_network(self.networks, block)
        found = score_helped(self.activations, network, block, column, top)
        return FoundPairs(*found, self._num_others(block, f"{block}_rows"))

    def _num_others(self, block: str, table: str) -> int:
        return self.activations.num_rows(table) - (helped_role(block) == CANDIDATE)


@dataclass(frozen=True)
class LabelledPairs:
    """Reads pairs from the labels of the ``utility`` stage; others are not known.

    Memory: the labels of one example and a batch.
    """

    labels: StageOutput

    def helpers_of(self, block: str, row: int, top: int) -> FoundPairs:
        """Return the columns that help a row most."""
        return self._find(block, "helped_index", row, "helper_index", top)

    def helped_by(self, block: str, column: int, top: int) -> FoundPairs:
        """Return the rows that a column helps most."""
        return self._find(block, "helper_index", column, "helped_index", top)

    def _find(self, block: str, of: str, index: int, partner: str, top: int) -> FoundPairs:
        indices, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for batch in self.labels.iter_batches("labels", ["block", of, partner, "utility"]):
            in_block = pc.equal(batch.column("block"), pa.scalar(block))
            wanted = pc.equal(batch.column(of), pa.scalar(index, pa.int64()))
            here = batch.filter(pc.and_(in_block, wanted))
            indices.append(here.column(partner).to_numpy())
            values.append(here.column("utility").to_numpy())
        index_P, value_P = np.concatenate(indices), np.concatenate(values)
        best = np.lexsort((index_P, -value_P))[:top]
        return FoundPairs(index_P[best], value_P[best], len(index_P))


def score_helpers(
    activations: StageOutput, network: FactoredNetwork, block: str, row: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score one row against all columns of a block; return the best columns and their influence.

    Equal scores stand by smaller column, as in the lists of the run.
    """
    a_1H = column_matrix(
        activations.read_range(f"{block}_rows", row, row + 1, ["activation"])["activation"]
    )
    state: TopKState | None = None
    index, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start, b_JH in _tiles(activations, f"{block}_columns"):
        found = top_k_rows(
            a_1H, b_JH, network.w_H, network.bias, top, column_offset=start, state=state
        )
        state = found.state
        kept = found.index_IK[0] >= 0
        index, score = found.index_IK[0][kept], found.score_IK[0][kept]
    return index, score


def score_helped(
    activations: StageOutput, network: FactoredNetwork, block: str, column: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Score all rows of a block against one column; return the best rows and their influence.

    Equal scores stand by smaller row.
    """
    b_1H = column_matrix(
        activations.read_range(f"{block}_columns", column, column + 1, ["activation"])["activation"]
    )
    index, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start, a_IH in _tiles(activations, f"{block}_rows"):
        score_I = top_k_rows(a_IH, b_1H, network.w_H, network.bias, 1).score_IK[:, 0]
        index = np.r_[index, np.arange(start, start + len(a_IH))]
        place, score = top_k_vector(np.r_[score, score_I], top)
        index = index[place]
    return index, score


def _tiles(activations: StageOutput, table: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, activations [N, H]) of a table, tile by tile."""
    start = 0
    for batch in activations.iter_batches(table, ["activation"], TILE_ROWS):
        tile = pa.Table.from_batches([batch])
        yield start, column_matrix(tile["activation"])
        start += batch.num_rows
