"""A Ray cluster of several nodes on this machine: a head that lasts, spot nodes that do not."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

MARKET = "ray.io/market-type"
ON_DEMAND, SPOT = "on-demand", "spot"
HEAD_CPUS, SPOT_CPUS = 4, 2
OBJECT_STORE_BYTES = 200 * 1024**2
#: A node's start is some seconds of work; on a machine that others use it takes its time.
START_SECONDS = 150
NOTICE_SECONDS = 3600  # between a node's notice and its end: longer than any run here
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes bind 127.0.0.1
    "RAY_raylet_start_wait_time_s": str(START_SECONDS),
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_period_ms": "1000",  # a dead node is found out in 5 s instead of 15
    "RAY_process_group_cleanup_enabled": "1",
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
        #: Nodes that were given notice, and when.
        self.drained: dict[str, float] = {}
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
        """Spot nodes that are up and stay."""
        return len(self._lasting())

    def add_node(self) -> None:
        """Add a spot node and wait until it is up."""
        self._start_node(SPOT_CPUS, SPOT)

    def _start_node(self, num_cpus: int, market: str, **more: Any) -> None:
        node = self._cluster.add_node(
            wait=False,  # Ray's own wait is 30 s at most
            num_cpus=num_cpus,
            labels={MARKET: market},
            object_store_memory=OBJECT_STORE_BYTES,
            **more,
        )
        self._cluster._wait_for_node(node, START_SECONDS)

    def _lasting(self) -> list[Any]:
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)
        return [node for node in nodes if node.node_id not in self.drained]

    def kill_nodes(self, number: int) -> None:
        """Kill so many spot nodes at once, raylet and workers, with no warning."""
        nodes = self._lasting()
        for node in self._draw.sample(nodes, min(number, len(nodes))):
            self._cluster.remove_node(node, allow_graceful=False)
            self.num_kills += 1

    def drain_node(self, node_id: str) -> None:
        """Give a spot node notice, as ``ray drain-node`` does: it takes no more work."""
        from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
        from ray.core.generated import autoscaler_pb2

        reason = vars(autoscaler_pb2)["DrainNodeReason"].Value("DRAIN_NODE_REASON_PREEMPTION")
        end = int((time.time() + NOTICE_SECONDS) * 1000)
        client = GcsClient(address=self.address)
        is_accepted, why_not = client.drain_node(node_id, reason, "its machine is wanted", end)
        if not is_accepted:
            raise RuntimeError(f"node {node_id} does not take its notice: {why_not}")
        self.drained[node_id] = time.time()

    def kill_all(self) -> None:
        """Kill every node, the head last."""
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)
        if self._cluster.head_node is not None:
            self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)


@contextmanager
def loopback(**more: str) -> Generator[None]:
    """Let what is started inside listen on loopback only, and take the time it needs.

    ``more`` are variables for it beside those.
    """
    from ray._private import ray_constants

    variables = {**ENVIRONMENT, **more}
    before = {name: os.environ.get(name) for name in variables}
    known, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(variables)
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
