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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from nncift_ray.errors import ModelError, ShapeError
from nncift_ray.jit import compiled
from nncift_ray.scores.exact import NO_COLUMN, gather_rows, padded_places
from nncift_ray.scores.kernel import (
    FIRST_KEY,
    LAST_COLUMN,
    NO_KEY,
    NUM_ROWS,
    PANEL_COLUMNS,
    append_reaching,
    multiply_panel,
    score_of,
)

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_CELL = -1


@dataclass(frozen=True, slots=True, eq=False)
class CellLayout:
    """Where the columns of each cell lie."""

    column_X: I32  # the column's number at each place, or -1
    start_L: I64  # first panel of each cell, and the number of panels: [L + 1]
    num_columns_L: I64

    @property
    def num_cells(self) -> int:
        """Number L of cells, empty ones included."""
        return len(self.num_columns_L)


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The rows that probe each cell: `row_N[start_L[cell] : start_L[cell + 1]]`."""

    row_N: I64
    start_L: I64
    num_pairs_I: I64  # columns in the cells of each row


def lay_out_cells(cell_J: NDArray[np.integer], num_cells: int) -> CellLayout:
    """Give every cell's columns, in their order, panels of their own.

    Raises:
        ShapeError: If the cells are no vector.
        ValueError: If a cell does not exist.
    """
    if cell_J.ndim != 1:
        msg = f"cells of columns are {cell_J.shape}, expected [J]"
        raise ShapeError(msg)
    _check_cells("a column lies in", cell_J, 0, num_cells)
    num_columns_L = np.bincount(cell_J, minlength=num_cells)
    members = np.split(np.argsort(cell_J, kind="stable"), np.cumsum(num_columns_L)[:-1])
    column_X = np.concatenate([padded_places(columns) for columns in members])
    num_panels_L = -(-num_columns_L // PANEL_COLUMNS)
    return CellLayout(column_X, np.concatenate([[0], np.cumsum(num_panels_L)]), num_columns_L)


def group_probes(cell_IP: NDArray[np.integer], layout: CellLayout, num_rows: int) -> Probes:
    """Return the rows of each cell, in their order.

    Args:
        cell_IP: Cells probed by each row [I, P], each at most once; -1 is no cell.
        layout: The cells there are.
        num_rows: Rows I there should be.

    Raises:
        ShapeError: If there is not one list a row.
        ValueError: If a probed cell does not exist.

    Memory: 24 * I * P bytes.
    """
    if cell_IP.ndim != 2 or len(cell_IP) != num_rows:
        msg = f"{num_rows} rows, but probes of {cell_IP.shape}; expected one list a row"
        raise ShapeError(msg)
    _check_cells("a row probes", cell_IP, NO_CELL, layout.num_cells)
    probed = cell_IP.ravel()
    order = np.argsort(probed, kind="stable")
    start_L = np.searchsorted(probed[order], np.arange(layout.num_cells + 1))
    scored_IP = np.where(cell_IP == NO_CELL, 0, layout.num_columns_L[cell_IP])
    return Probes(order // max(cell_IP.shape[1], 1), start_L, scored_IP.sum(axis=1))


def _check_cells(what: str, cells: NDArray[np.integer], lowest: int, num_cells: int) -> None:
    if cells.size and not lowest <= cells.min() <= cells.max() < num_cells:
        msg = f"{what} cells {cells.min()}..{cells.max()}, there are {num_cells}"
        raise ValueError(msg)


# Columns of largest inner product in some cells: what an approximate search lists for each row.

F32 = NDArray[np.float32]

PANELS_AT_ONCE = 4
FIRST_LISTS = 2  # lists that the cells probed first hold, about
BUFFER_LISTS = 2  # lists that a buffer holds beside what one step adds; then it is cut to one
LOWEST = np.float32(np.finfo(np.float32).min)  # -inf, below it, is no column


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCells:
    """Features of all columns, cell after cell, each cell in panels of its own."""

    layout: CellLayout
    panel_PFC: F32  # 0 where there is no column
    base_X: F32  # 0; -inf where there is no column, and so is its product

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        return self.panel_PFC.shape[1]


def pack_features(feature_JF: F32, layout: CellLayout) -> FeatureCells:
    """Sort the features of all columns into their cells, for `list_columns`.

    Raises:
        ShapeError: If the layout is of another number of columns.

    Memory: 4 * J * F bytes, each cell's columns padded to a multiple of 64.
    """
    num_columns = int(layout.num_columns_L.sum())
    if feature_JF.ndim != 2 or num_columns != len(feature_JF):
        msg = f"features are {feature_JF.shape}, the cells hold {num_columns} columns"
        raise ShapeError(msg)
    none_X = layout.column_X == NO_COLUMN
    num_panels = len(none_X) // PANEL_COLUMNS
    panel_PFC = np.empty((num_panels, feature_JF.shape[1], PANEL_COLUMNS), np.float32)
    for p in range(num_panels):
        places = slice(p * PANEL_COLUMNS, (p + 1) * PANEL_COLUMNS)
        panel_PFC[p] = np.where(none_X[places], 0, feature_JF[layout.column_X[places]].T)
    return FeatureCells(layout, panel_PFC, np.where(none_X, -np.inf, 0).astype(np.float32))


def list_columns(
    query_IF: F32, cells: FeatureCells, cell_IP: NDArray[np.integer], num_listed: int
) -> I32:
    """Return the columns of largest product with each row in its cells [I, C], best first.

    Args:
        query_IF: Row queries.
        cells: Features of all columns, from `pack_features`.
        cell_IP: Cells probed by each row [I, P], each at most once, -1 for no cell. The order does
            not change the result; likely ones first are faster.
        num_listed: Columns wanted a row, C; -1 where its cells hold fewer.

    Raises:
        ShapeError: If rows, features and cells do not belong together.
        ValueError: If a probed cell does not exist, or num_listed is below 1.

    Memory: 24 * I * C bytes and 2048 * I for the buffers, 24 * I * P for the probes. Rows of one
        call share the reading of a cell: thousands of rows are faster than hundreds.
    """
    if query_IF.ndim != 2 or query_IF.shape[1] != cells.num_features:
        msg = f"queries are {query_IF.shape}, features have {cells.num_features} numbers"
        raise ShapeError(msg)
    if num_listed < 1:
        msg = f"num_listed must be at least 1, got {num_listed}"
        raise ValueError(msg)
    query_IF = np.ascontiguousarray(query_IF, np.float32)
    best = _Best(len(query_IF), num_listed)
    layout, num_first = cells.layout, _first_probes(cells.layout, num_listed)
    for part_IP in (cell_IP[:, :num_first], cell_IP[:, num_first:]):
        probes = group_probes(part_IP, layout, len(query_IF))
        _list_cells(
            query_IF, cells.panel_PFC, cells.base_X, layout.column_X, layout.start_L,
            probes.row_N, probes.start_L, num_listed, best.key_IB, best.count_I, best.threshold_I,
        )  # fmt: skip
        best.cut()
    return best.columns()


def _first_probes(layout: CellLayout, num_listed: int) -> int:
    """Return how many probes hold about two lists: enough to know what need not be kept later."""
    mean = float(layout.num_columns_L.sum()) / max(layout.num_cells, 1)
    return math.ceil(FIRST_LISTS * num_listed / max(mean, 1.0))


class _Best:
    """The best columns of each row so far, and what else its buffer holds."""

    def __init__(self, num_rows: int, num_listed: int) -> None:
        self.num_listed = num_listed
        num_places = BUFFER_LISTS * num_listed + PANELS_AT_ONCE * PANEL_COLUMNS
        self.key_IB = np.empty((num_rows, num_places), np.int64)
        self.count_I = np.zeros(num_rows, np.int64)
        self.threshold_I = np.full(num_rows, LOWEST, np.float32)

    def cut(self) -> None:
        """Move each row's best to the front of its buffer; the worst of them is the threshold."""
        _fill_up(self.key_IB, self.count_I)
        first = self.key_IB.shape[1] - self.num_listed
        self.key_IB[:, : self.num_listed] = np.partition(self.key_IB, first, axis=1)[:, first:]
        self.count_I[:] = self.num_listed  # keys of no column among them
        _raise_thresholds(self.key_IB, self.num_listed, self.threshold_I)

    def columns(self) -> I32:
        """Return the columns [I, C], best first, once they are cut."""
        key_IC = np.sort(self.key_IB[:, : self.num_listed], axis=1)[:, ::-1]
        column_IC = (LAST_COLUMN - (key_IC & 0xFFFFFFFF)).astype(np.int32)
        column_IC[key_IC < FIRST_KEY] = NO_COLUMN
        return column_IC


