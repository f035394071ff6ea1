"""A teacher of a user's own, named in the recipe by import path, that can kill its driver.

While the file ``options["victim"]`` exists, the process whose id it holds is killed in the middle
of the first shard that is measured.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from nncift_ray.teachers.base import LabelRequest, Measurement, TeacherContext


class DeadlyTeacher:
    """Measures the difference in length of two answers."""

    kind: ClassVar[Literal["pairwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __init__(self, victim: str) -> None:
        self._victim = Path(victim)

    @classmethod
    def from_context(cls, context: TeacherContext) -> DeadlyTeacher:
        return cls(context.options["victim"])

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement]:
        if self._victim.exists():
            victim = int(self._victim.read_text())
            self._victim.unlink()
            os.kill(victim, signal.SIGKILL)
        return [self._measure_one(request) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        return value

    def close(self) -> None: ...

    def _measure_one(self, request: LabelRequest) -> Measurement:
        assert request.helper is not None
        return Measurement(float(len(request.helper.response) - len(request.helped.response)))
