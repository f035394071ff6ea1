"""Project: embeddings to the network's hidden activations, once an example and side.

The first layer reads [e_i ; 0 ; e_j], so it splits into a row part and a column part; the pair
stage never sees an embedding. A pointwise network reads [e_i] and has rows only.

Stored in float16, activations are rounded; what that does to scores is measured on a sample of
examples, which is drawn from all of them and so does not depend on shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix, vectors_to_arrow
from nncift_ray.runtime.schemas import CANDIDATE, EXISTING, POINTS, helped_role
from nncift_ray.runtime.step import RowAtoms, RowSpan, RowStage, Shard, Worker
from nncift_ray.scores.exact import LARGEST_HALF, RoundingError, first_beyond_half, rounding_error

ATOM_ROWS = 1024
DEFAULT_SHARD_ROWS = 65_536
FLOAT32, FLOAT16 = "float32", "float16"
#: A fact so named, with a block behind it, holds the fields of a RoundingError.
FLOAT16_ERROR = "float16_error:"
SAMPLE_ROWS = 256  # of each table: rows of a block, and its columns
SAMPLE_SEED = 0


def stored_dtype(settings: Mapping[str, Any]) -> str:
    """Return the dtype of the activations of a stage with such settings."""
    return settings.get("dtype", FLOAT32)


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
        dtype: str = FLOAT32,
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
    ) -> None:
        """Project the embeddings through the networks of the given blocks.

        ``dtype`` is that of the stored activations, float32 or float16. ``parent`` holds those of
        the first rows, where a run goes on with further data; it must be of the same dtype.
        """
        self._dtype = dtype
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
        schema = schemas.activations_schema(self._num_hidden, self._dtype)
        return {name: schema for name, _ in self._atoms.ranges}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Embeddings and networks."""
        inputs = {"embeddings": self._embeddings, "networks": self._networks}
        return inputs | ({"parent": self._parent} if self._parent else {})

    def settings(self) -> dict[str, Any]:
        """The blocks, and the dtype where it is another than ever; the rest is in the inputs."""
        settings: dict[str, Any] = {"blocks": list(self._blocks), "atom_rows": ATOM_ROWS}
        return settings if self._dtype == FLOAT32 else settings | {"dtype": self._dtype}

    def make_worker(self) -> Worker:
        """Load the networks."""
        networks = {block: read_network(self._networks, block) for block in self._blocks}

        def project_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                network = networks[span.name.rsplit("_", 1)[0]]
                sink.write(span.name, self._project(span, network))
            # Whatever the shards, one of them holds the first item.
            if self._dtype == FLOAT16 and shard.start == 0:
                sink.facts |= self._rounding_errors(networks)

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
        if self._dtype == FLOAT16:
            self._check_range(span, activation)
        return pa.Table.from_pydict(
            {
                "row_index": rows["row_index"],
                "activation": vectors_to_arrow(activation, self._dtype),
            },
            schema=schemas.activations_schema(self._num_hidden, self._dtype),
        )

    def _check_range(self, span: RowSpan, activation_NH: np.ndarray) -> None:
        """Refuse what float16 would make infinite."""
        row = first_beyond_half(activation_NH)
        if row is None:
            return
        largest = float(np.abs(activation_NH[row]).max())
        raise StageError(
            f"pair_scores.activation_dtype: float16 ends at {LARGEST_HALF:,.0f}, and row "
            f"{span.start + row} of '{span.name}' has an activation of size {largest:,.0f}. Set "
            "the key to float32. (A run that goes on from another keeps that one's: then run the "
            "recipe anew on all data.)"
        )

    def _rounding_errors(self, networks: Mapping[str, FactoredNetwork]) -> dict[str, Any]:
        """Measure on a sample what float16 does to the scores of each block."""
        sides = [f"{block}_{side}" for block in self._blocks for side in ("rows", "columns")]
        roles = {self._role(side) for side in sides}
        samples = {role: self._sample(role) for role in sorted(roles)}
        facts: dict[str, Any] = {}
        for block in self._blocks:
            rows_ND = samples[self._role(f"{block}_rows")]
            columns_ND = samples[self._role(f"{block}_columns")]
            if len(rows_ND) and len(columns_ND):
                error = self._rounding_error(block, networks[block], rows_ND, columns_ND)
                facts[f"{FLOAT16_ERROR}{block}"] = asdict(error)
        return facts

    def _rounding_error(
        self, block: str, network: FactoredNetwork, rows_ND: np.ndarray, columns_ND: np.ndarray
    ) -> RoundingError:
        b_JH = None if network.pointwise else network.project_columns(columns_ND)
        try:
            return rounding_error(network, network.project_rows(rows_ND), b_JH)
        except ValueError as error:
            raise StageError(
                f"pair_scores.activation_dtype: float16 cannot hold block '{block}': {error} (of "
                "the sample its error is measured on). Set the key to float32."
            ) from error

    def _sample(self, table: str) -> np.ndarray:
        """Read the embeddings [N, D] of some examples of a table, the same for any shards."""
        num_rows = self._embeddings.num_rows(table)
        if not num_rows:
            return np.empty((0, 0), np.float32)
        rng = np.random.default_rng(SAMPLE_SEED)
        rows = np.sort(rng.choice(num_rows, min(SAMPLE_ROWS, num_rows), replace=False))
        return column_matrix(self._embeddings.take_rows(table, rows, ["embedding"])["embedding"])
