"""What the index stage decided for each block, as the stages after it read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from nncift_ray.core.candidates.recall import SearchSettings
from nncift_ray.storage import schemas
from nncift_ray.storage.output import FILES_TABLE, StageOutput

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
