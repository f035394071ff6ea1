"""Approximate search for the columns of largest inner product: FAISS behind a small surface.

Three kinds: `flat` (all columns, exact inner products), `ivf` (columns in k-means cells, some cells
searched a row) and `hnsw` (a graph; needs no sample, slow to build).

Cells are made, and columns assigned to them, by Euclidean distance, so that they stay even in size;
a row probes cells by the inner product that their columns may reach. (FAISS's own inner-product
cells give long columns' centres nearly everything.) `search` lists single columns, to be scored
anew by `core.pairs.rescoring`; `cells` and `probe` name whole cells.

FAISS makes the cells and the graph, and searches on GPUs. On a CPU an IVF index is searched by
`core.pairs.cell_lists`, many rows at a time: FAISS takes one row at a time through its cells, which
is several times slower.

What is stable: k-means is seeded and columns are added in the order they come, so one build on one
machine gives one index. On a CPU, what `probe` and the IVF search return for a row depends on the
index and the row alone. Flat and graph searches of other sizes, and GPUs, may round an inner
product differently and so change candidates that are nearly tied. Scores never depend on it:
candidates are scored anew, exactly.

Suffixes: I rows, J columns, T columns of a tile, F features, C candidates, P probed cells, L cells.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Literal, get_args

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.inspect_tools import get_invlist

from nncift_ray.core.pairs.cell_layout import lay_out_cells
from nncift_ray.core.pairs.cell_lists import FeatureCells, list_columns, pack_features
from nncift_ray.core.pairs.pair_scores import NO_COLUMN
from nncift_ray.errors import ModelError, ShapeError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

IndexKind = Literal["flat", "ivf", "hnsw"]

CELLS_PER_ROOT = 4  # 4 sqrt(J) cells balance comparing centres with scoring columns
MOST_CELLS = 65_536
COLUMNS_PER_CELL = 128  # on average, at least: shorter runs of columns waste the kernel's vectors
SAMPLED_PER_CELL = 64  # columns of the sample that k-means uses, at most
KMEANS_ROUNDS = 5  # ten find no more (docs/log.md)
SPREADS = 2.0  # standard deviations of a cell added to what its centre promises
GRAPH_NEIGHBOURS = 32
GRAPH_BUILD_BREADTH = 80


def num_cells(num_columns: int) -> int:
    """Return the number of IVF cells for so many columns: 4 sqrt(J), or J / 128 if that is less."""
    wanted = int(CELLS_PER_ROOT * math.sqrt(num_columns))
    return max(1, min(wanted, num_columns // COLUMNS_PER_CELL, MOST_CELLS))


def sample_size(num_columns: int) -> int:
    """Return how many sampled columns an IVF index over so many columns makes use of."""
    return min(num_columns, SAMPLED_PER_CELL * num_cells(num_columns))


def build_comparisons(num_columns: int) -> int:
    """Return how many vectors are compared while an IVF index is built: k-means, then adding."""
    rounds = KMEANS_ROUNDS * sample_size(num_columns)
    return (rounds + num_columns) * num_cells(num_columns)


class NeighbourIndex:
    """An index over columns 0..J-1, filled tile by tile in their order."""

    def __init__(self, index: Any, *, num_threads: int = 1) -> None:
        """Wrap a FAISS index; use `build` or `from_bytes`."""
        self._index, self._num_threads = index, num_threads
        # Both follow from the index, and are made when the first search after an addition comes.
        self._centres: FeatureCells | None = None
        self._packed: FeatureCells | None = None
        self._gpu_copy: Any = None
        self._lock = threading.Lock()  # several threads may search

    @classmethod
    def build(
        cls,
        kind: IndexKind,
        sample_JF: F32,
        num_columns: int,
        *,
        seed: int,
        num_threads: int = 1,
    ) -> NeighbourIndex:
        """Make an empty index; `add` fills it.

        Args:
            kind: See the module.
            sample_JF: Features of a random sample of the columns; an IVF index takes its cells
                from it (at most one a sampled column), and has use for `sample_size` of them.
            num_columns: Columns that will be added.
            seed: Of k-means.
            num_threads: Threads of FAISS.

        Raises:
            ModelError: If the kind is unknown.
            ShapeError: If the sample is empty or no matrix.
            ValueError: If a feature is not finite; the message names the first such row.

        Memory, filled: 4 * J * F bytes; ivf 8 * J more, hnsw 260 * J more.
        """
        if kind not in get_args(IndexKind):
            raise ModelError(f"index kind {kind!r} is not one of {', '.join(get_args(IndexKind))}")
        _check_vectors("sampled column", sample_JF)
        if len(sample_JF) == 0:
            msg = "an index needs a sample of at least one column"
            raise ShapeError(msg)
        faiss.omp_set_num_threads(num_threads)
        dim = sample_JF.shape[1]
        if kind == "flat":
            return cls(faiss.IndexFlatIP(dim), num_threads=num_threads)
        if kind == "hnsw":
            graph = faiss.IndexHNSWFlat(dim, GRAPH_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = GRAPH_BUILD_BREADTH
            return cls(graph, num_threads=num_threads)
        return cls(_empty_cells(sample_JF, num_columns, seed), num_threads=num_threads)

    @property
    def kind(self) -> IndexKind:
        """Which kind it is."""
        if self._has_cells:
            return "ivf"
        return "hnsw" if isinstance(self._index, faiss.IndexHNSW) else "flat"

    @property
    def num_columns(self) -> int:
        """Columns added so far."""
        return int(self._index.ntotal)

    @property
    def num_cells(self) -> int:
        """Cells of an IVF index; 1 of the others."""
        return int(self._index.nlist) if self._has_cells else 1

    def add(self, feature_TF: F32) -> None:
        """Add the next columns.

        Raises:
            ShapeError: If F differs from the sample's.
            ValueError: If a feature is not finite; the message names the first such row.
        """
        _check_vectors("column", feature_TF, self._index.d)
        faiss.omp_set_num_threads(self._num_threads)
        self._index.add(np.ascontiguousarray(feature_TF))
        self._centres = self._packed = self._gpu_copy = None

    def cells(self) -> I32:
        """Return the cell of each column [J], in 0..num_cells - 1; all 0 but in an IVF index."""
        cell_J = np.zeros(self.num_columns, np.int32)
        if self._has_cells:
            for cell in range(self.num_cells):
                cell_J[get_invlist(self._index.invlists, cell)[0]] = cell
        return cell_J

    def probe(self, query_IF: F32, num_probes: int) -> I32:
        """Return the cells that are most likely to hold each row's best columns [I, P], best first.

        A cell counts by what its centre promises and by its spread: columns two standard
        deviations from a wide cell's centre beat the centre of a narrow one.

        Args:
            query_IF: Row queries.
            num_probes: Cells wanted a row; P is at most `num_cells`.

        Raises:
            ShapeError: If F differs from the index's.
            ValueError: If a query is not finite (the message names the first such row), or
                num_probes is below 1.
        """
        _check_vectors("row", query_IF, self._index.d)
        if num_probes < 1:
            msg = f"num_probes must be at least 1, got {num_probes}"
            raise ValueError(msg)
        num_probes = min(num_probes, self.num_cells)
        if not self._has_cells:
            return np.zeros((len(query_IF), num_probes), np.int32)
        with self._lock:
            if self._centres is None:
                self._centres = _widened_centres(self._index)
        length_I1 = np.linalg.norm(query_IF, axis=1, keepdims=True)
        widened_IF = np.concatenate([query_IF, length_I1], axis=1, dtype=np.float32)
        return list_columns(widened_IF, self._centres, _all_of_one(len(query_IF)), num_probes)

    def search(self, query_IF: F32, num_candidates: int, num_probes: int = 1) -> I32:
        """Return the columns of largest inner product [I, C], best first, -1 where none was found.

        Args:
            query_IF: Row queries.
            num_candidates: Columns wanted a row, C.
            num_probes: Cells searched (ivf), candidates held while walking (hnsw, at least C);
                flat ignores it.

        Raises:
            ShapeError: If F differs from the index's.
            ValueError: If a query is not finite (the message names the first such row), or a
                number is below 1.

        Memory: 20 * I * C bytes; the first search of an IVF index packs its features once more.
        """
        if num_candidates < 1:
            msg = f"num_candidates must be at least 1, got {num_candidates}"
            raise ValueError(msg)
        if self._has_cells:
            return self.search_cells(query_IF, self.probe(query_IF, num_probes), num_candidates)
        _check_vectors("row", query_IF, self._index.d)
        column_IC = np.full((len(query_IF), num_candidates), NO_COLUMN, np.int32)
        found = min(num_candidates, self.num_columns)
        if len(query_IF) == 0 or found == 0:
            return column_IC
        faiss.omp_set_num_threads(self._num_threads)
        index = self._searchable()
        if isinstance(index, faiss.IndexHNSW):
            index.hnsw.efSearch = max(num_probes, found)
        column_IC[:, :found] = index.search(np.ascontiguousarray(query_IF, np.float32), found)[1]
        return column_IC

    def search_cells(self, query_IF: F32, cell_IP: I32, num_candidates: int) -> I32:
        """Return the columns of largest inner product in given cells [I, C], as `search` does.

        Args:
            query_IF: Row queries.
            cell_IP: Cells of an IVF index for each row, from `probe`.
            num_candidates: Columns wanted a row, C.

        Raises:
            ModelError: If the index has no cells.
            ShapeError: If F differs from the index's, or there is not one list of cells a row.
            ValueError: If a query is not finite (the message names the first such row), or a cell
                does not exist.
        """
        if not self._has_cells:
            raise ModelError(f"an index of kind {self.kind!r} has no cells to search")
        _check_vectors("row", query_IF, self._index.d)
        query_IF = np.ascontiguousarray(query_IF, np.float32)
        if faiss.get_num_gpus() == 0:
            return list_columns(query_IF, self._features(), cell_IP, num_candidates)
        column_IC = np.full((len(query_IF), num_candidates), NO_COLUMN, np.int32)
        found = min(num_candidates, self.num_columns)
        if len(query_IF) and found:
            index = self._searchable()
            index.nprobe = cell_IP.shape[1]
            unused_IP = np.zeros(cell_IP.shape, np.float32)  # distances to centres: flat codes
            column_IC[:, :found] = index.search_preassigned(
                query_IF, found, cell_IP.astype(np.int64), unused_IP
            )[1]
        return column_IC

    def _features(self) -> FeatureCells:
        """Return all features, packed cell after cell."""
        with self._lock:
            if self._packed is None:
                feature_JF = np.empty((self.num_columns, self._index.d), np.float32)
                for cell in range(self.num_cells):
                    columns, codes = get_invlist(self._index.invlists, cell)
                    feature_JF[columns] = codes.view(np.float32)
                layout = lay_out_cells(self.cells(), self.num_cells)
                self._packed = pack_features(feature_JF, layout)
            return self._packed

    def to_bytes(self) -> U8:
        """Return the index as bytes in FAISS's own format (no pickle)."""
        return faiss.serialize_index(self._index)

    @classmethod
    def from_bytes(cls, data: U8, *, num_threads: int = 1) -> NeighbourIndex:
        """Read an index that `to_bytes` wrote.

        Raises:
            ModelError: If FAISS cannot read it.
        """
        try:
            return cls(faiss.deserialize_index(data), num_threads=num_threads)
        except RuntimeError as error:
            raise ModelError(f"the index cannot be read, build it anew: {error}") from error

    @property
    def _has_cells(self) -> bool:
        return isinstance(self._index, faiss.IndexIVF)

    def _searchable(self) -> Any:
        """Return the index, or its copy on a GPU where FAISS has one and takes this kind."""
        if isinstance(self._index, faiss.IndexHNSW) or faiss.get_num_gpus() == 0:
            return self._index
        if self._gpu_copy is None:
            resources = faiss.StandardGpuResources()
            copy: Any = faiss.index_cpu_to_gpu(resources, 0, self._index)
            copy.referenced_objects = [resources]  # FAISS does not keep them alive
            self._gpu_copy = copy
        return self._gpu_copy


