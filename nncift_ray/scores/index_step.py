"""Index: find out whether scoring may leave pairs out, and make ready what that takes.

For each block of which only the lists are read: a generator is fitted to the network, FAISS indexes
all columns by it, and the search is widened until held-out rows find the share of their true lists
that the recipe asks for. Rates measured here predict the seconds of both ways; ``auto`` takes the
faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy

from nncift_ray.errors import ConfigError, StageError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import FILES_TABLE, Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.scores.backend import MEMORY_KEY, PairMemory, ScoresRows, make_backend, peak_bytes
from nncift_ray.scores.exact import CpuThreads, PackedColumns, RescoredTopK, pack_columns, run_parts
from nncift_ray.scores.index import (
    AnchorGenerator,
    CandidateGenerator,
    CosineGenerator,
    CostEstimate,
    QuadraticGenerator,
    Rates,
    RecallPoint,
    SearchSettings,
    Tuning,
    estimate_cost,
    fastest_seconds,
    listing_schedule,
    tune,
)
from nncift_ray.scores.neighbours import (
    IndexKind,
    NeighbourIndex,
    build_comparisons,
    num_cells,
    sample_size,
)

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
    arrays = {name: np.ascontiguousarray(a) for name, a in index.generator.to_state().items()}
    sink.write_file(generator_name, safetensors.numpy.save(arrays))
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
    state = safetensors.numpy.load(output.read_file(arrays_name))
    generator = GENERATORS[generator_name].from_state(state)
    data = np.frombuffer(output.read_file(index_name), np.uint8)
    return assemble(generator, NeighbourIndex.from_bytes(data), network, b_JH, num_threads)


# How fast this machine scores all pairs, and how fast the pairs that an index proposes.

SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 16_384
LARGEST_CROSSING = 2**30
STEPS_PER_DOUBLING = 4
SMALLEST_SHARE = 10  # listing takes at least a tenth of the time that it is measured with


@dataclass(frozen=True, slots=True, eq=False)
class RowSample:
    """Some rows of a block: their activations, and what the generator reads of them."""

    a_IH: np.ndarray
    row_IX: np.ndarray


#: Times both ways on some rows: (index, rows, source, settings, k, what scores all pairs).
MeasureRates = Callable[
    [ColumnIndex, RowSample, ColumnSource, SearchSettings, int, ScoresRows], Rates
]


def measure_rates(
    index: ColumnIndex,
    rows: RowSample,
    source: ColumnSource,
    settings: SearchSettings,
    k: int,
    score_rows: ScoresRows,
) -> Rates:
    """Time each step of both ways on some thousands of rows and columns (a MeasureRates)."""
    network, num_rows = source.network, len(rows.a_IH)
    b_JH, column_JX = source.b_JH[:SAMPLE_COLUMNS], source.column_JX[:SAMPLE_COLUMNS]
    query_IF = index.queries(rows.row_IX)
    proposed = index.propose(query_IF, settings)
    num_scored = int(index.score(rows.a_IH, proposed, k).num_pairs_I.sum())

    def score_all() -> object:
        return score_rows(rows.a_IH, b_JH, network.w_H, network.bias, k)

    # Listing chooses cells too: that part is timed apart, since it grows otherwise.
    num_cells_here, num_probes = index.neighbours.num_cells, settings.num_probes
    probed_columns = index.num_columns * min(1.0, num_probes / num_cells_here)
    choosing = fastest_seconds(lambda: index.choose_cells(query_IF, num_probes))
    listing = fastest_seconds(lambda: index.propose(query_IF, settings))
    score_all()  # a device compiles on its first call
    return Rates(
        exact_pairs=num_rows * len(b_JH) / fastest_seconds(score_all),
        featured_columns=len(column_JX)
        / fastest_seconds(lambda: index.generator.column_features(column_JX)),
        queried_rows=num_rows / fastest_seconds(lambda: index.queries(rows.row_IX)),
        comparisons=num_rows * num_cells_here / choosing,
        products=num_rows * probed_columns / max(listing - choosing, listing / SMALLEST_SHARE),
        probed_pairs=max(num_scored, 1)
        / fastest_seconds(lambda: index.score(rows.a_IH, proposed, k)),
    )


def predict(
    rates: Rates,
    *,
    num_rows: int,
    num_columns: int,
    cells: int,
    scored_fraction: float,
    num_probes: int,
    num_workers: int,
) -> CostEstimate:
    """Predict the seconds of both ways for a block."""
    return estimate_cost(
        rates,
        num_rows=num_rows,
        num_columns=num_columns,
        num_cells=cells,
        scored_fraction=scored_fraction,
        build_comparisons=build_comparisons(num_columns) if cells > 1 else num_columns,
        num_workers=num_workers,
        probed_fraction=min(1.0, num_probes / cells),
    )


def crossing_rows(rates: Rates, settings: SearchSettings, num_workers: int) -> int | None:
    """Return from how many rows, and as many columns, on pruning is predicted to be faster.

    Cells probed and columns listed a row are taken to stay as they are. None: not below 2**30.
    """
    size = 1024
    while size <= LARGEST_CROSSING:
        cells = num_cells(size)
        estimate = predict(
            rates,
            num_rows=size,
            num_columns=size,
            cells=cells,
            scored_fraction=min(1.0, settings.num_candidates / size),
            num_probes=settings.num_probes,
            num_workers=num_workers,
        )
        if estimate.pruning_pays:
            return size
        size = round(size * 2 ** (1 / STEPS_PER_DOUBLING))
    return None


# What the index stage decided for each block, as the stages after it read it.

DECISIONS = "decisions"  # the fact of the index stage that holds them
EXACT, PRUNED = "exact", "pruned"


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """How a block is scored, and why.

    Attributes:
        mode: "exact" scores every pair.
        reason: In words.
        generator: What the index is built on.
        index: Kind of the index.
        num_probes: Cells probed a row.
        num_candidates: Columns listed a row.
        recall: On the rows the search was tuned on; None where it was not tuned.
        standard_error: Of that mean.
        scored_fraction: Share of the pairs that is scored.
        exact_seconds: Predicted, of all workers together; None where nothing was measured.
        pruned_seconds: Predicted, building included.
        build_seconds: Of them, building.
        crossing_rows: From so many rows and columns on pruning is predicted to be faster.
    """

    mode: Literal["exact", "pruned"]
    reason: str
    generator: str
    index: str
    num_probes: int = 0
    num_candidates: int = 0
    recall: float | None = None
    standard_error: float | None = None
    scored_fraction: float | None = None
    exact_seconds: float | None = None
    pruned_seconds: float | None = None
    build_seconds: float | None = None
    crossing_rows: int | None = None

    @property
    def search(self) -> SearchSettings:
        """How widely rows search."""
        return SearchSettings(self.num_probes, self.num_candidates)


def decisions_fact(decisions: Mapping[str, BlockDecision]) -> dict[str, Any]:
    """Return the facts that ``read_decisions`` reads."""
    return {DECISIONS: {block: asdict(decision) for block, decision in decisions.items()}}


def read_decisions(index: StageOutput | None) -> dict[str, BlockDecision]:
    """Return the decision for every block that the index stage looked at; none without a stage."""
    if index is None:
        return {}
    found = index.manifest.facts().get(DECISIONS, {})
    return {block: BlockDecision(**values) for block, values in found.items()}


def index_digests(index: StageOutput, names: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of some files of the index stage."""
    digests = {part.name: part.sha256 for part in index.manifest.table_parts(FILES_TABLE)}
    return {name: digests[f"{FILES_TABLE}/{name}"] for name in names}


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutRows:
    """Rows on which recall is measured: some to tune the search on, others to check it on."""

    tuning: np.ndarray
    final: np.ndarray

    @classmethod
    def draw(cls, num_rows: int, count: int, seed: int) -> HeldOutRows:
        """Draw up to so many of each, no row twice; a single row has to serve for both."""
        order = np.random.default_rng((seed, 1)).permutation(num_rows)
        size = min(count, max(1, num_rows // 2))
        final = order[size : 2 * size] if num_rows > 1 else order
        return cls(np.sort(order[:size]), np.sort(final))


@dataclass(frozen=True, slots=True)
class FinalRecall:
    """Recall of a block's lists, on rows that nothing was tuned on."""

    num_rows: int
    recall: float
    standard_error: float
    scored_fraction: float


def read_final_recall(scores: StageOutput) -> dict[str, FinalRecall]:
    """Return what the score stage measured of each pruned block; empty where none was pruned."""
    table = scores.read("recall", schema=schemas.ROW_RECALL)
    found: dict[str, FinalRecall] = {}
    for block in (str(name) for name in table["block"].unique().to_pylist()):
        rows = table.filter(pc.field("block") == block)
        recall_I = rows["recall"].to_numpy()
        found[block] = FinalRecall(
            num_rows=len(recall_I),
            recall=float(recall_I.mean()),
            standard_error=float(recall_I.std() / np.sqrt(len(recall_I))),
            scored_fraction=float(rows["scored_fraction"].to_numpy().mean()),
        )
    return found


def low_recall(scores: StageOutput, min_recall: float) -> str:
    """Say which pruned block's lists hold too little of the true ones; nothing where none does."""
    for block, found in read_final_recall(scores).items():
        if found.recall < min_recall:
            return (
                f"the lists of block '{block}' hold {found.recall:.4f} +- "
                f"{found.standard_error:.4f} of the true ones on {found.num_rows} held-out rows, "
                f"less than pair_scores.min_recall = {min_recall:g}"
            )
    return ""


# One block's trial: build an index, widen its search on held-out rows, predict, decide.

STANDARD_ERRORS = 2.0  # that the tuned recall lies above the one wanted
LITTLE_SAVED = 0.5  # share of the pairs above which a pruned run is told that it saves little


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What the recipe says of pruning (``config.PairScoresConfig``)."""

    mode: Literal["pruned", "auto"] = "auto"
    generator: Literal["anchor", "quadratic", "cosine"] = "anchor"
    index: Literal["auto", "ivf", "hnsw", "flat"] = "auto"
    min_recall: float = 0.98
    recall_rows: int = 256
    on_low_recall: Literal["stop", "exact"] = "stop"
    seed: int = 0

    @property
    def kind(self) -> IndexKind:
        """Kind of the FAISS index."""
        return "ivf" if self.index == "auto" else self.index


@dataclass(frozen=True, slots=True, eq=False)
class BlockData:
    """What a trial reads of a block."""

    source: ColumnSource
    num_rows: int
    tuning: RowSample  # rows that nothing is fitted on
    timing: RowSample
    top_k: int


@dataclass(frozen=True, slots=True, eq=False)
class TrialResult:
    """What came out; the index is there where the block is to be pruned."""

    decision: BlockDecision
    tuning: Tuning | None = None
    index: ColumnIndex | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PruningTrial:
    """A block, what the recipe wants, and what this worker has to work with."""

    block: str
    data: BlockData
    options: IndexOptions
    score_rows: ScoresRows
    measure: MeasureRates
    num_threads: int = 1
    num_workers: int = 1

    def run(self) -> TrialResult:
        """Decide.

        Raises:
            StageError: If too little is found and the recipe says to stop.
        """
        too_small = self._look_ahead()
        if too_small is not None:
            return TrialResult(too_small)
        index = self._build(self.data.source)
        tuning = self._tune(index)
        if tuning.chosen is None:
            return TrialResult(self._found_too_little(tuning.best), tuning)
        decision = self._compare(index, tuning.chosen)
        return TrialResult(decision, tuning, index if decision.mode == PRUNED else None)

    def _look_ahead(self) -> BlockDecision | None:
        """Go exact where an index of a sample says that even the narrowest search cannot pay."""
        source = self.data.source
        if self.options.mode == PRUNED or len(source.b_JH) <= SAMPLE_COLUMNS:
            return None
        random = np.random.default_rng((self.options.seed, 3))
        sampled = draw(random, len(source.b_JH), SAMPLE_COLUMNS)
        sample = replace(source, b_JH=source.b_JH[sampled], column_JX=source.column_JX[sampled])
        index = self._build(sample)
        narrowest = index.schedule(self.data.top_k)[0]
        rates = self._rates(index, narrowest)
        cells = num_cells(len(source.b_JH)) if self.options.kind == "ivf" else 1
        share = narrowest.num_candidates / len(source.b_JH)
        estimate = self._predict(rates, cells, min(1.0, share), narrowest.num_probes)
        if estimate.pruning_pays:
            return None
        reason = "even the narrowest search of an index is predicted to be slower"
        return self._decision(EXACT, reason, **_seconds(estimate))

    def _build(self, source: ColumnSource) -> ColumnIndex:
        options = self.options
        return build_index(
            source,
            options.generator,
            options.kind,
            seed=options.seed,
            num_threads=self.num_threads,
        )

    def _tune(self, index: ColumnIndex) -> Tuning:
        rows, source, k = self.data.tuning, self.data.source, self.data.top_k
        network = source.network
        exact = self.score_rows(rows.a_IH, source.b_JH, network.w_H, network.bias, k)
        return tune(
            lambda settings: index.search(rows.a_IH, rows.row_IX, settings, k),
            exact.score_IK,
            len(source.b_JH),
            index.schedule(k),
            self.options.min_recall,
            standard_errors=STANDARD_ERRORS,
        )

    def _found_too_little(self, best: RecallPoint) -> BlockDecision:
        text = (
            f"the widest search finds {best.recall:.4f} +- {best.standard_error:.4f} of the true "
            f"lists of block '{self.block}', and pair_scores.min_recall is "
            f"{self.options.min_recall:g} (two standard errors are kept clear of it)"
        )
        if self.options.on_low_recall == "stop":
            raise StageError(
                f"{text}. Lower it, set pair_scores.generator to anchor or pair_scores.index to "
                "ivf, or set pair_scores.on_low_recall to exact."
            )
        return self._decision(EXACT, f"{text}; pair_scores.on_low_recall is exact", **_found(best))

    def _compare(self, index: ColumnIndex, point: RecallPoint) -> BlockDecision:
        """Predict both ways with what tuning found, and choose."""
        rates = self._rates(index, point.settings)
        estimate = self._predict(
            rates, index.neighbours.num_cells, point.scored_fraction, point.settings.num_probes
        )
        known = {**_found(point), **_seconds(estimate)}
        if self.options.kind == "ivf":
            known["crossing_rows"] = crossing_rows(rates, point.settings, self.num_workers)
        if self.options.mode == "auto":
            if estimate.pruning_pays:
                return self._decision(PRUNED, "it is predicted to be the faster way", **known)
            reason = "scoring every pair is predicted to be faster"
            return self._decision(EXACT, reason, **known)
        reason = "pair_scores.mode is pruned"
        if point.scored_fraction > LITTLE_SAVED:
            reason += f", though {point.scored_fraction:.0%} of the pairs have to be scored"
        return self._decision(PRUNED, reason, **known)

    def _rates(self, index: ColumnIndex, settings: SearchSettings) -> Rates:
        data = self.data
        return self.measure(index, data.timing, data.source, settings, data.top_k, self.score_rows)

    def _predict(
        self, rates: Rates, cells: int, scored_fraction: float, num_probes: int
    ) -> CostEstimate:
        return predict(
            rates,
            num_rows=self.data.num_rows,
            num_columns=len(self.data.source.b_JH),
            cells=cells,
            scored_fraction=scored_fraction,
            num_probes=num_probes,
            num_workers=self.num_workers,
        )

    def _decision(
        self, mode: Literal["exact", "pruned"], reason: str, **known: Any
    ) -> BlockDecision:
        return BlockDecision(mode, reason, self.options.generator, self.options.kind, **known)


def _found(point: RecallPoint) -> dict[str, Any]:
    return {
        "num_probes": point.settings.num_probes,
        "num_candidates": point.settings.num_candidates,
        "recall": point.recall,
        "standard_error": point.standard_error,
        "scored_fraction": point.scored_fraction,
    }


def _seconds(estimate: CostEstimate) -> dict[str, Any]:
    return {
        "exact_seconds": estimate.exact_seconds,
        "pruned_seconds": estimate.pruned_seconds,
        "build_seconds": estimate.build_seconds,
    }


# Index: find out whether scoring may leave pairs out, and make ready what that takes.


class IndexStage(Stage):
    """Write each block's generator and index, the ``recall`` of every setting tried, a decision."""

    name: ClassVar[str] = "index"
    unit: ClassVar[str] = "indexes"

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        embeddings: StageOutput,
        blocks: tuple[str, ...],
        top_k: int,
        options: IndexOptions,
        *,
        max_worker_bytes: int,
        half: bool = False,
        measure: MeasureRates = measure_rates,
    ) -> None:
        """Decide how the blocks are scored.

        Args:
            activations: Of the project stage.
            networks: Of the fit stage.
            embeddings: Of the embed stage; read by a generator that compares embeddings.
            blocks: Those of which only lists are read.
            top_k: Helpers kept of every row.
            options: What the recipe says.
            max_worker_bytes: Memory that a worker may take.
            half: Whether a GPU would score in half precision.
            measure: Measures rates.

        Raises:
            ConfigError: If pruning is asked for and an index does not fit into the memory.
        """
        self._activations, self._networks, self._embeddings = activations, networks, embeddings
        self._blocks, self._top_k, self._options = tuple(blocks), top_k, options
        self._max_worker_bytes, self._half, self._measure = max_worker_bytes, half, measure
        self.seed = options.seed
        #: Workers that will score, for the prediction.
        self.num_scoring_workers = 1
        for block in self._blocks if options.mode == PRUNED else ():
            excess = self._excess(block)
            if excess:
                raise ConfigError(
                    f"{MEMORY_KEY}: {excess}; raise it, or set pair_scores.mode=exact"
                )

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Every setting tried."""
        return {"recall": schemas.RECALL}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Activations and networks; embeddings where the generator reads them."""
        inputs = {"activations": self._activations, "networks": self._networks}
        return {**inputs, "embeddings": self._embeddings} if self._reads_embeddings else inputs

    def settings(self) -> dict[str, Any]:
        """What the recipe says of pruning."""
        return {"blocks": list(self._blocks), "top_k": self._top_k, **asdict(self._options)}

    def num_items(self) -> int:
        """All blocks at once: an index is built with all the cores there are."""
        return 1

    def make_worker(self) -> Worker:
        """Return what decides; columns are read when they are needed."""
        num_threads, score_rows = make_backend(self.resources, half=self._half)

        def decide(shard: Shard, sink: Sink) -> None:
            decisions: dict[str, BlockDecision] = {}
            for block in self._blocks:
                reason = self._why_not(block)
                if reason:
                    options = self._options
                    decisions[block] = BlockDecision(EXACT, reason, options.generator, options.kind)
                    continue
                trial = PruningTrial(
                    block,
                    self._read(block),
                    self._options,
                    score_rows,
                    self._measure,
                    num_threads,
                    self.num_scoring_workers,
                )
                result = trial.run()
                decisions[block] = result.decision
                if result.tuning is not None:
                    num_rows = len(trial.data.tuning.a_IH)
                    sink.write(
                        "recall", recall_table(block, self._options, result.tuning, num_rows)
                    )
                if result.index is not None:
                    write_index(sink, block, result.index)
            sink.facts.update(decisions_fact(decisions), peak_bytes=peak_bytes())

        return decide

    @property
    def _reads_embeddings(self) -> bool:
        return GENERATORS[self._options.generator].reads == "embeddings"

    def _excess(self, block: str) -> str:
        """Say by how much a block's index does not fit; nothing where it does."""
        network = read_network(self._networks, block)
        memory = PairMemory(
            self._activations.num_rows(f"{block}_columns"),
            network.num_hidden,
            shard_rows=SAMPLE_ROWS,
            top_k=self._top_k,
        )
        dim = network.embedding_dim
        needed = memory.pruned(dim if self._reads_embeddings else network.num_hidden + 1)
        if needed <= self._max_worker_bytes:
            return ""
        return (
            f"{self._max_worker_bytes:,} bytes are allowed, and an index of block '{block}' takes "
            f"about {needed:,} a worker"
        )

    def _why_not(self, block: str) -> str:
        """Say why there is nothing to try, or nothing where there is."""
        if not all(self._activations.num_rows(f"{block}_{side}") for side in ("rows", "columns")):
            return "there is no pair to score"
        excess = self._excess(block)
        return f"{MEMORY_KEY}: {excess}" if excess else ""

    def _read(self, block: str) -> BlockData:
        num_rows = self._activations.num_rows(f"{block}_rows")
        seed, embeddings = self._options.seed, self._embeddings if self._reads_embeddings else None
        held_out = HeldOutRows.draw(num_rows, self._options.recall_rows, seed)
        random = np.random.default_rng((seed, 2))

        def sample(rows: np.ndarray) -> RowSample:
            return RowSample(*read_rows(self._activations, embeddings, block, rows))

        b_JH, column_JX = read_columns(self._activations, embeddings, block)
        fit_rows = sample(draw(random, num_rows, FIT_SAMPLE)).row_IX
        return BlockData(
            ColumnSource(read_network(self._networks, block), b_JH, column_JX, fit_rows),
            num_rows,
            tuning=sample(held_out.tuning),
            timing=sample(draw(random, num_rows, SAMPLE_ROWS)),
            top_k=self._top_k,
        )


def recall_table(block: str, options: IndexOptions, tuning: Tuning, num_rows: int) -> pa.Table:
    """Write every setting tried, and which was chosen."""
    rows = [
        {
            "block": block,
            "generator": options.generator,
            "index": options.kind,
            "num_probes": point.settings.num_probes,
            "num_candidates": point.settings.num_candidates,
            "num_rows": num_rows,
            "recall": point.recall,
            "standard_error": point.standard_error,
            "scored_fraction": point.scored_fraction,
            "seconds": point.seconds,
            "chosen": point is tuning.chosen,
        }
        for point in tuning.points
    ]
    return pa.Table.from_pylist(rows, schema=schemas.RECALL)
