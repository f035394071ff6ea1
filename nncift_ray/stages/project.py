"""Project: embeddings to the network's hidden activations, once an example and side.

The first layer reads [e_i ; 0 ; e_j], so it splits into a row part and a column part; the pair
stage never sees an embedding. A pointwise network reads [e_i] and has rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.stages.atoms import RowAtoms, RowSpan, RowStage
from nncift_ray.stages.stage import Shard, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix, vectors_to_arrow
from nncift_ray.storage.checkpoints import read_network
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CANDIDATE, EXISTING, POINTS, helped_role

ATOM_ROWS = 1024
DEFAULT_SHARD_ROWS = 65_536


class ProjectStage(RowStage):
    """Write ``<block>_rows``, ``_columns`` and ``_existing``: one activation vector an example.

    Existing data are helpers: they go through the column half of the block's network.
    """

    name: ClassVar[str] = "project"

    def __init__(
        self,
        embeddings: StageOutput,
        networks: StageOutput,
        blocks: Sequence[str],
        num_hidden: int,
        *,
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
    ) -> None:
        """Project the embeddings through the networks of the given blocks.

        ``parent`` holds the activations of the first rows, where a run goes on with further data.
        """
        self._embeddings, self._networks = embeddings, networks
        self._blocks, self._num_hidden = tuple(blocks), num_hidden
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        rows = {table: embeddings.num_rows(table) for table in schemas.TABLE_OF_ROLE.values()}
        ranges: list[tuple[str, int]] = []
        for block in self._blocks:
            ranges.append((f"{block}_rows", rows[self._role(f"{block}_rows")]))
            if block != POINTS:
                ranges.append((f"{block}_columns", rows["candidates"]))
                if rows["existing"]:
                    ranges.append((f"{block}_existing", rows["existing"]))
        self._parent = parent
        done = {name: parent.num_rows(name) if parent else 0 for name, _ in ranges}
        left = tuple((name, count - done[name]) for name, count in ranges)
        self._atoms = RowAtoms(left, ATOM_ROWS, first_rows=done)

    @staticmethod
    def _role(table: str) -> str:
        """Return whose embeddings a table is made of."""
        block, side = table.rsplit("_", 1)
        if side == "rows":
            return schemas.TABLE_OF_ROLE[helped_role(block)]
        return schemas.TABLE_OF_ROLE[EXISTING if side == EXISTING else CANDIDATE]

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Activations of each block and side."""
        schema = schemas.activations_schema(self._num_hidden)
        return {name: schema for name, _ in self._atoms.ranges}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Embeddings and networks."""
        inputs = {"embeddings": self._embeddings, "networks": self._networks}
        return inputs | ({"parent": self._parent} if self._parent else {})

    def settings(self) -> dict[str, Any]:
        """The blocks; the rest is in the inputs."""
        return {"blocks": list(self._blocks), "atom_rows": ATOM_ROWS}

    def make_worker(self) -> Worker:
        """Load the networks."""
        networks = {block: read_network(self._networks, block) for block in self._blocks}

        def project_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                network = networks[span.name.rsplit("_", 1)[0]]
                sink.write(span.name, self._project(span, network))

        return project_shard

    def _project(self, span: RowSpan, network: FactoredNetwork) -> pa.Table:
        rows = self._embeddings.read_range(
            self._role(span.name), span.start, span.stop, ["row_index", "embedding"]
        )
        vectors = column_matrix(rows["embedding"])
        rows_side = span.name.endswith("_rows")
        activation = (
            network.project_rows(vectors) if rows_side else network.project_columns(vectors)
        )
        return pa.Table.from_pydict(
            {
                "row_index": rows["row_index"],
                "activation": vectors_to_arrow(activation, "float32"),
            },
            schema=schemas.activations_schema(self._num_hidden),
        )
