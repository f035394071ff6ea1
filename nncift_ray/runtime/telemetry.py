"""Who hears what a run does: a person, its log, Ray's metrics; and what ends it when asked to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from datetime import UTC, datetime

import nncift_ray
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import EventLog, LineReporter, Reporter, TerminalReporter
from nncift_ray.runtime.session import ray_running
from nncift_ray.runtime.stopping import stopping

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
    heard: list[Reporter] = [_for_readers(config, label, reporter)]
    if ray_running():
        from nncift_ray.runtime.metrics import MetricsReporter  # Ray's own metrics

        heard.append(MetricsReporter(label, config.cluster))
    with contextlib.ExitStack() as stack:
        if run_dir.is_local:
            log = stack.enter_context(event_log(run_dir, label))
            heard.append(log)
        heard.append(stack.enter_context(stopping()))
        yield Reporter(*heard)


def _for_readers(config: Config, label: str, reporter: Reporter) -> Reporter:
    for_people = isinstance(reporter, LineReporter | TerminalReporter)
    if for_people and config.cluster.log_format == "json":
        return EventLog(label, lambda line: print(line, file=sys.stderr, flush=True))
    return reporter


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
