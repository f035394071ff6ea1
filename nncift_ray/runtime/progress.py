"""Who hears what a run does: a terminal, plain lines, and the event log for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nncift_ray.errors import redact
from nncift_ray.runtime.output import ShardRecord, StageBegun, shard_name, utc_now

SECONDS_BETWEEN_LINES = 10.0


def spell_seconds(seconds: float) -> str:
    """Return a time in the unit that fits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Hears what the driver does and forwards it to ``listeners``; with none it is silent."""

    listeners: tuple[Reporter, ...] = ()

    def __init__(self, *listeners: Reporter) -> None:
        """Forward to several reporters, in their order."""
        self.listeners = listeners

    def expect(self, seconds: Mapping[str, float]) -> None:
        """These steps are to come, each with about so many seconds of work."""
        for listener in self.listeners:
            listener.expect(seconds)

    def stage_skipped(self, name: str, num_items: int) -> None:
        """A stage was already done."""
        for listener in self.listeners:
            listener.stage_skipped(name, num_items)

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """A stage begins; ``done`` of its units were finished by an earlier run."""
        for listener in self.listeners:
            listener.stage_started(begun, done)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """A shard was finished: ``record.units`` more are done."""
        for listener in self.listeners:
            listener.shard_finished(name, record)

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """A shard was given up for now; ``error`` is the kind of error and its message."""
        for listener in self.listeners:
            listener.shard_failed(name, start, stop, error)

    def working(self, name: str, message: str) -> None:
        """A long item is on its way; ``message`` says how far."""
        for listener in self.listeners:
            listener.working(name, message)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """A stage is complete."""
        for listener in self.listeners:
            listener.stage_finished(name, seconds, num_failures)

    def heading(self, name: str, message: str) -> None:
        """Several stages that belong together begin, e.g. those of one cell of an evaluation."""
        for listener in self.listeners:
            listener.heading(name, message)

    def notice(self, message: str) -> None:
        """Something the user should know."""
        for listener in self.listeners:
            listener.notice(message)


SilentReporter = Reporter


class LineReporter(Reporter):
    """Writes plain lines: one at the start and end of a stage, and one now and then between."""

    def __init__(self, write: Callable[[str], None] = print) -> None:
        """Write lines with ``write``."""
        super().__init__()
        self._write = write
        self._started = self._last_line = 0.0
        self._total = self._done = self._new = 0
        self._unit = "rows"
        self._expected: dict[str, float] = {}  # of the whole run, by step
        self._measured = 0.0  # seconds of the steps done now

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Remember what the whole comes to."""
        self._expected = dict(seconds)

    def _place(self, name: str) -> str:
        """Return which step of the whole this is; "" where that is not known."""
        steps = list(self._expected)
        return f"step {steps.index(name) + 1} of {len(steps)}, " if name in steps else ""

    def _left(self, name: str, seconds: float) -> str:
        """Return how long the steps behind one may take, by the plan and how it has held so far."""
        steps = list(self._expected)
        if name not in steps:
            return ""
        self._measured += seconds
        done, left = steps[: steps.index(name) + 1], steps[steps.index(name) + 1 :]
        planned = sum(self._expected[step] for step in done)
        pace = min(max(self._measured / planned, 0.25), 4.0) if planned else 1.0
        rest = pace * sum(self._expected[step] for step in left)
        return f"; about {spell_seconds(rest)} left" if left else ""

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Write that nothing is left to do."""
        self._expected[name] = 0.0
        self._write(f"[{name}] already done, skipped")

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Write how much there is to do."""
        self._begin(begun, done)
        resumed = f", {done:,} finished by an earlier run" if done else ""
        place = self._place(begun.stage)
        self._write(f"[{begun.stage}] started: {place}{begun.units:,} {begun.unit}{resumed}")

    def _begin(self, begun: StageBegun, done: int) -> None:
        self._started = self._last_line = time.monotonic()
        self._total, self._done, self._new, self._unit = begun.units, done, 0, begun.unit

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Write a line with speed and time left if the last one is old."""
        self._new += record.units
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
        """Write how long it took."""
        failures = f", {num_failures:,} bad rows in its errors table" if num_failures else ""
        self._write(f"[{name}] done in {seconds:,.1f} s{failures}{self._left(name, seconds)}")

    def heading(self, name: str, message: str) -> None:
        """Write it as a line."""
        self._write(f"[{name}] {message}")

    def notice(self, message: str) -> None:
        """Write it as a line."""
        self._write(f"note: {message}")


class TerminalReporter(LineReporter):
    """Draws one line a stage: a bar with speed and time left, then what it came to."""

    def __init__(self, console: Console) -> None:
        """Draw on a console that is a terminal."""
        super().__init__()
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Print that nothing is left to do."""
        self._expected[name] = 0.0
        self._console.print(f"[dim]• {name:<12} already done, skipped[/dim]")

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Start the bar where an earlier run left off."""
        self._begin(begun, done)
        amount = "{task.completed:,.0f}/{task.total:,.0f} " + begun.unit
        self._bar = Progress(
            TextColumn("  {task.description:<12}" + self._place(begun.stage)),
            BarColumn(bar_width=30),
            TextColumn(amount + " {task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(begun.stage, total=begun.units, completed=done, rate="")
        self._bar.start()

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Move the bar."""
        self._new += record.units
        seconds = time.monotonic() - self._started
        if self._bar is not None:
            rate = f"{self._new / seconds:,.1f} {self._unit}/s" if seconds > 0 else ""
            self._bar.update(self._task, advance=record.units, rate=rate)

    def working(self, name: str, message: str) -> None:
        """Put how far it is behind the bar."""
        if self._bar is not None:
            self._bar.update(self._task, rate=message)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Replace the bar by a line."""
        self.close()
        failures = f", [yellow]{num_failures:,} bad rows[/yellow]" if num_failures else ""
        amount = f"{self._total:,} {self._unit}"
        told = f"{name:<12} {amount} in {seconds:,.1f} s{failures}{self._left(name, seconds)}"
        self._console.print(f"[green]✓[/green] {told}")

    def heading(self, name: str, message: str) -> None:
        """Print it above what follows."""
        self._console.print(Text.assemble((f"{name}: ", "bold"), message))

    def notice(self, message: str) -> None:
        """Print it."""
        self._console.print(f"[yellow]note:[/yellow] {message}", highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class News(Reporter):
    """Forwards what is new: no stage that was done already, no heading over such, no notice twice.

    For commands that go through the same stages of many sister recipes.
    """

    def __init__(self, *listeners: Reporter) -> None:
        """Forward to ``listeners``."""
        super().__init__(*listeners)
        self._told: set[str] = set()
        self._heading: tuple[str, str] | None = None

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Say nothing."""

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Forward it, below the heading that it is the first new stage of."""
        if self._heading is not None:
            super().heading(*self._heading)
            self._heading = None
        super().stage_started(begun, done)

    def heading(self, name: str, message: str) -> None:
        """Keep it until a stage starts."""
        self._heading = name, message

    def notice(self, message: str) -> None:
        """Forward what was not told before."""
        if message not in self._told:
            self._told.add(message)
            super().notice(message)


class EventLog(Reporter):
    """Writes one JSON object a line; docs/observability.md describes each event."""

    def __init__(self, run: str, write: Callable[[str], None]) -> None:
        """Write lines, without their ends, with ``write``; a line that it cannot is left out."""
        super().__init__()
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

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """A stage begins, or goes on."""
        self._fingerprints[begun.stage] = begun.fingerprint
        self.write_event("stage_begun", **begun.model_dump(exclude={"started_at"}), done=done)

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
        told = {"seconds": round(seconds, 3), "num_failures": num_failures}
        self.write_event("stage_finished", **self._stage(name), **told)

    def notice(self, message: str) -> None:
        """Something the user should know."""
        self.write_event("notice", message=message)

    def _write_shard(self, event: str, stage: str, start: int, stop: int, **fields: Any) -> None:
        shard = {"shard": shard_name(start, stop), "start": start, "stop": stop}
        self.write_event(event, **self._stage(stage), **shard, **fields)

    def _stage(self, name: str) -> dict[str, str]:
        return {"stage": name, "fingerprint": self._fingerprints.get(name, "")}
