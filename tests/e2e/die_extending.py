"""Extend a run and die by SIGKILL at a moment of a stage: ``python -m tests.e2e.die_extending``.

Arguments: run, file of new data, new run directory, stage, moment (see ``die_at``).
"""

from __future__ import annotations

import sys

from nncift_ray.extend import extend
from tests.e2e.die_at import Assassin

if __name__ == "__main__":
    parent, data, home, stage_name, when = sys.argv[1:]
    extend(parent, [data], run_dir=home, reporter=Assassin(stage_name, when))
