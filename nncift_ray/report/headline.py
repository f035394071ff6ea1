"""The few numbers a reader should leave with; page and terminal take them from here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.report.data import MixRow, ReportData
from nncift_ray.storage.schemas import POINTS

F64 = npt.NDArray[np.float64]
NETWORK, MEAN, ROW_COLUMN_MEAN = "network", "mean", "row_column_mean"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How the network does on one split, beside the baseline that means something."""

    block: str
    split: str
    num_pairs: int
    scaled_mse: float  # labels scaled to [0, 1]
    spearman: float
    r2: float
    baseline: str  # the model beside it: row mean + column mean, or the mean of single examples
    baseline_mse: float  # scaled; nan where it was not measured

    @property
    def error_ratio(self) -> float:
        """Network's error as a share of the baseline's; below 1 the network is better."""
        return self.scaled_mse / self.baseline_mse if self.baseline_mse > 0 else math.nan


def numbers(table: pa.Table, name: str) -> F64:
    """Read a numeric column as float64, nulls as nan."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def num_picks(data: ReportData) -> int:
    """Count the selected examples."""
    return data.ranking.num_rows if data.ranking is not None else 0


def num_scored_pairs(data: ReportData) -> int | None:
    """Count the pairs that were scored, over all blocks."""
    if data.score_statistics is None or not data.score_statistics.num_rows:
        return None
    return int(numbers(data.score_statistics, "num_scored").sum())


def final_objective(data: ReportData) -> float:
    """Return the objective after the last pick, nan without picks."""
    if not num_picks(data) or data.ranking is None:
        return math.nan
    return float(numbers(data.ranking, "objective")[-1])


def share_of_best(data: ReportData) -> float:
    """Return the least share of the best possible value that was reached; nan where unknown."""
    final, bound = final_objective(data), data.upper_bound
    if bound is None or not (math.isfinite(final) and bound > 0):
        return math.nan
    return min(final / bound, 1.0)


def mean_coverage(data: ReportData) -> float:
    """Return the mean coverage (0..1) over the ground set, nan where it was not recorded."""
    if data.coverage is None or not data.coverage.num_rows:
        return math.nan
    values = numbers(data.coverage, "coverage")
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def total_seconds(data: ReportData) -> float:
    """Return the seconds of all stages together."""
    return float(sum(stage.seconds for stage in data.stages))


def total_cost(data: ReportData) -> float | None:
    """Return the price of all stages that have one, None where none has."""
    costs = [stage.cost_usd for stage in data.stages if stage.cost_usd is not None]
    return sum(costs) if costs else None


def splits_of(table: pa.Table) -> list[str]:
    """List the held-out splits of a FIDELITY or PREDICTIONS table: quadrants where it has any."""
    names = sorted(str(name) for name in table["split"].unique().to_pylist())
    quadrants = [name for name in names if name.startswith("Q")]
    return quadrants or [name for name in names if name != "train"]


def blocks_of(table: pa.Table | None) -> list[str]:
    """List the blocks of a table in order of first appearance."""
    return [] if table is None else [str(name) for name in table["block"].unique().to_pylist()]


def select_block(table: pa.Table, block: str) -> pa.Table:
    """Keep the rows of one block."""
    return table.filter(pc.field("block") == block)


def metric(table: pa.Table, split: str, model: str, name: str) -> float:
    """Look one metric up in the FIDELITY rows of one block; nan where it is absent or null."""
    hits = table.filter((pc.field("split") == split) & (pc.field("model") == model))
    return float(numbers(hits, name)[0]) if hits.num_rows else math.nan


def best_baseline(block: str) -> str:
    """Name the model of a block that knows most without knowing pairs (or examples)."""
    return MEAN if block == POINTS else ROW_COLUMN_MEAN


def mean_score(data: ReportData) -> float:
    """Return the mean scaled score of the picks, nan without picks."""
    return final_objective(data) / num_picks(data) if num_picks(data) else math.nan


def headline_fidelity(data: ReportData) -> Fidelity | None:
    """Judge the network where it matters most: the main block, the hardest split measured."""
    blocks = blocks_of(data.fidelity)
    if data.fidelity is None or not blocks:
        return None
    block = data.main_block if data.main_block in blocks else blocks[0]
    table = select_block(data.fidelity, block)
    measured = [
        split
        for split in splits_of(table)
        if math.isfinite(metric(table, split, NETWORK, "scaled_mse"))
    ]
    if not measured:
        return None
    split = measured[-1]
    return Fidelity(
        block=block,
        split=split,
        num_pairs=int(metric(table, split, NETWORK, "num_pairs")),
        scaled_mse=metric(table, split, NETWORK, "scaled_mse"),
        spearman=metric(table, split, NETWORK, "spearman"),
        r2=metric(table, split, NETWORK, "r2"),
        baseline=best_baseline(block),
        baseline_mse=metric(table, split, best_baseline(block), "scaled_mse"),
    )


def mix_shares(mix: Sequence[MixRow]) -> tuple[F64, F64]:
    """Return each group's share (0..1) of the pool and of the subset, in the order of ``mix``."""
    pool = np.array([row.pool for row in mix], dtype=np.float64)
    subset = np.array([row.subset for row in mix], dtype=np.float64)
    return pool / max(pool.sum(), 1.0), subset / max(subset.sum(), 1.0)
