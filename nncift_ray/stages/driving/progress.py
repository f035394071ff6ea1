"""What a run tells while it works: a Protocol, a bar a stage on terminals, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nncift_ray.storage.manifest import ShardRecord, StageBegun

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
