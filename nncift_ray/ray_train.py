"""Ray Train around fine-tuning.

Workers meet only where they average gradients, by gloo, which moves tensors of a CPU and of a GPU.
Rank 0 leaves its result in one Ray Train checkpoint, which the driver reads and then deletes.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import ray.train.torch

from nncift_ray.errors import StageError
from nncift_ray.evaluate.tune import KeepTuned, TuneJob, TuningRecord, tune_here
from nncift_ray.runtime.driver import StepProgress
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.ray_pool import wait_for_place
from nncift_ray.runtime.ray_train import average_gradients, users_error, worker_error
from nncift_ray.runtime.step import PLACEMENT_TIMEOUT, Resources
from nncift_ray.teachers.warmup import (
    UnfitExample,
    Workers,
)

HISTORY_NAME = "history.json"
UNFIT_NAME = "unfit.json"
TUNED_FOLDER = "tuned"
RECORD_NAME = "record.json"
MAX_LOST_WORKERS = 2

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class RayWorkers:
    """Ray Train workers, which keep their result in ``storage`` until it is read."""

    storage: Location
    num_workers: int = 1
    num_cpus: float = 1  # of a worker, also its number of threads
    use_gpu: bool = False  # one a worker
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])  # of their nodes
    placement_timeout: float = PLACEMENT_TIMEOUT  # seconds

    def run(
        self,
        work: Callable[[dict[str, Any]], None],
        job: TuneJob,
        read: Callable[[Path], Result],
        **more: Any,
    ) -> Result:
        """Run ``work`` on every worker and read the checkpoint that rank 0 left.

        ``work`` is given the job as "job", and what else is given here by its name.

        Raises:
            StageError: If there is no node for a worker, or the workers end without a checkpoint or
                are lost too often.
            NnciftError: Whatever a worker raised of that family, e.g. ModelError.
        """
        num_failures = 0
        while True:
            try:
                return self.run_once(work, {"job": job, **more}, read)
            except ray.train.TrainingFailedError as error:
                num_failures += 1
                if num_failures > MAX_LOST_WORKERS or users_error(error) is not None:
                    raise worker_error(error) from error

    def run_once(
        self,
        work: Callable[[dict[str, Any]], None],
        settings: dict[str, Any],
        read: Callable[[Path], Result],
    ) -> Result:
        """Run ``work`` without tries after the first.

        Ray Train would try again, too, but also what a worker raised for the user to mend.

        Raises:
            TrainingFailedError: If a worker raised or was lost.
            StageError: If there is no node for a worker, or the workers end without a checkpoint.
        """
        wanted = Resources(self.num_cpus, float(self.use_gpu), labels=self.labels)
        wait_for_place("training", wanted, self.placement_timeout)
        # A name of its own: Ray Train would go on from the checkpoints of another run's directory.
        name = uuid.uuid4().hex[:8]
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.num_workers,
                use_gpu=self.use_gpu,
                resources_per_worker=self._each,
                label_selector=dict(self.labels) or None,
            ),
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=self.storage.path,
                storage_filesystem=None if self.storage.is_local else self.storage.fs,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                failure_config=ray.train.FailureConfig(max_failures=0),
            ),
        )
        try:
            checkpoint = trainer.fit().checkpoint
            if checkpoint is None:
                raise StageError("Ray Train ended without a checkpoint")
            with checkpoint.as_directory() as folder:
                return read(Path(folder))
        finally:
            if (self.storage / name).exists():
                self.storage.fs.delete_dir((self.storage / name).path)

    @property
    def _each(self) -> dict[str, float]:
        return {"CPU": self.num_cpus} | ({"GPU": 1} if self.use_gpu else {})


@dataclasses.dataclass(frozen=True)
class RayTuner(RayWorkers):
    """Fine-tunes the model of a tune job (a tune.Tuner)."""

    def __call__(self, job: TuneJob, progress: Location, keep: KeepTuned) -> None:
        """Train and hand over the files."""

        def read(folder: Path) -> None:
            told = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
            unfit = tuple(UnfitExample(**example) for example in told.pop("unfit"))
            record = TuningRecord(**told | {"train_loss": tuple(told["train_loss"])}, unfit=unfit)
            keep(folder / TUNED_FOLDER, record)

        self.run(_tune_worker, job, read, progress=progress)


def _tune_worker(config: dict[str, Any]) -> None:
    """Run in every Ray Train worker; rank 0 reports the tuned model's files."""
    job: TuneJob = config["job"]
    place = _place()
    with tempfile.TemporaryDirectory(prefix="nncift-tune-") as scratch:
        tuned = Path(scratch) / TUNED_FOLDER
        tuned.mkdir()
        on_step = StepProgress(config["progress"]) if place.rank == 0 else None
        record = tune_here(job, tuned, workers=place, on_step=on_step)

        def write(folder: Path) -> None:
            tuned.rename(folder / TUNED_FOLDER)
            told = json.dumps(dataclasses.asdict(record))
            (folder / RECORD_NAME).write_text(told, encoding="utf-8")

        _report({"train_loss": record.train_loss[-1]}, write)


def _place() -> Workers:
    """Return this worker's place, and how it averages gradients with the others."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    return Workers(rank, world, average_gradients if world > 1 else None)


def _report(metrics: dict[str, float], write: Callable[[Path], None]) -> None:
    """Report metrics; rank 0 adds the files that ``write`` makes."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
