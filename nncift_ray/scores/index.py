"""Candidates: the columns that an index of the network's own features proposes for a row.

Anchor features describe a column by how much it helps a few hundred sampled rows, so that
row query . column features = influence, nearly, up to a constant of the row. FAISS puts the columns
into k-means cells by them; a row probes the cells that may hold its best columns and lists the
columns of largest inner product there (`list_columns`), to be scored exactly. Neighbours in
embedding space are not a network's best helpers (docs/decisions.md).

Cells are made by Euclidean distance, so that they stay even in size, and probed by the inner
product that their columns may reach.

What is proposed for a row depends on the index and the row alone, and features and queries have the
same bits whatever else is in the call: candidates are the same on any cluster. k-means is seeded,
and one build on one machine gives one index.

Suffixes: I rows (helped), J columns (helpers), H hidden, F features, R anchors, C landmarks or
listed columns, L cells, P probed cells, K kept columns, X places of packed columns, B of a buffer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import (
    RescoredTopK,
    check_activations,
    pack_columns,
    rescore_rows,
    run_parts,
    score_matrix,
)
from nncift_ray.scores.kernel import (
    FIRST_KEY,
    LAST_COLUMN,
    NO_KEY,
    NUM_ROWS,
    PANEL_COLUMNS,
    append_reaching,
    gather_rows,
    multiply_panel,
    multiply_rows,
    score_of,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# The columns of largest inner product in some cells. FAISS, which searches a row at a time, is two
# to five times slower than this, which takes a cell once for all rows that probe it (docs/log.md).
# A list depends on its row's query and cells and on the columns alone.

NO_CELL = NO_COLUMN = -1
PANELS_AT_ONCE = 4
FIRST_LISTS = 2  # lists that the cells probed first hold, about
BUFFER_LISTS = 2  # lists that a buffer holds beside what one step adds; then it is cut to one
LOWEST = np.float32(np.finfo(np.float32).min)  # -inf, below it, is no column


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCells:
    """Features of all columns, cell after cell, each cell in panels of its own."""

    column_X: I32  # the column's number at each place, or -1
    start_L: I64  # first panel of each cell, and the number of panels: [L + 1]
    num_columns: int
    panel_PFC: F32  # 0 where there is no column
    base_X: F32  # 0; -inf where there is no column, and so is its product

    @classmethod
    def pack(cls, feature_JF: F32, cell_J: NDArray[np.integer], num_cells: int) -> FeatureCells:
        """Sort the features of all columns into their cells, 0..num_cells - 1.

        Raises:
            ShapeError: If there is not one cell a column.
            ValueError: If a cell does not exist.

        Memory: 4 * J * F bytes, each cell's columns padded to a multiple of 64.
        """
        if feature_JF.ndim != 2 or cell_J.shape != (len(feature_JF),):
            msg = f"features are {feature_JF.shape}, cells of columns {cell_J.shape}"
            raise ShapeError(msg)
        _check_cells("a column lies in", cell_J, 0, num_cells)
        num_panels_L = -(-np.bincount(cell_J, minlength=num_cells) // PANEL_COLUMNS)
        start_L = np.concatenate([[0], np.cumsum(num_panels_L, dtype=np.int64)])
        column_X = np.full(start_L[-1] * PANEL_COLUMNS, NO_COLUMN, np.int32)
        for panel, columns in zip(start_L, split_cells(cell_J, num_cells), strict=False):
            start = panel * PANEL_COLUMNS
            column_X[start : start + len(columns)] = columns
        none_X = column_X == NO_COLUMN
        panel_PFC = np.empty((start_L[-1], feature_JF.shape[1], PANEL_COLUMNS), np.float32)
        for p in range(len(panel_PFC)):
            places = slice(p * PANEL_COLUMNS, (p + 1) * PANEL_COLUMNS)
            panel_PFC[p] = np.where(none_X[places], 0, feature_JF[column_X[places]].T)
        base_X = np.where(none_X, -np.inf, 0).astype(np.float32)
        return cls(column_X, start_L, len(feature_JF), panel_PFC, base_X)

    @property
    def num_cells(self) -> int:
        """Number L of cells, empty ones included."""
        return len(self.start_L) - 1


def split_cells(cell_J: NDArray[np.integer], num_cells: int) -> list[I64]:
    """Return the columns of each cell, ascending."""
    ends = np.cumsum(np.bincount(cell_J, minlength=num_cells))
    return np.split(np.argsort(cell_J, kind="stable"), ends[:-1])


def list_columns(
    query_IF: F32, cells: FeatureCells, cell_IP: NDArray[np.integer], num_listed: int
) -> I32:
    """Return the columns of largest product with each row in its cells [I, C], best first.

    A row probes each cell [I, P] at most once, -1 is no cell; their order does not change the
    result, but likely ones first are faster. Where its cells hold fewer than C columns the rest
    is -1.

    Raises:
        ShapeError: If rows, features and cells do not belong together.
        ValueError: If a probed cell does not exist, or num_listed is below 1.

    Memory: 24 * I * C bytes and 2048 * I for the buffers, 16 * I * P for the probes. Rows of one
        call share the reading of a cell: thousands of rows are faster than hundreds.
    """
    num_features = cells.panel_PFC.shape[1]
    if query_IF.ndim != 2 or query_IF.shape[1] != num_features:
        msg = f"queries are {query_IF.shape}, features have {num_features} numbers"
        raise ShapeError(msg)
    if cell_IP.ndim != 2 or len(cell_IP) != len(query_IF):
        msg = f"{len(query_IF)} rows, but probes of {cell_IP.shape}; expected one list a row"
        raise ShapeError(msg)
    if num_listed < 1:
        msg = f"num_listed must be at least 1, got {num_listed}"
        raise ValueError(msg)
    _check_cells("a row probes", cell_IP, NO_CELL, cells.num_cells)
    query_IF = np.ascontiguousarray(query_IF, np.float32)
    num_places = BUFFER_LISTS * num_listed + PANELS_AT_ONCE * PANEL_COLUMNS
    key_IB = np.empty((len(query_IF), num_places), np.int64)
    count_I = np.zeros(len(query_IF), np.int64)
    threshold_I = np.full(len(query_IF), LOWEST, np.float32)
    # Two lists, about, are enough to know what need not be kept later.
    mean_columns = max(cells.num_columns / max(cells.num_cells, 1), 1.0)
    num_first = math.ceil(FIRST_LISTS * num_listed / mean_columns)
    for part_IP in (cell_IP[:, :num_first], cell_IP[:, num_first:]):
        order = np.argsort(part_IP.ravel(), kind="stable")
        prober_start_L = np.searchsorted(part_IP.ravel()[order], np.arange(cells.num_cells + 1))
        _list_cells(
            query_IF, cells.panel_PFC, cells.base_X, cells.column_X, cells.start_L,
            order // max(part_IP.shape[1], 1), prober_start_L, num_listed, key_IB, count_I,
            threshold_I,
        )  # fmt: skip
        _cut_all(key_IB, count_I, threshold_I, num_listed)
    key_IC = np.sort(key_IB[:, :num_listed], axis=1)[:, ::-1]
    column_IC = (LAST_COLUMN - (key_IC & 0xFFFFFFFF)).astype(np.int32)
    column_IC[key_IC < FIRST_KEY] = NO_COLUMN
    return column_IC


def _check_cells(what: str, cells: NDArray[np.integer], lowest: int, num_cells: int) -> None:
    if cells.size and not lowest <= cells.min() <= cells.max() < num_cells:
        msg = f"{what} cells {cells.min()}..{cells.max()}, there are {num_cells}"
        raise ValueError(msg)


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
                        _cut(key_IB, count_I, threshold_I, i, num_listed)
                    count_I[i] = append_reaching(
                        product_RT, r, column_T, num_panels, threshold_I[i], key_IB[i], count_I[i]
                    )


@compiled
def _cut_all(key_IB: I64, count_I: I64, threshold_I: F32, num_listed: int) -> None:
    """Cut every row's buffer to its list, and mark the places of lists that are not full."""
    for i in range(len(key_IB)):
        _cut(key_IB, count_I, threshold_I, i, num_listed)
        for b in range(count_I[i], num_listed):
            key_IB[i, b] = NO_KEY


