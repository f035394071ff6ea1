"""Warm-up and gradients: what LESS measures with.

A LoRA adapter is trained on a random share of the candidates, one checkpoint an epoch, where a
model has begun to learn (section 4.1: 5 % of the pool, 4 epochs); at each checkpoint every sampled
example has one projected gradient a side (section 4). LESS needs the optimiser's moments, so the
training loop is our own.

Suffixes: B examples of a pass, D dimensions of a gradient, N rows of an atom, P projected
dimensions. Source: LESS, arXiv 2402.04333.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example, load_examples
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import TrainingExample, cut_batches
from nncift_ray.errors import ModelError, ShapeError, StageError
from nncift_ray.jit import compiled
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.session import RayWorkers, average_gradients, train_on_ray
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowSpan, RowStage, Shard, Stage, Worker
from nncift_ray.teachers.less import (
    GRADIENT_BLOCK_ROWS,
    HELPED,
    HELPER,
    GradientKey,
    checkpoint_of_table,
    gradient_table,
    pack_features,
)

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false

# Warm-up: a training of the adapter.

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


# Gradients: one for each sampled example, side and checkpoint.

#: Gradients that are padded, projected and stored together.
ATOM_ROWS = GRADIENT_BLOCK_ROWS
DEFAULT_SHARD_ROWS = 128
NOT_FINITE = "not_finite"
#: Gradients held at once. More examples share one sweep over the projection's signs.
GRADIENT_BYTES = {"cpu": 2 << 30, "cuda": 8 << 30}


class GradientsStage(RowStage):
    """Write ``checkpoint_0``, ``checkpoint_1``, ...: the same examples in the same order in each.

    Items run through a checkpoint before the next, so that an actor loads each about once.
    """

    name: ClassVar[str] = "gradients"
    title: ClassVar[str] = "take gradients of the sampled examples"
    version: ClassVar[int] = 3
    unit: ClassVar[str] = "gradients"
    can_use_gpu = True
    single_threaded = False
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"
    divisible: ClassVar[bool] = True
    memory_advice: ClassVar[str] = (
        "lower teacher.batch_tokens or teacher.less.max_length, or give fewer actors "
        "(teacher.less.pool) more memory"
    )

    def __init__(
        self,
        keys: Sequence[GradientKey],
        examples: StageOutput,
        warmup: StageOutput,
        make_model: Callable[[], LoraModel],
        less: LessConfig,
        batch_tokens: int | None,
        storage: str = "float32",
    ) -> None:
        """Take gradients of some (deduplicated) examples at a warm-up's checkpoints.

        ``make_model`` loads the model that was warmed up; its adapter is replaced.
        ``batch_tokens`` are the padded tokens computed at once, None for what the memory allows;
        other batches round otherwise.
        """
        self._keys, self._examples, self._warmup = list(keys), examples, warmup
        self._make_model, self._less, self._batch_tokens = make_model, less, batch_tokens
        self._storage = storage
        self.seed = less.seed
        self._shard_rows = less.pool.shard_rows or DEFAULT_SHARD_ROWS
        ranges = tuple((table, len(self._keys)) for table in self.produces)
        self._atoms = RowAtoms(ranges, ATOM_ROWS)
        self.inputs = {"examples": examples, "warmup": warmup}

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """A table a checkpoint."""
        schema = schemas.gradients_schema(self._less.projection_dim, self._storage)
        return {gradient_table(n): schema for n in range(self._warmup.num_rows("checkpoints"))}

    def settings(self) -> dict[str, Any]:
        """Which gradients, their projection and what is computed together."""
        keys = json.dumps(self._keys).encode()
        return ({} if self._storage == "float32" else {"storage": self._storage}) | {
            "gradients": hashlib.sha256(keys).hexdigest(),
            "projection_dim": self._less.projection_dim,
            "seed": self.seed,
            "batch_tokens": self._batch_tokens,
            "atom_rows": ATOM_ROWS,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Gradients of some atoms, numbered through all checkpoints."""
        spans = list(self._atoms.spans(start, stop))
        return range(self._numbers(spans[0]).start, self._numbers(spans[-1]).stop)

    def rows_to_quarantine(self, poison: Sequence[int], rows: range) -> Mapping[int, str]:
        """Return the other gradients of an example of which one killed its worker."""
        guilty = {self._key(number).example for number in poison}
        message = "another gradient of the same example killed its worker; this was not tried"
        return {number: message for number in rows if self._key(number).example in guilty}

    def _numbers(self, span: RowSpan) -> range:
        first = checkpoint_of_table(span.name) * len(self._keys)
        return range(first + span.start, first + span.stop)

    def _key(self, number: int) -> GradientKey:
        return self._keys[number % len(self._keys)]

    def make_worker(self) -> Worker:
        """Load the model and the sampled texts."""
        examples = load_examples(self._examples, {key.example for key in self._keys})
        first_place = {key.example: at for at, key in reversed(list(enumerate(self._keys)))}
        model = self._make_model()
        projector = RademacherProjector(
            model.num_adapter_parameters, self._less.projection_dim, self.seed
        )
        loaded: dict[int, WarmupCheckpoint] = {}  # the last one: they may be large

        def take_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                numbers = shard.wanted(self._numbers(span))
                if not numbers:
                    continue
                checkpoint = checkpoint_of_table(span.name)
                if checkpoint not in loaded:
                    loaded.clear()
                    loaded[checkpoint] = read_checkpoint(checkpoint, self._warmup.read_file)
                    model.load_adapter(loaded[checkpoint].adapter)
                keys = [self._key(number) for number in numbers]
                texts = [examples[key.example] for key in keys]
                encoded = [
                    ScoringFailure(KILLED_WORKER, shard.skip[number])
                    if number in shard.skip
                    else model.encode(text)
                    for number, text in zip(numbers, texts, strict=True)
                ]
                features_NP, failures = take_gradients(
                    model, encoded, keys, projector, loaded[checkpoint], self._batch_tokens
                )
                sink.write(
                    span.name,
                    _feature_table(keys, texts, features_NP, failures, self._storage),
                )
                for at, failure in sorted(failures.items()):
                    # What is wrong with a text is told once, not on both sides of every checkpoint.
                    first = numbers[at] == first_place[keys[at].example]
                    if first or failure.reason in (NOT_FINITE, KILLED_WORKER):
                        sink.error(
                            failure.reason,
                            failure.message,
                            example_id=texts[at].example_id,
                            excerpt=texts[at].prompt,
                        )

        return take_shard


