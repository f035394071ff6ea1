"""What a candidate generator is: two maps into one space where inner products order the columns.

Suffixes: I rows (helped), J columns (helpers), T columns of a tile, F features, X activations [H]
or embeddings [D], whichever the generator reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import RescoredTopK, score_matrix
from nncift_ray.scores.kernel import multiply_rows

F32 = NDArray[np.float32]
State = Mapping[str, NDArray[np.float32]]


class CandidateGenerator(Protocol):
    """A fitted generator: row query . column features = influence, nearly, up to a row's constant.

    Fitted once on a sample of rows and columns; from then on it knows arrays only, so that it can
    be stored and read by every worker. The features of a column and the query of a row have the
    same bits whatever else is in the call, so that candidates are the same on any cluster.
    """

    reads: ClassVar[Literal["activations", "embeddings"]]

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IX: F32, column_sample_JX: F32, /, *, seed: int
    ) -> Self:
        """Fit on random samples of the rows and columns that will be scored."""
        ...

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        ...

    def column_features(self, column_TX: F32) -> F32:
        """Return the features [T, F] of a tile of columns."""
        ...

    def row_queries(self, row_IX: F32) -> F32:
        """Return the query vectors [I, F] of rows."""
        ...

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        ...

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator from what `to_state` returned.

        Raises:
            ShapeError: If an array is missing or unknown.
        """
        ...


def check_names(state: State, names: set[str], generator: str) -> None:
    """Check that a state holds the arrays of a generator and no others.

    Raises:
        ShapeError: If it does not.
    """
    if set(state) != names:
        msg = f"state of a generator {generator!r} holds {sorted(state)}, expected {sorted(names)}"
        raise ShapeError(msg)


# Anchor candidates: a column is described by how much it helps a few hundred sampled rows.

