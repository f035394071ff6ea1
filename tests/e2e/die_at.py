"""Run a recipe and die by SIGKILL at a moment of a stage: ``python -m tests.e2e.die_at``.

Arguments: recipe, stage, moment. The moment is "start" (the stage has begun, nothing is done), a
number n (its n-th shard has just been finished), or "inside": a worker kills this process while it
works on a shard (see ``deadly_teacher``).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import SilentReporter


class Assassin(SilentReporter):
    """Kills its own process, as a lost machine would: no clean-up runs."""

    def __init__(self, stage: str, moment: str) -> None:
        self._stage, self._moment = stage, moment
        self._finished = 0

    def stage_started(self, begun: StageBegun, done: int) -> None:
        if begun.stage == self._stage and self._moment == "start":
            os.kill(os.getpid(), signal.SIGKILL)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        self._finished += name == self._stage
        if name == self._stage and str(self._finished) == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    recipe_path, stage_name, when = sys.argv[1:]
    recipe = load_config(recipe_path)
    if when == "inside":
        Path(recipe.teacher.options["victim"]).write_text(str(os.getpid()))
    run(recipe, reporter=Assassin(stage_name, when))