@compiled
def _cut(key_IB: I64, count_I: I64, threshold_I: F32, i: int, num_listed: int) -> None:
    """Move a row's best keys to the front; the worst of a full list is the row's threshold."""
    if count_I[i] > num_listed:
        _keep_largest(key_IB[i, : count_I[i]], num_listed)
        count_I[i] = num_listed
    if count_I[i] == num_listed:
        threshold_I[i] = score_of(key_IB[i, :num_listed].min())


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


# Two maps, of rows and of columns, into one space of features.

State = Mapping[str, NDArray[np.float32] | NDArray[np.int32]]

Number = TypeVar("Number", np.float32, np.int32)

NUM_ANCHORS = 256
NUM_LANDMARKS = 512
NUM_FEATURES = 64
# Directions whose spread is below this share of the largest are rounding errors of float32 scores.
SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AnchorFeatures:
    """Fitted anchors, directions and landmarks: two maps into one space of F features."""

    anchor_RH: F32
    mean_R: F32
    direction_RF: F32
    landmark_CH: F32
    fit_CF: F32  # pseudo-inverse of the landmarks' centred features, transposed
    w_H: F32
    bias: float

    @classmethod
    def fit(
        cls,
        network: FactoredNetwork,
        row_sample_IH: F32,
        column_sample_JH: F32,
        *,
        seed: int,
        num_anchors: int = NUM_ANCHORS,
        num_landmarks: int = NUM_LANDMARKS,
        num_features: int | None = None,
    ) -> AnchorFeatures:
        """Fit on random samples of the rows and columns that will be scored, some thousands each.

        The numbers are the most there will be: samples may be smaller, and profiles may have fewer
        directions than features are wanted. By default 64 features, and of a pair network as many
        as its inner product has numbers: then it is followed to the last bit.

        Raises:
            ShapeError: If a sample is empty or H differs.
            ValueError: If an activation is not finite; the message names the first such row.

        Memory: 8 * R * J bytes.
        """
        if len(row_sample_IH) == 0 or len(column_sample_JH) == 0:
            msg = f"cannot fit on {len(row_sample_IH)} rows and {len(column_sample_JH)} columns"
            raise ShapeError(msg)
        random, w_H, bias = np.random.default_rng(seed), network.w_H, network.bias
        num_features = num_features or features_of(network)
        anchor_RH = row_sample_IH[draw(random, len(row_sample_IH), num_anchors)]
        landmark_CH = column_sample_JH[draw(random, len(column_sample_JH), num_landmarks)]
        score_RJ = _rank_scores(anchor_RH, column_sample_JH, landmark_CH, w_H, bias)
        mean_R = score_RJ.mean(axis=1, dtype=np.float64).astype(np.float32)
        direction_RF = _principal_directions(score_RJ - mean_R[:, None], num_features)
        score_RC = _rank_scores(anchor_RH, landmark_CH, landmark_CH, w_H, bias)
        fit_CF = _fit_to_landmarks(multiply_rows(score_RC.T - mean_R, direction_RF))
        return cls(anchor_RH, mean_R, direction_RF, landmark_CH, fit_CF, w_H, bias)

    def of_columns(self, b_TH: F32) -> F32:
        """Return the profiles of columns in F directions [T, F], in the unit of the labels."""
        score_RT = _rank_scores(self.anchor_RH, b_TH, self.landmark_CH, self.w_H, self.bias)
        return multiply_rows(score_RT.T - self.mean_R, self.direction_RF)

    def queries(self, a_IH: F32) -> F32:
        """Return the query vectors of rows [I, F] (dimensionless)."""
        score_IC = _rank_scores(a_IH, self.landmark_CH, self.landmark_CH, self.w_H, self.bias)
        # The mean first: it is large beside what tells columns apart, and would cost its bits.
        return multiply_rows(score_IC - score_IC.mean(axis=1, keepdims=True), self.fit_CF)

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        return {
            "anchor": self.anchor_RH,
            "mean": self.mean_R,
            "direction": self.direction_RF,
            "landmark": self.landmark_CH,
            "fit": self.fit_CF,
            "output.weight": self.w_H,
            "output.bias": np.array([self.bias], np.float32),
        }

    @classmethod
    def from_state(cls, state: State) -> AnchorFeatures:
        """Rebuild the maps from what `to_state` returned."""
        names = ("anchor", "mean", "direction", "landmark", "fit", "output.weight")
        arrays = (np.asarray(state[name], np.float32) for name in names)
        return cls(*arrays, bias=float(state["output.bias"][0]))


