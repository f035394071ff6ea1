"""What is tried again when workers of Ray Train fail; tests/integration trains with real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train

from nncift_ray.errors import ModelError, NnciftError, StageError
from nncift_ray.runtime import session
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.session import MAX_LOST_WORKERS, RayWorkers, train_on_ray

LOST = ray.train.WorkerGroupError("lost", {0: RuntimeError("the worker died")})
RAISED = ray.train.WorkerGroupError("trace", {0: ModelError("lower the learning rate")})

Train = Callable[[list[ray.train.TrainingFailedError]], int]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Return what trains with workers that fail as they are told; it returns the tries."""

    def train(failures: list[ray.train.TrainingFailedError]) -> int:
        num_tries = 0

        def once(work: Callable[[int, int], str], workers: RayWorkers) -> str:
            nonlocal num_tries
            num_tries += 1
            if num_tries <= len(failures):
                raise failures[num_tries - 1]
            return work(0, 1)

        monkeypatch.setattr(session, "train_once", once)
        workers = RayWorkers(Location.of(str(tmp_path)))
        try:
            assert train_on_ray(lambda rank, num_workers: "trained", workers) == "trained"
        except NnciftError as error:
            error.args = (*error.args, num_tries)
            raise
        return num_tries

    return train


def test_lost_workers_are_replaced(train: Train) -> None:
    assert train([LOST] * MAX_LOST_WORKERS) == MAX_LOST_WORKERS + 1


@pytest.mark.parametrize(
    ("failures", "num_tries", "kind"),
    [
        ([LOST] * 9, MAX_LOST_WORKERS + 1, StageError),
        ([RAISED] * 9, 1, ModelError),
        ([LOST, RAISED], 2, ModelError),
    ],
)
def test_what_a_worker_raised_for_the_user_to_mend_is_not_tried_again(
    train: Train,
    failures: list[ray.train.TrainingFailedError],
    num_tries: int,
    kind: type[NnciftError],
) -> None:
    with pytest.raises(kind) as got:
        train(failures)
    assert got.value.args[-1] == num_tries