class TargetGradientsStage(GradientsStage):
    """The gradients of the rows, in a step of their own: those of the candidates outlive them."""

    name: ClassVar[str] = "target_gradients"
    title: ClassVar[str] = "take gradients of the targets"


def take_gradients(
    model: LoraModel,
    encoded: Sequence[TrainingExample | ScoringFailure],
    keys: Sequence[GradientKey],
    projector: RademacherProjector,
    checkpoint: WarmupCheckpoint,
    batch_tokens: int | None,
) -> tuple[NDArray[np.float32], dict[int, ScoringFailure]]:
    """Return features [N, P], zeros where there is none, and by row why: plain for the helped.

    Those of helpers are Adam's next step from the checkpoint that the model has loaded.
    """
    failures = {at: one for at, one in enumerate(encoded) if isinstance(one, ScoringFailure)}
    features_NP = np.zeros((len(keys), projector.output_dim), np.float32)
    for side in (HELPED, HELPER):
        sound = {
            at: one
            for at, one in enumerate(encoded)
            if isinstance(one, TrainingExample) and keys[at].side == side
        }
        if sound:
            features_NP[list(sound)] = project_gradients(
                model,
                list(sound.values()),
                projector,
                adam=checkpoint if side == HELPER else None,
                batch_tokens=batch_tokens,
            )
    number = checkpoint.summary.epoch - 1
    for at in np.flatnonzero(~np.isfinite(features_NP).all(axis=1)).tolist():
        where = f"as {keys[at].side} at checkpoint {number}"
        failures[at] = ScoringFailure(NOT_FINITE, f"its gradient {where} is zero or not finite")
        features_NP[at] = 0.0
    return features_NP, failures


