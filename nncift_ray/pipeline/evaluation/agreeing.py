"""How near the subsets of networks and smaller models come to those of their teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from nncift_ray.core.evaluation.agreement import compare_values, measure_overlap
from nncift_ray.core.selection.objectives import Objective
from nncift_ray.pipeline.evaluation.cells import RANDOM
from nncift_ray.pipeline.evaluation.subsets import Subset
from nncift_ray.pipeline.selecting import selection_plan
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.stages.selection.selection_objectives import build_objective
from nncift_ray.storage.evaluation_schemas import AGREEMENT, NETWORK_FIDELITY
from nncift_ray.storage.schemas import FIDELITY
from nncift_ray.storage.scores import scored_blocks, scores_of

FIT = "fit"


def collect_agreement(subsets: Sequence[Subset]) -> pa.Table:
    """Hold every subset against its teacher's of the same size.

    Args:
        subsets: All that were selected, random ones among them.

    Returns:
        AGREEMENT: a row a method that stands in for a teacher, and size, where the teacher by its
        own labels was selected, too. Values are the teacher's objective over its own labels.
    """
    by_name = {(subset.key.method, subset.key.budget): subset for subset in subsets
               if subset.outputs}  # fmt: skip
    objectives: dict[str, Objective] = {}
    rows: list[dict[str, Any]] = []
    for (method, budget), subset in by_name.items():
        prefix, _, teacher_name = method.rpartition("+")
        teacher = by_name.get((teacher_name, budget))
        if not prefix or teacher is None:
            continue
        if teacher_name not in objectives:  # the same at every size
            objectives[teacher_name] = _objective_of(teacher)
        random = [other.members for other in subsets
                  if other.key.method == RANDOM and other.key.budget == budget]  # fmt: skip
        rows.append(
            {"method": method, "teacher": teacher_name, "budget": budget}
            | _compare(subset, teacher, objectives[teacher_name], random)
        )
    return pa.Table.from_pylist(rows, AGREEMENT)


def _compare(
    subset: Subset, teacher: Subset, objective: Objective, random: Sequence[Any]
) -> dict[str, float | None]:
    num_candidates = teacher.outputs["deduplicate"].num_rows("candidates")
    overlap = measure_overlap(subset.members, teacher.members, num_candidates)
    value = compare_values(objective, subset.members, teacher.members, random)
    return {
        "overlap": overlap.fraction,
        "chance_overlap": overlap.chance_fraction,
        "objective": value.method,
        "teacher_objective": value.teacher,
        "random_objective": value.random,
    }


def _objective_of(teacher: Subset) -> Objective:
    """Build the set function that a teacher's subset was selected by, over its own labels."""
    assert teacher.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
    examples = teacher.outputs["deduplicate"]
    plan = selection_plan(teacher.config, scored_blocks(teacher.outputs))
    tables = ScoreTables.open(scores_of(teacher.outputs), examples.num_rows("candidates"))
    return build_objective(plan, tables, examples.num_rows("existing"))


def collect_fidelity(subsets: Sequence[Subset]) -> pa.Table:
    """Gather the fidelity of every method's network (NETWORK_FIDELITY)."""
    tables = [NETWORK_FIDELITY.empty_table()]
    seen: set[str] = set()
    for subset in subsets:
        method = subset.key.method
        if FIT not in subset.outputs or method in seen:
            continue
        seen.add(method)
        table = subset.outputs[FIT].read("fidelity", schema=FIDELITY)
        names = pa.array([method] * table.num_rows, pa.string())
        tables.append(pa.table([names, *table.columns], schema=NETWORK_FIDELITY))
    return pa.concat_tables(tables)
