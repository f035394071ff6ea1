"""Recipes from strangers: plain values, bounded in size, or a message."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.loading import MAX_CHARS, MAX_VALUES, apply_override, load_config, parse_yaml

#: Each line stands for ten of the line above: 10^9 values in 300 characters.
LAUGHS = "\n".join(
    [
        "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)),
    ]
)
MERGES = "\n".join(
    [
        "a0: &a0 {" + ", ".join(f"k{i}: {i}" for i in range(10)) + "}",
        *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)),
    ]
)
MAX_SECONDS = 2.0


@pytest.mark.parametrize("bomb", [LAUGHS, MERGES], ids=["laughs", "merges"])
def test_a_bomb_of_aliases_is_refused_before_it_goes_off(bomb: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"more than {MAX_VALUES:,} values"):
        parse_yaml(bomb, "recipe.yaml")
    assert time.monotonic() - started < MAX_SECONDS


def test_a_list_that_holds_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("a: &a [1, *a]", "recipe.yaml")


def test_aliases_that_stand_for_little_are_followed() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "r") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


def test_a_recipe_as_long_as_a_corpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        parse_yaml("#" * (MAX_CHARS + 1), "recipe.yaml")


def test_a_recipe_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        parse_yaml("[" * 2_000, "recipe.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch /tmp/owned']",
        "!!python/name:os.system",
        "!!python/object/new:subprocess.Popen [[ls]]",
        "a: 2020-99-99",
        "? [a, b]\n: c",
        "a: 1\na: 2",
        "a: [1, 2",
        "--- 1\n--- 2",
    ],
)
def test_what_is_no_plain_yaml_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe\.yaml: not YAML"):
        parse_yaml(text, "recipe.yaml")


def test_tags_of_python_run_nothing_in_recipes_and_overrides(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    call = f"!!python/object/apply:pathlib.Path.touch [{mark}]"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run_dir: {call}\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(recipe)
    with pytest.raises(ConfigError, match="--set run_dir"):
        apply_override({}, f"run_dir={call}")
    with pytest.raises(ConfigError, match="--set run_dir"):
        apply_override({}, f"run_dir={LAUGHS}")
    assert not mark.exists()
