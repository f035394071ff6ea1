"""Several Ray Train workers that train one model together.

They meet only where they average gradients, by gloo, which moves tensors of a CPU and of a GPU.
Ray Train's import takes seconds, so it is imported where workers are started.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nncift_ray.errors import NnciftError, StageError, StorageError
from nncift_ray.runtime.files import NO_SPACE, Location
from nncift_ray.runtime.step import Resources

if TYPE_CHECKING:
    import torch
    from ray.train import TrainingFailedError

MAX_LOST_WORKERS = 2

Result = TypeVar("Result")
#: What a worker does, given its rank and the number of workers.
Work = Callable[[int, int], Result]


@dataclasses.dataclass(frozen=True)
class RayWorkers:
    """How many workers train together, what each of them holds, and where their files may lie."""

    folder: Location  # all nodes see it
    num_workers: int = 1
    each: Resources = Resources()  # the CPUs are also its number of threads


def train_on_ray(work: Work[Result], workers: RayWorkers) -> Result:
    """Return what ``work`` returns on rank 0, once all workers are done.

    Raises:
        StageError: If there is no node for a worker, or workers are lost too often.
        NnciftError: Whatever a worker raised of that family, e.g. ModelError.
    """
    import ray.train

    num_failures = 0
    while True:
        try:
            return train_once(work, workers)
        except ray.train.TrainingFailedError as error:
            num_failures += 1
            if num_failures > MAX_LOST_WORKERS or users_error(error) is not None:
                raise worker_error(error) from error


def train_once(work: Work[Result], workers: RayWorkers) -> Result:
    """Train without tries after the first.

    Ray Train would try again, too, but also what a worker raised for the user to mend.

    Raises:
        TrainingFailedError: If a worker raised or was lost.
        StageError: If there is no node for a worker.
    """
    import ray.train.torch

    from nncift_ray.runtime.ray_pool import PlacementWatch, asked_by

    class Trainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Keep our own: theirs waits for the workers, exits with 0 and stays installed."""

    PlacementWatch("training", workers.each).wait()
    # A name of its own: Ray Train would go on from what another run left under it.
    name = uuid.uuid4().hex[:8]
    trainer = Trainer(
        _run_worker,
        train_loop_config={"work": work},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.each.num_gpus > 0,
            resources_per_worker=asked_by(workers.each),
            label_selector=dict(workers.each.labels) or None,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=workers.folder.path,
            storage_filesystem=None if workers.folder.is_local else workers.folder.fs,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        result: Any = trainer.fit()
        return result.return_value
    finally:
        (workers.folder / name).delete_folder()


def _run_worker(config: dict[str, Any]) -> Any:
    import ray.train

    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    result = config["work"](rank, num_workers)
    return result if rank == 0 else None


def users_error(error: TrainingFailedError) -> NnciftError | None:
    """Return what a worker raised for the user to mend, if one did."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, NnciftError):
            return failure
        if isinstance(failure, OSError) and failure.errno in NO_SPACE:
            return StorageError(f"training cannot write ({failure}): make room there and run again")
    return None


def worker_error(error: TrainingFailedError) -> NnciftError:
    """Return what a worker raised for the user to mend, else that training failed and why."""
    return users_error(error) or StageError(
        f"training failed {MAX_LOST_WORKERS + 1} times: {error}"
    )


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers (gloo, in place)."""
    import torch.distributed

    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world
