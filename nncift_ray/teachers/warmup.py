"""Warm-up: train a LoRA adapter on a random share of the candidates, one checkpoint an epoch.

LESS measures gradients where a model has begun to learn, and needs the optimiser's moments there,
so the training loop is our own.
Source: LESS, arXiv 2402.04333, section 4.1 (5 % of the pool, 4 epochs).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import TrainingExample, cut_batches
from nncift_ray.errors import ModelError, StageError
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.session import RayWorkers, average_gradients, train_on_ray
from nncift_ray.runtime.step import Shard, Stage, Worker

#: Padded tokens of one forward and backward pass on a CPU; the passes of a step add up.
CPU_PASS_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """What an epoch came to."""

    epoch: int  # from 1
    num_steps: int  # optimiser steps so far
    mean_learning_rate: float  # over the epoch's steps
    train_loss: float  # nats a response token, over the epoch's examples alike


Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class WarmupCheckpoint:
    """The state at the end of an epoch; arrays by the names of ``LoraModel.parameters``."""

    adapter: Arrays
    exp_avg: Arrays  # Adam's first moment
    exp_avg_sq: Arrays  # Adam's second moment
    summary: EpochSummary


def warm_up(
    model: LoraModel,
    examples: Sequence[TrainingExample],
    less: LessConfig,
    *,
    rank: int = 0,
    world: int = 1,
) -> list[WarmupCheckpoint]:
    """Train the model's fresh adapter in place and return each epoch's state.

    By AdamW without decay, with a linear rise and fall of the learning rate. The loss of a step is
    the mean over its examples of each one's mean over its response tokens: the same per-example
    loss whose gradients are taken later.

    On ``world`` workers each gives the same arguments but its own rank, and takes a slice of every
    batch, weighted so that the mean of the gradients over workers is the gradient of the whole
    batch. Without dropout they end as one worker would, up to rounding; with it, every rank draws
    masks of its own.

    Raises:
        ModelError: If the loss stops being finite.

    Memory: on the host 12 bytes for every adapter parameter and epoch.
    """
    optimiser = torch.optim.AdamW(model.parameters.values(), weight_decay=0.0)
    order = torch.Generator().manual_seed(less.seed)
    total_steps = math.ceil(len(examples) / less.batch_size) * less.num_epochs
    checkpoints: list[WarmupCheckpoint] = []
    step = 0
    with _training(model, less.seed + rank):
        for epoch in range(1, less.num_epochs + 1):
            rates: list[float] = []
            total_loss = 0.0
            for rows in torch.randperm(len(examples), generator=order).split(less.batch_size):
                rates.append(
                    learning_rate_at(step, total_steps, less.learning_rate, less.lr_warmup_fraction)
                )
                optimiser.param_groups[0]["lr"] = rates[-1]
                batch = [examples[n] for n in rows.tolist()]
                loss = _differentiate(model, batch, rank, world)
                if not math.isfinite(loss):
                    raise ModelError(
                        f"the training loss is {loss} at step {step + 1} of {total_steps}: lower "
                        "teacher.less.learning_rate, or take a dtype of more range"
                    )
                optimiser.step()
                total_loss += loss * len(batch)
                step += 1
            mean_rate = math.fsum(rates) / len(rates)
            summary = EpochSummary(epoch, step, mean_rate, total_loss / len(examples))
            moments: dict[str, Arrays] = {
                kind: {
                    name: optimiser.state[parameter][kind].detach().cpu().numpy().copy()
                    for name, parameter in model.parameters.items()
                }
                for kind in ("exp_avg", "exp_avg_sq")
            }
            checkpoints.append(WarmupCheckpoint(model.adapter_state(), **moments, summary=summary))
    return checkpoints


def _differentiate(
    model: LoraModel, batch: Sequence[TrainingExample], rank: int, world: int
) -> float:
    """Set the gradient of a batch's mean loss, every example alike; return that loss.

    The loss travels with the gradients, so that all workers see the same and stop together.
    """
    parameters = list(model.parameters.values())
    loss = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    mine = batch[rank::world]
    lengths = [len(example.input_ids) for example in mine]

    def add_up(pass_tokens: int) -> None:
        for parameter in [*parameters, loss]:  # never None: a worker may have no example
            parameter.grad = torch.zeros_like(parameter)
        for rows in cut_batches(lengths, 0, pass_tokens):
            part = [mine[n] for n in rows]
            shares = [world / len(batch)] * len(part)
            passed = (model.losses(part) * torch.tensor(shares, device=model.device)).sum()
            passed.backward()
            loss.grad += float(passed.detach())  # pyright: ignore[reportOperatorIssue]

    model.in_passes(add_up, None if model.device.type == "cuda" else CPU_PASS_TOKENS)
    if world > 1:
        average_gradients([*parameters, loss])
    return float(loss.grad)  # pyright: ignore[reportArgumentType]


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: a line up to the peak, then a line down to nothing.

    The rise takes ceil(warmup_fraction * total_steps) steps and starts above 0, so that no step
    (from 0) is wasted; the fall would reach 0 one step after the last.

    Raises:
        ValueError: If the step is outside the training, or the fraction outside [0, 1).
    """
    if not 0 <= step < total_steps or not 0 <= warmup_fraction < 1:
        raise ValueError(f"step {step} of {total_steps}, warm-up fraction {warmup_fraction}")
    rising = min(math.ceil(warmup_fraction * total_steps), total_steps - 1)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * (total_steps - step) / (total_steps - rising)