def features_of(network: FactoredNetwork) -> int:
    """Return how many features F its columns are listed by, at most."""
    return NUM_FEATURES if len(network.w_H) else network.num_hidden


def _rank_scores(a_IH: F32, b_JH: F32, landmark_CH: F32, w_H: F32, bias: float) -> F32:
    """Return scores [I, J], or of a pair network numbers that rank a row's best columns nearly so.

    Its max(t, 0)^2 + own is bent, which an inner product follows badly. Its slope at the row's best
    landmark, 2 t', makes it one: 2 t' t + own.
    """
    if len(w_H):
        return score_matrix(a_IH, b_JH, w_H, bias)
    check_activations(a_IH, b_JH, w_H, bias)
    best_I1 = multiply_rows(a_IH[:, :-1], landmark_CH[:, :-1].T).max(axis=1, keepdims=True)
    weight_IH = np.ones_like(a_IH)
    weight_IH[:, :-1] = 2 * np.maximum(best_I1, 0) * a_IH[:, :-1]
    return multiply_rows(weight_IH, b_JH.T)


def draw(random: np.random.Generator, num_rows: int, count: int) -> NDArray[np.int64]:
    """Return up to so many distinct row numbers, ascending."""
    return np.sort(random.permutation(num_rows)[:count])


def _principal_directions(profile_RJ: F32, num_features: int) -> F32:
    """Return the directions of largest spread [R, F], each with its largest entry positive."""
    wide_RJ = profile_RJ.astype(np.float64)
    spread_R, direction_RR = np.linalg.eigh(wide_RJ @ wide_RJ.T)
    order = np.argsort(-spread_R, kind="stable")[:num_features]
    kept = order[spread_R[order] > SMALLEST_SPREAD**2 * spread_R[order[0]]]
    if len(kept) == 0:  # every column scores alike: one feature, 0 for all of them
        return np.zeros((len(spread_R), 1), np.float32)
    direction_RF = direction_RR[:, kept]
    largest_F = direction_RF[np.abs(direction_RF).argmax(axis=0), np.arange(len(kept))]
    return np.asarray(direction_RF * np.sign(largest_F), np.float32)


