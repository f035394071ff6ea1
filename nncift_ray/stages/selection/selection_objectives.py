"""The objective of a selection plan, built from the tables of the score stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nncift_ray.core.selection.assembling import column_source
from nncift_ray.core.selection.column_source import ColumnSource
from nncift_ray.core.selection.objectives import (
    FacilityLocation,
    FacilityLocationConditionalGain,
    FacilityLocationMutualInformation,
    FacilityLocationQueryMutualInformation,
    GraphCut,
    GraphCutConditionalGain,
    GraphCutMutualInformation,
    Objective,
    SaturatedCoverage,
    TopScores,
)
from nncift_ray.core.selection.problem import Scores
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.stages.selection.selection_plan import (
    CONDITIONAL_GAIN,
    GRAPH_CUT_CONDITIONAL_GAIN,
    GRAPH_CUTS,
    RANDOM,
    TOP_K,
    SelectionPlan,
)
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

#: Gives the lists of a block.
Lists = Callable[[str], Scores]


def build_objective(
    plan: SelectionPlan, tables: ScoreTables, num_existing: int = 0, *, streamed: bool = False
) -> Objective:
    """Build the set function of a plan.

    Args:
        plan: What to select.
        tables: Of the score stage.
        num_existing: Examples that the model already has.
        streamed: Whether its lists stay in storage and are read in passes (`column_source`).
    """
    lists = tables.streamed if streamed else tables.lists
    if plan.objective == RANDOM:
        return _yardstick(plan, tables, lists)
    if plan.objective == GRAPH_CUT_CONDITIONAL_GAIN:
        shared_J = tables.existing_sum(WITHIN, num_existing)
        return GraphCutConditionalGain(lists(WITHIN), shared_J, lambda_=plan.redundancy, nu=plan.nu)
    return _BUILDERS[plan.objective](plan, tables, lists)


def source_of_parts(
    plan: SelectionPlan, tables: ScoreTables, num_existing: int
) -> tuple[Objective, ColumnSource]:
    """Build the set function of a partitioned plan, and what reads its columns part by part.

    Bounding a graph cut looks at pairs that lie across parts: its lists are read whole.
    """
    whole = plan.bounding and plan.objective in GRAPH_CUTS
    objective = build_objective(plan, tables, num_existing, streamed=not whole)
    return objective, column_source(objective)


def _yardstick(plan: SelectionPlan, tables: ScoreTables, lists: Lists) -> Objective:
    """Return what a random ranking is measured by: it has no value of its own."""
    if POINTS in plan.blocks:
        return TopScores(tables.scaled_scores())
    return FacilityLocation(lists(plan.ground_block))


def _conditional_gain(plan: SelectionPlan, tables: ScoreTables, lists: Lists) -> Objective:
    block = plan.ground_block
    floor_I = tables.existing_max(block)
    return FacilityLocationConditionalGain(lists(block), floor_I, nu=plan.nu)


_BUILDERS: Mapping[str, Callable[[SelectionPlan, ScoreTables, Lists], Objective]] = {
    TOP_K: lambda plan, tables, lists: TopScores(tables.scaled_scores()),
    "facility_location": lambda plan, tables, lists: FacilityLocation(lists(WITHIN)),
    "facility_location_mutual_information": lambda plan, tables, lists: (
        FacilityLocationMutualInformation(lists(WITHIN), tables.column_max(), plan.eta)
    ),
    "facility_location_query_mutual_information": lambda plan, tables, lists: (
        FacilityLocationQueryMutualInformation(lists(CROSS), tables.column_max(), plan.eta)
    ),
    CONDITIONAL_GAIN: _conditional_gain,
    "graph_cut": lambda plan, tables, lists: GraphCut(lists(WITHIN), lambda_=plan.redundancy),
    "graph_cut_mutual_information": lambda plan, tables, lists: GraphCutMutualInformation(
        lists(CROSS), lambda_=plan.redundancy
    ),
    "saturated_coverage": lambda plan, tables, lists: SaturatedCoverage(
        lists(plan.ground_block), alpha=plan.saturation
    ),
}
