"""One reporter made of several: progress for people, a log and metrics for machines."""

from __future__ import annotations

from nncift_ray.stages.driving.progress import Reporter
from nncift_ray.storage.manifest import ShardRecord, StageBegun


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