@compiled
def _fill_up(key_IB: I64, count_I: I64) -> None:
    """Write keys below all others to the places that are not in use."""
    for i in range(len(key_IB)):
        for b in range(count_I[i], key_IB.shape[1]):
            key_IB[i, b] = NO_KEY + b


@compiled
def _worst_score(key_C: I64) -> np.float32:
    return max(score_of(key_C.min()), LOWEST)


@compiled
def _raise_thresholds(key_IB: I64, num_listed: int, threshold_I: F32) -> None:
    for i in range(len(key_IB)):
        threshold_I[i] = _worst_score(key_IB[i, :num_listed])


@compiled
def _list_cells(
    query_IF: F32, panel_PFC: F32, base_X: F32, column_X: I32, start_L: I64, prober_N: I64,
    prober_start_L: I64, num_listed: int, key_IB: I64, count_I: I64, threshold_I: F32,
) -> None:  # fmt: skip
    """Take the cells in turn, some panels at a time, each with the rows that probe it."""
    group_FR = np.empty((query_IF.shape[1], NUM_ROWS), np.float32)
    product_RT = np.empty((NUM_ROWS, PANELS_AT_ONCE * PANEL_COLUMNS), np.float32)
    room = key_IB.shape[1] - product_RT.shape[1]
    for cell in range(len(start_L) - 1):
        row_N = prober_N[prober_start_L[cell] : prober_start_L[cell + 1]]
        for start in range(start_L[cell], start_L[cell + 1], PANELS_AT_ONCE):
            num_panels = min(PANELS_AT_ONCE, start_L[cell + 1] - start)
            places = slice(start * PANEL_COLUMNS, (start + num_panels) * PANEL_COLUMNS)
            base_T, column_T = base_X[places], column_X[places]
            for first in range(0, len(row_N), NUM_ROWS):
                gather_rows(query_IF, row_N, first, group_FR)
                for p in range(num_panels):
                    multiply_panel(
                        group_FR, panel_PFC[start + p], base_T, product_RT, p * PANEL_COLUMNS
                    )
                for r in range(min(NUM_ROWS, len(row_N) - first)):
                    i = row_N[first + r]
                    if count_I[i] > room:
                        _keep_largest(key_IB[i, : count_I[i]], num_listed)
                        count_I[i] = num_listed
                        threshold_I[i] = _worst_score(key_IB[i, :num_listed])
                    count_I[i] = append_reaching(
                        product_RT, r, column_T, num_panels, threshold_I[i], key_IB[i], count_I[i]
                    )


