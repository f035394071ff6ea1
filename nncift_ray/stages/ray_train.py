"""A trainer for the fit stage: Ray Train's TorchTrainer around ``train_here``."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import safetensors.numpy
import torch
import torch.distributed

from nncift_ray.core.training import EpochRecord
from nncift_ray.errors import StageError
from nncift_ray.stages.fit import FitJob, FittedBlock, train_here
from nncift_ray.storage.filesystem import Location

HISTORY_NAME = "history.json"


@dataclasses.dataclass(frozen=True)
class RayTrainer:
    """Trains a fit job on Ray Train workers, which keep their result in ``storage``."""

    storage: Location
    num_workers: int = 1

    def __call__(self, job: FitJob) -> dict[str, FittedBlock]:
        """Train and read the checkpoint back.

        Raises:
            StageError: If the workers end without a checkpoint.
        """
        # A name of its own: Ray Train would go on from the checkpoints of another fit's directory.
        name = uuid.uuid4().hex[:8]
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"job": job},
            scaling_config=ray.train.ScalingConfig(num_workers=self.num_workers),
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=self.storage.path,
                storage_filesystem=None if self.storage.is_local else self.storage.fs,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                failure_config=ray.train.FailureConfig(max_failures=2),
            ),
        )
        checkpoint = trainer.fit().checkpoint
        if checkpoint is None:
            raise StageError("Ray Train ended without a checkpoint")
        with checkpoint.as_directory() as folder:
            fitted = {block: _read_fitted(Path(folder), block) for block in job.blocks}
        self.storage.fs.delete_dir((self.storage / name).path)
        return fitted


def _train_worker(config: dict[str, Any]) -> None:
    """Run in every Ray Train worker; rank 0 reports the networks."""
    job: FitJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    fitted = train_here(
        job, shard=(rank, world), reduce_gradients=average_gradients if world > 1 else None
    )
    losses = {
        f"{block}_validation_loss": result.history[-1].validation_loss
        for block, result in fitted.items()
    }
    if rank != 0:
        ray.train.report(losses)
        return
    with tempfile.TemporaryDirectory() as folder:
        for block, result in fitted.items():
            _write_fitted(Path(folder), block, result)
        ray.train.report(losses, checkpoint=ray.train.Checkpoint.from_directory(folder))


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers (gloo, in place)."""
    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world


def _write_fitted(folder: Path, block: str, fitted: FittedBlock) -> None:
    (folder / f"{block}.safetensors").write_bytes(safetensors.numpy.save(fitted.state))
    history = [dataclasses.asdict(record) for record in fitted.history]
    (folder / f"{block}-{HISTORY_NAME}").write_text(json.dumps(history), encoding="utf-8")


def _read_fitted(folder: Path, block: str) -> FittedBlock:
    state = safetensors.numpy.load((folder / f"{block}.safetensors").read_bytes())
    history = json.loads((folder / f"{block}-{HISTORY_NAME}").read_text(encoding="utf-8"))
    return FittedBlock(state, [EpochRecord(**record) for record in history])
