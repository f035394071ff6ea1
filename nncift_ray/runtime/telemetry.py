"""Who hears what a run does: a person, its log, Ray's metrics; and what ends it when asked to.

A run that is asked to end (SIGTERM) ends at a shard's edge.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from types import FrameType

import nncift_ray
from nncift_ray.errors import StopRequested
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import EventLog, LineReporter, Reporter, TerminalReporter
from nncift_ray.runtime.session import ray_running

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
        from nncift_ray.runtime.metrics import MetricsReporter  # Ray's own metrics

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


# A run that is asked to end.

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
