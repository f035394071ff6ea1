"""A Ray cluster on this machine whose autoscaler starts its spot nodes, and ends them.

It is version 2 of the autoscaler, which the launcher files switch on too, with Ray's provider of
fake nodes. Ray's own ``AutoscalingCluster`` is not used: it begins and ends with ``ray stop``,
which ends every Ray of the machine, and the wheels lack the file it takes its defaults from.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.cluster_utils import Cluster

from benchmarks.chaos.cluster import (
    HEAD_CPUS,
    MARKET,
    OBJECT_STORE_BYTES,
    ON_DEMAND,
    SPOT,
    SPOT_CPUS,
    START_SECONDS,
    loopback,
)

#: Ray wants to be told of each that nodes of this machine need none.
SET_UP = ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")
ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


class AutoscaledCluster:
    """A head that lasts, and a group of spot nodes from none to so many."""

    def __init__(self, folder: Path, max_spot: int, idle_seconds: float) -> None:
        """Start the head, which starts the autoscaler; its configuration lies in a folder."""
        gcs_port = _free_port()
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(autoscaler_config(max_spot, idle_seconds, gcs_port)))
        self._cluster: Any = Cluster()
        self._head = self._cluster.add_node(
            wait=False,
            num_cpus=HEAD_CPUS,
            labels={MARKET: ON_DEMAND},
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            gcs_server_port=gcs_port,
            autoscaling_config=str(config),
            env_vars={
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            },
        )
        self._cluster._wait_for_node(self._head, START_SECONDS)

    @property
    def address(self) -> str:
        """Where a driver connects."""
        return self._cluster.address

    @property
    def num_spot(self) -> int:
        """Spot nodes that are up."""
        return len(self._cluster.global_state._live_node_ids()) - 1

    def kill_all(self) -> None:
        """Kill every process of the cluster, the autoscaler first: it would start more."""
        (monitor,) = self._head.all_processes["monitor"]
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(monitor.process.pid)
            parent.suspend()
            for process in [*parent.children(recursive=True), parent]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._cluster.remove_node(self._head, allow_graceful=False)


def autoscaler_config(max_spot: int, idle_seconds: float, gcs_port: int) -> dict[str, Any]:
    """Return what a launcher's file says; unlike a cloud's nodes, these are of this machine."""
    provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    spot = {"CPU": SPOT_CPUS, "object_store_memory": OBJECT_STORE_BYTES}
    return {
        "cluster_name": "fake",
        "max_workers": max_spot,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": provider,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{gcs_port}",
            "use_node_id_as_ip": True,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        **{name: [] for name in SET_UP},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {
                "resources": {"CPU": HEAD_CPUS},
                "labels": {MARKET: ON_DEMAND},
                "node_config": {},
                "max_workers": 0,
            },
            "spot": {
                "resources": spot,
                "labels": {MARKET: SPOT},
                "node_config": {},
                "max_workers": max_spot,
            },
        },
    }


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def autoscaled_cluster(
    folder: Path, max_spot: int, idle_seconds: float
) -> Generator[AutoscaledCluster]:
    """Start a cluster on loopback and kill it at the end."""
    with loopback(**ENVIRONMENT):
        cluster = AutoscaledCluster(folder, max_spot, idle_seconds)
        try:
            yield cluster
        finally:
            cluster.kill_all()
