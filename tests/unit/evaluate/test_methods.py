"""A method's name becomes the recipe that selects its subset."""

from __future__ import annotations

from typing import Any

import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.evaluation.methods import method_notices, teacher_of, variant
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import METHODS, POINTWISE_TEACHERS, Config

BUDGET = 0.2


def recipe(**changes: Any) -> Config:
    tree: dict[str, Any] = {
        "run_dir": "run",
        "data": {"candidates": ["a.jsonl"], "targets": ["t.jsonl"]},
        "teacher": {"kind": "delift", "model": "big", "adapter": "tuned"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "labels": {"label_pairs": 2000},
        "evaluation": {"tests": {"a": ["b"]}, "small_model": "little", "teacher_pairs": 500},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return make_config(tree)


def of(name: str, config: Config) -> Config:
    return variant(config, name, BUDGET)


@pytest.mark.parametrize("name", [name for name in METHODS if teacher_of(name)])
def test_every_method_with_a_teacher_is_a_valid_recipe(name: str) -> None:
    made = of(name, recipe())
    kind = name.rpartition("+")[2]
    assert made.teacher.kind == kind
    assert made.selection.budget == BUDGET
    ranks = kind in ("less", *POINTWISE_TEACHERS)
    turns = kind in ("cosine", "rds_plus", "landmarks")
    expected = "top_k" if ranks else "round_robin" if turns else "facility_location"
    assert made.selection.objective == expected
    assert made.selection.quality == ("none" if ranks or turns else "auto")


def test_what_is_measured_asks_nothing_and_a_cosine_without_targets_covers_the_pool() -> None:
    made = of("cosine", recipe(data={"targets": []}))
    assert (made.selection.objective, made.pair_scores.by) == ("facility_location", "network")
    assert "label" not in Blueprint(made).steps
    assert of("rds_plus", recipe()).pair_scores.by == "teacher"
    assert of("small_lm+ifd", recipe()).teacher.model == "little"
    assert {"nn_cift+cosine", "small_lm+longest"}.isdisjoint(METHODS)


def test_a_network_keeps_the_labels_of_the_recipe() -> None:
    made = of("nn_cift+delift", recipe())
    assert made.labels == recipe().labels
    assert made.teacher == recipe().teacher
    assert made.pair_scores == recipe().pair_scores


@pytest.mark.parametrize(
    ("name", "pairs"), [("delift", 500), ("small_lm+delift", 500), ("delift_se", 500),
                        ("less", 500), ("selectit", None)]
)  # fmt: skip
def test_a_teacher_scores_by_its_own_labels(name: str, pairs: int | None) -> None:
    made = of(name, recipe(pair_scores={"mode": "pruned"}, labels={"max_pairs": 9}))
    assert made.pair_scores.by == "teacher"
    # A pointwise teacher has as many labels as there are candidates.
    assert made.labels.label_pairs == pairs
    assert made.labels.max_pairs > 10**12
    assert made.unread == []


def test_a_small_model_stands_in_for_the_teachers_own() -> None:
    made = of("small_lm+delift", recipe())
    assert (made.teacher.model, made.teacher.adapter) == ("little", None)
    assert made.teacher.max_length == recipe().teacher.max_length


def test_existing_data_go_where_the_objective_reads_them_and_nowhere_else() -> None:
    config = recipe(data={"existing": ["e.jsonl"]})
    assert of("nn_cift+delift", config).objective == "facility_location_conditional_gain"
    assert of("less", config).data.existing == ()


def test_budgets_are_filled_whatever_the_recipe_stops_at() -> None:
    config = recipe(selection={"budget": {"tokens": 100}, "optimizer": {"kind": "cost_benefit"},
                               "stop_gain": 0.01})  # fmt: skip
    made = of("nn_cift+delift", config)
    assert (made.selection.budget, made.selection.stop_gain) == (BUDGET, None)
    assert made.selection.optimizer.kind == "lazy"
    assert "left aside" in method_notices(config)[0]


def test_a_recipe_that_selects_at_random_is_refused() -> None:
    with pytest.raises(ConfigError, match="selection.objective: random asks no teacher"):
        of("delift", recipe(selection={"objective": "random"}))
