"""Evaluate and die by SIGKILL at a moment of a stage: ``python -m tests.e2e.die_evaluating``.

Arguments: recipe, stage, moment (see ``die_at``).
"""

from __future__ import annotations

import sys

from nncift_ray.evaluation.run import evaluate
from nncift_ray.recipe.loading import load_config
from tests.e2e.die_at import Assassin

if __name__ == "__main__":
    recipe_path, stage_name, when = sys.argv[1:]
    evaluate(load_config(recipe_path), reporter=Assassin(stage_name, when))