def _fit_to_landmarks(feature_CF: F32) -> F32:
    """Return the matrix that turns a row's centred scores into its least-squares query."""
    centred_CF = feature_CF.astype(np.float64) - feature_CF.mean(axis=0, dtype=np.float64)
    square_F, direction_FF = np.linalg.eigh(centred_CF.T @ centred_CF)
    # Directions in which the landmarks hardly differ say nothing: their part of a query is 0.
    sure_F = square_F > SMALLEST_SPREAD**2 * square_F[-1]
    inverse_F = np.divide(1.0, square_F, out=np.zeros_like(square_F), where=sure_F)
    return np.asarray((centred_CF @ direction_FF * inverse_F) @ direction_FF.T, np.float32)


# An index over all columns of a block.

CALL_ROWS = 4096  # rows of one call share the reading of a cell
FEATURE_TILE = 16_384
FIT_SAMPLE = 4096  # rows, and columns, that the features are fitted on
CELLS_PER_ROOT = 4  # 4 sqrt(J) cells balance comparing centres with scoring columns
MOST_CELLS = 65_536
COLUMNS_PER_CELL = 128  # on average, at least: shorter runs of columns waste the kernel's vectors
SAMPLED_PER_CELL = 64  # columns of the sample that k-means uses, at most
KMEANS_ROUNDS = 5  # ten find no more (docs/log.md)
SPREADS = 2.0  # standard deviations of a cell added to what its centre promises


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How widely to search for a row's columns."""

    num_probes: int  # cells searched a row
    num_candidates: int  # columns listed by approximate score, to be scored anew


