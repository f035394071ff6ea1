"""The recipes that are shipped are recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.recipe.loading import load_config
from nncift_ray.recipe.sections import BUILT_IN_TEACHERS

RECIPES = sorted((Path(__file__).parents[3] / "jobs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.run_dir.startswith(("runs/", "s3://my-bucket/runs/"))


def test_the_recipes_cover_every_teacher() -> None:
    kinds = {load_config(recipe).teacher.kind for recipe in RECIPES}
    assert kinds == set(BUILT_IN_TEACHERS)


def test_the_index_of_jobs_names_every_recipe() -> None:
    named = (RECIPES[0].parents[1] / "README.md").read_text(encoding="utf-8")
    assert [recipe.stem for recipe in RECIPES if f"`{recipe.stem}`" not in named] == []