def _feature_table(
    keys: Sequence[GradientKey],
    examples: Sequence[Example],
    features_NP: NDArray[np.float32],
    failures: Mapping[int, ScoringFailure],
    storage: str,
) -> pa.Table:
    num_rows, projection_dim = features_NP.shape
    missing = np.array([at in failures for at in range(num_rows)])
    stored = pack_features(features_NP, storage)
    flat = pa.array(stored.reshape(-1))
    return pa.Table.from_pydict(
        {
            "side": [key.side for key in keys],
            "role": [key.role for key in keys],
            "row_index": [key.row_index for key in keys],
            "example_id": [example.example_id for example in examples],
            "done": ~missing,
            "feature": pa.FixedSizeListArray.from_arrays(
                flat, stored.shape[1], mask=pa.array(missing)
            ),
        },
        schema=schemas.gradients_schema(projection_dim, storage),
    )


# Per-example gradients of LoRA matrices, a batch at a time.


def project_gradients(
    model: LoraModel,
    examples: Sequence[TrainingExample],
    projector: RademacherProjector,
    *,
    adam: WarmupCheckpoint | None,
    batch_tokens: int | None,
) -> NDArray[np.float32]:
    """Return every example's projected gradient at the loaded adapter, of unit norm [N, P].

    NaN in the row of an example whose gradient is zero or not finite. The gradient is that of the
    mean loss over the example's own response tokens, taken without dropout in float32, the
    adapter's matrices flattened one behind the other in the order of ``model.parameters``. A
    row depends on the examples of this call (their padding) but on nothing that was computed
    before. With ``adam``, gradients are turned into the direction of the next training step.

    Memory: GRADIENT_BYTES of gradients at most (one example's at least), beside the activations.
    """
    num_dims = model.num_adapter_parameters
    budget = GRADIENT_BYTES.get(model.device.type, GRADIENT_BYTES["cpu"])
    num_rows = max(1, min(len(examples), budget // (4 * num_dims)))
    features_NP = np.full((len(examples), projector.output_dim), np.nan, np.float32)
    by_length = sorted(range(len(examples)), key=lambda n: (-len(examples[n].input_ids), n))
    for start in range(0, len(examples), num_rows):
        group = by_length[start : start + num_rows]
        gradients_ND = _gradients(model, [examples[n] for n in group], batch_tokens)
        has_direction_N = torch.linalg.vector_norm(gradients_ND, dim=1) > 0
        if adam is not None:
            _precondition(gradients_ND, model, adam)
        features = projector.project(gradients_ND).cpu().double().numpy()
        norms_N = np.linalg.norm(features, axis=1)
        good_N = has_direction_N.cpu().numpy() & np.isfinite(norms_N) & (norms_N > 0)
        features_NP[np.asarray(group)[good_N]] = features[good_N] / norms_N[good_N, None]
    return features_NP


def per_example_gradients(model: LoraModel, batch: Sequence[TrainingExample]) -> dict[str, Tensor]:
    """Return the gradient of every example's loss by each LoRA matrix [B, *shape], float32."""
    gradients: dict[str, Tensor] = {}
    _backward(model, batch, gradients.__setitem__)
    return {name: gradients[name] for name in model.parameters}


def _gradients(
    model: LoraModel, examples: Sequence[TrainingExample], batch_tokens: int | None
) -> Tensor:
    """Return the flat gradients [N, D] of examples sorted by length."""
    sizes = [parameter.numel() for parameter in model.parameters.values()]
    gradients_ND = torch.empty(
        (len(examples), sum(sizes)), device=model.device, dtype=torch.float32
    )
    views = dict(zip(model.parameters, gradients_ND.split(sizes, dim=1), strict=True))

    def fill(pass_tokens: int) -> None:
        for batch in cut_batches([len(e.input_ids) for e in examples], 0, pass_tokens):
            rows = slice(batch[0], batch[-1] + 1)  # they are sorted already

            def store(name: str, gradient: Tensor, rows: slice = rows) -> None:
                views[name][rows] = gradient.flatten(1)

            _backward(model, examples[rows], store)

    model.in_passes(fill, batch_tokens)
    return gradients_ND


def _backward(
    model: LoraModel, batch: Sequence[TrainingExample], sink: Callable[[str, Tensor], None]
) -> None:
    """Hand each LoRA matrix's per-example gradients [B, *shape] to the sink as they are made."""
    model.disable_dropout()
    hooks: list[Any] = []
    for name, down, up in model.adapted_layers():
        # The adapter casts its input to float32: kept as it comes, layers that share it share it.
        whole: list[Tensor] = []

        def keep_input(_: nn.Module, inputs: tuple[Any, ...], kept: list[Tensor] = whole) -> None:
            kept[:] = [inputs[0].detach()]

        layer = model.model.get_submodule(name)
        hooks += [
            layer.register_forward_pre_hook(keep_input),
            down.register_forward_hook(_forward_hook(f"{name}.lora_A.weight", sink, whole)),
            up.register_forward_hook(_forward_hook(f"{name}.lora_B.weight", sink)),
        ]
    for parameter in model.parameters.values():
        parameter.requires_grad_(False)
    try:
        # Each loss depends on its own example alone: the sum's gradient holds every one's.
        model.losses(batch).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.model.eval()
        for parameter in model.parameters.values():
            parameter.requires_grad_(True)


def _forward_hook(
    name: str, sink: Callable[[str, Tensor], None], kept: list[Tensor] | None = None
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output_BSO: Tensor) -> None:
        inputs_BSI = inputs[0].detach() if kept is None else kept.pop()
        # Below the first adapter nothing requires a gradient: the backward pass ends there.
        output_BSO.requires_grad_()
        output_BSO.register_hook(
            lambda grad_BSO: sink(
                name, torch.bmm(grad_BSO.transpose(1, 2), inputs_BSI.to(grad_BSO.dtype))
            )
        )

    return hook


def _precondition(gradients_ND: Tensor, model: LoraModel, checkpoint: WarmupCheckpoint) -> None:
    """Turn gradients into Adam's directions, matrix by matrix, in place."""
    sizes = [parameter.numel() for parameter in model.parameters.values()]
    for name, part_ND in zip(model.parameters, gradients_ND.split(sizes, dim=1), strict=True):
        mean_D, square_D = (
            torch.tensor(moments[name], device=gradients_ND.device).flatten()
            for moments in (checkpoint.exp_avg, checkpoint.exp_avg_sq)
        )
        part_ND.copy_(precondition(part_ND, mean_D, square_D, checkpoint.summary.num_steps))


def precondition(
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    num_steps: int,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> Tensor:
    """Return the direction of Adam's next step, were this gradient the next one.

    With t = num_steps + 1, m = beta1 * exp_avg + (1 - beta1) g and v likewise with g^2:

        (m / (1 - beta1^t)) / sqrt(v / (1 - beta2^t) + epsilon)

    Epsilon stands under the root, as in the paper and in its code (which leaves both corrections
    out); torch.optim.Adam adds it to the root, where it is all but nothing.

    The gradient is [*shape] or [B, *shape], the moments [*shape]; they have seen ``num_steps``.

    Raises:
        ShapeError: If the moments do not fit the gradient's last dimensions.

    Source: LESS, section 3.1; Adam, arXiv 1412.6980, algorithm 1.
    """
    shape = exp_avg.shape
    if exp_avg_sq.shape != shape or gradient.shape[gradient.ndim - len(shape) :] != shape:
        msg = (
            f"gradient {tuple(gradient.shape)} does not end in the shape of the moments "
            f"{tuple(shape)}, {tuple(exp_avg_sq.shape)}"
        )
        raise ShapeError(msg)
    step = num_steps + 1
    mean = (beta1 * exp_avg).add(gradient, alpha=1 - beta1).div_(1 - beta1**step)
    root = (beta2 * exp_avg_sq).addcmul(gradient, gradient, value=1 - beta2)
    return mean.div_(root.div_(1 - beta2**step).add_(epsilon).sqrt_())


# Random projection: a hash makes the signs, so that the matrix is never stored.

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = np.uint64

NUM_LANES = 32  # examples of one sweep; a constant, so that the compiler makes vector code of it
WORD_BITS = 64  # rows of R in one hash
FOLD_WORDS = 256  # words summed in float32 before they go to a float64 total
BLOCK_BYTES = 256 << 20  # signs written out at once on an accelerator

# The steps of splitmix64, as unsigned numbers for numba and as signed ones for torch.
_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STEP_U, _MIX_1_U, _MIX_2_U = U64(_STEP), U64(_MIX_1), U64(_MIX_2)
_S8, _S16, _S24, _S27, _S30, _S31 = U64(8), U64(16), U64(24), U64(27), U64(30), U64(31)
_S32, _S40, _S48, _S56, _BYTE = U64(32), U64(40), U64(48), U64(56), U64(255)


class RademacherProjector:
    """x R / sqrt(P) for a matrix R [D, P] of random signs, fixed by the seed.

    Inner products keep their expected value; for unit vectors the error has a standard deviation
    of at most sqrt(2 / P).
    """

    def __init__(self, input_dim: int, output_dim: int, seed: int) -> None:
        """Fix the matrix.

        Raises:
            ValueError: If a dimension is not positive or the seed is negative.
        """
        if input_dim < 1 or output_dim < 1 or seed < 0:
            msg = f"dimensions {input_dim} to {output_dim} must be >= 1 and the seed {seed} >= 0"
            raise ValueError(msg)
        self.input_dim, self.output_dim, self.seed = input_dim, output_dim, seed

    def project(self, x_BD: Tensor) -> Tensor:
        """Return x R / sqrt(P) [B, P], float32 on the device of x [B, D].

        On a CPU a row's result does not depend on the other rows, nor on the threads.

        Raises:
            ShapeError: If x is not [B, D].

        Memory: CPU, for each thread 256 KiB, and 12 * 32 * P bytes in all; elsewhere BLOCK_BYTES.
        """
        if x_BD.shape[1:] != (self.input_dim,):
            msg = f"x must be [B, {self.input_dim}], got {tuple(x_BD.shape)}"
            raise ShapeError(msg)
        x_BD = x_BD.detach().float()
        if x_BD.device.type == "cpu":
            return torch.from_numpy(self._project_with_tables(x_BD.numpy()))
        return self._project_with_blocks(x_BD)

    def _project_with_tables(self, x_BD: F32) -> F32:
        """Project 32 rows at a time; the threads share the columns."""
        num_threads = min(torch.get_num_threads(), self.output_dim)
        edges = np.linspace(0, self.output_dim, num_threads + 1).astype(int)
        out_BP = np.empty((len(x_BD), self.output_dim), np.float32)
        with ThreadPoolExecutor(num_threads) as threads:
            for start in range(0, len(x_BD), NUM_LANES):
                rows = slice(start, start + NUM_LANES)
                sums_PL = np.zeros((self.output_dim, NUM_LANES), np.float64)
                parts = [
                    threads.submit(_sweep, x_BD[rows], U64(self.seed), low, sums_PL[low:high])
                    for low, high in zip(edges[:-1], edges[1:], strict=True)
                ]
                for part in parts:
                    part.result()
                out_BP[rows] = sums_PL.T[: len(x_BD[rows])] / math.sqrt(self.output_dim)
        return out_BP

    def _project_with_blocks(self, x_BD: Tensor) -> Tensor:
        """Write out signs of whole words of rows, block by block, and multiply."""
        num_rows = max(1, BLOCK_BYTES // (4 * WORD_BITS * self.output_dim)) * WORD_BITS
        out_BP = x_BD.new_zeros((len(x_BD), self.output_dim))
        for low in range(0, self.input_dim, num_rows):
            high = min(low + num_rows, self.input_dim)
            out_BP += x_BD[:, low:high] @ self._signs(low, high, x_BD.device).T
        return out_BP / math.sqrt(self.output_dim)

    def _signs(self, low: int, high: int, device: torch.device) -> Tensor:
        """Return rows low to high of R, transposed [P, high - low], by torch's integers."""
        first, last = low // WORD_BITS, (high - 1) // WORD_BITS + 1
        words_W = torch.arange(first, last, device=device)
        columns_P = torch.arange(self.output_dim, device=device)
        seed = torch.tensor(self.seed, device=device)
        keys_W = _mix_tensor(_mix_tensor(seed + _signed(_STEP)) + words_W * _signed(_STEP))
        hash_PW = _mix_tensor(keys_W[None] + (columns_P[:, None] + 1) * _signed(_STEP))
        bytes_PB = hash_PW.view(torch.uint8)  # of little-endian words: lowest rows first
        values = torch.arange(256, device=device)[:, None]
        table = ((values >> torch.arange(8, device=device)) & 1).float() * 2 - 1
        signs = torch.nn.functional.embedding(bytes_PB.int(), table).flatten(1)
        skip = low - first * WORD_BITS
        return signs[:, skip : skip + high - low]


@compiled
def _mix(z: np.uint64) -> np.uint64:
    """Return the finaliser of splitmix64: every input bit moves half of the output bits."""
    z = (z ^ (z >> _S30)) * _MIX_1_U
    z = (z ^ (z >> _S27)) * _MIX_2_U
    return z ^ (z >> _S31)


@compiled
def _fill_tables(inputs_DL: F32, tables_GML: F32) -> None:
    """Table the 256 signed sums of each 8 of 64 inputs; bit b of the index is the sign of b."""
    for group in range(8):
        tables_GML[group, 0, :] = 0.0
        for bit in range(8):
            size = 1 << bit
            d = group * 8 + bit
            for m in range(size):
                for lane in range(NUM_LANES):
                    value = inputs_DL[d, lane]
                    tables_GML[group, m + size, lane] = tables_GML[group, m, lane] + value
                    tables_GML[group, m, lane] = tables_GML[group, m, lane] - value


@compiled
def _add_word(tables_GML: F32, key: np.uint64, first_column: int, sums_PL: F32) -> None:
    """Add the signed sums of 64 inputs to every column."""
    for p in range(sums_PL.shape[0]):
        h = _mix(key + U64(first_column + p + 1) * _STEP_U)
        i0, i1, i2, i3 = h & _BYTE, (h >> _S8) & _BYTE, (h >> _S16) & _BYTE, (h >> _S24) & _BYTE
        i4, i5, i6 = (h >> _S32) & _BYTE, (h >> _S40) & _BYTE, (h >> _S48) & _BYTE
        i7 = h >> _S56
        for lane in range(NUM_LANES):
            low = (tables_GML[0, i0, lane] + tables_GML[1, i1, lane]) + (
                tables_GML[2, i2, lane] + tables_GML[3, i3, lane]
            )
            high = (tables_GML[4, i4, lane] + tables_GML[5, i5, lane]) + (
                tables_GML[6, i6, lane] + tables_GML[7, i7, lane]
            )
            sums_PL[p, lane] += low + high


@compiled
def _sweep(x_BD: F32, seed: np.uint64, first_column: int, total_PL: F64) -> None:
    """Add x @ R[:, first_column:] to the totals, for at most NUM_LANES rows of x."""
    num_rows, width = x_BD.shape
    inputs_DL = np.zeros((WORD_BITS, NUM_LANES), np.float32)
    tables_GML = np.empty((8, 256, NUM_LANES), np.float32)
    sums_PL = np.zeros((total_PL.shape[0], NUM_LANES), np.float32)
    seed_key = _mix(seed + _STEP_U)
    last = (width - 1) // WORD_BITS + 1
    for word in range(last):
        for k in range(WORD_BITS):
            d = word * WORD_BITS + k
            for row in range(num_rows):
                inputs_DL[k, row] = x_BD[row, d] if d < width else 0.0
        _fill_tables(inputs_DL, tables_GML)
        _add_word(tables_GML, _mix(seed_key + U64(word) * _STEP_U), first_column, sums_PL)
        if (word + 1) % FOLD_WORDS == 0 or word + 1 == last:
            total_PL += sums_PL
            sums_PL[:] = 0.0


def _signed(number: int) -> int:
    """Return the signed 64-bit integer of the same bits."""
    return number - (1 << 64) if number >> 63 else number


def _mix_tensor(z: Tensor) -> Tensor:
    """Return ``_mix`` of int64 bits: products wrap alike, and a mask makes the shifts logical."""
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
