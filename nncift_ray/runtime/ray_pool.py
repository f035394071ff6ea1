"""Ray: a session, an executor that sends shards through a Ray Data actor pool, and metrics."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import ray
import ray.data
import ray.exceptions

# Ray 2.60 has no public way to listen on loopback, to ask which nodes drain (without its
# dashboard), what node types the autoscaler has, nor (``_end``) to end a dataset's execution.
from ray._private import ray_constants
from ray._private.state import state
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.metrics import Counter, Gauge, Histogram

from nncift_ray.errors import StageError
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import Reporter
from nncift_ray.runtime.session import cluster_address
from nncift_ray.runtime.shards import ShardOutcome, ShardRunner, describe_open_shards
from nncift_ray.runtime.step import GPU_SHARE_VARIABLE, Resources, Shard, Stage, Worker

POLL_SECONDS = 1.0
#: For threads to end in once their work is ended; less than what stopping leaves for all of it.
END_SECONDS = 2.0
ROUNDING = 1e-6  # Ray counts resources in units of 1e-4

Item = TypeVar("Item")


Node = Mapping[str, Any]  # as ray.nodes() tells of one


def selects(selector: str, value: str | None) -> bool:
    """Say whether a selector of Ray's takes a node whose label has a value, or is not there."""
    is_negated, choice = selector.startswith("!"), selector.removeprefix("!")
    is_list = choice.startswith("in(")
    values = choice[len("in(") : -1].split(",") if is_list else [choice]
    return (value in {each.strip() for each in values}) != is_negated


def alive_nodes() -> list[Node]:
    """Return the nodes that are up now and take work."""
    draining = state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def is_node_gone(node_id: str) -> bool:
    """Say whether a node is not up any more."""
    return all(node["NodeID"] != node_id for node in ray.nodes() if node["Alive"])


def asked_by(resources: Resources) -> dict[str, float]:
    """Return what an actor asks for by Ray's names; what it asks nothing of is left out."""
    amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def find_missing(resources: Resources, nodes: Sequence[Node]) -> list[str]:
    """Return what keeps an actor off every node, as far as the best one; empty if one will do."""

    def missing_on(node: Node) -> list[str]:
        has, labels = node["Resources"], node.get("Labels") or {}
        lacking = [
            f"{name} {amount:g}"
            for name, amount in asked_by(resources).items()
            if has.get(name, 0) + ROUNDING < amount
        ]
        wrong = [
            f"label {key}: {selector}"
            for key, selector in resources.labels.items()
            if not selects(selector, labels.get(key))
        ]
        return lacking + wrong

    return min((missing_on(node) for node in nodes or [{"Resources": {}}]), key=len)


