"""What a run tells while it works: a Protocol, a bar a stage on terminals, else plain lines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from types import FrameType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nncift_ray.errors import StopRequested
from nncift_ray.recipe.secrets import redact
from nncift_ray.runtime.output import ShardRecord, StageBegun, shard_name, utc_now

SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Hears what the driver does."""

    def stage_skipped(self, name: str, num_items: int) -> None:
        """A stage was already done."""

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """A stage begins; ``done`` of its ``total`` units were finished by an earlier run."""

    def advanced(self, name: str, amount: int) -> None:
        """A shard of ``amount`` units was finished."""

    def working(self, name: str, message: str) -> None:
        """A long item is on its way; ``message`` says how far."""

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """A stage is complete."""

    def stage_begun(self, begun: StageBegun, done: int) -> None:
        """As ``stage_started``, with all that a machine may want to know."""

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """As ``advanced``, with all that is known of the shard."""

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """A shard was given up for now; ``error`` is the kind of error and its message."""

    def heading(self, name: str, message: str) -> None:
        """Several stages that belong together begin, e.g. those of one cell of an evaluation."""

    def notice(self, message: str) -> None:
        """Something the user should know."""


class WithoutDetails:
    """The part of a reporter that people need not see."""

    def stage_begun(self, begun: StageBegun, done: int) -> None:
        """Ignore."""

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Ignore."""

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """Ignore."""


class LineReporter(WithoutDetails):
    """Writes plain lines: one at the start and end of a stage, and one now and then between."""

    def __init__(self, write: Callable[[str], None] = print) -> None:
        """Write lines with ``write``."""
        self._write = write
        self._started = self._last_line = 0.0
        self._total = self._done = self._new = 0
        self._unit = "rows"

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Say that nothing is left to do."""
        self._write(f"[{name}] already done, skipped")

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """Say what lies ahead."""
        self._started = self._last_line = time.monotonic()
        self._total, self._done, self._new, self._unit = total, done, 0, unit
        resumed = f", {done:,} finished by an earlier run" if done else ""
        self._write(f"[{name}] started: {total:,} {unit}{resumed}")

    def advanced(self, name: str, amount: int) -> None:
        """Write a line with speed and time left if the last one is old."""
        self._new += amount
        now = time.monotonic()
        finished = self._done + self._new
        if now - self._last_line < SECONDS_BETWEEN_LINES or finished >= self._total:
            return
        self._last_line = now
        rate = self._new / (now - self._started)
        left = (self._total - finished) / rate if rate else float("inf")
        self._write(
            f"[{name}] {finished:,}/{self._total:,} {self._unit}, {rate:,.1f} {self._unit}/s, "
            f"about {left:,.0f} s left"
        )

    def working(self, name: str, message: str) -> None:
        """Write a line if the last one is old."""
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._write(f"[{name}] {message}")

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Say how it went."""
        failures = f", {num_failures:,} bad rows in its errors table" if num_failures else ""
        self._write(f"[{name}] done in {seconds:,.1f} s{failures}")

    def heading(self, name: str, message: str) -> None:
        """Write it as a line."""
        self._write(f"[{name}] {message}")

    def notice(self, message: str) -> None:
        """Pass the message on."""
        self._write(f"note: {message}")


class SilentReporter(WithoutDetails):
    """Says nothing."""

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Ignore."""

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """Ignore."""

    def advanced(self, name: str, amount: int) -> None:
        """Ignore."""

    def working(self, name: str, message: str) -> None:
        """Ignore."""

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Ignore."""

    def heading(self, name: str, message: str) -> None:
        """Ignore."""

    def notice(self, message: str) -> None:
        """Ignore."""


class TerminalReporter(WithoutDetails):
    """Draws one line a stage: a bar with speed and time left, then what it came to."""

    def __init__(self, console: Console) -> None:
        """Draw on a console that is a terminal."""
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._started = 0.0
        self._total = self._new = 0
        self._unit = "rows"

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Say that nothing is left to do."""
        self._console.print(f"[dim]• {name:<12} already done, skipped[/dim]")

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """Start the bar where an earlier run left off."""
        self._started, self._total, self._new, self._unit = time.monotonic(), total, 0, unit
        self._bar = Progress(
            TextColumn("  {task.description:<12}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit + " {task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, rate="")
        self._bar.start()

    def advanced(self, name: str, amount: int) -> None:
        """Move the bar."""
        self._new += amount
        seconds = time.monotonic() - self._started
        if self._bar is not None:
            rate = f"{self._new / seconds:,.1f} {self._unit}/s" if seconds > 0 else ""
            self._bar.update(self._task, advance=amount, rate=rate)

    def working(self, name: str, message: str) -> None:
        """Put how far it is behind the bar."""
        if self._bar is not None:
            self._bar.update(self._task, rate=message)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Replace the bar by a line."""
        self._stop_bar()
        failures = f", [yellow]{num_failures:,} bad rows[/yellow]" if num_failures else ""
        amount = f"{self._total:,} {self._unit}"
        self._console.print(f"[green]✓[/green] {name:<12} {amount} in {seconds:,.1f} s{failures}")

    def heading(self, name: str, message: str) -> None:
        """Print it above what follows."""
        self._console.print(Text.assemble((f"{name}: ", "bold"), message))

    def notice(self, message: str) -> None:
        """Pass the message on."""
        self._console.print(f"[yellow]note:[/yellow] {message}", highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# One reporter made of several: progress for people, a log and metrics for machines.


class Reporters:
    """Passes on everything to each of several reporters, in their order (a Reporter)."""

    def __init__(self, *reporters: Reporter) -> None:
        """Pass on to ``reporters``."""
        self._reporters = reporters

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage_skipped(name, num_items)

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage_started(name, total, done, unit)

    def advanced(self, name: str, amount: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.advanced(name, amount)

    def working(self, name: str, message: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.working(name, message)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage_finished(name, seconds, num_failures)

    def stage_begun(self, begun: StageBegun, done: int) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage_begun(begun, done)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.shard_finished(name, record)

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.shard_failed(name, start, stop, error)

    def heading(self, name: str, message: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.heading(name, message)

    def notice(self, message: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.notice(message)


class News(Reporters):
    """Passes on what is new: no stage that was done already, no heading over such, no notice twice.

    For commands that go through the same stages of many sister recipes.
    """

    def __init__(self, *reporters: Reporter) -> None:
        """Pass on to ``reporters``."""
        super().__init__(*reporters)
        self._told: set[str] = set()
        self._heading: tuple[str, str] | None = None

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Say nothing."""

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
        """Pass it on, below the heading that it is the first new stage of."""
        if self._heading is not None:
            super().heading(*self._heading)
            self._heading = None
        super().stage_started(name, total, done, unit)

    def heading(self, name: str, message: str) -> None:
        """Keep it until a stage starts."""
        self._heading = name, message

    def notice(self, message: str) -> None:
        """Pass on what was not told before."""
        if message not in self._told:
            self._told.add(message)
            super().notice(message)


# What happens in a run as JSON lines, for machines; docs/observability.md describes each event.


class EventLog(SilentReporter):
    """Writes one JSON object a line: time, event, run, and what the event is about."""

    def __init__(self, run: str, write: Callable[[str], None]) -> None:
        """Write lines, without their ends, with ``write``; a line that it cannot is left out."""
        self._run, self._write = run, write
        self._fingerprints: dict[str, str] = {}

    def write_event(self, event: str, **fields: Any) -> None:
        """Write one event."""
        head = {"time": utc_now(), "event": event, "run": self._run}
        try:
            self._write(redact(json.dumps(head | fields, ensure_ascii=False)))
        except OSError:  # a log that cannot be written stops no run
            return

    def stage_skipped(self, name: str, num_items: int) -> None:
        """A stage was already done."""
        self.write_event("stage_skipped", stage=name, num_items=num_items)

    def stage_begun(self, begun: StageBegun, done: int) -> None:
        """A stage begins, or goes on."""
        self._fingerprints[begun.stage] = begun.fingerprint
        fields = begun.model_dump(exclude={"started_at"})
        self.write_event("stage_begun", **fields, done=done)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """A shard was finished."""
        self._write_shard(
            "shard_finished",
            name,
            record.start,
            record.stop,
            units=record.units,
            num_rows=record.num_rows,
            num_failures=record.num_failures,
            seconds=round(record.seconds, 3),
            counts=record.counts,
        )

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """A shard was given up for now."""
        self._write_shard("shard_failed", name, start, stop, error=error)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """A stage is complete."""
        self.write_event(
            "stage_finished", **self._stage(name), seconds=round(seconds, 3),
            num_failures=num_failures,
        )  # fmt: skip

    def notice(self, message: str) -> None:
        """Something the user should know."""
        self.write_event("notice", message=message)

    def _write_shard(self, event: str, stage: str, start: int, stop: int, **fields: Any) -> None:
        shard = {"shard": shard_name(start, stop), "start": start, "stop": stop}
        self.write_event(event, **self._stage(stage), **shard, **fields)

    def _stage(self, name: str) -> dict[str, str]:
        return {"stage": name, "fingerprint": self._fingerprints.get(name, "")}


# Ending at a shard's edge when the process is asked to end (SIGTERM).

#: Seconds that Ray's job server leaves: as it is told, or else its own 3.
JOB_WAIT_VARIABLE, JOB_WAIT_DEFAULT = "RAY_JOB_STOP_WAIT_TIME_S", 3.0
#: Set by Ray in the driver of a job.
IN_A_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Slurm and Kubernetes leave 30 unless told otherwise.
USUAL_WAIT = 30.0
#: Of these seconds, those to leave Ray in order.
LEAVING_SECONDS = 5.0
STDERR_DESCRIPTOR = 2


class StopAtShard(SilentReporter):
    """Ends the run at the next finished shard or stage once it has been asked to (a Reporter).

    Stands last among reporters, so that the others have recorded that shard.
    """

    def __init__(self) -> None:
        """Begin unasked."""
        self.asked = False

    def stage_started(self, name: str, total: int, done: int, unit: str) -> None:
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
