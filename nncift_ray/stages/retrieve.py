"""Retrieve: the examples of a subset that a held-out question is shown with.

Prompts are compared with prompts: the answer of a held-out row is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.errors import StageError
from nncift_ray.models.embedded import ResolvedModel
from nncift_ray.models.embedder import F32, Embedder
from nncift_ray.models.nearest import NearestVectors
from nncift_ray.stages.atoms import RowAtoms, RowStage
from nncift_ray.stages.drawn_rows import read_drawn
from nncift_ray.stages.stage import Shard, Worker
from nncift_ray.stages.subsets import members_digest
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.output import Sink, StageOutput

#: Prompts that are sorted by length and padded together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024
DRAWN = "rows"
COLUMNS = ["example_id", "prompt"]

EmbedderFactory = Callable[[], Embedder]


class RetrieveStage(RowStage):
    """Write ``contexts``: the nearest members of a subset for each drawn row of a test set."""

    name: ClassVar[str] = "retrieve"

    def __init__(
        self,
        candidates: StageOutput,
        members: NDArray[np.int64],
        tests: StageOutput,
        model: ResolvedModel,
        make_embedder: EmbedderFactory,
        *,
        num_examples: int,
        table: str = "targets",
        max_rows: int | None = None,
        seed: int = 0,
        shard_rows: int | None = None,
    ) -> None:
        """Find examples for a test set.

        Args:
            candidates: Output of the deduplicate stage.
            members: The subset: row numbers of candidates.
            tests: Output of the deduplicate stage of the test set.
            model: The embedder.
            make_embedder: Loads it.
            num_examples: Examples of each question; a smaller subset gives what there is.
            table: The test set's table that holds the rows.
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
        self._model, self._make_embedder = model, make_embedder
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
        """Candidates and test set."""
        return {"candidates": self._candidates, "tests": self._tests}

    def settings(self) -> dict[str, Any]:
        """Subset, embedder and draw."""
        return {
            "members": members_digest(self._candidates, self._members),
            "model": self._model.name,
            "revision": self._model.revision,
            "num_examples": self._num_examples,
            "table": self._table,
            "max_rows": self._max_rows,
            "seed": self.seed,
            "atom_rows": ATOM_ROWS,
        }

    def make_worker(self) -> Worker:
        """Load the embedder and embed the subset."""
        embedder = self._make_embedder()
        subset = self._candidates.take_rows("candidates", self._members, COLUMNS)
        vectors = [
            embed_prompts(subset.slice(start, ATOM_ROWS), embedder)
            for start in range(0, subset.num_rows, ATOM_ROWS)
        ]
        ids = cast("list[str]", subset["example_id"].to_pylist())
        nearest = NearestVectors(np.concatenate(vectors), ids)

        def retrieve_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                numbers = self._rows[span.start : span.stop]
                rows = read_drawn(self._tests, self._table, numbers, COLUMNS)
                found = nearest.search(embed_prompts(rows, embedder), self._num_examples)
                members = self._members[found.place_IK]
                sink.write("contexts", contexts_table(numbers, members, found.cosine_IK))

        return retrieve_shard


def embed_prompts(rows: pa.Table, embedder: Embedder) -> F32:
    """Embed the prompts of some rows in one call.

    Raises:
        StageError: If a vector is not finite, naming the example.
    """
    vectors = embedder.embed(cast("list[str]", rows["prompt"].to_pylist()))
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        example_id = rows["example_id"][int(broken[0])].as_py()
        raise StageError(f"the embedding of the prompt of example {example_id} is not finite")
    return vectors


def contexts_table(
    rows: NDArray[np.int64], member_IK: NDArray[np.int64], cosine_IK: F32
) -> pa.Table:
    """Write the examples of some rows."""
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_index": pa.array(list(member_IK.astype(np.int32)), pa.list_(pa.int32())),
            "cosine": pa.array(list(cosine_IK), pa.list_(pa.float32())),
        },
        schema=evaluation_schemas.CONTEXTS,
    )