class PlacementWatch:
    """Measures for how long no node could have held an actor, and stops the stage in the end.

    Only the absence of a place counts, not slow work: as long as any node has what one actor asks
    for, waiting has no end.
    """

    def __init__(
        self,
        stage_name: str,
        resources: Resources,
        *,
        nodes: Callable[[], Sequence[Node]] = alive_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch for a place, for at most ``resources.placement_timeout`` seconds.

        Args:
            stage_name: For the message.
            resources: What one actor asks for.
            nodes: Tells the nodes that are up.
            clock: Tells seconds.
        """
        self._stage_name, self._resources = stage_name, resources
        self._nodes, self._clock = nodes, clock
        self._last_place = clock()

    def check(self) -> bool:
        """Say whether a node could hold an actor.

        Raises:
            StageError: If none could for too long, saying what is missing.
        """
        nodes, wanted = self._nodes(), self._resources
        missing = find_missing(wanted, nodes)
        if not missing:
            self._last_place = self._clock()
            return True
        waited = self._clock() - self._last_place
        if waited < wanted.placement_timeout:
            return False
        asked = [f"{name} {amount:g}" for name, amount in asked_by(wanted).items()]
        asked += [f"label {key}: {selector}" for key, selector in wanted.labels.items()]
        raise StageError(
            f"stage '{self._stage_name}': no node could hold an actor for {waited:,.0f} s. "
            f"Missing: {', '.join(missing)}; an actor asks for {', '.join(asked)}; nodes up: "
            f"{len(nodes)}. Start such a node, let the autoscaler bring one (its group's "
            "max_workers and your quota), ask for less in the stage's pool, or raise "
            "cluster.placement_timeout. Finished shards are kept; the same command goes on from "
            "there."
        )

    def wait(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Return once a node could hold an actor; errors are those of ``check``."""
        while not self.check():
            time.sleep(poll_seconds)

    def during(
        self,
        items: Iterable[Item],
        *,
        poll_seconds: float = POLL_SECONDS,
        end: Callable[[], None] | None = None,
    ) -> Iterator[Item]:
        """Yield what actors give as it comes; errors are those of ``check``."""
        name = f"outcomes of {self._stage_name}"
        for item in iterate_in_thread(items, name, self.check, poll_seconds, end):
            self._last_place = self._clock()  # an actor had a place just now
            yield item


def iterate_in_thread(
    items: Iterable[Item],
    name: str,
    on_wait: Callable[[], object] = lambda: None,
    poll_seconds: float = POLL_SECONDS,
    end: Callable[[], None] | None = None,
) -> Iterator[Item]:
    """Yield items that a thread of its own makes, so that signals are heard while they are made.

    Args:
        items: Read in the thread.
        name: The thread's.
        on_wait: Called between two looks for an item; what it raises ends the waiting.
        poll_seconds: Between two looks.
        end: Makes ``items`` end; called, and the thread waited for, where the caller leaves early.
            Without it the thread is left to itself, and no item after the one at hand is made.
    """
    arrived: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue()
    left = threading.Event()

    def read() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                arrived.put((item, None))
                if left.is_set():  # nobody waits any more
                    return
        except BaseException as raised:  # noqa: BLE001  (raised again where it is waited for)
            error = raised
        arrived.put((None, error or StopIteration()))

    reader = threading.Thread(target=read, name=name, daemon=True)
    reader.start()
    try:
        while True:
            try:
                item, error = arrived.get(timeout=poll_seconds)
            except queue.Empty:
                on_wait()
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast("Item", item)
    finally:
        left.set()
        if end is not None and reader.is_alive():
            end()
            reader.join(END_SECONDS)


# On one machine Ray's CPUs are tickets: readers and the driver need some beside the actors.
SPARE_LOCAL_CPUS = 2
STDERR_DESCRIPTOR = 2
CLUSTERS_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: Whether Ray ends what an actor that died had started, such as vLLM's engine on its GPUs.
CLEANUP_VARIABLE = "RAY_process_group_cleanup_enabled"
LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2
LEFT_DRAINING_NODE, LOST_ENGINE = 75, 76  # exit codes of an actor's process


def cluster_totals() -> dict[str, float]:
    """Return the CPUs and GPUs that the cluster has, or that its autoscaler may bring.

    GPU nodes that start from none are not there when a run begins.
    """
    promised = state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    return {name: max(now.get(name, 0), promised.get(name, 0)) for name in ("CPU", "GPU")}


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig) -> Generator[None]:
    """Connect to the cluster of the recipe or of RAY_ADDRESS, else start Ray on this machine.

    A Ray that is started here listens on loopback only, has no dashboard, and asks for Ray's token
    (its default; RAY_AUTH_MODE says otherwise).
    """
    if ray.is_initialized():
        yield
        return
    address = cluster_address(cluster)
    level = logging.INFO if cluster.worker_logs else logging.ERROR
    common: dict[str, Any] = {"logging_level": level, "log_to_driver": cluster.worker_logs}
    with warnings.catch_warnings(), _quiet_core(quiet=not cluster.worker_logs):
        warnings.simplefilter("ignore", FutureWarning)
        if address:
            ray.init(address=address, **common)
        else:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=(os.cpu_count() or 1) + SPARE_LOCAL_CPUS,
                    object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    **common,
                )
    # Ray Data's own bars and logs: the reporter speaks for a stage.
    context, show = DataContext.get_current(), cluster.worker_logs
    context.enable_progress_bars = context.enable_operator_progress_bars = show
    context.enable_rich_progress_bars = context.print_on_execution_start = show
    if not show:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Generator[None]:
    """Make a Ray that is started inside listen on loopback, where only this machine reaches it.

    Ray's switch for that is a variable, which it reads when it is imported; its processes inherit
    the variable. ``ray.init(_node_ip_address="127.0.0.1")`` is replaced by the machine's address.
    """
    os.environ.setdefault(CLEANUP_VARIABLE, "1")
    before, known = os.environ.get(CLUSTERS_VARIABLE), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[CLUSTERS_VARIABLE] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        del os.environ[CLUSTERS_VARIABLE]
        if before is not None:
            os.environ[CLUSTERS_VARIABLE] = before