NUM_ANCHORS = 256
NUM_LANDMARKS = 512
NUM_FEATURES = 64
# Directions whose spread is below this share of the largest are rounding errors of float32 scores.
SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AnchorGenerator:
    """Fitted anchors, directions and landmarks."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "activations"

    anchor_RH: F32
    mean_R: F32
    direction_RF: F32
    landmark_CH: F32
    fit_CF: F32  # pseudo-inverse of the landmarks' centred features, transposed
    w_H: F32
    bias: float

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        return self.direction_RF.shape[1]

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
        num_features: int = NUM_FEATURES,
    ) -> Self:
        """Fit on random samples of the rows and columns that will be scored.

        Args:
            network: The fitted network.
            row_sample_IH: Row activations to draw anchors from.
            column_sample_JH: Column activations to find directions on and draw landmarks from;
                some thousands.
            seed: Of both draws.
            num_anchors: Anchor rows R, or all rows where there are fewer.
            num_landmarks: Landmark columns C, or all columns where there are fewer.
            num_features: Features F, or as many directions as the profiles have.

        Raises:
            ShapeError: If a sample is empty or H differs.
            ValueError: If an activation is not finite; the message names the first such row.

        Memory: 8 * R * J bytes.
        """
        if len(row_sample_IH) == 0 or len(column_sample_JH) == 0:
            msg = f"cannot fit on {len(row_sample_IH)} rows and {len(column_sample_JH)} columns"
            raise ShapeError(msg)
        generator = np.random.default_rng(seed)
        anchor_RH = _draw(row_sample_IH, num_anchors, generator)
        landmark_CH = _draw(column_sample_JH, num_landmarks, generator)
        score_RJ = score_matrix(anchor_RH, column_sample_JH, network.w_H, network.bias)
        mean_R = score_RJ.mean(axis=1, dtype=np.float64).astype(np.float32)
        direction_RF = _principal_directions(score_RJ - mean_R[:, None], num_features)
        score_RC = score_matrix(anchor_RH, landmark_CH, network.w_H, network.bias)
        fit_CF = _fit_to_landmarks(_features(score_RC, mean_R, direction_RF))
        return cls(anchor_RH, mean_R, direction_RF, landmark_CH, fit_CF, network.w_H, network.bias)

    def column_features(self, column_TX: F32) -> F32:
        """Return the profiles of columns in F directions [T, F], in the unit of the labels."""
        score_RT = score_matrix(self.anchor_RH, column_TX, self.w_H, self.bias)
        return _features(score_RT, self.mean_R, self.direction_RF)

    def row_queries(self, row_IX: F32) -> F32:
        """Return the query vectors of rows [I, F] (dimensionless)."""
        score_IC = score_matrix(row_IX, self.landmark_CH, self.w_H, self.bias)
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
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        names = {"anchor", "mean", "direction", "landmark", "fit", "output.weight", "output.bias"}
        check_names(state, names, "anchor")
        return cls(
            state["anchor"],
            state["mean"],
            state["direction"],
            state["landmark"],
            state["fit"],
            state["output.weight"],
            float(state["output.bias"][0]),
        )


def _draw(sample_NH: F32, count: int, generator: np.random.Generator) -> F32:
    chosen = generator.permutation(len(sample_NH))[:count]
    return np.ascontiguousarray(sample_NH[np.sort(chosen)])


def _features(score_RT: F32, mean_R: F32, direction_RF: F32) -> F32:
    centred_TR: F32 = score_RT.T - mean_R
    return multiply_rows(centred_TR, direction_RF)


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


# Cosine candidates: the nearest embeddings, whatever the network says. Kept as the baseline.


@dataclass(frozen=True, slots=True)
class CosineGenerator:
    """Embeddings are their own features (D of them) and queries."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "embeddings"

    num_features: int

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IH: F32, column_sample_JH: F32, *, seed: int
    ) -> Self:
        """Return the one there is for embeddings of this length; nothing is learnt."""
        del row_sample_IH, column_sample_JH, seed
        return cls(network.embedding_dim)

    def column_features(self, column_TX: F32) -> F32:
        """Return unit embeddings [T, D] as they are."""
        return np.ascontiguousarray(column_TX, np.float32)

    def row_queries(self, row_IX: F32) -> F32:
        """Return unit embeddings [I, D] as they are."""
        return np.ascontiguousarray(row_IX, np.float32)

    def to_state(self) -> dict[str, F32]:
        """Return the number of features, as an array."""
        return {"num_features": np.array([self.num_features], np.float32)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        check_names(state, {"num_features"}, "cosine")
        return cls(int(state["num_features"][0]))


# Quadratic candidates: each hidden unit's ReLU is replaced by a parabola that fits its inputs.

NUM_SAMPLED = 256  # rows and columns whose pairs the parabolas are fitted on
PARABOLA_TERMS = 3


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticGenerator:
    """Fitted parabolas, multiplied by the output weights."""

    reads: ClassVar[Literal["activations", "embeddings"]] = "activations"

    linear_H: F32  # w_h c1_h
    square_H: F32  # w_h c2_h

    @property
    def num_features(self) -> int:
        """Length F of a feature vector: H + 1."""
        return len(self.linear_H) + 1

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IH: F32, column_sample_JH: F32, *, seed: int
    ) -> Self:
        """Fit on the pairs of up to 256 rows and 256 columns of the samples.

        Raises:
            ShapeError: If a sample is empty.
        """
        if len(row_sample_IH) == 0 or len(column_sample_JH) == 0:
            msg = f"cannot fit on {len(row_sample_IH)} rows and {len(column_sample_JH)} columns"
            raise ShapeError(msg)
        generator = np.random.default_rng(seed)
        row_IH, column_JH = (
            sample[generator.permutation(len(sample))[:NUM_SAMPLED]].astype(np.float64)
            for sample in (row_sample_IH, column_sample_JH)
        )
        coefficient_H3 = np.empty((network.num_hidden, PARABOLA_TERMS))
        for h in range(network.num_hidden):
            z_P = np.add.outer(row_IH[:, h], column_JH[:, h]).ravel()
            terms_P3 = np.stack([np.ones_like(z_P), z_P, z_P**2], axis=1)
            coefficient_H3[h] = np.linalg.lstsq(
                terms_P3.T @ terms_P3, terms_P3.T @ np.maximum(z_P, 0.0)
            )[0]
        weighted_H3 = (coefficient_H3 * network.w_H[:, None]).astype(np.float32)
        return cls(weighted_H3[:, 1].copy(), weighted_H3[:, 2].copy())

    def column_features(self, column_TX: F32) -> F32:
        """Return activations and the column's own term [T, H + 1]."""
        own_T1 = multiply_rows(column_TX, self.linear_H[:, None])
        own_T1 += multiply_rows(np.square(column_TX), self.square_H[:, None])
        return np.concatenate([column_TX, own_T1], axis=1)

    def row_queries(self, row_IX: F32) -> F32:
        """Return weighted activations and 1 [I, H + 1]."""
        one_I1 = np.ones((len(row_IX), 1), np.float32)
        return np.concatenate([2 * row_IX * self.square_H, one_I1], axis=1)

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        return {"linear": self.linear_H, "square": self.square_H}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator; see the Protocol."""
        check_names(state, {"linear", "square"}, "quadratic")
        return cls(state["linear"], state["square"])


# How much of the exact lists a search finds, and the smallest search that finds enough.

F64 = NDArray[np.float64]

FIRST_PROBES = 4
CANDIDATES_PER_KEPT = (2, 3, 4, 6, 8, 16)  # candidates listed, as multiples of K
PRODUCTS_PER_LISTED = 16  # products with features that cost as much as one column scored anew


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How widely to search for a row's columns."""

    num_probes: int
    """Cells searched a row."""
    num_candidates: int
    """Columns listed by approximate score, to be scored anew."""


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """What one setting found on the held-out rows."""

    settings: SearchSettings
    recall: float  # mean over rows of recall@K
    standard_error: float  # of that mean
    scored_fraction: float  # pairs scored exactly, of all pairs of those rows
    seconds: float  # wall clock, all rows, search and scoring


