"""Index: find out whether scoring may leave pairs out, and make ready what that takes.

For each block of which only the lists are read: all columns are indexed, and the search is widened
until held-out rows find the share of their true lists that the recipe asks for. Both ways of
scoring are then timed on a sample; ``auto`` takes the faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import pyarrow.compute as pc

from nncift_ray.errors import ConfigError, StageError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.recipe.sections import PairScoresConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import FILES_TABLE, Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.scores.exact import TopK
from nncift_ray.scores.index import (
    FIT_SAMPLE,
    NUM_ANCHORS,
    ColumnIndex,
    RecallPoint,
    SearchSettings,
    Tuning,
    draw,
    features_of,
    listing_schedule,
    num_cells,
    tune,
)
from nncift_ray.scores.scorers import (
    MEMORY_KEY,
    PairMemory,
    ScoreTiles,
    index_file,
    make_backend,
    num_threads_of,
    peak_bytes,
    read_columns,
    read_rows,
    write_index,
)

EXACT, PRUNED = "exact", "pruned"
DECISIONS = "decisions"  # the fact of the index stage that holds them
STANDARD_ERRORS = 2.0  # that the tuned recall lies above the one wanted
LITTLE_SAVED = 0.5  # share of the pairs above which a pruned run is told that it saves little
SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 16_384  # that both ways are timed on
REPEATS = 3  # the best of so many runs counts: what else the machine does only slows it


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """How a block is scored ("exact": every pair), and why."""

    mode: Literal["exact", "pruned"]
    reason: str
    num_probes: int = 0  # cells probed a row
    num_candidates: int = 0  # columns listed a row
    recall: float | None = None  # on the rows the search was tuned on; None: it was not tuned
    standard_error: float | None = None  # of that mean
    scored_fraction: float | None = None  # of the pairs
    exact_seconds: float | None = None  # predicted, of all workers together; None: not measured
    pruned_seconds: float | None = None  # predicted, building included
    build_seconds: float | None = None  # of them, as it was measured

    @property
    def search(self) -> SearchSettings:
        """How widely rows search."""
        return SearchSettings(self.num_probes, self.num_candidates)


class Speeds(NamedTuple):
    """What one worker takes either way."""

    pair_seconds: float  # of the streamed kernel, top K included
    row_seconds: float  # of a search, exact scores of what it proposes included


def measure_speeds(
    index: ColumnIndex, network: FactoredNetwork, a_IH: np.ndarray, b_JH: np.ndarray,
    settings: SearchSettings, k: int, score_tiles: ScoreTiles,
) -> Speeds:  # fmt: skip
    """Time both ways of scoring on some thousands of rows and columns."""

    def fastest(task: Callable[[], object]) -> float:
        task()  # the first call compiles
        seconds: list[float] = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            task()
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    exact = fastest(lambda: score_tiles(a_IH, [(0, b_JH)], network.w_H, network.bias, k))
    pruned = fastest(lambda: index.search(a_IH, settings, k))
    return Speeds(exact / (len(a_IH) * len(b_JH)), pruned / len(a_IH))


class IndexStage(Stage):
    """Write each block's index, the ``recall`` of every setting tried, and a decision."""

    name: ClassVar[str] = "index"
    unit: ClassVar[str] = "indexes"
    title: ClassVar[str] = "index the columns"
    version: ClassVar[int] = 2
    produces = {"recall": schemas.RECALL}
    can_use_gpu = True
    single_threaded = False
    max_actors = 1

    def __init__(
        self,
        activations: StageOutput,
        networks: StageOutput,
        blocks: tuple[str, ...],
        config: PairScoresConfig,
        *,
        measure: Callable[..., Speeds] = measure_speeds,
    ) -> None:
        """Decide how the blocks, of which only lists are read, are scored.

        Raises:
            ConfigError: If pruning is asked for and an index does not fit into the memory.
        """
        self._activations, self._networks = activations, networks
        self._blocks, self._config, self._measure = tuple(blocks), config, measure
        self.seed = config.seed
        #: Workers that will score, for the prediction.
        self.num_scoring_workers = 1
        for block in self._blocks if config.mode == PRUNED else ():
            excess = self._excess(block)
            if excess:
                raise ConfigError(f"{excess}; raise it, or set pair_scores.mode=exact")
        self.inputs = {"activations": activations, "networks": networks}

    def settings(self) -> dict[str, Any]:
        """What the recipe says of pruning."""
        wanted = {"top_k", "mode", "min_recall", "recall_rows", "on_low_recall", "seed"}
        return {"blocks": list(self._blocks), **self._config.model_dump(include=wanted)}

    def notices(self, output: StageOutput) -> list[str]:
        """How each block is scored, and why."""
        lines: list[str] = []
        for block, decision in read_decisions(output).items():
            how = "every pair of" if decision.mode == EXACT else "candidates only of"
            line = f"scores {how} block '{block}': {decision.reason}"
            if decision.exact_seconds is not None and decision.pruned_seconds is not None:
                line += (
                    f" (predicted: all pairs {decision.exact_seconds:,.1f} s, pruned "
                    f"{decision.pruned_seconds:,.1f} s)"
                )
            lines.append(line)
        return lines

    def make_worker(self) -> Worker:
        """Return what decides; columns are read when they are needed."""
        score_tiles = make_backend(self.resources)

        def decide(shard: Shard, sink: Sink) -> None:
            found = {b: asdict(self._decide(b, sink, score_tiles)) for b in self._blocks}
            sink.facts.update({DECISIONS: found, "peak_bytes": peak_bytes()})

        return decide

    def _decide(self, block: str, sink: Sink, score_tiles: ScoreTiles) -> BlockDecision:
        """Build an index, widen its search on held-out rows, time both ways, choose."""
        reason = self._why_not(block)
        if reason:
            return BlockDecision(EXACT, reason)
        config, num_rows = self._config, self._activations.num_rows(f"{block}_rows")
        network, b_JH = read_network(self._networks, block), read_columns(self._activations, block)
        random = np.random.default_rng((config.seed, 2))
        fitting_IH, timing_IH = (
            read_rows(self._activations, block, draw(random, num_rows, count))
            for count in (FIT_SAMPLE, SAMPLE_ROWS)
        )
        begin = time.perf_counter()
        num_threads = num_threads_of(self.resources)
        index = ColumnIndex.build(
            network, fitting_IH, b_JH, seed=config.seed, num_threads=num_threads
        )
        build_seconds = time.perf_counter() - begin
        tuning = self._tune(block, sink, index, network, b_JH, score_tiles)
        point = tuning.best
        found = asdict(point)
        del found["seconds"]
        if tuning.chosen is None:
            return BlockDecision(EXACT, self._found_too_little(block, point), **found)
        sample_JH = b_JH[:SAMPLE_COLUMNS]
        pair_seconds, row_seconds = self._measure(
            index, network, timing_IH, sample_JH, point, config.top_k, score_tiles
        )
        exact = num_rows * len(b_JH) * pair_seconds / self.num_scoring_workers
        pruned = build_seconds + num_rows * row_seconds / self.num_scoring_workers
        mode, reason = self._choose(point, pruning_pays=pruned < exact)
        if mode == PRUNED:
            write_index(sink, block, index)
        return BlockDecision(
            mode, reason, **found, exact_seconds=exact, pruned_seconds=pruned,
            build_seconds=build_seconds,
        )  # fmt: skip

    def _tune(
        self, block: str, sink: Sink, index: ColumnIndex, network: FactoredNetwork,
        b_JH: np.ndarray, score_tiles: ScoreTiles,
    ) -> Tuning:  # fmt: skip
        """Widen the search on held-out rows, and write every setting tried."""
        config, k = self._config, self._config.top_k
        num_rows = self._activations.num_rows(f"{block}_rows")
        rows, _ = draw_held_out(num_rows, config.recall_rows, config.seed)
        a_IH = read_rows(self._activations, block, rows)
        exact = cast("TopK", score_tiles(a_IH, [(0, b_JH)], network.w_H, network.bias, k))
        tuning = tune(
            lambda settings: index.search(a_IH, settings, k),
            exact.score_IK,
            len(b_JH),
            listing_schedule(k, len(b_JH), index.num_cells),
            config.min_recall,
            standard_errors=STANDARD_ERRORS,
        )
        tried = [
            {"block": block, "num_rows": len(rows), "chosen": point is tuning.chosen}
            | asdict(point)
            for point in tuning.points
        ]
        sink.write_rows("recall", tried, schemas.RECALL)
        return tuning

    def _found_too_little(self, block: str, best: RecallPoint) -> str:
        """Return why the block is scored exactly, or stop if the recipe says so."""
        text = (
            f"the widest search finds {best.recall:.4f} +- {best.standard_error:.4f} of the true "
            f"lists of block '{block}', and pair_scores.min_recall is "
            f"{self._config.min_recall:g} (two standard errors are kept clear of it)"
        )
        if self._config.on_low_recall == "stop":
            raise StageError(f"{text}. Lower it, or set pair_scores.on_low_recall to exact.")
        return f"{text}; pair_scores.on_low_recall is exact"

    def _choose(
        self, point: RecallPoint, *, pruning_pays: bool
    ) -> tuple[Literal["exact", "pruned"], str]:
        """Return the way to score and the reason."""
        if self._config.mode == "auto":
            if pruning_pays:
                return PRUNED, "it is predicted to be the faster way"
            return EXACT, "scoring every pair is predicted to be faster"
        reason = "pair_scores.mode is pruned"
        if point.scored_fraction > LITTLE_SAVED:
            reason += f", though {point.scored_fraction:.0%} of the pairs have to be scored"
        return PRUNED, reason

    def _why_not(self, block: str) -> str:
        """Say why no index is built, or nothing where one is."""
        rows, columns = (self._activations.num_rows(f"{block}_{s}") for s in ("rows", "columns"))
        if not (rows and columns):
            return "there is no pair to score"
        # Features alone take as long as scoring the anchor rows; cells, as a row each.
        few = self._config.mode == "auto" and rows <= NUM_ANCHORS + num_cells(columns)
        return self._excess(block) or ("there are too few rows for an index to pay" if few else "")

    def _excess(self, block: str) -> str:
        """Say by how much a block's index does not fit; nothing where it does."""
        network = read_network(self._networks, block)
        memory = PairMemory(
            self._activations.num_rows(f"{block}_columns"),
            network.num_hidden,
            shard_rows=SAMPLE_ROWS,
            top_k=self._config.top_k,
        )
        needed, allowed = memory.pruned(features_of(network)), self._config.max_worker_bytes
        if needed <= allowed:
            return ""
        return (
            f"{MEMORY_KEY}: {allowed:,} bytes are allowed, and an index of block '{block}' takes "
            f"about {needed:,} a worker"
        )