@contextlib.contextmanager
def _quiet_core(*, quiet: bool) -> Generator[None]:
    """Keep Ray's compiled core from writing over the progress lines while it connects.

    It tells of its own internals at level error, and announces the variable that says not to; only
    the file descriptor can stop the second. What goes wrong in connecting is raised all the same.
    """
    if not quiet:
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    saved = os.dup(STDERR_DESCRIPTOR)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), STDERR_DESCRIPTOR)
        try:
            yield
        finally:
            os.dup2(saved, STDERR_DESCRIPTOR)
            os.close(saved)


class MeteredRunner(ShardRunner):
    """A ``ShardRunner`` that records attempts, and the seconds that loading takes."""

    def __init__(self, stage: Stage, folder: Location, session: str) -> None:
        """Record for a stage of the run that the folder lies in."""
        super().__init__(stage, folder, session)
        self._labels = {"run": folder.path.split("/")[-3], "stage": stage.name}
        self._begun = Counter(SHARDS_BEGUN, "Attempts at shards, lost ones included", LABELS)
        self._loads = histogram(WORKER_START_SECONDS, "Seconds until a worker was ready")

    def run(self, shard: Shard) -> ShardOutcome:
        """Count an attempt."""
        self._begun.inc(1, self._labels)
        return super().run(shard)

    def make_worker(self) -> Worker:
        """Take the time of it."""
        started = time.monotonic()
        worker = super().make_worker()
        self._loads.observe(time.monotonic() - started, self._labels)
        return worker


