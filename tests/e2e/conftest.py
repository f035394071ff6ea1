"""What the tests of killed runs share: one Ray, one recipe, one run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nncift_ray.pipeline import RunResult, run
from nncift_ray.recipe.loading import load_config
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import ray_session
from tests.e2e.recipes import write_recipe


@pytest.fixture(scope="package")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, DELIFT with a tiny random model included."""
    return write_recipe(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="package")
def undisturbed(recipe: Path) -> RunResult:
    """The recipe's run in this process: no actor, one shard after another, nobody dies."""
    overrides = [f"run_dir={recipe.parent / 'undisturbed'}", "cluster=local"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as the actors have: see POOLS
        return run(load_config(recipe, overrides), reporter=SilentReporter())


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray for all that a module runs in this process."""
    with ray_session(ClusterConfig()):
        yield
