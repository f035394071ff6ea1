"""Tune: fine-tune the model under evaluation on a subset of the candidates.

The training itself is ``models.tuning`` and knows no Ray; here it is given its examples and its
result becomes files. The output's folder ``files`` is what PEFT, transformers and vLLM load.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.errors import StageError
from nncift_ray.models.trainable_model import TrainableModel
from nncift_ray.models.training_loop import ALONE, TrainingSettings, Workers
from nncift_ray.models.tuning import MAX_GRADIENT_NORM, tune
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.stages.driving.step_progress import StepProgress, describe_steps
from nncift_ray.stages.evaluation.subsets import members_digest
from nncift_ray.stages.evaluation.tuned_files import write_tuned_files
from nncift_ray.stages.teaching.training_examples import EXAMPLE_COLUMNS, UnfitExample, encode_rows
from nncift_ray.storage import evaluation_schemas
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import Sink, StageOutput


@dataclass(frozen=True, eq=False)
class TuneJob:
    """All a training worker needs; small, since examples are read where they are used."""

    examples: StageOutput  # of the deduplicate stage
    members: NDArray[np.int64]  # candidates' row numbers, sorted
    make_model: Callable[[], TrainableModel]
    base_name: str  # the base model's, as the recipe has it
    training: TrainingSettings
    num_workers: int = 1  # sums over other numbers of workers round otherwise


@dataclass(frozen=True)
class TuningRecord:
    """What a training says of itself beside its files."""

    num_examples: int  # trained on
    num_tokens: int  # of one epoch, prompts included
    num_steps: int
    train_loss: tuple[float, ...]  # by epoch
    seconds: float
    unfit: tuple[UnfitExample, ...]


#: Is handed the folder that the tuned model's files are in; they are gone afterwards.
KeepTuned = Callable[[Path, TuningRecord], None]
#: Trains a job, tells of its steps in the stage's folder, and hands over the result.
Tuner = Callable[[TuneJob, Location, KeepTuned], None]


class TuneStage(Stage):
    """Write ``tuning`` and, as files, a PEFT adapter or a whole model."""

    name: ClassVar[str] = "tune"
    placement: ClassVar[Literal["pool", "driver"]] = "driver"
    unit: ClassVar[str] = "runs"

    def __init__(
        self,
        job: TuneJob,
        train: Tuner,
        model_settings: Mapping[str, Any],
        *,
        quantization: str | None = None,
    ) -> None:
        """Train with ``train``: Ray Train, or ``tune_in_process`` with no Ray at all.

        Args:
            job: What to train.
            train: How.
            model_settings: What of ``job.make_model`` shapes the numbers: name, revision, method,
                adapter, dtype, longest example.
            quantization: How the base is quantised, for the engines that load the adapter.

        Raises:
            ValueError: If the subset is empty.
        """
        if not len(job.members):
            raise ValueError("there is no example to fine-tune on: the subset is empty")
        self._job, self._train, self._model_settings = job, train, dict(model_settings)
        self._quantization = quantization
        self.seed = job.training.seed

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """How the training went."""
        return {"tuning": evaluation_schemas.TUNING}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The deduplicated examples."""
        return {"examples": self._job.examples}

    @functools.cached_property
    def _digest(self) -> str:
        return members_digest(self._job.examples, self._job.members)

    def settings(self) -> dict[str, Any]:
        """Subset, model and optimiser; not what the workers run on."""
        return {
            "members": self._digest,
            "model": self._model_settings,
            "quantization": self._quantization,
            "training": dataclasses.asdict(self._job.training),
            "max_gradient_norm": MAX_GRADIENT_NORM,
            "num_workers": self._job.num_workers,
        }

    def num_items(self) -> int:
        """One run."""
        return 1

    def progress(self, folder: Location) -> str:
        """Say how many steps are done."""
        return describe_steps(folder)

    def make_worker(self) -> Worker:
        """Return the run."""

        def run(shard: Shard, sink: Sink) -> None:
            def keep(folder: Path, record: TuningRecord) -> None:
                write_tuned_files(folder, self._quantization, sink)
                for example in record.unfit:
                    sink.error(**dataclasses.asdict(example))
                names = evaluation_schemas.TUNING.names
                row = {name: getattr(record, name) for name in names}
                sink.write_rows("tuning", [row], evaluation_schemas.TUNING)

            self._train(self._job, sink.folder, keep)

        return run


def tune_in_process(job: TuneJob, progress: Location, keep: KeepTuned) -> None:
    """Train in this process (a Tuner)."""
    with tempfile.TemporaryDirectory(prefix="nncift-tune-") as folder:
        keep(Path(folder), tune_here(job, Path(folder), on_step=StepProgress(progress)))


def tune_here(
    job: TuneJob,
    folder: Path,
    *,
    workers: Workers = ALONE,
    on_step: Callable[[int, int], None] | None = None,
) -> TuningRecord:
    """Train as one of several workers or alone; the first of them writes the model's files.

    Raises:
        StageError: If none of the subset's examples can be trained on.
        ModelError: If the loss stops being finite.
    """
    model = job.make_model()
    try:
        table = job.examples.take_rows("candidates", job.members, EXAMPLE_COLUMNS)
        examples, unfit = encode_rows(table, model)
        if not examples:
            raise StageError(
                f"none of the {len(unfit):,} examples of the subset can be trained on (the first: "
                f"{unfit[0].message}); raise evaluation.tuning.max_length"
            )
        summary = tune(model, examples, job.training, workers=workers, on_step=on_step)
        if workers.rank == 0:
            model.save(folder, job.base_name)
    finally:
        model.close()
    return TuningRecord(
        num_examples=len(examples), unfit=tuple(unfit), **dataclasses.asdict(summary)
    )