class ShardActor(MeteredRunner):
    """A runner in a process of its own.

    When the process dies Ray starts it again and hands it the same rows again, as often as it
    takes: the runner counts deaths, and knows when to give a shard up.
    """

    replaceable = True

    def __init__(self, stage: Stage, folder: Location, session: str) -> None:
        """Keep the stage; models load with the first shard so that an error can be reported."""
        _limit_process(stage.resources)
        super().__init__(stage, folder, session)
        self.node = ray.get_runtime_context().get_node_id()

    def is_gone(self, node: str) -> bool:
        """Whether a node is not up any more."""
        return is_node_gone(node)

    def has_other_place(self) -> bool:
        """Whether an actor could be on a node other than this one."""
        others = [node for node in alive_nodes() if node["NodeID"] != self.node]
        return bool(others) and not find_missing(self._stage.resources, others)

    def leave(self) -> None:
        """End this process: whatever an engine that died still holds of the device goes with it."""
        os._exit(LOST_ENGINE)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run the shard of a row; on a node that is about to go, leave it to another node."""
        if self.node in state.get_draining_nodes():
            # Ray goes on handing out shards here. It restarts an actor that died, as this one now
            # does, where work is taken, and hands it the shard again.
            os._exit(LEFT_DRAINING_NODE)
        outcome = self.run(Shard(int(row["start"]), int(row["stop"])))
        return {"outcome": outcome.model_dump_json()}


def _limit_process(resources: Resources) -> None:
    """Give libraries as many threads as Ray gave the actor CPUs, and engines its share of a GPU."""
    threads = str(max(1, min(int(resources.num_cpus), os.cpu_count() or 1)))
    os.environ[GPU_SHARE_VARIABLE] = str(min(1.0, resources.num_gpus or 1.0))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def execute_on_ray(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    """Run shards where the stage is to run: by the driver, or in an actor pool (an Executor)."""
    if stage.hands_over:  # by the main thread, where Ray Train listens to signals
        yield from execute_here(stage, folder, shards)
        return
    if stage.runs_in_driver():
        outcomes = execute_here(stage, folder, shards, MeteredRunner)
        yield from iterate_in_thread(outcomes, f"work of {stage.name}")
        return
    yield from _execute_in_pool(stage, folder, shards)


def _execute_in_pool(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    resources = stage.resources
    rows = [{"start": shard.start, "stop": shard.stop} for shard in shards]
    most = max(1, min(resources.max_actors, len(shards)))
    # One shard at a time: a second would wait behind the first, minutes, while other actors idle.
    pool = ActorPoolStrategy(
        min_size=min(resources.min_actors, most), max_size=most, max_tasks_in_flight_per_actor=1
    )
    # Ray Data names an operator by its class.
    actor = type(stage.name, (ShardActor,), {"__module__": __name__})
    session = uuid.uuid4().hex
    # Ray Data restarts a dead actor, and gives it its shard again, any number of times.
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        actor,  # pyright: ignore[reportArgumentType]
        fn_constructor_args=(stage, folder, session),
        compute=pool,
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus or None,
        resources=dict(resources.custom) or None,
        label_selector=dict(resources.labels) or None,
    )
    outcomes.set_name(stage.name)
    outcomes.context.execution_no_progress_timeout_s = stage.longest_silence()
    try:
        watch = PlacementWatch(stage.name, resources)
        for row in watch.during(_rows_as_they_come(outcomes), end=lambda: _end(outcomes)):
            yield ShardOutcome.model_validate_json(row["outcome"])
    except ExecutionTimeoutError as error:
        waited_for = "; ".join(describe_open_shards(folder, session)) or "a first actor"
        raise StageError(
            f"stage '{stage.name}': nothing was finished for {stage.longest_silence():,.0f} s. "
            f"Waited for: {waited_for}. See what those processes do, or what else holds their "
            "nodes' resources; cluster.row_timeout and cluster.placement_timeout set the limit. "
            "Finished shards are kept; the same command goes on from there."
        ) from error
    except ray.exceptions.RayError as error:
        raise StageError(
            f"stage '{stage.name}': Ray gave up: {str(error).strip().splitlines()[0]} "
            "Finished shards are kept; the same command goes on from there."
        ) from error


def _rows_as_they_come(outcomes: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield every row at once; ``iter_rows`` keeps each back until the next is there."""
    tables: Iterable[Any] = outcomes.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    for table in tables:
        yield from table.to_pylist()


def _end(outcomes: ray.data.Dataset) -> None:
    """End the actors and threads of a stage that is left early.

    They would go on until they are collected; a thread that meets ``ray.shutdown`` connects anew,
    or takes the process along.
    """
    executor = outcomes._current_executor
    if executor is not None:
        executor.shutdown(force=True)


# What a run tells Prometheus, through Ray's own metrics; docs/observability.md lists the names.
#
# Ray's metrics agent of each node serves them, with ``ray_`` before the names of this file and
# ``_total`` behind those of counters. The driver records what a finished shard's record says: each
# shard once, whatever became of its worker. Workers record only what no record says, attempts and
# the seconds it took to load what they work with: what a process records in the seconds before it
# ends is lost.

