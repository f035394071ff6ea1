"""The labels of one block with the embeddings they name, as training reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.core.network.sampling import TRAIN
from nncift_ray.core.network.training import PairData
from nncift_ray.errors import StageError
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import POINTS, helped_role


@dataclass(frozen=True)
class BlockLabels:
    """The labelled pairs of one block with the embeddings they name.

    Labels of a pointwise teacher have no helpers; each then speaks of its helped example alone.
    """

    helped_ED: np.ndarray
    helper_ED: np.ndarray | None
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

    def pairs(self, split: str) -> PairData:
        """Return the pairs of a split."""
        return self.pairs_at(self.split == split)

    def pairs_at(self, at: np.ndarray) -> PairData:
        """Return the pairs of a mask [P]."""
        helper_pos = None if self.helper_pos is None else self.helper_pos[at]
        return PairData(self.helped_pos[at], helper_pos, self.utility[at])


def read_block_labels(labels: StageOutput, embeddings: StageOutput, block: str) -> BlockLabels:
    """Read the labels of a block and the embeddings of the examples they name.

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
        helper_ED = _vectors(embeddings, "candidates", helper_rows)
    return BlockLabels(
        helped_ED=_vectors(embeddings, f"{helped_role(block)}s", helped_rows),
        helper_ED=helper_ED,
        helped_pos=helped_pos,
        helper_pos=helper_pos,
        helped_index=helped,
        helper_index=helper,
        split=split,
        utility=table["utility"].to_numpy(),
    )


def _vectors(embeddings: StageOutput, table: str, rows: np.ndarray) -> np.ndarray:
    return column_matrix(embeddings.take_rows(table, rows, ["embedding"])["embedding"])
