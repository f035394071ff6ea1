"""What actors a pool gets, where GPU nodes are yet to come and where they are there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nncift_ray.recipe.sections import ClusterConfig, PoolConfig
from nncift_ray.runtime import ray_pool
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.session import Session

NOW = {"CPU": 16.0}
LATER = {"CPU": 16 * 8, "GPU": 16}  # of nodes that the autoscaler may start


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes a session of a cluster with what Ray tells of."""

    def make(now: dict[str, float], later: dict[str, int] | None) -> Session:
        monkeypatch.setattr(ray_pool.ray, "cluster_resources", lambda: now)
        monkeypatch.setattr(ray_pool.state, "get_max_resources_from_cluster_config", lambda: later)
        return Session(execute_here, ray_pool.cluster_totals, on_one_machine=False)

    return make


@pytest.mark.parametrize(
    ("now", "later", "num_gpus", "has_gpu"),
    [
        (NOW, None, None, False),
        (NOW, LATER, None, True),  # from none
        (NOW, None, 1.0, True),  # the recipe says so
        ({**NOW, "GPU": 4.0}, None, None, True),
        ({**NOW, "GPU": 4.0}, LATER, 0.0, False),
    ],
)
def test_gpus_are_told_by_the_recipe_and_by_what_the_cluster_may_bring(
    session: Any, now: Any, later: Any, num_gpus: float | None, has_gpu: bool
) -> None:
    assert session(now, later).has_gpu(PoolConfig(num_gpus=num_gpus)) is has_gpu


def sized(session: Session, pool: PoolConfig, can_use_gpu: bool = True) -> tuple[float, ...]:
    stage: Any = SimpleNamespace(can_use_gpu=can_use_gpu, single_threaded=False, max_actors=None)
    found = session.resources_for(stage, pool, ClusterConfig(row_timeout=7))
    assert found.row_timeout == 7
    return found.num_cpus, found.num_gpus, found.max_actors


def test_a_pool_may_grow_to_what_the_autoscaler_may_bring(session: Any) -> None:
    later = session(NOW, LATER)
    assert sized(later, PoolConfig()) == (4.0, 1.0, 16)
    assert sized(later, PoolConfig(), can_use_gpu=False) == (4.0, 0.0, 32)
    assert sized(later, PoolConfig(num_actors=(1, 3))) == (4.0, 1.0, 3)
    assert sized(session(NOW, None), PoolConfig()) == (4.0, 0.0, 4)