LABELS = ("run", "stage")
#: From a shard of a test to one that takes two hours.
SECONDS_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
#: Counters of the driver, and what they count.
COUNTERS = {
    "nncift_rows": "Rows written to the stage's tables, errors aside",
    "nncift_failed_rows": "Rows that went to the stage's errors table",
    "nncift_tokens": "Tokens of the texts that a model worked on, reused ones included",
    "nncift_cached_tokens": "Tokens whose work was reused from a prefix cache",
    "nncift_shards_finished": "Shards finished",
    "nncift_shards_failed": "Shards given up, to be tried again or to stop the stage",
    "nncift_shards_reused": "Shards found finished by an earlier run",
    "nncift_worker_seconds": "Seconds that workers spent on finished shards",
    "nncift_cost_usd": "Estimated price of the finished shards, US dollars",
}
SHARD_SECONDS, WORKER_START_SECONDS = "nncift_shard_seconds", "nncift_worker_start_seconds"
SHARDS_BEGUN, PROGRESS = "nncift_shards_begun", "nncift_progress_ratio"


class MetricsReporter(Reporter):
    """Records what the driver hears; Ray must be connected."""

    def __init__(self, run: str, cluster: ClusterConfig) -> None:
        """Record for a run, with the prices of the recipe."""
        super().__init__()
        self._run, self._cluster = run, cluster
        self._counters = {name: Counter(name, text, LABELS) for name, text in COUNTERS.items()}
        self._shard_seconds = histogram(SHARD_SECONDS, "Seconds of a finished shard")
        self._progress = Gauge(PROGRESS, "Share of the stage's work that is done, 0 to 1", LABELS)
        self._begun: dict[str, StageBegun] = {}
        self._done: dict[str, int] = {}

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Show it as done."""
        self._progress.set(1.0, self._labels(name))

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Initialise the stage's counters from the shards that earlier runs finished."""
        self._begun[begun.stage], self._done[begun.stage] = begun, done
        self._add(begun.stage, "nncift_shards_reused", begun.num_shards_found)
        self._show_progress(begun.stage)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Add a shard."""
        amounts = {
            "nncift_rows": record.num_rows,
            "nncift_failed_rows": record.num_failures,
            "nncift_tokens": record.counts.get("tokens", 0),
            "nncift_cached_tokens": record.counts.get("cached_tokens", 0),
            "nncift_shards_finished": 1,
            "nncift_worker_seconds": record.seconds,
            "nncift_cost_usd": self._price(name, record.seconds),
        }
        for metric, amount in amounts.items():
            self._add(name, metric, amount)
        self._shard_seconds.observe(record.seconds, self._labels(name))
        self._done[name] = self._done.get(name, 0) + record.units
        self._show_progress(name)

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """Count it."""
        self._add(name, "nncift_shards_failed", 1)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Show it as done, also where it had nothing to do."""
        self._progress.set(1.0, self._labels(name))

    def _add(self, stage: str, metric: str, amount: float) -> None:
        if amount > 0:
            self._counters[metric].inc(amount, self._labels(stage))

    def _labels(self, stage: str) -> dict[str, str]:
        return {"run": self._run, "stage": stage}

    def _price(self, stage: str, seconds: float) -> float:
        begun = self._begun.get(stage)
        return self._cluster.price(seconds, begun.num_cpus, begun.num_gpus) if begun else 0.0

    def _show_progress(self, stage: str) -> None:
        begun = self._begun.get(stage)
        if begun is not None and begun.units:
            self._progress.set(self._done[stage] / begun.units, self._labels(stage))


def metric_names() -> Sequence[str]:
    """Return every name as Prometheus sees it, histograms without their suffixes."""
    counters = [f"ray_{name}_total" for name in (*COUNTERS, SHARDS_BEGUN)]
    others = [f"ray_{name}" for name in (SHARD_SECONDS, WORKER_START_SECONDS, PROGRESS)]
    return [*counters, *others]


def histogram(name: str, text: str) -> Histogram:
    """Make a histogram of seconds."""
    return Histogram(name, text, list(SECONDS_BUCKETS), LABELS)
