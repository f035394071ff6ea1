"""Run the command line with a step that never ends: ``python -m tests.e2e.slow_run STEP ARGS...``.

The step's worker sleeps where it is run by the driver; what actors do is slowed by ``SlowTeacher``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import ClassVar, Literal

from nncift_ray.cli import main
from nncift_ray.runtime.output import Sink
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.teachers.base import LabelRequest, Measurement, TeacherContext

FOREVER = 600.0


class SlowTeacher:
    """A teacher of a user's own that takes its time."""

    kind: ClassVar[Literal["pairwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @classmethod
    def from_context(cls, context: TeacherContext) -> SlowTeacher:
        return cls()

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement]:
        time.sleep(FOREVER)
        return [Measurement(0.0) for _ in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        return value

    def close(self) -> None: ...


def _sleep(shard: Shard, sink: Sink) -> None:
    time.sleep(FOREVER)


def _slow_down(name: str) -> None:
    """Let the worker of a step sleep, in this process."""
    from nncift_ray.network.step import FitStage
    from nncift_ray.selection.step import SelectStage

    steps: dict[str, type[Stage]] = {"fit": FitStage, "select": SelectStage}

    def make_worker(self: Stage) -> Worker:
        return _sleep

    if name in steps:
        steps[name].make_worker = make_worker  # type: ignore[method-assign]


if __name__ == "__main__":
    _slow_down(sys.argv[1])
    del sys.argv[1]
    main()
