"""The recipes of the public protocol load, and plan, on files of a pool's shape."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.critical_look import (
    BUDGETS,
    POOLS,
    TASKS,
    cost_lines,
    plan,
    write_recipes,
    write_stand_ins,
)
from nncift_ray.evaluation.methods import budget_count
from nncift_ray.recipe.loading import load_config


def test_every_recipe_selects_the_budgets_of_the_protocol(tmp_path: Path) -> None:
    recipes = write_recipes(tmp_path)
    assert len(recipes) == len(POOLS) * len(TASKS)
    for recipe in recipes:
        config = load_config(recipe)
        num_rows = POOLS[recipe.stem.partition("_")[0]][1]
        counts = [budget_count(share, num_rows) for share in config.evaluation.budgets]
        assert counts == list(BUDGETS)
        assert config.data.candidates == (POOLS[recipe.stem.partition("_")[0]][0],)


@pytest.mark.skipif(find_spec("vllm") is None, reason="its recipes ask for vLLM")
def test_a_recipe_is_planned_with_a_price_for_each_selection(tmp_path: Path) -> None:
    recipe = write_recipes(tmp_path)[0]
    made = plan(recipe, write_stand_ins(tmp_path, 2_000, TASKS[0]))
    selected = {row.what: row.cost_usd for row in made.rows if row.what.startswith("select")}
    methods = ("cosine", "rds_plus", "less", "landmarks", "nn_cift+delift")
    assert list(selected) == [f"select by {name}" for name in methods]
    assert min(selected.values()) > 0
    total = sum(row.seconds for row in made.rows) / 3600
    hours = [float(line[2].replace(",", "")) for line in cost_lines(made)]
    assert sum(hours) == pytest.approx(total, abs=0.06 * len(hours))
