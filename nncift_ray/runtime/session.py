"""Where shards run: in this process, or on Ray; and how many actors a stage has there."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.sections import ClusterConfig, PoolConfig
from nncift_ray.runtime.driver import Executor, ShardOutcome, execute_here
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.step import Resources, Shard, Stage

CLUSTER_ACTOR_CPUS = 4.0
#: Lies in the run directory while a process works there itself; one that was killed leaves it.
IN_PROCESS_RECORD = "in_process"


@dataclass(frozen=True)
class Session:
    """Where the shards of a run go."""

    execute: Executor
    #: The CPUs ("CPU") and GPUs ("GPU") that are there, or that the autoscaler may bring.
    totals: Callable[[], Mapping[str, float]]
    on_one_machine: bool = True

    def has_gpu(self, pool: PoolConfig) -> bool:
        """Whether the actors of a pool get a GPU: as it says, or where there is any."""
        return (self.totals().get("GPU", 0) if pool.num_gpus is None else pool.num_gpus) > 0

    def resources_for(
        self, stage: Stage, pool: PoolConfig, cluster: ClusterConfig, *, whole_pool: bool = False
    ) -> Resources:
        """Size the actor pool of a stage for what is there; the recipe's numbers win.

        On one machine a multi-threaded stage has one actor with all its cores, a single-threaded
        one an actor a core. On a cluster every actor has four CPUs or a GPU. ``whole_pool``: as
        many actors as the pool has, also where the stage has no use for more than some.
        """
        seen = self.totals()
        cluster_gpus = int(seen.get("GPU", 0))
        num_gpus = pool.num_gpus
        if num_gpus is None:
            num_gpus = 1.0 if stage.can_use_gpu and cluster_gpus else 0.0
        cluster_cpus = (os.cpu_count() or 1) if self.on_one_machine else int(seen.get("CPU", 1))
        num_cpus = pool.num_cpus
        if num_cpus is None:
            one_machine = self.on_one_machine and not num_gpus
            whole = float(cluster_cpus) if one_machine else CLUSTER_ACTOR_CPUS
            num_cpus = 1.0 if stage.single_threaded else whole
        most = int(cluster_gpus // num_gpus if num_gpus else cluster_cpus // num_cpus)
        max_actors = None if whole_pool else stage.max_actors
        most = max(1, min(most, max_actors or most))
        asked = (1, most) if pool.num_actors is None else pool.num_actors
        low, high = asked if isinstance(asked, tuple) else (asked, asked)
        labels = pool.labels or cluster.labels
        limits = cluster.placement_timeout, cluster.row_timeout
        return Resources(num_cpus, num_gpus, low, high, pool.resources, labels, *limits)


def ray_installed() -> bool:
    """Whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def ray_running() -> bool:
    """Whether this process is connected to a Ray already."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def cluster_address(cluster: ClusterConfig) -> str | None:
    """Return the address of the cluster to join, or None to start Ray on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS")


def died_here(run_dir: Location) -> bool:
    """Whether the last process that worked in a run directory itself was killed at it."""
    return (run_dir / IN_PROCESS_RECORD).exists()


@contextlib.contextmanager
def open_session(cluster: ClusterConfig, run_dir: Location, *, on_ray: bool) -> Generator[Session]:
    """Open a session on Ray, joined or started here, or in this process.

    Raises:
        ConfigError: If Ray is wanted and not installed.
    """
    record = run_dir / IN_PROCESS_RECORD
    if not on_ray:
        record.write_bytes(str(os.getpid()).encode())
        try:
            yield Session(execute_in_process, local_totals)
        finally:  # also behind Ctrl-C; not where the process is killed
            record.delete()
        return
    if not ray_installed():
        raise ConfigError(
            "this run needs Ray, which is not installed: pip install 'nncift_ray[ray]', or set "
            "cluster.mode to local"
        )
    from nncift_ray.runtime.ray_pool import cluster_totals, execute_on_ray, ray_session

    with ray_session(cluster):
        yield Session(execute_on_ray, cluster_totals, cluster_address(cluster) is None)
    record.delete()


def execute_in_process(
    stage: Stage, folder: Location, shards: list[Shard]
) -> Iterator[ShardOutcome]:
    """Run shards one after another, by the main thread, and free what they took (an Executor)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield from execute_here(stage, folder, shards)
    gc.collect()  # a model, before the next one is loaded
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def local_totals() -> Mapping[str, float]:
    """Return the CPUs of this machine, and 1 GPU where it has any: one process uses one."""
    has_gpu = False
    if os.path.exists("/dev/nvidia0"):
        import torch  # takes seconds

        has_gpu = torch.cuda.is_available()
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(has_gpu)}
