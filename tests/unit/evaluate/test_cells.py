"""Which cells there are, in what order, and which candidates a subset has."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import DataError
from nncift_ray.evaluation.methods import (
    SubsetKey,
    budget_count,
    members_without_teacher,
    plan_cells,
    plan_rounds,
)
from nncift_ray.recipe.sections import EvaluationConfig


def test_a_source_is_drawn_from_alone_and_named_where_it_is_too_small() -> None:
    source = np.array([3, 4, 5, 9, 11, 12])
    key = SubsetKey("random_source", 1, 0.1)
    members = members_without_teacher(key, 50, 0, source)
    assert members is not None
    assert len(members) == 5
    assert set(members.tolist()) <= set(source.tolist())
    other = members_without_teacher(SubsetKey("random_source", 2, 0.1), 50, 0, source)
    assert other is not None
    assert members.tolist() != other.tolist()
    with pytest.raises(DataError, match="source has 6 candidates, and the budget is 10"):
        members_without_teacher(SubsetKey("random_source", 1, 0.2), 50, 0, source)


def evaluation(**changes: object) -> EvaluationConfig:
    tree: dict[str, object] = {
        "tests": {"a": ["a.jsonl"], "b": ["b.jsonl"]},
        "methods": ["full", "delift", "random", "initial", "nn_cift+delift"],
        "budgets": [0.1, 0.05],
        "curve_methods": ["delift", "random"],
        "random_seeds": 2,
    }
    return EvaluationConfig.model_validate(tree | changes)


def test_rounds_begin_with_what_is_compared_against_and_end_with_all_data() -> None:
    rounds = [[str(key) for key in keys] for keys in plan_rounds(evaluation())]
    assert rounds == [
        ["initial", "random (seed 0) 10 %", "random (seed 1) 10 %", "delift 10 %",
         "nn_cift+delift 10 %"],
        ["random (seed 0) 5 %", "random (seed 1) 5 %", "delift 5 %"],
        ["full 100 %"],
    ]  # fmt: skip


def test_without_curve_methods_every_method_has_every_budget() -> None:
    curve = plan_rounds(evaluation(curve_methods=None))[1]
    assert {key.method for key in curve} == {"random", "delift", "nn_cift+delift"}


def test_cells_are_modes_times_tests_and_the_untaught_model_has_one_mode() -> None:
    first = plan_rounds(evaluation())[0][:2]
    assert [str(cell) for cell in plan_cells(first, evaluation())] == [
        "initial a",
        "initial b",
        "random (seed 0) 10 % tuned a",
        "random (seed 0) 10 % tuned b",
        "random (seed 0) 10 % icl a",
        "random (seed 0) 10 % icl b",
    ]


def test_random_subsets_are_nested_over_budgets_and_differ_over_seeds() -> None:
    def draw(seed: int, budget: float) -> set[int]:
        members = members_without_teacher(SubsetKey("random", seed, budget), 1000, 0)
        assert members is not None
        assert (np.diff(members) > 0).all()
        return set(members.tolist())

    assert len(draw(0, 0.1)) == 100
    assert draw(0, 0.05) < draw(0, 0.1) < draw(0, 0.3)
    assert len(draw(0, 0.1) & draw(1, 0.1)) < 50


@pytest.mark.parametrize(("budget", "count"), [(0.1, 10), (0.001, 1), (0.126, 13)])
def test_a_budget_is_counted_as_the_select_stage_counts(budget: float, count: int) -> None:
    assert budget_count(budget, 100) == count
