"""Finished stages made of given arrays, for tests of what reads them: no corpus, no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.network.factored import FactoredNetwork, write_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput, vectors_to_arrow
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Shard, Stage, Worker

DIM, HIDDEN = 6, 9


@dataclass(frozen=True, eq=False)
class Made:
    """A network with embeddings and activations of blocks, as stages would have left them."""

    network: FactoredNetwork
    activations: StageOutput
    networks: StageOutput
    embeddings: StageOutput
    a_IH: np.ndarray  # of the block "within"
    b_JH: np.ndarray


class _Given(Stage):
    """Writes what it is given."""

    facts: Mapping[str, Any] = {}

    def __init__(
        self, tables: Mapping[str, pa.Table], networks: Mapping[str, FactoredNetwork], seed: int
    ) -> None:
        self._tables, self._networks, self._seed = tables, networks, seed

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        return {name: table.schema for name, table in self._tables.items()}

    def settings(self) -> dict[str, Any]:
        return {"seed": self._seed, "rows": {n: t.num_rows for n, t in self._tables.items()}}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        return {}

    def num_items(self) -> int:
        return 1

    def make_worker(self) -> Worker:
        def write(shard: Shard, sink: Sink) -> None:
            sink.facts.update(self.facts)
            for name, table in self._tables.items():
                sink.write(name, table)
            for block, network in self._networks.items():
                write_network(sink, block, network, {})

        return write


class _GivenActivations(_Given):
    name: ClassVar[str] = "project"


class _GivenNetworks(_Given):
    name: ClassVar[str] = "fit"


class _GivenEmbeddings(_Given):
    name: ClassVar[str] = "embed"


def given_output(
    folder: Location, name: str, tables: Mapping[str, pa.Table], **facts: Any
) -> StageOutput:
    """Finish a stage of some name that left these tables and facts."""
    stage = type("_GivenNamed", (_Given,), {"name": name, "facts": facts})(tables, {}, 0)
    return run_stage(stage, folder, execute=execute_here, reporter=SilentReporter())


def make_network(seed: int = 0, hidden: int = HIDDEN, scale: float = 1) -> FactoredNetwork:
    """Make a network with weights of size ``scale``."""
    random = np.random.default_rng(seed)
    shapes = ((hidden, DIM), (hidden,), (hidden, DIM), (hidden,))
    arrays = [scale * random.standard_normal(shape, np.float32) for shape in shapes]
    return FactoredNetwork(*arrays, 0.25)


def make_stages(
    folder: Location,
    *,
    num_candidates: int = 700,
    num_targets: int = 30,
    seed: int = 0,
    bad_rows: tuple[int, ...] = (),
    copies: int = 1,
    scale: float = 1,
) -> Made:
    """Make the stages before scoring.

    Args:
        folder: The run directory.
        num_candidates: Rows and columns of "within", columns of "cross".
        num_targets: Rows of "cross".
        seed: Of network and embeddings.
        bad_rows: Candidates whose activations are NaN.
        copies: How often each embedding is there: copies tie in every list.
        scale: Size of the network's weights.
    """
    network = make_network(seed, scale=scale)
    random = np.random.default_rng(seed + 1)
    vectors = {}
    for role, count in (("candidates", num_candidates), ("targets", num_targets)):
        own = random.standard_normal((-(-count // copies), DIM), np.float32)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        vectors[role] = np.repeat(own, copies, axis=0)[:count]
    rows = {
        "within_rows": network.project_rows(vectors["candidates"]),
        "within_columns": network.project_columns(vectors["candidates"]),
        "cross_rows": network.project_rows(vectors["targets"]),
        "cross_columns": network.project_columns(vectors["candidates"]),
    }
    for row in bad_rows:
        rows["within_rows"][row] = np.nan
    tables = {name: activation_table(matrix) for name, matrix in rows.items()}

    def finish(stage: Stage) -> StageOutput:
        return run_stage(stage, folder, execute=execute_here, reporter=SilentReporter())

    return Made(
        network,
        finish(_GivenActivations(tables, {}, seed)),
        finish(_GivenNetworks({}, {"within": network, "cross": network}, seed)),
        finish(_GivenEmbeddings({r: _embedding_table(v) for r, v in vectors.items()}, {}, seed)),
        rows["within_rows"],
        rows["within_columns"],
    )


def activation_table(matrix: np.ndarray) -> pa.Table:
    """Write activations as the project stage does."""
    columns = {
        "row_index": pa.array(np.arange(len(matrix)), pa.int64()),
        "activation": vectors_to_arrow(matrix, "float32"),
    }
    return pa.Table.from_pydict(columns, schema=schemas.activations_schema(matrix.shape[1]))


def _embedding_table(vectors: np.ndarray) -> pa.Table:
    count = len(vectors)
    columns = {
        "row_index": pa.array(np.arange(count), pa.int64()),
        "example_id": pa.array([f"id {i}" for i in range(count)]),
        "num_tokens": pa.array(np.ones(count), pa.int32()),
        "embedding": vectors_to_arrow(vectors, "float32"),
    }
    return pa.Table.from_pydict(columns, schema=schemas.embeddings_schema(DIM, "float32"))
