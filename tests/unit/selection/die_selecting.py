"""Select, and die by SIGKILL once seven picks are saved.

``python -m tests.unit.selection.die_selecting RUN SCORES EMBEDDINGS``.
Arguments: run directory, folders of the finished stages score_pairs and embed.
"""

from __future__ import annotations

import os
import signal
import sys

from nncift_ray.recipe.sections import SelectionConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.selection.greedy import Progress
from nncift_ray.selection.step import PicksCheckpoint, SelectStage

BUDGET, PICKS_SAVED = 12, 7


def main(run_dir: str, scores: str, embeddings: str) -> None:
    """Begin a selection that never ends."""
    save = PicksCheckpoint.save

    def save_and_die(self: PicksCheckpoint, progress: Progress) -> None:
        save(self, progress)
        if progress.picked >= PICKS_SAVED:
            os.kill(os.getpid(), signal.SIGKILL)

    PicksCheckpoint.save = save_and_die
    inputs = [StageOutput.open(Location.of(folder)) for folder in (scores, embeddings)]
    assert all(inputs)
    selection = SelectionConfig(objective="facility_location", budget=BUDGET)
    stage = SelectStage(inputs[0], inputs[1], selection, save_seconds=0.0)  # type: ignore[arg-type]
    run_stage(stage, Location.of(run_dir), execute=execute_here, reporter=SilentReporter())


if __name__ == "__main__":
    main(*sys.argv[1:])
