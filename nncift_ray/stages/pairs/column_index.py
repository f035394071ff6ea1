"""The columns of a block, findable: generator, FAISS index and packed columns behind one search.

The index stage builds it and tunes how widely to search; scoring workers read it back. Columns are
listed by inner product and scored anew (ADR 15). What an IVF index lists for a row depends on the
row alone. The other kinds are FAISS's to search: their candidates come from calls of a fixed number
of rows, numbered from the block's first row, and from one thread each. So neither shards nor actors
nor threads change them.

Suffixes: I rows, J columns, X activations [H] or embeddings [D], F features, P probed cells,
C candidates, K kept columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nncift_ray.core.candidates.anchor import AnchorGenerator
from nncift_ray.core.candidates.cosine import CosineGenerator
from nncift_ray.core.candidates.protocol import CandidateGenerator
from nncift_ray.core.candidates.quadratic import QuadraticGenerator
from nncift_ray.core.candidates.recall import SearchSettings, listing_schedule
from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.pairs.pair_threads import CpuThreads, run_parts
from nncift_ray.core.pairs.rescoring import PackedColumns, RescoredTopK, pack_columns
from nncift_ray.models.neighbour_index import IndexKind, NeighbourIndex, sample_size
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.checkpoints import read_arrays, write_arrays
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import helped_role

CALL_ROWS = 256
CELL_CALL_ROWS = 4096  # rows of one call share the reading of a cell
FEATURE_TILE = 16_384
FIT_SAMPLE = 4096  # rows, and columns, that a generator is fitted on

GENERATORS: Mapping[str, type[CandidateGenerator]] = {
    "anchor": AnchorGenerator,
    "quadratic": QuadraticGenerator,
    "cosine": CosineGenerator,
}


@dataclass(frozen=True, eq=False)
class ColumnSource:
    """What an index is built from: all columns, and the rows that will look for them."""

    network: FactoredNetwork
    b_JH: np.ndarray
    column_JX: np.ndarray  # what the generator reads of them; often b_JH itself
    row_sample_IX: np.ndarray


@dataclass(frozen=True, eq=False)
class ColumnIndex:
    """A built index over all columns of a block."""

    generator: CandidateGenerator
    neighbours: NeighbourIndex
    columns: PackedColumns
    threads: CpuThreads

    @property
    def num_columns(self) -> int:
        """Columns J."""
        return self.neighbours.num_columns

    def schedule(self, k: int) -> list[SearchSettings]:
        """Return the settings to try, narrowest first."""
        return listing_schedule(k, self.num_columns, self.neighbours.num_cells)

    def queries(self, row_IX: np.ndarray) -> np.ndarray:
        """Return the query vectors [I, F] of rows."""
        return self._in_calls(len(row_IX), lambda rows: self.generator.row_queries(row_IX[rows]))

    def propose(self, query_IF: np.ndarray, settings: SearchSettings) -> np.ndarray:
        """Return the columns to score for each row [I, C]."""
        num_candidates = min(settings.num_candidates, self.num_columns)
        return self._in_calls(
            len(query_IF),
            lambda rows: self.neighbours.search(
                query_IF[rows], num_candidates, settings.num_probes
            ),
        )

    def choose_cells(self, query_IF: np.ndarray, num_probes: int) -> np.ndarray:
        """Return the cells that a search of rows goes through [I, P]."""
        return self._in_calls(
            len(query_IF), lambda rows: self.neighbours.probe(query_IF[rows], num_probes)
        )

    def score(self, a_IH: np.ndarray, proposed: np.ndarray, k: int) -> RescoredTopK:
        """Score what was proposed, exactly, and keep the K best of each row."""
        return self.threads.rescore_rows(a_IH, self.columns, proposed, k)

    def search(
        self, a_IH: np.ndarray, row_IX: np.ndarray, settings: SearchSettings, k: int
    ) -> RescoredTopK:
        """Find the best columns of rows: activations, and what the generator reads of them."""
        return self.score(a_IH, self.propose(self.queries(row_IX), settings), k)

    def _in_calls(self, num_rows: int, task: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Run a task on so many rows at a time, on threads."""
        call_rows = CALL_ROWS
        if self.neighbours.kind == "ivf":
            share = -(-num_rows // self.threads.num_threads)
            call_rows = max(1, min(CELL_CALL_ROWS, share))
        calls = [
            slice(start, min(start + call_rows, num_rows))
            for start in range(0, max(num_rows, 1), call_rows)
        ]

        def run(numbers: slice) -> list[np.ndarray]:
            return [task(call) for call in calls[numbers]]

        parts = run_parts(len(calls), self.threads.num_threads, run, rows_at_once=1)
        return np.concatenate([result for part in parts for result in part])


def build_index(
    source: ColumnSource,
    generator_name: str,
    kind: IndexKind,
    *,
    seed: int,
    num_threads: int,
) -> ColumnIndex:
    """Fit a generator and index all columns.

    Args:
        source: The columns.
        generator_name: A key of ``GENERATORS``.
        kind: Of the FAISS index.
        seed: Of samples and k-means.
        num_threads: Threads here and in FAISS.

    Memory: the columns, their features twice, and a packed copy of them.
    """
    random = np.random.default_rng(seed)
    num_columns = len(source.b_JH)
    fit_columns = draw(random, num_columns, FIT_SAMPLE)
    generator = GENERATORS[generator_name].fit(
        source.network, source.row_sample_IX, source.column_JX[fit_columns], seed=seed
    )
    sampled = draw(random, num_columns, sample_size(num_columns))
    neighbours = NeighbourIndex.build(
        kind,
        _features(generator, source.column_JX[sampled]),
        num_columns,
        seed=seed,
        num_threads=num_threads,
    )
    for start in range(0, num_columns, FEATURE_TILE):
        part = source.column_JX[start : start + FEATURE_TILE]
        neighbours.add(generator.column_features(part))
    return assemble(generator, neighbours, source.network, source.b_JH, num_threads)


def assemble(
    generator: CandidateGenerator,
    neighbours: NeighbourIndex,
    network: FactoredNetwork,
    b_JH: np.ndarray,
    num_threads: int,
) -> ColumnIndex:
    """Put an index together with the columns, packed as its kind is scored."""
    columns = pack_columns(b_JH, network.w_H, network.bias)
    return ColumnIndex(generator, neighbours, columns, CpuThreads(num_threads))


def _features(generator: CandidateGenerator, column_JX: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            generator.column_features(column_JX[start : start + FEATURE_TILE])
            for start in range(0, len(column_JX), FEATURE_TILE)
        ]
    )