@contextmanager
def _training(model: LoraModel, seed: int) -> Iterator[None]:
    """Switch dropout on, with random numbers of its own that leave the process's alone."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.model.train()
        try:
            yield
        finally:
            model.model.eval()


# The warm-up of LESS.

WARMUP_STREAM = 16  # random stream of the draw, apart from those of the label sample
#: Keys of ``teacher.less`` that the optimiser reads.
TRAINING_KEYS = ("num_epochs", "learning_rate", "lr_warmup_fraction", "batch_size", "seed")
TENSOR_GROUPS = ("adapter", "exp_avg", "exp_avg_sq")

#: Examples that cannot be trained on, and why.
Unfit = list[tuple[Example, ScoringFailure]]


@dataclass(frozen=True)
class WarmupJob:
    """All a training worker needs; small, since examples are read where they are used."""

    examples: StageOutput  # deduplicated
    make_model: Callable[[], LoraModel]
    less: LessConfig
    table: str = "candidates"  # or "targets", all of them

    def draw_rows(self) -> NDArray[np.int64]:
        """Return the sorted row indices of the examples to train on, at least one.

        They depend on the seed and the number of rows alone.
        """
        num_rows = self.examples.num_rows(self.table)
        fraction = self.less.warmup_fraction if self.table == "candidates" else 1.0
        wanted = max(1, round(fraction * num_rows))
        sequence = np.random.SeedSequence([self.less.seed, WARMUP_STREAM])
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_rows)
        return np.sort(order[: min(wanted, self.less.max_warmup_examples)])


class WarmupStage(Stage):
    """Write ``checkpoints`` and, as files, the adapter and Adam's moments of each."""

    name: ClassVar[str] = "warmup"
    title: ClassVar[str] = "warm up the language model"
    produces = {"checkpoints": schemas.WARMUP_CHECKPOINTS}
    unit: ClassVar[str] = "runs"
    isolated = True
    can_use_gpu = True
    single_threaded = False
    memory_advice: ClassVar[str] = (
        "lower teacher.less.max_length or teacher.less.batch_size, or set teacher.less.quantization"
    )

    def __init__(
        self,
        job: WarmupJob,
        model_settings: Mapping[str, Any],
        workers: RayWorkers | None = None,
    ) -> None:
        """Train with Ray Train's workers, or in one process where there are none.

        ``model_settings`` are what of ``job.make_model`` shapes the numbers: name, revision,
        adapter, dtype, quantization, longest example.
        """
        self._job, self.workers, self._model_settings = job, workers, dict(model_settings)
        self.hands_over = workers is not None
        self.seed = job.less.seed
        self.inputs = {"examples": job.examples}

    def settings(self) -> dict[str, Any]:
        """Model, adapter, draw and optimiser; not what the workers run on."""
        by_targets = {"table": "targets"} if self._job.table == "targets" else {}
        return by_targets | {
            "model": self._model_settings,
            "fraction": self._job.less.warmup_fraction,
            "max_examples": self._job.less.max_warmup_examples,
            "training": {name: getattr(self._job.less, name) for name in TRAINING_KEYS},
            # Sums over other numbers of workers round otherwise.
            "num_workers": 1 if self.workers is None else self.workers.num_workers,
        }

    def make_worker(self) -> Worker:
        """Return the run."""

        def run(shard: Shard, sink: Sink) -> None:
            rows: list[dict[str, Any]] = []
            with warmed_up(self._job, self.workers) as (checkpoints, unfit):
                for number, checkpoint in enumerate(checkpoints):
                    for name, content in checkpoint_files(number, checkpoint):
                        sink.write_file(name, content)
                    rows.append({"checkpoint": number} | dataclasses.asdict(checkpoint.summary))
            for example, why in unfit:
                sink.error(
                    why.reason, why.message, example_id=example.example_id, excerpt=example.prompt
                )
            sink.facts["num_examples"] = len(self._job.draw_rows()) - len(unfit)
            sink.write_rows("checkpoints", rows, schemas.WARMUP_CHECKPOINTS)

        return run


