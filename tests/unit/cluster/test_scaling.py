"""What Ray's autoscaler would start for the work that recipes ask for; no node is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from nncift_ray.recipe.loading import load_config, make_config
from nncift_ray.recipe.sections import Config
from tests.unit.cluster.files import (
    LAUNCHER_FILES,
    ROOT,
    kuberay_config,
    launcher_config,
    recipe_map_and_job,
)

CONFIGS = {name: lambda name=name: launcher_config(name) for name in LAUNCHER_FILES}
CONFIGS["raycluster.yaml"] = kuberay_config
GPU_WORK = {"CPU": 6.0, "GPU": 1.0}
CPU_WORK = {"CPU": 4.0}
MARKET = "ray.io/market-type"


def nodes_to_start(
    config: dict[str, Any],
    work: dict[str, float],
    count: int,
    *,
    markets: Sequence[str] = (),
    failing: tuple[str, ...] = (),
) -> dict[str, int]:
    """Return how many nodes of each type the autoscaler asks for."""
    selectors = None
    if markets:
        selectors = [[(MARKET, LabelSelectorOperator.LABEL_OPERATOR_IN, list(markets))]]
    node_types = AutoscalingConfig(config, skip_content_hash=True)
    requests = [ResourceRequestUtil.make(work, label_selectors=selectors) for _ in range(count)]
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=node_types.get_node_type_configs(),
            max_num_nodes=node_types.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities=dict.fromkeys(failing, 0.0),
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]()


def group_of(config: dict[str, Any], name: str) -> str:
    """Return a group's name in the form of the file: KubeRay allows no underscore."""
    return next(key for key in config["available_node_types"] if key.replace("-", "_") == name)


def test_no_gpu_node_runs_while_nobody_asks(config: dict[str, Any]) -> None:
    started = nodes_to_start(config, CPU_WORK, 0)
    assert started.get(group_of(config, "gpu_spot"), 0) == 0
    assert started.get(group_of(config, "gpu_on_demand"), 0) == 0


def test_gpu_work_goes_to_spot_nodes_first(config: dict[str, Any]) -> None:
    started = nodes_to_start(config, GPU_WORK, 5)
    assert started[group_of(config, "gpu_spot")] == 5
    assert group_of(config, "gpu_on_demand") not in started


def test_gpu_work_goes_to_on_demand_nodes_while_spot_cannot_be_had(config: dict[str, Any]) -> None:
    spot = group_of(config, "gpu_spot")
    started = nodes_to_start(config, GPU_WORK, 3, failing=(spot,))
    assert started[group_of(config, "gpu_on_demand")] == 3
    assert spot not in started


def test_more_gpu_work_than_spot_nodes_overflows(config: dict[str, Any]) -> None:
    started = nodes_to_start(config, GPU_WORK, 18)
    assert started[group_of(config, "gpu_spot")] == 16
    assert started[group_of(config, "gpu_on_demand")] == 2


def test_work_that_must_last_starts_no_spot_node(config: dict[str, Any]) -> None:
    started = nodes_to_start(config, CPU_WORK, 12, markets=["on-demand"])
    assert started[group_of(config, "cpu")] >= 1
    assert group_of(config, "gpu_spot") not in started


def shipped_recipes() -> list[Config]:
    config_map, _ = recipe_map_and_job()
    spot = sorted((ROOT / "jobs" / "recipes").glob("*_spot.yaml"))
    assert spot
    return [make_config(yaml.safe_load(config_map["data"]["recipe.yaml"])), *map(load_config, spot)]


@pytest.mark.parametrize("recipe", shipped_recipes(), ids=lambda recipe: recipe.run_dir)
def test_the_pools_of_shipped_recipes_start_spot_nodes(recipe: Config) -> None:
    pools = (recipe.labels.pool, recipe.embedder.pool, recipe.pair_scores.pool)
    on_gpus = [pool for pool in pools if pool.num_gpus]
    assert len(on_gpus) == 2
    assert recipe.cluster.labels == {MARKET: "on-demand"}
    for pool in on_gpus:
        assert isinstance(pool.num_actors, tuple)
        work = {"CPU": pool.num_cpus or 0.0, "GPU": pool.num_gpus or 0.0}
        markets = re.findall(r"[a-z]+(?:-[a-z]+)*", pool.labels[MARKET].removeprefix("in"))
        started = nodes_to_start(kuberay_config(), work, pool.num_actors[1], markets=markets)
        assert started["gpu-spot"] == pool.num_actors[1]
