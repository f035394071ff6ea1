"""What training reads: ids of pairs, and each example they name once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.errors import StageError
from nncift_ray.network.step import read_block_labels
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.runtime import schemas


class Labels:
    """A labels table in place of a stage's output."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.table = pa.Table.from_pylist(rows, schemas.LABELS)

    def read(self, name: str, schema: pa.Schema) -> pa.Table:
        return self.table


class Embeddings:
    """Vectors that say which row they are of; counts how many were asked for."""

    def __init__(self) -> None:
        self.taken: dict[str, list[int]] = {}

    def num_rows(self, table: str) -> int:
        return 1000

    def take_rows(self, table: str, rows: np.ndarray, columns: list[str]) -> pa.Table:
        self.taken.setdefault(table, rows.tolist())
        vectors = pa.FixedSizeListArray.from_arrays(np.repeat(rows, 3).astype(np.float32), 3)
        return pa.table({columns[0]: vectors})


def label(
    helped: int, helper: int, block: str = "cross", split: str = "train"
) -> dict[str, object]:
    return {"block": block, "helped_index": helped, "helper_index": helper, "split": split,
            "utility": helped - helper}  # fmt: skip


def test_every_named_example_is_loaded_once_however_many_pairs_name_it() -> None:
    embeddings = Embeddings()
    pairs = [(i, j) for i in (70, 7, 700) for j in (5, 50, 55, 9)] * 20
    labels = Labels([label(i, j) for i, j in pairs] + [label(1, 2, "within")])
    data = read_block_labels(labels, ExampleInputs(embeddings), "cross")  # type: ignore[arg-type]
    assert embeddings.taken == {"candidates": [5, 9, 50, 55], "targets": [7, 70, 700]}
    assert data.helped_ED[data.helped_pos, 0].tolist() == [i for i, _ in pairs]
    assert data.helper_ED[data.helper_pos, 0].tolist() == [j for _, j in pairs]


def test_a_block_without_a_training_label_stops() -> None:
    labels = Labels([label(1, 2, split="Q4")])
    with pytest.raises(StageError, match="no label of the block 'cross'"):
        read_block_labels(labels, ExampleInputs(Embeddings()), "cross")  # type: ignore[arg-type]