def read_columns(
    activations: StageOutput, embeddings: StageOutput | None, block: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read all columns of a block: activations, and embeddings or the same again."""
    b_JH = column_matrix(activations.read(f"{block}_columns", ["activation"])["activation"])
    if embeddings is None:
        return b_JH, b_JH
    return b_JH, column_matrix(embeddings.read("candidates", ["embedding"])["embedding"])


def read_rows(
    activations: StageOutput, embeddings: StageOutput | None, block: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read some rows of a block: activations, and embeddings or the same again."""
    a_IH = column_matrix(activations.take_rows(f"{block}_rows", rows, ["activation"])["activation"])
    if embeddings is None:
        return a_IH, a_IH
    role = f"{helped_role(block)}s"
    return a_IH, column_matrix(embeddings.take_rows(role, rows, ["embedding"])["embedding"])


def draw(random: np.random.Generator, num_rows: int, count: int) -> np.ndarray:
    """Return up to so many distinct row numbers, ascending."""
    return np.sort(random.permutation(num_rows)[:count])


def index_files(block: str) -> tuple[str, str]:
    """Name the files that hold a block's index: the generator's arrays, and FAISS's own bytes."""
    return f"generator-{block}.safetensors", f"index-{block}.faiss"


def write_index(sink: Sink, block: str, index: ColumnIndex) -> None:
    """Write what ``read_index`` reads; the columns themselves are in the activations."""
    generator_name, index_name = index_files(block)
    write_arrays(sink, generator_name, index.generator.to_state())
    sink.write_file(index_name, index.neighbours.to_bytes().tobytes())


def read_index(
    output: StageOutput,
    block: str,
    generator_name: str,
    network: FactoredNetwork,
    b_JH: np.ndarray,
    num_threads: int,
) -> ColumnIndex:
    """Read the index of a block back, for the columns that it was built over."""
    arrays_name, index_name = index_files(block)
    generator = GENERATORS[generator_name].from_state(read_arrays(output, arrays_name))
    data = np.frombuffer(output.read_file(index_name), np.uint8)
    return assemble(generator, NeighbourIndex.from_bytes(data), network, b_JH, num_threads)
