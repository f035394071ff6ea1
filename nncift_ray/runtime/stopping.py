"""A run that is asked to end (SIGTERM) ends at a shard's edge."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Generator, Mapping
from types import FrameType

from nncift_ray.errors import StopRequested
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import Reporter

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
        os.write(STDERR_DESCRIPTOR, _notice(seconds))

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


def _notice(seconds: float) -> bytes:
    text = f"asked to stop: ends with the next finished shard, in {seconds:.0f} s at the latest\n"
    return text.encode()
