"""One block's trial: build an index, widen its search on held-out rows, predict, decide.

How widely to search depends on recall alone, never on the clock; the clock has a say only where
mode "auto" chooses between the two ways.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nncift_ray.core.candidates.cost import CostEstimate, Rates
from nncift_ray.core.candidates.recall import RecallPoint, SearchSettings, Tuning, tune
from nncift_ray.core.pairs.pair_backend import ScoresRows
from nncift_ray.errors import StageError
from nncift_ray.models.neighbour_index import IndexKind, num_cells
from nncift_ray.stages.pairs.column_index import ColumnIndex, ColumnSource, build_index, draw
from nncift_ray.stages.pairs.pruned_costs import (
    SAMPLE_COLUMNS,
    MeasureRates,
    RowSample,
    crossing_rows,
    predict,
)
from nncift_ray.stages.pairs.pruning_decision import EXACT, PRUNED, BlockDecision

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