@contextmanager
def warmed_up(
    job: WarmupJob, workers: RayWorkers | None
) -> Iterator[tuple[Iterable[WarmupCheckpoint], Unfit]]:
    """Train, and give the checkpoints one at a time and the examples left out.

    Of Ray Train's workers rank 0 leaves the checkpoints in files, which are gone in the end.

    Raises:
        StageError: If no drawn example can be trained on.
    """
    if workers is None:
        yield warm_up_here(job)
        return
    folder = workers.folder / f"warmup-{uuid.uuid4().hex[:8]}"
    try:
        unfit = train_on_ray(functools.partial(_warm_up_worker, job, folder), workers)
        numbers = range(job.less.num_epochs)
        yield (
            (read_checkpoint(n, lambda name: (folder / name).read_bytes()) for n in numbers),
            unfit,
        )
    finally:
        folder.delete_folder()


def _warm_up_worker(job: WarmupJob, folder: Location, rank: int, world: int) -> Unfit:
    checkpoints, unfit = warm_up_here(job, rank, world)
    for number, checkpoint in enumerate(checkpoints if rank == 0 else ()):
        for name, content in checkpoint_files(number, checkpoint):
            (folder / name).write_bytes(content)
    return unfit


def warm_up_here(
    job: WarmupJob, rank: int = 0, world: int = 1
) -> tuple[list[WarmupCheckpoint], Unfit]:
    """Train in this process, as one of several workers or alone; see ``warmed_up``."""
    model = job.make_model()
    try:
        table = job.examples.take_rows(job.table, job.draw_rows(), EXAMPLE_COLUMNS)
        drawn = [Example(**row) for row in table.to_pylist()]
        encoded = [(example, model.encode(example)) for example in drawn]
        unfit = [(one, why) for one, why in encoded if isinstance(why, ScoringFailure)]
        examples = [one for _, one in encoded if isinstance(one, TrainingExample)]
        if not examples:
            raise StageError(
                f"none of the {len(unfit)} examples drawn for the warm-up can be trained on (the "
                f"first: {unfit[0][1].message}); raise teacher.less.max_length or "
                "teacher.less.warmup_fraction"
            )
        return warm_up(model, examples, job.less, rank=rank, world=world), unfit
    finally:
        model.close()


def _file_names(number: int) -> tuple[str, str]:
    return f"warmup-{number}.safetensors", f"warmup-{number}.json"


def checkpoint_files(number: int, checkpoint: WarmupCheckpoint) -> list[tuple[str, bytes]]:
    """Return the files, name and content, that hold a checkpoint: tensors, and facts as JSON."""
    weights_name, facts_name = _file_names(number)
    tensors = {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group in TENSOR_GROUPS
        for name, array in getattr(checkpoint, group).items()
    }
    facts = json.dumps(dataclasses.asdict(checkpoint.summary), indent=1, sort_keys=True)
    return [(weights_name, safetensors.numpy.save(tensors)), (facts_name, facts.encode())]


def read_checkpoint(number: int, read_file: Callable[[str], bytes]) -> WarmupCheckpoint:
    """Return a checkpoint whose files are read by name, e.g. by ``StageOutput.read_file``."""
    weights_name, facts_name = _file_names(number)
    groups: dict[str, Arrays] = {}
    for key, array in safetensors.numpy.load(read_file(weights_name)).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = array
    summary = EpochSummary(**json.loads(read_file(facts_name)))
    return WarmupCheckpoint(**groups, summary=summary)
