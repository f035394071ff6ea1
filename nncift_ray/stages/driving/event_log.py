"""What happens in a run as JSON lines, for machines; docs/observability.md describes each event."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nncift_ray.config.secrets import redact
from nncift_ray.stages.driving.progress import SilentReporter
from nncift_ray.storage.manifest import ShardRecord, StageBegun, utc_now
from nncift_ray.storage.output import shard_name


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
