"""Retrieve: the examples of a subset that a held-out question is shown with.

Prompts are compared with prompts: the answer of a held-out row is never looked at. All candidates'
prompts are embedded once, for all subsets (``embed_prompts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.models.nearest import Nearest, NearestVectors
from nncift_ray.stages.driving.atoms import RowAtoms, RowStage
from nncift_ray.stages.driving.stage import Shard, Worker
from nncift_ray.stages.evaluation.drawn_rows import read_drawn
from nncift_ray.stages.evaluation.subsets import members_digest
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink, StageOutput

#: Questions that are searched for together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024
DRAWN = "rows"
COLUMNS = ["example_id", "embedding"]


class RetrieveStage(RowStage):
    """Write ``contexts``: the nearest members of a subset for each drawn row of a test set."""

    name: ClassVar[str] = "retrieve"

    def __init__(
        self,
        candidates: StageOutput,
        members: NDArray[np.int64],
        tests: StageOutput,
        *,
        num_examples: int,
        table: str = "targets",
        max_rows: int | None = None,
        seed: int = 0,
        shard_rows: int | None = None,
    ) -> None:
        """Find examples for a test set.

        Args:
            candidates: Output of an embed_prompts stage: all candidates, whatever the subset.
            members: The subset: row numbers of candidates, sorted.
            tests: Output of an embed_prompts stage for the test set.
            num_examples: Examples of each question; a smaller subset gives what there is.
            table: The test set's table.
            max_rows: Most rows of the test set, drawn with ``seed``; None: all.
            seed: Of the draw.
            shard_rows: Rows a shard.

        Raises:
            ValueError: If the subset is empty.
        """
        if not len(members):
            raise ValueError("there is no example to retrieve: the subset is empty")
        self._candidates, self._members = candidates, np.asarray(members, dtype=np.int64)
        self._tests, self._table = tests, table
        self._num_examples, self._max_rows, self.seed = num_examples, max_rows, seed
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._rows = draw_test_rows(tests.num_rows(table), max_rows, seed)
        self._atoms = RowAtoms(((DRAWN, len(self._rows)),), ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Contexts."""
        return {"contexts": evaluation_schemas.CONTEXTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The vectors of candidates and test set."""
        return {"candidates": self._candidates, "tests": self._tests}

    def settings(self) -> dict[str, Any]:
        """Subset and draw."""
        return {
            "members": members_digest(self._candidates, self._members),
            "num_examples": self._num_examples,
            "table": self._table,
            "max_rows": self._max_rows,
            "seed": self.seed,
            "atom_rows": ATOM_ROWS,
        }

    def make_worker(self) -> Worker:
        """Index the subset.

        Memory: 8 bytes for each number of its vectors.
        """
        subset = self._candidates.take_rows("candidates", self._members, COLUMNS)
        ids = cast("list[str]", subset["example_id"].to_pylist())
        num_threads = max(1, int(self.resources.num_cpus))
        nearest = NearestVectors(column_matrix(subset["embedding"]), ids, num_threads=num_threads)

        def retrieve_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                numbers = self._rows[span.start : span.stop]
                rows = read_drawn(self._tests, self._table, numbers, ["embedding"])
                found = nearest.search(column_matrix(rows["embedding"]), self._num_examples)
                sink.write("contexts", contexts_table(numbers, self._members, found))

        return retrieve_shard


def contexts_table(rows: NDArray[np.int64], members: NDArray[np.int64], found: Nearest) -> pa.Table:
    """Write the examples of some rows."""
    member_IK = members[found.place_IK].astype(np.int32)
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_index": pa.array(list(member_IK), pa.list_(pa.int32())),
            "cosine": pa.array(list(found.cosine_IK), pa.list_(pa.float32())),
        },
        schema=evaluation_schemas.CONTEXTS,
    )