@compiled
def _keep_largest(key_N: I64, num_kept: int) -> None:
    """Move the largest keys to the front, in any order (Hoare's selection); no two are equal."""
    low, high, last_kept = 0, len(key_N) - 1, num_kept - 1
    while low < high:
        x, y, z = key_N[low], key_N[(low + high) // 2], key_N[high]
        pivot = max(min(x, y), min(max(x, y), z))
        left, right = low, high
        while left <= right:
            while key_N[left] > pivot:
                left += 1
            while key_N[right] < pivot:
                right -= 1
            if left <= right:
                key_N[left], key_N[right] = key_N[right], key_N[left]
                left, right = left + 1, right - 1
        if last_kept <= right:
            high = right
        elif last_kept >= left:
            low = left
        else:
            return


# Approximate search for the columns of largest inner product: FAISS behind a small surface.

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


# The nearest of some vectors by cosine, exactly: FAISS finds them, float64 puts them in order.


DIGITS = 6  # cosines that agree to so many are equal
#: What FAISS did not find is at most so much nearer than the farthest it found: float32 rounds.
SEARCH_ERROR = 1e-5
SPARE = 8  # found beyond those wanted, so that one search mostly does
WIDENING = 4


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The nearest vectors of each query, nearest first; the lower name first among equals."""

    place_IK: I64  # in the order the vectors were given in
    cosine_IK: F32  # rounded to DIGITS


class NearestVectors:
    """Unit vectors to be found by cosine."""

    def __init__(self, vector_JD: F32, names: Sequence[str], *, num_threads: int = 1) -> None:
        """Index vectors.

        Args:
            vector_JD: Unit vectors.
            names: Their names, which decide among vectors that are equally near.
            num_threads: Threads of FAISS.

        Raises:
            ShapeError: If there is no vector.
            ValueError: If a vector is not finite.

        Memory: 8 * J * D bytes.
        """
        self._vector_JD = vector_JD
        by_name = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        self._rank_J = np.empty(len(names), np.int64)
        self._rank_J[by_name] = np.arange(len(names))
        self._index = NeighbourIndex.build(
            "flat", vector_JD[:1], len(vector_JD), seed=0, num_threads=num_threads
        )
        self._index.add(vector_JD)

    def search(self, query_ID: F32, num_wanted: int) -> Nearest:
        """Return the nearest vectors of each query: K = num_wanted, or all if they are fewer.

        Raises:
            ShapeError: If D differs.
            ValueError: If a query is not finite.

        Memory: 8 * I * C * D bytes, C a little more than K unless many are equally near.
        """
        size = min(num_wanted, len(self._vector_JD))
        place_IK = np.empty((len(query_ID), size), np.int64)
        cosine_IK = np.empty((len(query_ID), size), np.float32)
        open_rows = np.arange(len(query_ID))
        width = size + SPARE
        while len(open_rows):
            place_IC, cosine_IC = self._find(query_ID[open_rows], width)
            place_IK[open_rows] = place_IC[:, :size]
            cosine_IK[open_rows] = cosine_IC[:, :size]
            if width >= len(self._vector_JD):
                break
            # What was not found may still belong here where the farthest found is hardly farther.
            open_rows = open_rows[cosine_IC[:, size - 1] <= cosine_IC[:, -1] + SEARCH_ERROR]
            width *= WIDENING
        return Nearest(place_IK, cosine_IK)

    def _find(self, query_ID: F32, width: int) -> tuple[I64, npt.NDArray[np.float64]]:
        """Return C vectors of each query in their final order, with their rounded cosines."""
        found_IC = self._index.search(query_ID, min(width, len(self._vector_JD))).astype(np.int64)
        near_ICD = self._vector_JD[found_IC].astype(np.float64)
        exact_IC = np.einsum("id,icd->ic", query_ID.astype(np.float64), near_ICD)
        cosine_IC = np.round(exact_IC, DIGITS)
        order_IC = np.lexsort((self._rank_J[found_IC], -cosine_IC), axis=1)
        return (
            np.take_along_axis(found_IC, order_IC, axis=1),
            np.take_along_axis(cosine_IC, order_IC, axis=1),
        )
