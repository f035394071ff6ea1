"""Fine-tuning on a subset, by transformers' Trainer with PEFT's adapters.

The output's folder ``files`` is what PEFT, transformers and vLLM load.
Source: LoRA, arXiv 2106.09685; on 4-bit weights: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example
from nncift_ray.engines import transformers
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import is_checkpointed
from nncift_ray.engines.memory import ADAPTER_CONFIG
from nncift_ray.engines.models import (
    ResolvedModel,
    TunedModel,
    actor_threads,
    auto_dtype,
    locate_model,
)
from nncift_ray.engines.tokens import (
    SegmentTokenizer,
    TrainingExample,
    encode_example,
    writing_settings,
)
from nncift_ray.errors import ModelError, StageError, StorageError
from nncift_ray.recipe.sections import TaughtTurns, Template, TuningConfig
from nncift_ray.runtime.driver import StepProgress, describe_steps
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import FILES_TABLE, Sink, StageOutput
from nncift_ray.runtime.schemas import TUNING
from nncift_ray.runtime.step import Shard, Stage, Worker

FULL, QLORA = "full", "qlora"
MAX_GRADIENT_NORM = 1.0
IGNORED = -100  # label of a token that the loss is not on
ADAPTER_KEYS = {"rank", "alpha", "dropout", "target_modules"}
CHUNK_BYTES = 1 << 24
QUANTIZATION_FACT = "quantization"


@dataclass(frozen=True)
class TuneJob:
    """What is trained, and how.

    What is trained is float32. With the dtype bfloat16, frozen weights on a GPU are held in it; on
    a CPU, and where all weights are trained, matrix products alone are taken in it (autocast): as
    fast, and sums and norms lose nothing.
    """

    model: ResolvedModel
    tuning: TuningConfig
    on_gpu: bool
    template: Template = "auto"
    turns: TaughtTurns = "all"

    @property
    def quantization(self) -> str | None:
        """How the base is quantised."""
        return transformers.BITSANDBYTES if self.tuning.method == QLORA else None

    @property
    def dtype(self) -> str:
        """What is computed in."""
        auto = auto_dtype(has_gpu=self.on_gpu)
        return auto if self.tuning.dtype == "auto" else self.tuning.dtype

    @property
    def uses_autocast(self) -> bool:
        """Whether bfloat16 is for matrix products alone."""
        return self.dtype == "bfloat16" and (not self.on_gpu or self.tuning.method == FULL)

    @property
    def weights_dtype(self) -> str:
        """What frozen weights are held in."""
        return "float32" if self.uses_autocast else self.dtype

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers."""
        unread = {"pool", "dtype", "gradient_checkpointing"} | (
            ADAPTER_KEYS if self.tuning.method == FULL else set()
        )
        return self.tuning.model_dump(mode="json", exclude=unread) | {
            "model": self.model.name,
            "revision": self.model.revision,
            "weights_dtype": self.weights_dtype,
            "autocast": self.uses_autocast,
            "max_gradient_norm": MAX_GRADIENT_NORM,
            **writing_settings(self.template, self.turns),
        }


@dataclass(frozen=True)
class TunedRecord:
    """What a training says of itself beside its files: a row of TUNING, and what it left out."""

    num_examples: int
    num_tokens: int
    num_steps: int
    train_loss: tuple[float, ...]
    seconds: float
    unfit: Sequence[tuple[Example, ScoringFailure]] = field(default=())


OnStep = Callable[[int, int], None]
#: Trains a job's model on examples, leaves its files in the folder, tells of its steps.
FineTune = Callable[[TuneJob, Sequence[Example], Path, OnStep], TunedRecord]


class TuneStage(Stage):
    """Write ``tuning`` and, as files, a PEFT adapter or a whole model."""

    name: ClassVar[str] = "tune"
    title: ClassVar[str] = "fine-tune the model on a subset"
    produces = {"tuning": TUNING}
    unit: ClassVar[str] = "runs"
    isolated: ClassVar[bool] = True
    can_use_gpu = True
    single_threaded = False
    max_actors = 1
    memory_advice: ClassVar[str] = (
        "set evaluation.tuning.method to qlora, lower evaluation.tuning.max_length or batch_size, "
        "or give the actor more memory (evaluation.tuning.pool)"
    )

    def __init__(
        self,
        examples: StageOutput,
        members: NDArray[np.int64],
        job: TuneJob,
        train: FineTune | None = None,
    ) -> None:
        """Train on the candidates of the deduplicated ``examples`` with these row numbers.

        Raises:
            ValueError: If the subset is empty.
        """
        if not len(members):
            raise ValueError("there is no example to fine-tune on: the subset is empty")
        self._examples, self._members, self._job = examples, members, job
        self._train, self.seed = train or fine_tune, job.tuning.seed
        self.inputs = {"examples": examples}

    @cached_property
    def _digest(self) -> str:
        return members_digest(self._examples, self._members)

    def settings(self) -> dict[str, Any]:
        """Subset, model and optimiser."""
        return {"members": self._digest, **self._job.settings()}

    def progress(self, folder: Location) -> str:
        """Say how many steps are done."""
        return describe_steps(folder)

    def make_worker(self) -> Worker:
        """Return the run."""

        def run(shard: Shard, sink: Sink) -> None:
            table = self._examples.take_rows("candidates", self._members, EXAMPLE_COLUMNS)
            examples = [Example(**row) for row in table.to_pylist()]
            with tempfile.TemporaryDirectory(prefix="nncift-tune-") as scratch:
                folder = Path(scratch)
                record = self._train(self._job, examples, folder, StepProgress(sink.folder))
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        out = sink.open_file(path.relative_to(folder).as_posix())
                        with path.open("rb") as source:
                            shutil.copyfileobj(source, out, CHUNK_BYTES)
            sink.facts[QUANTIZATION_FACT] = self._job.quantization
            for example, why in record.unfit:
                sink.error(
                    why.reason, why.message, example_id=example.example_id, excerpt=example.prompt
                )
            row = {name: getattr(record, name) for name in TUNING.names}
            sink.write_rows("tuning", [row], TUNING)

        return run


