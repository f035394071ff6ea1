"""Run a recipe and tell on standard output what happens: the child of the benchmark."""

from __future__ import annotations

import json
import sys
import time

from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.output import StageBegun
from nncift_ray.runtime.progress import SilentReporter


class Teller(SilentReporter):
    """Prints one JSON line a stage that begins or ends, and a notice."""

    def notice(self, message: str) -> None:
        """Tell what the run tells its user."""
        self._tell("", "notice", message=message)

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Tell that a stage begins."""
        self._tell(begun.stage, "started")

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Tell that a stage ends."""
        self._tell(name, "finished", seconds=seconds, failures=num_failures)

    def _tell(self, stage: str, event: str, **more: float | str) -> None:
        print(json.dumps({"stage": stage, "event": event, "at": time.time(), **more}), flush=True)


if __name__ == "__main__":
    run(load_config(sys.argv[1]), reporter=Teller())
