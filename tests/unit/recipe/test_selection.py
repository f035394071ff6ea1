"""The recipe's selection section: what is accepted, and what an error says."""

from __future__ import annotations

from typing import Any

import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.loading import make_config
from tests.unit.recipe.test_config import shortest

CONDITIONAL = "facility_location_conditional_gain"
TOKENS = {"tokens": "5M"}


def complaint(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(shortest(**changes), "recipe.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    "objective",
    ["graph_cut", "saturated_coverage", "random", "top_k", "facility_location"],
)
def test_objectives_without_targets_need_none(objective: str) -> None:
    assert make_config(shortest(selection__objective=objective)).objective == objective


def test_an_optimizer_may_be_just_its_name() -> None:
    config = make_config(shortest(selection__optimizer="lazy"))
    assert config.selection.optimizer.kind == "lazy"


def test_existing_data_turn_facility_location_into_its_conditional_gain() -> None:
    assert make_config(shortest(data__existing=["old.jsonl"])).objective == CONDITIONAL
    both = shortest(data__existing=["old.jsonl"], data__targets=["t.jsonl"])
    assert make_config(both).objective == CONDITIONAL


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection__objectiv": "top_k"}, "selection.objectiv: unknown key; did you mean"),
        ({"selection__objective": "coverage"}, "selection.objective"),
        (
            {"selection__objective": "pair_coverage", "network__kind": "paper"},
            "needs network.kind pair",
        ),
        ({"selection__objective": CONDITIONAL}, "needs data.existing"),
        (
            {"selection__objective": "graph_cut", "data__existing": ["a"]},
            "data.existing: graph_cut reads no existing data",
        ),
        (
            {"selection__objective": "graph_cut", "data__targets": ["a"]},
            "data.targets: graph_cut reads no targets; use graph_cut_mutual_information",
        ),
        ({"selection__objective": "graph_cut_mutual_information"}, "needs data.targets"),
        ({"selection__optimizer": "lasy"}, "selection.optimizer.kind"),
        ({"selection__optimizer": {"kin": "lazy"}}, "selection.optimizer.kin: unknown key"),
        ({"selection__optimizer": "naive"}, "kind: this kind was removed; use lazy"),
        ({"selection__optimizer": "stochastic"}, "kind: this kind was removed; use lazy"),
        ({"selection__optimizer": {"epsilon": 0.1}}, "optimizer.epsilon: this key was removed"),
        ({"selection__optimizer": {"rounds": 2}}, "optimizer.rounds: this key was removed"),
        ({"selection__optimizer": {"bounding": True}}, "bounding: this key was removed"),
        ({"selection__optimizer": {"partitions": 4}}, "partitions is a key of partitioned"),
        (
            {"selection__optimizer": {"kind": "partitioned", "partitions": 1}},
            "optimizer.partitions",
        ),
        ({"selection__optimizer": "cost_benefit"}, "needs a budget in tokens"),
        (
            {"selection__optimizer": "partitioned", "selection__budget": TOKENS},
            "budget in examples",
        ),
        (
            {"selection__objective": "top_k", "selection__optimizer": "partitioned"},
            "top_k has nothing to search",
        ),
        ({"selection__nu": 0.5, "selection__objective": "top_k"}, "nu is read by"),
        ({"selection__redundancy": 0.1}, "redundancy is read by graph_cut"),
        ({"selection__saturation": 0.3}, "saturation is read by saturated_coverage"),
        ({"selection__stop_gain": 1.5}, "selection.stop_gain"),
        ({"selection__quotas": {"maxx": 3}}, "selection.quotas.maxx: unknown key"),
        ({"selection__quotas": {"max": {"a": -1}}}, "is no quota"),
        ({"selection__quotas": {"min": {"a": 9}, "max": {"a": 3}}}, "min 9 is above max 3"),
        ({"selection__quotas": {"min": {"a": 0.6, "b": 0.6}}}, "come to more than the budget"),
        (
            {"selection__quotas": {"min": {"a": 9, "b": 2}}, "selection__budget": 10},
            "come to more than the budget of 10",
        ),
        ({"selection__quotas": {"max": 0.1}, "selection__budget": TOKENS}, "write counts"),
        ({"selection__include": ["a", "b"], "selection__exclude": ["b"]}, "both name b"),
        (
            {"selection__include": ["a", "b", "c"], "selection__budget": 2},
            "include names 3 examples, the budget is 2",
        ),
        ({"export__formats": ["csv"]}, "export.formats"),
    ],
)
def test_what_cannot_be_names_the_key_and_the_remedy(changes: dict[str, Any], words: str) -> None:
    assert words in complaint(**changes)


def test_quotas_are_counts_or_shares_or_one_for_all() -> None:
    quotas = {"field": "task", "min": {"a": "1K"}, "max": {"b": 0.25}}
    found = make_config(shortest(selection__quotas=quotas, selection__budget="5K")).selection.quotas
    assert (found.min, found.max) == ({"a": 1000}, {"b": 0.25})
    one = make_config(shortest(selection__quotas={"max": 0.2})).selection.quotas
    assert one.max == 0.2
    assert one.given