@dataclass(frozen=True, slots=True)
class Tuning:
    """The points tried, narrowest first, and the first that found enough."""

    wanted_recall: float
    points: tuple[RecallPoint, ...]
    chosen: RecallPoint | None  # None when even the widest setting found too little

    @property
    def best(self) -> RecallPoint:
        """The chosen point, or else the one of highest recall."""
        return self.chosen or max(self.points, key=lambda point: point.recall)


def recall_at_k(found_score_IK: F32, exact_score_IK: F32) -> F64:
    """Return for each row the share of its true K best that were found [I], from exact scores.

    Scores, not columns, are compared: a column that ties with the K-th best is as good as it. A
    row with fewer than K columns is measured on those it has; one with none counts as found.

    Args:
        found_score_IK: Scores of the found columns, best first, -inf where there is none. They
            have to be exact (`rescoring`).
        exact_score_IK: Scores of the true K best (`pair_scores.top_k_rows`), likewise.

    Raises:
        ShapeError: If the shapes differ.
    """
    if found_score_IK.shape != exact_score_IK.shape or found_score_IK.ndim != 2:
        msg = f"lists are {found_score_IK.shape} and {exact_score_IK.shape}, expected both [I, K]"
        raise ShapeError(msg)
    num_true_I = np.isfinite(exact_score_IK).sum(axis=1)
    true_IK = np.where(np.isfinite(exact_score_IK), exact_score_IK, np.inf)
    worst_true_I = true_IK.min(axis=1)
    num_found_I = (found_score_IK >= worst_true_I[:, None]).sum(axis=1)
    return np.where(num_true_I > 0, num_found_I / np.maximum(num_true_I, 1), 1.0)


