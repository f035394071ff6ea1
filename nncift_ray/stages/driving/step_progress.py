"""How far a training is, left in its stage's folder by whichever worker does it."""

from __future__ import annotations

import json
import time

from nncift_ray.stages.driving.shard_runner import ATTEMPTS_FOLDER
from nncift_ray.storage.filesystem import Location

PROGRESS_NAME = "steps.json"
SAVE_SECONDS = 5.0


class StepProgress:
    """Writes the steps done and an estimate of the time left, now and then."""

    def __init__(self, folder: Location, every_seconds: float = SAVE_SECONDS) -> None:
        """Leave it in a stage's folder; time starts now."""
        self._location = _location(folder)
        self._every_seconds = every_seconds
        self._start = self._last = time.monotonic()

    def __call__(self, step: int, total_steps: int) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        if now - self._last < self._every_seconds:
            return
        self._last = now
        seconds_left = (now - self._start) / step * (total_steps - step)
        told = {"step": step, "total_steps": total_steps, "seconds_left": seconds_left}
        self._location.write_bytes(json.dumps(told).encode())


def describe_steps(folder: Location) -> str:
    """Say in a line how far the training in a stage's folder is; "" before the first word of it."""
    location = _location(folder)
    if not location.exists():
        return ""
    told = json.loads(location.read_bytes())
    minutes = round(told["seconds_left"] / 60)
    left = f"about {minutes:,} min left" if minutes else "less than a minute left"
    return f"step {told['step']:,} of {told['total_steps']:,}, {left}"


def _location(folder: Location) -> Location:
    return folder / ATTEMPTS_FOLDER / PROGRESS_NAME
