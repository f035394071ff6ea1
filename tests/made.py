"""Finished stages made of given arrays, for tests of what reads them: no corpus, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nncift_ray.network.factored import FactoredNetwork, write_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput, vectors_to_arrow
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Shard, Stage
from tests.stages import GivenStage

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


class _GivenNetworks(GivenStage):
    """Leaves networks, of which every block has the same."""

    def __init__(self, network: FactoredNetwork, blocks: Sequence[str], seed: int) -> None:
        super().__init__("fit", {}, seed=seed)
        self._network, self._blocks = network, blocks

    def work(self, shard: Shard, sink: Sink) -> None:
        for block in self._blocks:
            write_network(sink, block, self._network, {})


def given_output(
    folder: Location, name: str, tables: Mapping[str, pa.Table], **facts: Any
) -> StageOutput:
    """Finish a stage of some name that left these tables and facts."""
    stage = GivenStage(name, tables, rows={n: table.num_rows for n, table in tables.items()})
    stage.facts = facts
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

    embeddings = {role: _embedding_table(own) for role, own in vectors.items()}
    counts = [num_candidates, num_targets]

    def finish(stage: Stage) -> StageOutput:
        return run_stage(stage, folder, execute=execute_here, reporter=SilentReporter())

    return Made(
        network,
        finish(GivenStage("project", tables, seed=seed, rows=counts)),
        finish(_GivenNetworks(network, ("within", "cross"), seed)),
        finish(GivenStage("embed", embeddings, seed=seed, rows=counts)),
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
