"""What a recipe comes to where nothing is lost: a run in this process, without an actor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos.harness import digests_of, spot_recipe
from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.progress import SilentReporter


def undisturbed_digests(recipe: dict[str, Any], folder: Path, address: str) -> dict[str, str]:
    """Run the recipe of ``disturbed_run`` one shard after another; return its files' SHA-256."""
    tree = spot_recipe(recipe, folder / "run", address)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run(load_config(folder / "recipe.yaml"), reporter=SilentReporter(), execute=execute_here)
    digests = digests_of(folder / "run" / "export")
    assert "subset.jsonl" in digests
    return digests
