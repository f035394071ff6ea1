"""Warm-up: train a LoRA adapter on a random share of the candidates, one checkpoint an epoch.

LESS measures gradients where a model has begun to learn, and needs the optimiser's moments there.
The training itself is ``models.warmup`` and knows no Ray; here it is given its examples.
Source: LESS, arXiv 2402.04333, section 4.1 (5 % of the pool, 4 epochs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.models.lora_model import LoraModel
from nncift_ray.models.trainable_model import TrainingExample
from nncift_ray.models.training_loop import ALONE, TrainingSettings, Workers
from nncift_ray.models.warmup import WarmupCheckpoint, warm_up
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.teaching.training_examples import EXAMPLE_COLUMNS, UnfitExample, encode_rows
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import warmup_files
from nncift_ray.storage.output import Sink, StageOutput

WARMUP_STREAM = 16  # random stream of the draw, apart from those of core.network.sampling
TENSOR_GROUPS = ("adapter", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class WarmupJob:
    """All a training worker needs; small, since examples are read where they are used."""

    examples: StageOutput
    make_model: Callable[[], LoraModel]
    fraction: float  # of the candidates
    max_examples: int
    training: TrainingSettings
    num_workers: int = 1  # sums over other numbers of workers round otherwise


KeepCheckpoint = Callable[[WarmupCheckpoint], None]
#: Trains a job, hands over each checkpoint in turn and returns the examples left out.
WarmupTrainer = Callable[[WarmupJob, KeepCheckpoint], list[UnfitExample]]


class WarmupStage(Stage):
    """Write ``checkpoints`` and, as files, the adapter and Adam's moments of each."""

    name: ClassVar[str] = "warmup"
    placement: ClassVar[Literal["pool", "driver"]] = "driver"
    unit: ClassVar[str] = "runs"

    def __init__(
        self, job: WarmupJob, train: WarmupTrainer, model_settings: Mapping[str, Any]
    ) -> None:
        """Train with ``train``: Ray Train, or ``warm_up_here`` with no Ray at all.

        Args:
            job: What to train.
            train: How.
            model_settings: What of ``job.make_model`` shapes the numbers: name, revision, adapter,
                dtype, quantization, longest example.
        """
        self._job, self._train, self._model_settings = job, train, dict(model_settings)
        self.seed = job.training.seed

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Checkpoints."""
        return {"checkpoints": schemas.WARMUP_CHECKPOINTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The deduplicated examples."""
        return {"examples": self._job.examples}

    def settings(self) -> dict[str, Any]:
        """Model, adapter, draw and optimiser; not what the workers run on."""
        return {
            "model": self._model_settings,
            "fraction": self._job.fraction,
            "max_examples": self._job.max_examples,
            "training": dataclasses.asdict(self._job.training),
            "num_workers": self._job.num_workers,
        }

    def num_items(self) -> int:
        """One run."""
        return 1

    def make_worker(self) -> Worker:
        """Return the run."""

        def run(shard: Shard, sink: Sink) -> None:
            rows: list[dict[str, Any]] = []

            def keep(checkpoint: WarmupCheckpoint) -> None:
                for name, content in checkpoint_files(len(rows), checkpoint):
                    sink.write_file(name, content)
                rows.append({"checkpoint": len(rows)} | checkpoint_facts(checkpoint))

            unfit = self._train(self._job, keep)
            for example in unfit:
                sink.error(**dataclasses.asdict(example))
            sink.facts["num_examples"] = len(draw_rows(self._job)) - len(unfit)
            sink.write_rows("checkpoints", rows, schemas.WARMUP_CHECKPOINTS)

        return run


def draw_rows(job: WarmupJob) -> np.ndarray:
    """Return the sorted row indices of the candidates to train on, at least one.

    They depend on the seed and the number of candidates alone.
    """
    num_candidates = job.examples.num_rows("candidates")
    wanted = min(max(1, round(job.fraction * num_candidates)), job.max_examples)
    sequence = np.random.SeedSequence([job.training.seed, WARMUP_STREAM])
    generator = np.random.Generator(np.random.PCG64(sequence))
    return np.sort(generator.permutation(num_candidates)[:wanted])


def load_examples(
    job: WarmupJob, model: LoraModel
) -> tuple[list[TrainingExample], list[UnfitExample]]:
    """Read and tokenise the drawn examples; return those to train on and those that do not fit.

    Raises:
        StageError: If none fits.
    """
    table = job.examples.take_rows("candidates", draw_rows(job), EXAMPLE_COLUMNS)
    fit, unfit = encode_rows(table, model)
    if not fit:
        raise StageError(
            f"none of the {len(unfit)} examples drawn for the warm-up can be trained on (the first:"
            f" {unfit[0].message}); raise teacher.less.max_length or teacher.less.warmup_fraction"
        )
    return fit, unfit


def warm_up_here(
    job: WarmupJob,
    keep: KeepCheckpoint,
    *,
    workers: Workers = ALONE,
) -> list[UnfitExample]:
    """Train in this process, as one of several workers or alone (a WarmupTrainer)."""
    model = job.make_model()
    try:
        examples, unfit = load_examples(job, model)
        checkpoints = warm_up(model, examples, job.training, workers=workers)
    finally:
        model.close()
    for checkpoint in checkpoints:
        keep(checkpoint)
    return unfit


def checkpoint_facts(checkpoint: WarmupCheckpoint) -> dict[str, Any]:
    """Return what of a checkpoint is no tensor."""
    names = (field.name for field in dataclasses.fields(checkpoint))
    return {name: getattr(checkpoint, name) for name in names if name not in TENSOR_GROUPS}


def checkpoint_files(number: int, checkpoint: WarmupCheckpoint) -> list[tuple[str, bytes]]:
    """Return the files, name and content, that hold a checkpoint."""
    groups = {group: getattr(checkpoint, group) for group in TENSOR_GROUPS}
    return list(warmup_files(number, groups, checkpoint_facts(checkpoint)))
