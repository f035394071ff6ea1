"""A Ray cluster of several nodes on this machine: a head that lasts, spot nodes that do not."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

MARKET = "ray.io/market-type"
ON_DEMAND, SPOT = "on-demand", "spot"
HEAD_CPUS, SPOT_CPUS = 4, 2
OBJECT_STORE_BYTES = 200 * 1024**2
#: A node's start is some seconds of work; on a machine that others use it takes its time.
START_SECONDS = 150
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes bind 127.0.0.1
    "RAY_raylet_start_wait_time_s": str(START_SECONDS),
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_period_ms": "1000",  # a dead node is found out in 5 s instead of 15
    # Ray lets workers give way to all else; where the machine has other work they then stand still.
    "RAY_worker_niceness": "0",
}


class SpotCluster:
    """Nodes are added and taken by the main thread only, as Ray wants it."""

    def __init__(self, num_spot: int, seed: int = 0) -> None:
        """Start the head and so many spot nodes."""
        from ray.cluster_utils import Cluster

        self._draw = random.Random(seed)
        self.num_kills = 0
        self._cluster: Any = Cluster()
        try:
            # The driver, merging and selection are to have a place whatever happens to spot nodes.
            self._start_node(HEAD_CPUS, ON_DEMAND, include_dashboard=False)
            for _ in range(num_spot):
                self.add_node()
        except BaseException:
            self.kill_all()
            raise

    @property
    def address(self) -> str:
        """Where a driver connects."""
        return self._cluster.address

    @property
    def num_spot(self) -> int:
        """Spot nodes that are up."""
        return len(self._cluster.worker_nodes)

    def add_node(self) -> None:
        """Add a spot node and wait until it is up."""
        self._start_node(SPOT_CPUS, SPOT)

    def _start_node(self, num_cpus: int, market: str, **more: Any) -> None:
        self._cluster.add_node(
            wait=False,  # Ray's own wait is 30 s at most
            num_cpus=num_cpus,
            labels={MARKET: market},
            object_store_memory=OBJECT_STORE_BYTES,
            **more,
        )
        self._cluster.wait_for_nodes(timeout=START_SECONDS)

    def kill_nodes(self, number: int) -> None:
        """Kill so many spot nodes at once, raylet and workers, with no warning."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)
        for node in self._draw.sample(nodes, min(number, len(nodes))):
            self._cluster.remove_node(node, allow_graceful=False)
            self.num_kills += 1

    def kill_all(self) -> None:
        """Kill every node, the head last."""
        self.kill_nodes(self.num_spot)
        if self._cluster.head_node is not None:
            self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)


@contextmanager
def loopback() -> Generator[None]:
    """Let what is started inside listen on loopback only, and take the time it needs."""
    from ray._private import ray_constants

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    known, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def spot_cluster(num_spot: int, seed: int = 0) -> Generator[SpotCluster]:
    """Start a cluster on loopback and kill it at the end."""
    with loopback():
        cluster = SpotCluster(num_spot, seed)
        try:
            yield cluster
        finally:
            cluster.kill_all()
