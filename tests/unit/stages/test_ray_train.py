"""What is tried again when workers of Ray Train fail; tests/integration trains with real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import ray.train

from nncift_ray.errors import ModelError, NnciftError, StageError
from nncift_ray.evaluate.tune import TuneJob
from nncift_ray.ray_train import MAX_LOST_WORKERS, RayWorkers
from nncift_ray.runtime.files import Location

LOST = ray.train.WorkerGroupError("lost", {0: RuntimeError("the worker died")})
RAISED = ray.train.WorkerGroupError("trace", {0: ModelError("lower the learning rate")})
JOB = cast("TuneJob", None)  # what it holds is not looked at


@dataclasses.dataclass(frozen=True)
class FailingWorkers(RayWorkers):
    """Fails as it is told, then succeeds."""

    failures: list[ray.train.TrainingFailedError] = dataclasses.field(default_factory=list)
    tries: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def run_once(self, work: Any, settings: dict[str, Any], read: Callable[[Path], Any]) -> Any:
        self.tries.append(settings)
        if self.failures:
            raise self.failures.pop(0)
        return read(Path())


def train(workers: RayWorkers) -> str:
    return workers.run(lambda settings: None, JOB, lambda folder: "trained", progress="there")


def test_lost_workers_are_replaced(tmp_path: Path) -> None:
    workers = FailingWorkers(Location.of(str(tmp_path)), failures=[LOST] * MAX_LOST_WORKERS)
    assert train(workers) == "trained"
    assert workers.tries == [{"job": JOB, "progress": "there"}] * (MAX_LOST_WORKERS + 1)


@pytest.mark.parametrize(
    ("failures", "num_tries", "kind"),
    [
        ([LOST] * 9, MAX_LOST_WORKERS + 1, StageError),
        ([RAISED] * 9, 1, ModelError),
        ([LOST, RAISED], 2, ModelError),
    ],
)
def test_what_a_worker_raised_for_the_user_to_mend_is_not_tried_again(
    tmp_path: Path,
    failures: list[ray.train.TrainingFailedError],
    num_tries: int,
    kind: type[NnciftError],
) -> None:
    workers = FailingWorkers(Location.of(str(tmp_path)), failures=list(failures))
    with pytest.raises(kind):
        train(workers)
    assert len(workers.tries) == num_tries
