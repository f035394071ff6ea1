"""Where a run works: shards in this process or on Ray, trainings on Ray Train; and who hears of it.

Ray Train's import takes seconds, so it is imported where workers are started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import nncift_ray
from nncift_ray.errors import ConfigError, NnciftError, StageError, StopRequested, StorageError
from nncift_ray.recipe.sections import ClusterConfig, Config, PoolConfig
from nncift_ray.runtime.driver import Executor, ShardOutcome, execute_here
from nncift_ray.runtime.files import NO_SPACE, Location
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import EventLog, LineReporter, Reporter, TerminalReporter
from nncift_ray.runtime.step import Resources, Shard, Stage

if TYPE_CHECKING:
    import torch
    from ray.train import TrainingFailedError

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


# Who hears what a run does: a person, its log, Ray's metrics.

LOG_FOLDER = "logs"


@contextlib.contextmanager
def observed(config: Config, run_dir: Location, reporter: Reporter) -> Generator[Reporter]:
    """Yield a reporter that passes on to ``reporter``, and to the run's log and metrics.

    With ``cluster.log_format: json`` standard error gets the log's lines, too, in place of the
    lines or bars for people.

    The log is a file a process in ``<run_dir>/logs``, on local disks only: an object store knows no
    appending. Metrics need a Ray that is connected. SIGTERM ends the run at a shard's edge.
    """
    label = run_dir.name
    for_people = isinstance(reporter, LineReporter | TerminalReporter)
    if for_people and config.cluster.log_format == "json":
        reporter = EventLog(label, lambda line: print(line, file=sys.stderr, flush=True))
    heard: list[Reporter] = [reporter]
    if ray_running():
        from nncift_ray.runtime.ray_pool import MetricsReporter

        heard.append(MetricsReporter(label, config.cluster))
    with contextlib.ExitStack() as stack:
        if run_dir.is_local:
            log = stack.enter_context(event_log(run_dir, label))
            heard.append(log)
        heard.append(stack.enter_context(stopping()))
        yield Reporter(*heard)


@contextlib.contextmanager
def event_log(run_dir: Location, label: str) -> Generator[EventLog]:
    """Open the log of this process; it ends with how the work ended."""
    folder = run_dir / LOG_FOLDER
    folder.make_folder()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.jsonl"
    with open((folder / name).path, "a", encoding="utf-8", buffering=1) as file:
        log = EventLog(label, lambda line: print(line, file=file))
        log.write_event("run_begun", run_dir=str(run_dir), version=nncift_ray.__version__)
        try:
            yield log
        except BaseException as error:
            log.write_event("run_failed", error=f"{type(error).__name__}: {error}")
            raise
        log.write_event("run_finished")


# A run that is asked to end (SIGTERM) ends at a shard's edge.

#: Seconds that Ray's job server leaves: as it is told, or else its own 3.
JOB_WAIT_VARIABLE, JOB_WAIT_DEFAULT = "RAY_JOB_STOP_WAIT_TIME_S", 3.0
#: Set by Ray in the driver of a job.
IN_A_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Slurm and Kubernetes leave 30 unless told otherwise.
USUAL_WAIT = 30.0
#: Of these seconds, those to leave Ray in order.
LEAVING_SECONDS = 5.0
STDERR_DESCRIPTOR = 2


class StopAtShard(Reporter):
    """Ends the run at the next finished shard or stage once it has been asked to.

    Stands last among reporters, so that the others have recorded that shard.
    """

    asked = False

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """End before a stage."""
        self._end_if_asked()

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """End behind a shard."""
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self.asked:
            raise StopRequested


@contextlib.contextmanager
def stopping(environment: Mapping[str, str] = os.environ) -> Generator[StopAtShard]:
    """Yield a reporter that ends the run when SIGTERM comes.

    Ray sets a handler of its own when it connects, so this is entered afterwards. Signals go to the
    main thread; elsewhere nothing is changed.

    Raises:
        StopRequested: In the main thread: at the next shard, when the time is up, or at a second
            SIGTERM.
    """
    stop = StopAtShard()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    seconds = seconds_to_end(environment)
    # When the time is up the signal comes once more, and ends what the main thread waits for.
    again = (threading.main_thread().ident or 0, signal.SIGTERM)
    timer = threading.Timer(seconds, signal.pthread_kill, again)
    timer.daemon = True

    is_over = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if is_over.is_set():
            return
        if stop.asked:
            raise StopRequested
        stop.asked = True
        timer.start()
        # Not print: the signal may have come in the middle of one.
        text = f"ends with the next finished shard, in {seconds:.0f} s at the latest"
        os.write(STDERR_DESCRIPTOR, f"asked to stop: {text}\n".encode())

    earlier = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        is_over.set()
        timer.cancel()
        if timer.is_alive():
            timer.join()
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)


def seconds_to_end(environment: Mapping[str, str]) -> float:
    """Return how long a run may wait for its shard once it has been asked to end."""
    usual = JOB_WAIT_DEFAULT if IN_A_JOB_VARIABLE in environment else USUAL_WAIT
    try:
        left = float(environment.get(JOB_WAIT_VARIABLE, usual))
    except ValueError:
        left = usual
    return max(left - LEAVING_SECONDS, left / 2, 0.1)


# Several Ray Train workers that train one model together. They meet only where they average
# gradients, by gloo, which moves tensors of a CPU and of a GPU.

MAX_LOST_WORKERS = 2

Result = TypeVar("Result")
#: What a worker does, given its rank and the number of workers.
Work = Callable[[int, int], Result]


@dataclass(frozen=True)
class RayWorkers:
    """How many workers train together, what each of them holds, and where their files may lie."""

    folder: Location  # all nodes see it
    num_workers: int = 1
    each: Resources = Resources()  # the CPUs are also its number of threads


def train_on_ray(work: Work[Result], workers: RayWorkers) -> Result:
    """Return what ``work`` returns on rank 0, once all workers are done.

    Raises:
        StageError: If there is no node for a worker, or workers are lost too often.
        NnciftError: Whatever a worker raised of that family, e.g. ModelError.
    """
    import ray.train

    num_failures = 0
    while True:
        try:
            return train_once(work, workers)
        except ray.train.TrainingFailedError as error:
            num_failures += 1
            if (told := users_error(error)) is not None:
                raise told from error
            if num_failures > MAX_LOST_WORKERS:
                msg = f"training failed {MAX_LOST_WORKERS + 1} times: {error}"
                raise StageError(msg) from error


def train_once(work: Work[Result], workers: RayWorkers) -> Result:
    """Train without tries after the first.

    Ray Train would try again, too, but also what a worker raised for the user to mend.

    Raises:
        TrainingFailedError: If a worker raised or was lost.
        StageError: If there is no node for a worker.
    """
    import ray.train.torch

    from nncift_ray.runtime.ray_pool import PlacementWatch, asked_by

    class Trainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Keep our own: theirs waits for the workers, exits with 0 and stays installed."""

    PlacementWatch("training", workers.each).wait()
    # A name of its own: Ray Train would go on from what another run left under it.
    name = uuid.uuid4().hex[:8]
    trainer = Trainer(
        _run_worker,
        train_loop_config={"work": work},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.each.num_gpus > 0,
            resources_per_worker=asked_by(workers.each),
            label_selector=dict(workers.each.labels) or None,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=workers.folder.path,
            storage_filesystem=None if workers.folder.is_local else workers.folder.fs,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        result: Any = trainer.fit()
        return result.return_value
    finally:
        (workers.folder / name).delete_folder()


def _run_worker(config: dict[str, Any]) -> Any:
    import ray.train

    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    result = config["work"](rank, num_workers)
    return result if rank == 0 else None


def users_error(error: TrainingFailedError) -> NnciftError | None:
    """Return what a worker raised for the user to mend, if one did."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, NnciftError):
            return failure
        if isinstance(failure, OSError) and failure.errno in NO_SPACE:
            return StorageError(f"training cannot write ({failure}): make room there and run again")
    return None


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers (gloo, in place)."""
    import torch.distributed

    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world