# What the stages after it read: the decisions, the recall.


def index_digest(index: StageOutput, block: str) -> str:
    """Return the SHA-256 of a block's index."""
    parts = index.manifest.table_parts(FILES_TABLE)
    return next(p.sha256 for p in parts if p.name == f"{FILES_TABLE}/{index_file(block)}")


def read_decisions(index: StageOutput) -> dict[str, BlockDecision]:
    """Return the decision for every block that the index stage looked at."""
    found = index.manifest.facts().get(DECISIONS, {})
    return {block: BlockDecision(**values) for block, values in found.items()}


def draw_held_out(num_rows: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw up to so many rows to tune the search on, and as many to check its recall on.

    No row is in both, but a single row has to serve for both.
    """
    order = np.random.default_rng((seed, 1)).permutation(num_rows)
    size = min(count, max(1, num_rows // 2))
    final = order[size : 2 * size] if num_rows > 1 else order
    return np.sort(order[:size]), np.sort(final)


class FinalRecall(NamedTuple):
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
        recall_I, scored_I = rows["recall"].to_numpy(), rows["scored_fraction"].to_numpy()
        error = float(recall_I.std() / np.sqrt(len(recall_I)))
        found[block] = FinalRecall(
            len(recall_I), float(recall_I.mean()), error, float(scored_I.mean())
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