def num_cells(num_columns: int) -> int:
    """Return the number of cells for so many columns: 4 sqrt(J), or J / 128 if that is less."""
    wanted = int(CELLS_PER_ROOT * math.sqrt(num_columns))
    return max(1, min(wanted, num_columns // COLUMNS_PER_CELL, MOST_CELLS))


class ColumnIndex:
    """Columns in cells, to be proposed to rows and scored; searching uses so many threads.

    `widened_LX` holds the centre of each cell, and what its spread adds to a unit query.
    """

    def __init__(
        self, features: AnchorFeatures, feature_JF: F32, cell_J: I32, widened_LX: F32, b_JH: F32,
        num_threads: int,
    ) -> None:  # fmt: skip
        """Pack the columns; `build` and `from_state` make an index."""
        self.features, self.cell_J, self.widened_LX = features, cell_J, widened_LX
        self.num_columns, self.num_cells = len(cell_J), len(widened_LX)
        # The cells are themselves columns of one cell, to be listed by what they promise.
        self.centres = FeatureCells.pack(widened_LX, np.zeros(len(widened_LX), np.int32), 1)
        self.cells = FeatureCells.pack(feature_JF, cell_J, len(widened_LX))
        self.columns = pack_columns(b_JH, features.w_H, features.bias)
        self.num_threads = num_threads

    @classmethod
    def build(
        cls,
        network: FactoredNetwork,
        row_sample_IH: F32,
        b_JH: F32,
        *,
        seed: int,
        num_threads: int = 1,
    ) -> ColumnIndex:
        """Fit features to a sample of the rows that will search, and index all columns by them.

        Raises:
            ShapeError: If there is no row or no column, or H differs.
            ValueError: If an activation is not finite; the message names the first such row.

        Memory: the columns, their features twice, and a packed copy of them.
        """
        import faiss  # a plan needs none

        random = np.random.default_rng(seed)
        fit_columns = draw(random, len(b_JH), FIT_SAMPLE)
        features = AnchorFeatures.fit(network, row_sample_IH, b_JH[fit_columns], seed=seed)
        feature_JF = _features_of(features, b_JH, num_threads)
        cells = num_cells(len(b_JH))
        sampled = draw(random, len(b_JH), SAMPLED_PER_CELL * cells)
        faiss.omp_set_num_threads(num_threads)
        kmeans = faiss.Kmeans(
            feature_JF.shape[1],
            min(cells, len(sampled)),
            niter=KMEANS_ROUNDS,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=SAMPLED_PER_CELL,
        )
        kmeans.train(np.ascontiguousarray(feature_JF[sampled]))
        centre_LF = np.asarray(kmeans.centroids, np.float32)
        cell_J = np.concatenate(
            [
                faiss.knn(feature_JF[start : start + FEATURE_TILE], centre_LF, 1)[1][:, 0]
                for start in range(0, len(b_JH), FEATURE_TILE)
            ]
        ).astype(np.int32)
        widened_LX = _widen(centre_LF, feature_JF, cell_J)
        return cls(features, feature_JF, cell_J, widened_LX, b_JH, num_threads)

    def to_state(self) -> dict[str, F32 | I32]:
        """Return what `from_state` rebuilds the index from, beside the columns, as arrays."""
        return {**self.features.to_state(), "cell": self.cell_J, "centre": self.widened_LX}

    @classmethod
    def from_state(cls, state: State, b_JH: F32, *, num_threads: int = 1) -> ColumnIndex:
        """Rebuild an index over the columns that it was built over."""
        features = AnchorFeatures.from_state(state)
        feature_JF = _features_of(features, b_JH, num_threads)
        cell_J = np.asarray(state["cell"], np.int32)
        widened_LX = np.asarray(state["centre"], np.float32)
        return cls(features, feature_JF, cell_J, widened_LX, b_JH, num_threads)

    def probe(self, query_IF: F32, num_probes: int) -> I32:
        """Return the cells most likely to hold each row's best columns [I, P], best first.

        A cell counts by what its centre promises and by its spread: columns two standard
        deviations from a wide cell's centre beat the centre of a narrow one. P is at most the
        number of cells.
        """
        length_I1 = np.linalg.norm(query_IF, axis=1, keepdims=True)
        widened_IX = np.concatenate([query_IF, length_I1], axis=1, dtype=np.float32)
        of_one_cell = np.zeros((len(query_IF), 1), np.int32)
        return list_columns(widened_IX, self.centres, of_one_cell, min(num_probes, self.num_cells))

    def propose(self, a_IH: F32, settings: SearchSettings) -> I32:
        """Return the columns to score for each row [I, C]; -1 where its cells hold fewer."""
        num_listed = min(settings.num_candidates, self.num_columns)

        def list_rows(rows: slice) -> I32:
            query_IF = self.features.queries(a_IH[rows])
            cell_IP = self.probe(query_IF, settings.num_probes)
            return list_columns(query_IF, self.cells, cell_IP, num_listed)

        return _in_calls(len(a_IH), self.num_threads, CALL_ROWS, list_rows)

    def search(self, a_IH: F32, settings: SearchSettings, k: int) -> RescoredTopK:
        """Return the K best of the columns proposed for each row, scored exactly."""
        proposed_IC = self.propose(a_IH, settings)
        return rescore_rows(a_IH, self.columns, proposed_IC, k, num_threads=self.num_threads)


def _features_of(features: AnchorFeatures, b_JH: F32, num_threads: int) -> F32:
    return _in_calls(
        len(b_JH), num_threads, FEATURE_TILE, lambda columns: features.of_columns(b_JH[columns])
    )


def _in_calls(
    num_rows: int, num_threads: int, call_rows: int, task: Callable[[slice], NDArray[Number]]
) -> NDArray[Number]:
    """Run a task on so many rows at a time, on threads, and join what it returns."""

    def run(rows: slice) -> list[NDArray[Number]]:
        starts = range(rows.start, max(rows.stop, 1), call_rows)
        return [task(slice(start, min(start + call_rows, rows.stop))) for start in starts]

    parts = run_parts(num_rows, num_threads, run)
    return np.concatenate([result for part in parts for result in part])


def _widen(centre_LF: F32, feature_JF: F32, cell_J: I32) -> F32:
    """Return the centres, each with the spread of its cell behind it, times SPREADS."""
    spread_L1 = np.zeros((len(centre_LF), 1), np.float32)
    for cell, columns in enumerate(split_cells(cell_J, len(centre_LF))):
        if len(columns):
            # Per direction: a cell is taken to spread alike in all of them.
            spread_L1[cell] = np.sqrt(np.square(feature_JF[columns] - centre_LF[cell]).mean())
    return np.concatenate([centre_LF, np.float32(SPREADS) * spread_L1], axis=1)


# How much of the exact lists a search finds, and the smallest search that finds enough.

FIRST_PROBES = 4
CANDIDATES_PER_KEPT = (2, 3, 4, 6, 8, 16)  # candidates listed, as multiples of K
PRODUCTS_PER_LISTED = 16  # products with features that cost as much as one column scored anew


@dataclass(frozen=True, slots=True)
class RecallPoint(SearchSettings):
    """What one setting found on the held-out rows."""

    recall: float  # mean over rows of recall@K
    standard_error: float  # of that mean
    scored_fraction: float  # pairs scored exactly, of all pairs of those rows
    seconds: float  # wall clock, all rows, search and scoring


@dataclass(frozen=True, slots=True)
class Tuning:
    """The points tried, narrowest first, and the first that found enough."""

    points: tuple[RecallPoint, ...]
    chosen: RecallPoint | None  # None when even the widest setting found too little

    @property
    def best(self) -> RecallPoint:
        """The chosen point, or else the one of highest recall."""
        return self.chosen or max(self.points, key=lambda point: point.recall)


def recall_at_k(found_score_IK: F32, exact_score_IK: F32) -> F64:
    """Return for each row the share of its true K best that were found [I], from exact scores.

    Scores, not columns, are compared: a column that ties with the K-th best is as good as it. A
    row with fewer than K columns is measured on those it has; one with none counts as found. Both
    lists are exact scores, best first, -inf where there is none.

    Raises:
        ShapeError: If the shapes differ.
    """
    if found_score_IK.shape != exact_score_IK.shape or found_score_IK.ndim != 2:
        msg = f"lists are {found_score_IK.shape} and {exact_score_IK.shape}, expected both [I, K]"
        raise ShapeError(msg)
    is_true_IK = np.isfinite(exact_score_IK)
    num_true_I = is_true_IK.sum(axis=1)
    worst_true_I = np.where(is_true_IK, exact_score_IK, np.inf).min(axis=1)
    num_found_I = (found_score_IK >= worst_true_I[:, None]).sum(axis=1)
    return np.where(num_true_I > 0, num_found_I / np.maximum(num_true_I, 1), 1.0)


def listing_schedule(k: int, num_columns: int, num_cells: int) -> list[SearchSettings]:
    """Return settings that list candidates, cheapest first.

    A row costs a product for each column of its cells, and as much as some sixteen for each column
    listed. The last setting probes every cell for the longest list.
    """
    lengths = sorted({min(multiple * k, num_columns) for multiple in CANDIDATES_PER_KEPT})
    probes = [FIRST_PROBES * 2**n for n in range(num_cells.bit_length())]
    every = [
        SearchSettings(probed, length)
        for probed in [*(p for p in probes if p < num_cells), num_cells]
        for length in lengths
    ]

    def cost(settings: SearchSettings) -> float:
        products = settings.num_probes * num_columns / num_cells
        return products + PRODUCTS_PER_LISTED * settings.num_candidates

    return sorted(every, key=cost)


def tune(
    search: Callable[[SearchSettings], RescoredTopK],
    exact_score_IK: F32,
    num_columns: int,
    schedule: Sequence[SearchSettings],
    wanted_recall: float,
    *,
    standard_errors: float = 0.0,
) -> Tuning:
    """Try settings in order on held-out rows until one reaches the recall wanted.

    `search` searches all held-out rows, whose true lists are `exact_score_IK`. A measured mean must
    lie so many of its standard errors above the recall wanted: it is of a sample. The choice
    depends on recall alone, never on the clock, so that it is the same on any machine.

    Raises:
        ValueError: If the schedule or the sample of rows is empty.
    """
    num_rows = len(exact_score_IK)
    if not schedule or num_rows == 0:
        msg = f"nothing to tune on: {len(schedule)} settings, {num_rows} held-out rows"
        raise ValueError(msg)
    points: list[RecallPoint] = []
    for settings in schedule:
        begin = time.perf_counter()
        found = search(settings)
        seconds = time.perf_counter() - begin
        recall_I = recall_at_k(found.score_IK, exact_score_IK)
        point = RecallPoint(
            settings.num_probes,
            settings.num_candidates,
            recall=float(recall_I.mean()),
            standard_error=float(recall_I.std() / np.sqrt(num_rows)),
            scored_fraction=float(found.num_pairs_I.sum() / (num_rows * max(num_columns, 1))),
            seconds=seconds,
        )
        points.append(point)
        if point.recall - standard_errors * point.standard_error >= wanted_recall:
            return Tuning(tuple(points), point)
    return Tuning(tuple(points), None)
