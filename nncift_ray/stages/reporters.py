"""One reporter made of several: progress for people, a log and metrics for machines."""

from __future__ import annotations

from nncift_ray.stages.progress import Reporter
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

    def notice(self, message: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.notice(message)
