from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nncift_ray.evaluation.methods import Subset
from nncift_ray.evaluation.results import collect_agreement, collect_fidelity, subset_value
from nncift_ray.runtime import schemas
from nncift_ray.selection.objectives import facility_location
from nncift_ray.selection.problem import DenseScores
from tests.unit.evaluate.selections import (
    BUDGET,
    NETWORK,
    NUM_CANDIDATES,
    TEACHER,
    select_all,
)


@pytest.fixture(scope="module")
def subsets(tmp_path_factory: pytest.TempPathFactory) -> list[Subset]:
    return select_all(tmp_path_factory.mktemp("agreeing"))


def test_values_by_hand() -> None:
    # Row maxima of the picks: {0, 1}: 1 + .5 + .2; {2, 0}: 1 + .1 + .9.
    scores = DenseScores(np.array([[1, 0.3, 0], [0.1, 0.5, 0], [0, 0.2, 0.9]], np.float32))
    problem = facility_location(scores).problem()
    assert subset_value(problem, np.array([0, 1])) == pytest.approx(1.7, abs=1e-6)
    assert subset_value(problem, np.array([2, 0])) == pytest.approx(2.0, abs=1e-6)


def test_overlap_and_values_are_those_of_the_two_selections(subsets: list[Subset]) -> None:
    table = collect_agreement(subsets)
    assert table.schema.equals(schemas.AGREEMENT)
    (row,) = table.to_pylist()
    _, teacher, network = subsets
    assert (row["method"], row["teacher"]) == (NETWORK, TEACHER)
    shared = len(np.intersect1d(network.members, teacher.members))
    assert row["overlap"] == pytest.approx(shared / BUDGET)
    assert row["chance_overlap"] == pytest.approx(BUDGET / NUM_CANDIDATES)
    # The value that the teacher's own select stage reached, found again.
    reached = teacher.outputs["select"].read("ranking")["objective"].to_pylist()[-1]
    assert row["teacher_objective"] == pytest.approx(reached)
    assert row["objective"] <= row["teacher_objective"] + 1e-9
    assert row["random_objective"] < row["teacher_objective"]


def test_a_method_that_picks_what_its_teacher_picks_agrees_wholly(subsets: list[Subset]) -> None:
    random, teacher, network = subsets
    (row,) = collect_agreement(
        [random, teacher, replace(network, members=teacher.members)]
    ).to_pylist()
    assert row["overlap"] == 1.0
    assert row["objective"] == pytest.approx(row["teacher_objective"])


def test_without_its_teacher_a_method_stands_beside_nothing(subsets: list[Subset]) -> None:
    random, _, network = subsets
    assert collect_agreement([random, network]).num_rows == 0


def test_without_random_subsets_their_value_is_unknown(subsets: list[Subset]) -> None:
    (row,) = collect_agreement(subsets[1:]).to_pylist()
    assert row["random_objective"] is None


def test_fidelity_is_that_of_the_fit_stage_under_the_methods_name(subsets: list[Subset]) -> None:
    table = collect_fidelity(subsets)
    assert table.schema.equals(schemas.NETWORK_FIDELITY)
    assert set(table["method"].to_pylist()) == {NETWORK}
    fitted = subsets[2].outputs["fit"].read("fidelity")
    assert table.drop_columns(["method"]).to_pylist() == fitted.to_pylist()
    assert {"network", "zero", "random", "row_column_mean"} <= set(table["model"].to_pylist())


def test_networks_that_select_several_sizes_are_listed_once(subsets: list[Subset]) -> None:
    once = collect_fidelity(subsets)
    assert collect_fidelity([*subsets, subsets[2]]).equals(once)
