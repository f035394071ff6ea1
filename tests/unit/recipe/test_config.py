"""Recipes: what is accepted, and what an error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from nncift_ray.errors import ConfigError
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import REMOVED_KEYS, dump_config, load_config, make_config
from nncift_ray.recipe.sections import Config, TokenBudget


def shortest(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "run_dir": "runs/mine",
        "data": {"candidates": ["corpus.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    return tree


def complaint(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(shortest(**changes), "recipe.yaml")
    return str(caught.value)


def test_shortest_recipe_has_defaults_for_the_rest() -> None:
    config = make_config(shortest())
    assert config.network.num_hidden == 100
    assert config.labels.fraction == 0.05


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.1, 0.1),
        (5000, 5000),
        ("5K", 5000),
        ("2.5M", 2_500_000),
        ({"tokens": "5M"}, TokenBudget(tokens=5_000_000)),
    ],
)
def test_budget_is_fraction_count_or_tokens(given: Any, expected: Any) -> None:
    assert make_config(shortest(selection__budget=given)).selection.budget == expected


@pytest.mark.parametrize("given", [0, 0.0, 1.0, 1.5, -3, "many", True, {"token": 5}, None, []])
def test_wrong_budget_names_key_and_remedy(given: Any) -> None:
    assert "selection.budget: " in complaint(selection__budget=given)


def test_misspelt_key_is_answered_with_the_right_one() -> None:
    message = complaint(data__candidate=["x"])
    assert "data.candidate: unknown key; did you mean 'candidates'?" in message


def test_all_wrong_keys_are_named_at_once() -> None:
    message = complaint(teacher__kind="magic", network__num_hiden=3, labels__fraction=7)
    assert all(key in message for key in ("teacher.kind", "network.num_hiden", "labels.fraction"))


def test_all_but_the_data_has_a_default_and_short_forms_are_read() -> None:
    recipe = make_config({"data": {"candidates": "in/corpus.jsonl.gz"}, "teacher": "delift"})
    assert (recipe.run_dir, recipe.teacher.kind) == ("runs/corpus", "delift")
    assert recipe.selection.budget == 0.1
    with pytest.raises(ConfigError, match=r"data\.candidates: is required"):
        Blueprint(make_config({"cluster": "local"}))


def test_mutual_information_without_targets_is_impossible() -> None:
    message = complaint(selection__objective="facility_location_mutual_information")
    assert "needs data.targets" in message


def test_facility_location_with_targets_takes_its_form_with_a_target() -> None:
    config = make_config(shortest(data__targets="t.jsonl"))
    assert config.objective == "facility_location_query_mutual_information"


def test_layout_and_columns_exclude_each_other() -> None:
    message = complaint(data__layout="alpaca", data__columns={"prompt": "q", "response": "a"})
    assert "either layout or columns" in message


def test_override_is_yaml_at_a_key_path(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(shortest()))
    config = load_config(recipe, ["selection.budget={tokens: 5M}", "data.candidates=[a, b]"])
    assert config.selection.budget == TokenBudget(tokens=5_000_000)
    assert config.data.candidates == ("a", "b")


@pytest.mark.parametrize("override", ["budget", "=3", "run_dir.x=1", "selection.budget=[1"])
def test_wrong_override_is_quoted(tmp_path: Path, override: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(shortest()))
    with pytest.raises(ConfigError, match="--set"):
        load_config(recipe, [override])


@pytest.mark.parametrize(
    "text", ["- a list", "run_dir: [unclosed", "run_dir: a\nrun_dir: b", "!!python/object:os.x {}"]
)
def test_unusable_yaml_is_a_config_error(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_config(recipe)


def test_missing_recipe_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_dumped_recipe_loads_to_the_same_config(tmp_path: Path) -> None:
    config = make_config(shortest(selection__budget={"tokens": 7}, labels__label_pairs="2K"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    assert load_config(recipe) == config


def test_config_is_frozen() -> None:
    config: Config = make_config(shortest())
    with pytest.raises(ValueError, match="frozen"):
        config.run_dir = "elsewhere"  # pyright: ignore


@pytest.mark.parametrize("name", ["api_key", "HF_TOKEN", "password"])
def test_secrets_have_no_place_in_a_recipe(name: str) -> None:
    message = complaint(teacher={"kind": "my.own:Teacher", "options": {name: "s3cr3t"}})
    assert "from the environment" in message
    assert "s3cr3t" not in message


def test_signed_addresses_are_refused_and_not_repeated() -> None:
    message = complaint(data__candidates=["https://host/c.jsonl?X-Amz-Signature=s3cr3t"])
    assert "data.candidates: an address with credentials" in message
    assert "s3cr3t" not in message


def test_options_of_a_built_in_teacher_are_refused() -> None:
    assert "delift_se takes none" in complaint(teacher={"kind": "delift_se", "options": {"a": 1}})


@pytest.mark.parametrize("path", REMOVED_KEYS)
def test_a_key_that_went_is_refused_with_what_took_its_place(path: str) -> None:
    section, *inner = path.split(".")
    value: Any = 1
    for key in reversed(inner):
        value = {key: value}
    message = complaint(**{section: {**shortest().get(section, {}), **value}})
    assert f"{path}: this key was removed; {REMOVED_KEYS[path]}" in message


def sections_of(section: type[BaseModel]) -> list[type[BaseModel]]:
    kinds = [field.annotation for field in section.model_fields.values()]
    inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [section, *(deeper for kind in inner for deeper in sections_of(kind))]


@pytest.mark.parametrize("section", dict.fromkeys(sections_of(Config)))
def test_every_key_is_described(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert is_section or field.description, name