def members_digest(examples: StageOutput, members: NDArray[np.int64]) -> str:
    """Return the SHA-256, in hex, of the ids of a subset's examples in the order of its rows.

    Ids are hashes of content, so equal subsets of different methods share what follows.
    """
    ids = examples.take_rows("candidates", members, ["example_id"])["example_id"].to_pylist()
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def fine_tune(
    job: TuneJob, examples: Sequence[Example], folder: Path, on_step: OnStep
) -> TunedRecord:
    """Train in this process and write an adapter, or the whole model, into the folder.

    A step's loss is the mean over its response tokens, end token included.

    Raises:
        StageError: If none of the examples can be trained on.
        ModelError: If the loss stops being finite, memory does not suffice, or the model cannot be
            loaded or adapted.
    """
    start = time.perf_counter()
    if (threads := actor_threads()) is not None:
        torch.set_num_threads(threads)
    path, device = locate_model(job.model, "language model").path, transformers.pick_device("auto")
    tokenizer = SegmentTokenizer(path, template=job.template, turns=job.turns)
    try:
        model = _load(job, path, device)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = min(job.tuning.max_length, positions or job.tuning.max_length)
        encoded = [(each, encode_example(tokenizer, each, longest)) for each in examples]
        fit = [each for _, each in encoded if isinstance(each, TrainingExample)]
        unfit = [(each, why) for each, why in encoded if isinstance(why, ScoringFailure)]
        if not fit:
            raise StageError(
                f"none of the {len(unfit):,} examples of the subset can be trained on (the first: "
                f"{unfit[0][1].message}); raise evaluation.tuning.max_length"
            )
        passes = passes_of_a_step(job.tuning, device)
        while True:
            try:
                num_steps, losses = _train(job, model, fit, device, on_step, passes)
                break
            except torch.OutOfMemoryError:
                if passes == job.tuning.batch_size:
                    raise
            # Outside the handler, whose traceback holds what the failed pass held. From the start:
            # the loss of a step is the same in smaller passes.
            size = job.tuning.batch_size
            passes = next(n for n in range(passes + 1, size + 1) if size % n == 0)
            del model
            torch.cuda.empty_cache()
            model = _load(job, path, device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"fine-tuning does not fit into the memory of {device}: set "
            "evaluation.tuning.gradient_checkpointing to true or .method to qlora, "
            f"lower evaluation.tuning.max_length, or choose a smaller evaluation.model ({error})"
        ) from error
    _save(job, model, tokenizer, folder)
    num_tokens = sum(len(example.input_ids) for example in fit)
    seconds = time.perf_counter() - start
    return TunedRecord(len(fit), num_tokens, num_steps, losses, seconds, unfit)


def _load(job: TuneJob, path: str | Path, device: torch.device) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    tuning = job.tuning
    set_seed(tuning.seed)  # of LoRA's first weights
    model = transformers.load_language_model(
        path, device, dtype=job.weights_dtype, quantization=job.quantization
    )
    if tuning.method == FULL:
        return model
    transformers.keep_four_bit_input_whole(model)
    config = LoraConfig(
        r=tuning.rank,
        # Other programs expect a whole number where it is one.
        lora_alpha=int(tuning.alpha) if tuning.alpha.is_integer() else tuning.alpha,  # pyright: ignore
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.target_modules) if tuning.target_modules else "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"{job.model.name} cannot be adapted at "
            f"{', '.join(tuning.target_modules or ['any linear layer'])}; set "
            f"evaluation.tuning.target_modules to names of its linear layers: {error}"
        ) from error


