"""The objective of a selection plan, built from the tables of the score stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from nncift_ray.stages.score_tables import ScoreTables
from nncift_ray.stages.selection_plan import (
    CONDITIONAL_GAIN,
    GRAPH_CUT_CONDITIONAL_GAIN,
    RANDOM,
    TOP_K,
    SelectionPlan,
)
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN


def build_objective(plan: SelectionPlan, tables: ScoreTables, num_existing: int = 0) -> Objective:
    """Build the set function of a plan.

    Args:
        plan: What to select.
        tables: Of the score stage.
        num_existing: Examples that the model already has.
    """
    if plan.objective == RANDOM:
        return _yardstick(plan, tables)
    if plan.objective == GRAPH_CUT_CONDITIONAL_GAIN:
        shared_J = tables.existing_sum(WITHIN, num_existing)
        return GraphCutConditionalGain(
            tables.lists(WITHIN), shared_J, lambda_=plan.redundancy, nu=plan.nu
        )
    return _BUILDERS[plan.objective](plan, tables)


def _yardstick(plan: SelectionPlan, tables: ScoreTables) -> Objective:
    """Return what a random ranking is measured by: it has no value of its own."""
    if POINTS in plan.blocks:
        return TopScores(tables.scaled_scores())
    return FacilityLocation(tables.lists(plan.ground_block))


def _conditional_gain(plan: SelectionPlan, tables: ScoreTables) -> Objective:
    block = plan.ground_block
    floor_I = tables.existing_max(block)
    return FacilityLocationConditionalGain(tables.lists(block), floor_I, nu=plan.nu)


_BUILDERS: Mapping[str, Callable[[SelectionPlan, ScoreTables], Objective]] = {
    TOP_K: lambda plan, tables: TopScores(tables.scaled_scores()),
    "facility_location": lambda plan, tables: FacilityLocation(tables.lists(WITHIN)),
    "facility_location_mutual_information": lambda plan, tables: FacilityLocationMutualInformation(
        tables.lists(WITHIN), tables.column_max(), plan.eta
    ),
    "facility_location_query_mutual_information": lambda plan, tables: (
        FacilityLocationQueryMutualInformation(tables.lists(CROSS), tables.column_max(), plan.eta)
    ),
    CONDITIONAL_GAIN: _conditional_gain,
    "graph_cut": lambda plan, tables: GraphCut(tables.lists(WITHIN), lambda_=plan.redundancy),
    "graph_cut_mutual_information": lambda plan, tables: GraphCutMutualInformation(
        tables.lists(CROSS), lambda_=plan.redundancy
    ),
    "saturated_coverage": lambda plan, tables: SaturatedCoverage(
        tables.lists(plan.ground_block), alpha=plan.saturation
    ),
}