def listing_schedule(k: int, num_columns: int, num_cells: int) -> list[SearchSettings]:
    """Return settings that list candidates, cheapest first.

    A row costs a product for each column of its cells, and as much as some sixteen for each column
    listed. The last setting probes every cell for the longest list.
    """
    lengths = sorted({min(multiple * k, num_columns) for multiple in CANDIDATES_PER_KEPT})
    every = [
        SearchSettings(probes, length)
        for probes in _doubling(FIRST_PROBES, num_cells)
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

    The choice depends on recall alone, never on the clock, so that it is the same on any machine;
    the schedule is what orders settings by their cost.

    Args:
        search: Searches all held-out rows and scores exactly what it finds.
        exact_score_IK: The rows' true lists, from `pair_scores.top_k_rows`.
        num_columns: Columns there are.
        schedule: Settings, narrowest first; at least one.
        wanted_recall: Mean recall@K to reach.
        standard_errors: How many of its standard errors a measured mean must lie above that: it is
            of a sample, so a bound that must hold wants a margin of two.

    Returns:
        Every point tried, and the chosen one; `chosen` is None if none sufficed.

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
        points.append(
            RecallPoint(
                settings,
                recall=float(recall_I.mean()),
                standard_error=float(recall_I.std() / np.sqrt(num_rows)),
                scored_fraction=float(found.num_pairs_I.sum() / (num_rows * max(num_columns, 1))),
                seconds=seconds,
            )
        )
        lower_bound = points[-1].recall - standard_errors * points[-1].standard_error
        if lower_bound >= wanted_recall:
            return Tuning(wanted_recall, tuple(points), points[-1])
    return Tuning(wanted_recall, tuple(points), None)


def _doubling(first: int, last: int) -> list[int]:
    """Return first, 2 first, 4 first... below last, and last."""
    values: list[int] = []
    value = first
    while value < last:
        values.append(value)
        value *= 2
    return [*values, last]


# What exact and pruned scoring would cost here, from rates measured on a sample.

REPEATS = 3  # the best of so many runs counts: what else the machine does only slows it


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds of one worker, each per second."""

    exact_pairs: float
    """Pairs of the streamed kernel, top K included."""
    featured_columns: float
    """Columns turned into features."""
    queried_rows: float
    """Rows turned into queries."""
    comparisons: float
    """Queries compared with centres of cells, the choice of cells included."""
    probed_pairs: float
    """Listed pairs scored exactly, top K included."""
    products: float
    """Inner products with columns in the cells probed, the best listed."""


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Wall seconds of both ways; the index is built once, by one worker."""

    exact_seconds: float
    build_seconds: float
    search_seconds: float

    @property
    def pruned_seconds(self) -> float:
        """Building the index and searching it."""
        return self.build_seconds + self.search_seconds

    @property
    def pruning_pays(self) -> bool:
        """Whether pruning is the faster way."""
        return self.pruned_seconds < self.exact_seconds


def estimate_cost(
    rates: Rates,
    *,
    num_rows: int,
    num_columns: int,
    num_cells: int,
    scored_fraction: float,
    build_comparisons: int,
    num_workers: int = 1,
    probed_fraction: float,
) -> CostEstimate:
    """Predict the seconds of both ways.

    Args:
        rates: Measured on this machine.
        num_rows: Rows I of the whole job.
        num_columns: Columns J.
        num_cells: Cells of the index.
        scored_fraction: Share of a row's pairs that are scored, as tuning measured it; before
            that, listed columns over columns.
        build_comparisons: Vectors compared while the index is built.
        num_workers: Workers that score at the same time.
        probed_fraction: Probed cells over cells.
    """
    row_seconds = (
        1 / rates.queried_rows
        + num_cells / rates.comparisons
        + num_columns * probed_fraction / rates.products
        + num_columns * scored_fraction / rates.probed_pairs
    )
    return CostEstimate(
        exact_seconds=num_rows * num_columns / rates.exact_pairs / num_workers,
        build_seconds=num_columns / rates.featured_columns + build_comparisons / rates.comparisons,
        search_seconds=num_rows * row_seconds / num_workers,
    )


def fastest_seconds(task: Callable[[], object]) -> float:
    """Return the wall seconds of the fastest of a few runs."""
    seconds: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - begin)
    return max(min(seconds), 1e-9)  # a clock that has not moved