def _train(
    job: TuneJob,
    model: Any,
    examples: Sequence[TrainingExample],
    device: torch.device,
    on_step: OnStep,
    passes: int,
) -> tuple[int, tuple[float, ...]]:
    """Train a loaded model in place; return the optimiser's steps and each epoch's loss."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    tuning = job.tuning
    num_passes = math.ceil(len(examples) * passes / tuning.batch_size)  # of an epoch
    loss = _ResponseLoss(num_passes * tuning.num_epochs, on_step)
    with tempfile.TemporaryDirectory(prefix="nncift-trainer-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=tuning.batch_size // passes,
            gradient_accumulation_steps=passes,
            num_train_epochs=tuning.num_epochs,
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=tuning.lr_warmup_fraction,  # below 1: a share of all steps
            weight_decay=0.0,
            max_grad_norm=MAX_GRADIENT_NORM,
            seed=tuning.seed,
            bf16=job.uses_autocast,
            gradient_checkpointing=is_checkpointed(
                model.config.get_text_config(), tuning.gradient_checkpointing
            ),
            gradient_checkpointing_kwargs={"use_reentrant": False},
            use_cpu=device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        forward = model.get_base_model().forward if tuning.method != FULL else model.forward
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=examples,  # pyright: ignore[reportArgumentType] - it has length and items
            data_collator=_Collator("logits_to_keep" in inspect.signature(forward).parameters),
            compute_loss_func=loss,
        )
        trainer.remove_callback(PrinterCallback)  # a dict amid the lines of progress
        trainer.train()
    epochs = np.array(loss.sums).reshape(tuning.num_epochs, -1, 2).sum(axis=1)
    return trainer.state.global_step, tuple((epochs[:, 0] / epochs[:, 1]).tolist())


def passes_of_a_step(tuning: TuningConfig, device: torch.device) -> int:
    """Return in how many passes a step is taken; on a CPU batches are no faster, and pad."""
    return tuning.batch_size if device.type == "cpu" else 1


@dataclass(frozen=True)
class _Collator:
    """Pads a batch on the right."""

    keeps_few_logits: bool  # whether the model can leave out the logits of prompts

    def __call__(self, batch: Sequence[TrainingExample]) -> dict[str, Any]:
        width = max(len(example.input_ids) for example in batch)
        fills = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
        padded: dict[str, Any] = {
            name: torch.full((len(batch), width), fill) for name, fill in fills.items()
        }
        for b, example in enumerate(batch):
            length, ids = len(example.input_ids), torch.tensor(example.input_ids)
            padded["input_ids"][b, :length] = ids
            padded["labels"][b, example.taught] = ids[example.taught]
            padded["attention_mask"][b, :length] = 1
        if self.keeps_few_logits:  # from before the first response token on
            padded["logits_to_keep"] = width + 1 - min(e.response_start for e in batch)
        return padded


class _ResponseLoss:
    """Nats of the response tokens, over the tokens of the whole step."""

    def __init__(self, num_passes: int, on_pass: OnStep) -> None:
        self.sums: list[tuple[float, int]] = []  # nats and tokens of each pass
        self._num_passes, self._on_pass = num_passes, on_pass

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        logits_BKV = outputs.logits
        targets_BK = labels[:, -logits_BKV.shape[1] :][:, 1:]
        wanted_BK = targets_BK != IGNORED
        logits_RV = logits_BKV[:, :-1][wanted_BK].float()
        nats = cross_entropy(logits_RV, targets_BK[wanted_BK], reduction="sum")
        self.sums.append((float(nats.detach()), int(wanted_BK.sum())))
        if not math.isfinite(self.sums[-1][0]):
            raise ModelError(
                f"the training loss is {self.sums[-1][0]} after {len(self.sums)} of "
                f"{self._num_passes} passes: lower evaluation.tuning.learning_rate, or take a "
                "dtype of more range"
            )
        self._on_pass(len(self.sums), self._num_passes)
        return nats / num_items_in_batch


def _save(job: TuneJob, model: Any, tokenizer: SegmentTokenizer, folder: Path) -> None:
    """Write safetensors and JSON for other programs; they name no folder of this machine."""
    if job.tuning.method == FULL:
        model.save_pretrained(folder)
        tokenizer.save(folder)
        return
    config = model.peft_config["default"]
    config.base_model_name_or_path = job.model.name
    names = model.base_model.targeted_module_names
    config.target_modules = sorted({name.rpartition(".")[2] for name in names})
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a model card of placeholders


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
    is_adapter = f"{FILES_TABLE}/{ADAPTER_CONFIG}" in names
    quantization = tuning.manifest.facts().get(QUANTIZATION_FACT)
    with tempfile.TemporaryDirectory(prefix="nncift-tuned-") as scratch:
        folder = Path(tuning.folder.path if tuning.folder.is_local else scratch)
        for name in [] if tuning.folder.is_local else names:
            _fetch(tuning.folder / name, folder / name)
        yield TunedModel(folder / FILES_TABLE, is_adapter, quantization)


def _fetch(source: Location, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.fs.open_input_stream(source.path) as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK_BYTES)
    except OSError as error:
        raise StorageError(f"{source}: cannot be fetched ({error})") from error