def _empty_cells(sample_JF: F32, num_columns: int, seed: int) -> Any:
    """Return an IVF index whose cells are the k-means cells of the sample."""
    cells = min(num_cells(num_columns), len(sample_JF))
    kmeans: Any = faiss.Kmeans(
        sample_JF.shape[1],
        cells,
        niter=KMEANS_ROUNDS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLED_PER_CELL,
    )
    kmeans.train(np.ascontiguousarray(sample_JF))
    centres: Any = faiss.IndexFlatL2(sample_JF.shape[1])
    centres.add(kmeans.centroids)
    index = faiss.IndexIVFFlat(centres, sample_JF.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    centres.this.disown()
    index.own_fields = True
    index.is_trained = True
    return index


def _widened_centres(index: Any) -> FeatureCells:
    """Return the cells as columns: the centre, and what its spread adds to a unit query."""
    centre_LF = index.quantizer.reconstruct_n(0, index.nlist)
    widening_L1 = np.zeros((index.nlist, 1), np.float32)
    for cell in range(index.nlist):
        codes = get_invlist(index.invlists, cell)[1]
        distance_TF = codes.view(np.float32) - centre_LF[cell]
        # Per direction: a cell is taken to spread alike in all of them.
        widening_L1[cell] = SPREADS * np.sqrt(np.square(distance_TF).mean()) if len(codes) else 0.0
    one_cell = lay_out_cells(np.zeros(index.nlist, np.int32), 1)
    return pack_features(np.concatenate([centre_LF, widening_L1], axis=1), one_cell)


def _all_of_one(num_rows: int) -> I32:
    """Return probes of the one cell that the centres lie in."""
    return np.zeros((num_rows, 1), np.int32)


def _check_vectors(what: str, vector_NF: F32, num_features: int | None = None) -> None:
    if vector_NF.ndim != 2 or (num_features is not None and vector_NF.shape[1] != num_features):
        expected = "F" if num_features is None else num_features
        msg = f"features are {vector_NF.shape}, expected [N, {expected}]"
        raise ShapeError(msg)
    bad = np.flatnonzero(~np.isfinite(vector_NF).all(axis=1))
    if len(bad):
        msg = f"features of {what} {bad[0]} are not finite ({len(bad)} of {len(vector_NF)})"
        raise ValueError(msg)
