"""What to select: the recipe's wishes as the select stages read them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nncift_ray.core.selection.budget import Budget
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

TOP_K, RANDOM = "top_k", "random"
PARTITIONED = "partitioned"
CANDIDATES_A_PART = 50_000  # where the recipe does not say
CONDITIONAL_GAIN = "facility_location_conditional_gain"
GRAPH_CUT_CONDITIONAL_GAIN = "graph_cut_conditional_gain"
GRAPH_CUTS = ("graph_cut", GRAPH_CUT_CONDITIONAL_GAIN)  # those with pairs among the picks
#: Objectives whose rows are the targets where there are any, else the candidates.
COVER_TARGETS_IF_ANY = (CONDITIONAL_GAIN, "saturated_coverage", RANDOM)
#: Which blocks of pairs each of the other objectives reads that needs pairs.
BLOCKS_OF_OBJECTIVE: Mapping[str, tuple[str, ...]] = {
    "facility_location": (WITHIN,),
    "facility_location_mutual_information": (WITHIN, CROSS),
    "facility_location_query_mutual_information": (CROSS,),
    "graph_cut": (WITHIN,),
    "graph_cut_mutual_information": (CROSS,),
    GRAPH_CUT_CONDITIONAL_GAIN: (WITHIN,),
}
#: Objectives that read every candidate's largest influence on any target.
READS_COLUMN_MAX = (
    "facility_location_mutual_information",
    "facility_location_query_mutual_information",
)


def blocks_of(objective: str, *, pointwise: bool, has_targets: bool) -> tuple[str, ...]:
    """Return the blocks that an objective reads, so what is to be labelled, fitted and scored.

    Args:
        objective: An objective of the recipe.
        pointwise: Whether the teacher scores examples, not pairs.
        has_targets: Whether there are targets.

    Raises:
        ValueError: If the objective needs pairs and the teacher has none.
    """
    if pointwise and objective in (TOP_K, RANDOM):
        return (POINTS,)
    if pointwise:
        raise ValueError(f"a pointwise teacher scores no pairs, which {objective} needs; use top_k")
    if objective in (TOP_K, *COVER_TARGETS_IF_ANY):
        return (CROSS,) if has_targets else (WITHIN,)
    return BLOCKS_OF_OBJECTIVE[objective]


def list_blocks(objective: str, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return those of an objective's blocks of which it reads the lists of best helpers alone.

    Of these, pairs that no list holds need not be scored. Sums (``top_k``) and the largest
    influence of every candidate on any target need every pair.
    """
    if objective == TOP_K:
        return ()
    needs_all = (POINTS, CROSS) if objective in READS_COLUMN_MAX else (POINTS,)
    return tuple(block for block in blocks if block not in needs_all)


def ground_block(blocks: Sequence[str]) -> str:
    """Return the block whose rows an objective covers; of several that is ``within``."""
    return WITHIN if WITHIN in blocks else blocks[0]


@dataclass(frozen=True)
class Quotas:
    """Least and most picks by group: counts, or shares of the budget below 1."""

    field: str | None = None  # of the original record; None: the name of the source file
    least: Mapping[str, float | int] | None = None
    most: Mapping[str, float | int] | float | int | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return bool(self.least) or (self.most is not None and self.most != {})


@dataclass(frozen=True)
class SelectionPlan:
    """An objective, one of three budgets, and what limits the picks."""

    objective: str
    blocks: tuple[str, ...]
    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None
    eta: float = 1.0
    nu: float = 1.0
    redundancy: float = 0.5
    saturation: float = 0.1
    optimizer: str = "lazy"
    epsilon: float = 0.01
    partitions: int | None = None
    rounds: int = 1
    bounding: bool = False
    stop_gain: float | None = None
    quotas: Quotas = Quotas()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def budget(self, num_candidates: int) -> Budget:
        """Return the budget for a number of candidates; a fraction is rounded, to at least 1."""
        if self.tokens is not None:
            return Budget(max_cost=float(self.tokens))
        if self.count is not None:
            return Budget(max_count=min(self.count, num_candidates))
        count = max(1, round((self.fraction or 0.0) * num_candidates))
        return Budget(max_count=min(count, num_candidates))

    def num_partitions(self, num_candidates: int) -> int:
        """Return the parts of a partitioned search."""
        return self.partitions or max(2, -(-num_candidates // CANDIDATES_A_PART))

    @property
    def num_rounds(self) -> int | None:
        """Rounds of a search that thins out in several; None where the parts are merged at once."""
        return self.rounds if self.rounds > 1 else None

    @property
    def ground_block(self) -> str:
        """The block whose rows are covered."""
        return ground_block(self.blocks)

    @property
    def reads_examples(self) -> bool:
        """Whether the records of the candidates are needed: for groups."""
        return self.quotas.given

    def settings(self) -> dict[str, Any]:
        """What shapes the ranking, as JSON; of lists of ids, which may be long, a digest."""
        values = dict(self.__dict__)
        values["blocks"] = list(self.blocks)
        values["quotas"] = dict(self.quotas.__dict__)
        for name in ("include", "exclude"):
            ids = getattr(self, name)
            digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32] if ids else None
            values[name] = {"num_ids": len(ids), "sha256": digest}
        return values
