"""Run a small stage and die by SIGKILL with half a file written.

``python -m tests.unit.runtime.die_writing FOLDER NAME``: the file whose path holds the name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.progress import SilentReporter
from tests.unit.runtime.faulty_disk import on_deadly_disk
from tests.unit.runtime.test_driver import SquareStage

NUM_ITEMS, SHARD_ITEMS = 6, 2

if __name__ == "__main__":
    folder, name = sys.argv[1:]
    run_stage(
        SquareStage(NUM_ITEMS, SHARD_ITEMS),
        on_deadly_disk(Path(folder), name),
        execute=execute_here,
        reporter=SilentReporter(),
    )
