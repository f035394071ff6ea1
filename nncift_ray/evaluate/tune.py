"""Tune: fine-tune the model under evaluation on a subset of the candidates.

The training itself is ``models.tuning`` and knows no Ray; here it is given its examples and its
result becomes files. The output's folder ``files`` is what PEFT, transformers and vLLM load.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from nncift_ray.engines.load import TunedModel
from nncift_ray.engines.lora import TrainableModel, TrainingExample
from nncift_ray.engines.models import ADAPTER_CONFIG
from nncift_ray.errors import ModelError, StageError, StorageError
from nncift_ray.runtime import schemas as evaluation_schemas
from nncift_ray.runtime.driver import StepProgress, describe_steps
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import FILES_TABLE, Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.teachers.warmup import (
    ALONE,
    EXAMPLE_COLUMNS,
    TrainingSettings,
    UnfitExample,
    Workers,
    by_length,
    encode_rows,
    train,
)

CHUNK_BYTES = 1 << 24
QUANTIZATION_FACT = "quantization"


def write_tuned_files(folder: Path, quantization: str | None, sink: Sink) -> None:
    """Hand the files that a training wrote into a folder to the stage's output."""
    sink.facts[QUANTIZATION_FACT] = quantization
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as source:
                shutil.copyfileobj(
                    source, sink.open_file(path.relative_to(folder).as_posix()), CHUNK_BYTES
                )


@contextmanager
def tuned_files(tuning: StageOutput | None) -> Generator[TunedModel | None]:
    """Give the files of a tune stage's output a local folder; None for None.

    A run on a disk is read where it lies. From an object store the files are fetched into a
    temporary folder, which is gone at the end: engines have read all they need once they are made.

    Raises:
        StorageError: If a file cannot be read.
    """
    if tuning is None:
        yield None
        return
    names = sorted(part.name for part in tuning.manifest.table_parts(FILES_TABLE))
    facts = tuning.manifest.facts()
    is_adapter = f"{FILES_TABLE}/{ADAPTER_CONFIG}" in names
    quantization = facts.get(QUANTIZATION_FACT)
    if tuning.folder.is_local:
        yield TunedModel(Path(tuning.folder.path) / FILES_TABLE, is_adapter, quantization)
        return
    with tempfile.TemporaryDirectory(prefix="nncift-tuned-") as scratch:
        for name in names:
            _fetch(tuning.folder / name, Path(scratch) / name)
        yield TunedModel(Path(scratch) / FILES_TABLE, is_adapter, quantization)


def _fetch(source: Location, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.fs.open_input_stream(source.path) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK_BYTES)
    except OSError as error:
        raise StorageError(f"{source}: cannot be fetched ({error})") from error


# Subsets of the candidates, as the stages of an evaluation are given them.


def members_digest(examples: StageOutput, members: NDArray[np.int64]) -> str:
    """Return the SHA-256, in hex, of the ids of a subset's examples, in the order of its rows.

    Ids are hashes of content, so subsets that different methods arrive at share what follows.

    Args:
        examples: Output of the deduplicate stage.
        members: Row numbers of candidates.
    """
    digest = hashlib.sha256()
    if len(members):
        ids = examples.take_rows("candidates", members, ["example_id"])["example_id"].to_pylist()
        digest.update("\n".join(map(str, ids)).encode())
    return digest.hexdigest()


# Fine-tuning a model on a subset, in one process of possibly several; knows no Ray.

LEARNING_RATE_KEY = "evaluation.tuning.learning_rate"
MAX_GRADIENT_NORM = 1.0
QLORA, LORA, FULL = "qlora", "lora", "full"


@dataclass(frozen=True, slots=True)
class TuningSummary:
    """What fine-tuning came to."""

    num_tokens: int  # of one epoch, prompts included
    num_steps: int  # optimiser steps, all epochs
    train_loss: tuple[float, ...]  # by epoch, nats a response token
    seconds: float


def tune(
    model: TrainableModel,
    examples: Sequence[TrainingExample],
    settings: TrainingSettings,
    *,
    workers: Workers = ALONE,
    on_step: Callable[[int, int], None] | None = None,
) -> TuningSummary:
    """Fine-tune a model in place; arguments are those of ``training_loop.train``.

    Raises:
        ModelError: If the loss stops being finite, or the device has not enough memory.
    """
    start = time.perf_counter()
    try:
        epochs = train(
            model,
            examples,
            settings,
            learning_rate_key=LEARNING_RATE_KEY,
            weigh=by_length,
            max_gradient_norm=MAX_GRADIENT_NORM,
            workers=workers,
            on_step=on_step,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"fine-tuning does not fit into the memory of {model.device}: set "
            "evaluation.tuning.method to qlora, lower evaluation.tuning.max_length, or choose a "
            f"smaller evaluation.model ({error})"
        ) from error
    return TuningSummary(
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_steps=epochs[-1].num_steps,
        train_loss=tuple(epoch.train_loss for epoch in epochs),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What weights are held in and what is computed in; names of torch dtypes."""

    dtype: str  # of the weights that are not trained
    autocast: str | None  # of the matrix products; None: as the weights are


def choose_arithmetic(method: str, dtype: str, *, on_gpu: bool) -> Arithmetic:
    """Say how a method computes in "float32" or "bfloat16".

    What is trained is float32 either way. On a GPU frozen weights are held in bfloat16. On a CPU
    they stay float32 and only matrix products are taken in bfloat16: as fast, and sums and norms
    lose nothing.
    """
    if dtype == "float32":
        return Arithmetic("float32", None)
    if method == FULL or not on_gpu:
        return Arithmetic("float32", dtype)
    return Arithmetic(dtype, None)


# Tune: fine-tune the model under evaluation on a subset of the candidates.


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
    hands_over = True
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
