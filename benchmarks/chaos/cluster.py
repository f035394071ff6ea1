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


class SpotCluster:
    """Nodes are added and taken by the main thread only, as Ray wants it."""

    def __init__(self, num_spot: int, seed: int) -> None:
        """Start the head and so many spot nodes."""
        from ray.cluster_utils import Cluster

        self._draw = random.Random(seed)
        # The driver, merging and selection are to have a place whatever happens to spot nodes.
        head = {"num_cpus": HEAD_CPUS, "labels": {MARKET: ON_DEMAND}}
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args=head | {"object_store_memory": OBJECT_STORE_BYTES},
        )
        self.num_kills = 0
        for _ in range(num_spot):
            self.add_node()

    @property
    def address(self) -> str:
        """Where a driver connects."""
        return self._cluster.address

    @property
    def num_spot(self) -> int:
        """Spot nodes that are up."""
        return len(self._cluster.worker_nodes)

    def add_node(self) -> None:
        """Add a spot node."""
        self._cluster.add_node(
            num_cpus=SPOT_CPUS, labels={MARKET: SPOT}, object_store_memory=OBJECT_STORE_BYTES
        )

    def kill_nodes(self, number: int) -> None:
        """Kill so many spot nodes at once, raylet and workers, with no warning."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)
        for node in self._draw.sample(nodes, min(number, len(nodes))):
            self._cluster.remove_node(node, allow_graceful=False)
            self.num_kills += 1

    def shut_down(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


@contextmanager
def spot_cluster(num_spot: int, seed: int = 0) -> Generator[SpotCluster]:
    """Start a cluster on loopback and stop it at the end."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # nodes bind 127.0.0.1
    cluster = SpotCluster(num_spot, seed)
    try:
        yield cluster
    finally:
        cluster.shut_down()
