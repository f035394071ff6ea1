"""What the report shows: one frozen record, filled by the pipeline and read by page and terminal.

Only what every run has is required. Any other part may stay ``None`` or empty: its place on the
page then holds one sentence that says why, from ``ReportData.unavailable`` under the field's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

Lengths = npt.NDArray[np.integer]
Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What one stage cost and left behind."""

    name: str
    seconds: float
    rows: int
    shards: int
    fingerprint: str
    cost_usd: float | None = None  # None where no price is configured
    failures: int = 0  # rows in the stage's errors table


@dataclass(frozen=True, slots=True)
class MixRow:
    """How many examples of one source or task the pool and the subset hold."""

    group: str
    pool: int
    subset: int
    least: int = 0  # quota: picks it must have
    most: int | None = None  # quota: picks it may have


@dataclass(frozen=True, slots=True)
class ExampleText:
    """The text of one example and where it came from."""

    row_index: int
    prompt: str
    response: str
    source: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class CoveredExample:
    """A row whose best pick is the one it is listed under."""

    example: ExampleText
    coverage: float | None  # scaled influence of the pick on this row, 0..1


@dataclass(frozen=True, slots=True)
class PickNeighbours:
    """One pick and some of the rows it was picked for."""

    rank: int  # 1-based
    pick: ExampleText
    gain: float | None
    num_covered: int
    covered: tuple[CoveredExample, ...] = ()


@dataclass(frozen=True, slots=True)
class SkippedExample:
    """An example of high worth that was left out, and the pick that took its place."""

    example: ExampleText
    alone_gain: float  # its worth as the only pick
    final_gain: float  # on top of all picks
    taker: ExampleText
    taker_rank: int  # 1-based
    taken_share: float  # of alone_gain, by that pick
    cosine: float  # of the two embeddings


@dataclass(frozen=True, slots=True)
class ExtraTable:
    """A table that only some runs have, e.g. the share of planted junk in a demo corpus."""

    title: str
    reading: str  # one sentence: what it means
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything the report of one run needs, in memory.

    Tables follow ``storage/schemas.py``. Lengths are in the tokens the budget counts, one integer
    per example, in any order. Nothing here is read from the clock or the machine by the report
    itself, so the same data always gives the same bytes.
    """

    run_name: str
    num_candidates: int
    run_dir: str = ""
    created: str = ""  # shown as it stands, e.g. "2026-11-20 14:03 UTC"
    version: str = ""
    teacher: str = ""
    objective: str = ""
    budget: str = ""
    selection_note: str = ""  # how the picks were made, where it was not by greedy gains
    num_targets: int = 0
    covers_targets: bool = False  # whether the rows that the objective covers are the targets
    pointwise: bool = False  # whether the teacher scores examples, not pairs
    ranks_by_score: bool = False  # whether each pick stands on its own score and covers no row
    by_teacher: bool = False  # whether the scores are the teacher's labels, and no network's
    has_subtasks: bool = False  # whether the score is that of a candidate's best subtask
    num_duplicates: int = 0
    num_errors: int = 0
    num_labelled_pairs: int | None = None
    random_objective: float | None = None  # value of a random subset of the same size
    upper_bound: float | None = None  # no subset within the budget is worth more
    stopped_by: str = ""  # "budget", "stop_gain" or "exhausted"
    optimizer: str = ""
    num_parts: int | None = None  # of a partitioned search
    num_rounds: int = 1
    mix_name: str = "source"  # what MixRow.group means: "source", "task", ...
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    environment: Mapping[str, object] = field(default_factory=dict[str, object])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])  # label -> path
    notices: Sequence[str] = ()
    stages: Sequence[StageSummary] = ()
    mix: Sequence[MixRow] = ()
    neighbours: Sequence[PickNeighbours] = ()
    skipped: Sequence[SkippedExample] = ()
    extra_tables: Sequence[ExtraTable] = ()
    ranking: pa.Table | None = None  # RANKING
    coverage: pa.Table | None = None  # COVERAGE
    fidelity: pa.Table | None = None  # FIDELITY
    predictions: pa.Table | None = None  # PREDICTIONS
    training_history: pa.Table | None = None  # TRAINING_HISTORY
    score_statistics: pa.Table | None = None  # SCORE_STATISTICS
    score_histogram: pa.Table | None = None  # SCORE_HISTOGRAM
    recall: pa.Table | None = None  # RECALL: what the index stage tried
    final_recall: pa.Table | None = None  # ROW_RECALL: of the lists of a pruned run
    min_recall: float | None = None  # that the recipe asks for
    scoring: ExtraTable | None = None  # how each block's pairs were scored, and why
    errors: pa.Table | None = None  # ERRORS
    drift: Mapping[str, Any] | None = None  # facts of the drift stage, of a run that goes on
    drift_distances: pa.Table | None = None  # DRIFT_DISTANCES
    pool_lengths: Lengths | None = None
    subset_lengths: Lengths | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict[str, str])  # field -> reason

    @property
    def main_block(self) -> str:
        """Name the block to look at first: ``cross`` with targets, else ``within``."""
        if self.pointwise:
            return POINTS
        return CROSS if self.num_targets else WITHIN

    @property
    def unit(self) -> str:
        """Name what is labelled and scored."""
        return unit_of(self.main_block)

    @property
    def has_quotas(self) -> bool:
        """Whether any group of the mix has a quota."""
        return any(row.least or row.most is not None for row in self.mix)

    @property
    def ground_set(self) -> str:
        """Name the rows that the subset is to cover."""
        return "targets" if self.covers_targets else "candidates"

    def why_missing(self, part: str, default: str) -> str:
        """Say why a part is missing: the pipeline's own reason, else the default."""
        return self.unavailable.get(part, default)


def unit_of(block: str) -> str:
    """Name what a block's labels and scores speak of."""
    return "examples" if block == POINTS else "pairs"


def count_mix(pool_groups: Iterable[str], subset_groups: Iterable[str]) -> tuple[MixRow, ...]:
    """Count each group in pool and subset, the largest of the pool first, ties by name."""
    pool, subset = Counter(pool_groups), Counter(subset_groups)
    names = sorted(pool.keys() | subset.keys(), key=lambda name: (-pool[name], name))
    return tuple(MixRow(name, pool[name], subset[name]) for name in names)


def choose_sample_ranks(num_picks: int, num_samples: int = 8) -> list[int]:
    """Choose which ranks to show: the first three, then ever wider steps down to the last.

    Returns:
        At most ``num_samples`` distinct 1-based ranks, ascending.
    """
    if num_picks <= num_samples:
        return list(range(1, num_picks + 1))
    head = list(range(1, min(3, num_samples) + 1))
    tail = np.geomspace(head[-1], num_picks, num_samples - len(head) + 1)[1:]
    return sorted({*head, *(round(float(rank)) for rank in tail)})
