"""Select, and die by SIGKILL once seven picks are saved.

``python -m tests.unit.stages.selection.die_selecting RUN SCORES EMBEDDINGS``.
Arguments: run directory, folders of the finished stages score_pairs and embed.
"""

from __future__ import annotations

import os
import signal
import sys

from nncift_ray.core.selection.search import Progress
from nncift_ray.stages.driving.driver import execute_here, run_stage
from nncift_ray.stages.driving.progress import SilentReporter
from nncift_ray.stages.selection.saved_picks import SavedPicks
from nncift_ray.stages.selection.select import SelectStage
from nncift_ray.stages.selection.selection_plan import SelectionPlan
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

BUDGET, PICKS_SAVED = 12, 7


def main(run_dir: str, scores: str, embeddings: str) -> None:
    """Begin a selection that never ends."""
    save = SavedPicks.save

    def save_and_die(self: SavedPicks, progress: Progress) -> None:
        save(self, progress)
        if progress.picked >= PICKS_SAVED:
            os.kill(os.getpid(), signal.SIGKILL)

    SavedPicks.save = save_and_die
    inputs = [StageOutput.open(Location.of(folder)) for folder in (scores, embeddings)]
    assert all(inputs)
    plan = SelectionPlan("facility_location", ("within",), count=BUDGET)
    stage = SelectStage(inputs[0], inputs[1], plan, save_seconds=0.0)  # type: ignore[arg-type]
    run_stage(stage, Location.of(run_dir), execute=execute_here, reporter=SilentReporter())


if __name__ == "__main__":
    main(*sys.argv[1:])
