"""How fast fine-tuning is, beside transformers' Trainer and the machine's own limit.

    python -m benchmarks.tuning --data FOLDER     # with t0_train.jsonl.gz; minutes on two cores
    python -m benchmarks.tuning --json            # the last line is one JSON object
    python -m benchmarks.tuning --write           # writes tuning_cpu.md and .json

Both train the same LoRA (rank 8, all linear layers but the head) on the same rows with the same
batches, learning rates and order, in turn; the Trainer has PEFT's model and pads with a collator as
usual. Their losses must agree. A token is one of a prompt or response, never padding. The limit is
the arithmetic that no way of training LoRA can do without (forward, and backward to activations:
4 x parameters of the layers a token, 4 x parameters of the head a response token, attention left
out) at the rate of a large matrix product of the same dtype, measured in between.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.teacher.texts import choose, read_rows
from nncift_ray.engines.embedded import EMBEDDED_LANGUAGE_MODEL
from nncift_ray.engines.lora import AdapterSpec, LoraModel, ModelOptions, TrainingExample
from nncift_ray.engines.models import resolve_language_model
from nncift_ray.evaluate.tune import LORA, choose_arithmetic, tune
from nncift_ray.teachers.warmup import TrainingSettings

SPEC = AdapterSpec(rank=8, alpha=16.0, dropout=0.0, target_modules=None, seed=0)
SETTINGS = TrainingSettings(
    num_epochs=1, learning_rate=2e-4, lr_warmup_fraction=0.0, batch_size=4, seed=0
)
TOKENS = (30, 250)  # of an example: what short T0 and GSM8K rows have
DTYPES = ("float32", "bfloat16")
ROUNDS = 2
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # nats a token
MATRIX = 1536  # rows and columns of the product whose rate is the limit
PRODUCTS = 12
HEADER = ("dtype", "way", "tokens/s", "of Trainer's", "share of the limit", "loss")


@dataclass(frozen=True)
class Run:
    """One training."""

    seconds: float
    loss: float  # nats a response token, of the epoch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the texts")
    parser.add_argument("--model", help="folder or hub id (default: the packaged model)")
    parser.add_argument("--examples", type=int, default=24, help="how many are trained on")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        path = resolve_language_model(options.model or EMBEDDED_LANGUAGE_MODEL).path
        examples = encode_texts(path, options.data, options.examples)
        rows = [row for dtype in DTYPES for row in measure(path, examples, dtype, Path(scratch))]
    figures: dict[str, Any] = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "examples": len(examples),
        "tokens": sum(len(example.input_ids) for example in examples),
        "table": rows,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(to_markdown(figures))
    if options.write:
        folder = Path(__file__).parent
        (folder / "tuning_cpu.md").write_text(to_markdown(figures))
        (folder / "tuning_cpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    if options.json:
        print(json.dumps(figures))


def load(path: str, dtype: str) -> LoraModel:
    """Load the model with fresh adapters."""
    how = choose_arithmetic(LORA, dtype, on_gpu=False)
    options = ModelOptions(dtype=how.dtype, autocast=how.autocast, device="cpu", max_length=600)
    return LoraModel(path, SPEC, options)


def encode_texts(path: str, data: Path, count: int) -> list[TrainingExample]:
    """Tokenise what is trained on: the first rows of a length that batches of four suit."""
    model = load(path, "float32")
    rows = read_rows(data / "t0_train.jsonl.gz")
    texts = choose(rows, model.tokenizer.encode, TOKENS, count)
    encoded = [model.encode(text) for text in texts]
    return [example for example in encoded if isinstance(example, TrainingExample)]


def measure(
    path: str, examples: Sequence[TrainingExample], dtype: str, scratch: Path
) -> list[dict[str, Any]]:
    """Train both ways in turn and compare seconds and losses."""
    runs: dict[str, list[Run]] = {"ours": [], "Trainer": []}
    rates: list[float] = []
    train_ours(load(path, dtype), examples[: SETTINGS.batch_size])  # threads and kernels wake up
    for _ in range(ROUNDS):
        runs["ours"].append(train_ours(load(path, dtype), examples))
        rates.append(product_rate(getattr(torch, dtype)))
        runs["Trainer"].append(train_theirs(load(path, dtype), examples, dtype, scratch))
    losses = {way: done[0].loss for way, done in runs.items()}
    if abs(losses["ours"] - losses["Trainer"]) > LOSS_TOLERANCE[dtype]:
        raise SystemExit(f"{dtype}: losses differ: {losses}")
    needed = least_operations(load(path, dtype), examples)
    best = {way: min(run.seconds for run in done) for way, done in runs.items()}
    tokens = sum(len(example.input_ids) for example in examples)
    return [
        {
            "dtype": dtype,
            "way": way,
            "tokens_per_second": round(tokens / best[way], 1),
            "of_trainer": round(best["Trainer"] / best[way], 2),
            "share_of_limit": round(needed / best[way] / max(rates), 2),
            "loss": round(losses[way], 4),
        }
        for way in runs
    ]


def train_ours(model: LoraModel, examples: Sequence[TrainingExample]) -> Run:
    """Train by the project's loop."""
    summary = tune(model, examples, SETTINGS)
    return Run(summary.seconds, summary.train_loss[0])


def train_theirs(
    model: LoraModel, examples: Sequence[TrainingExample], dtype: str, scratch: Path
) -> Run:
    """Train by transformers' Trainer, in our order of rows."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SETTINGS.seed))
    dataset: Any = [examples[n] for n in order.tolist()]
    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=SETTINGS.batch_size,
        num_train_epochs=SETTINGS.num_epochs,
        learning_rate=SETTINGS.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        bf16=dtype == "bfloat16",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(dataset)

    trainer = InOrder(model=model.model, args=arguments, train_dataset=dataset, data_collator=pad)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    sizes = [
        sum(example.num_response_tokens for example in dataset[at : at + SETTINGS.batch_size])
        for at in range(0, len(dataset), SETTINGS.batch_size)
    ]
    return Run(seconds, sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes))


def pad(batch: Sequence[TrainingExample]) -> dict[str, torch.Tensor]:
    """Pad a batch on the right, labels with -100."""
    width = max(len(example.input_ids) for example in batch)
    fields = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    padded = {name: torch.full((len(batch), width), fill) for name, fill in fields.items()}
    for b, example in enumerate(batch):
        length, start = len(example.input_ids), example.response_start
        padded["input_ids"][b, :length] = torch.tensor(example.input_ids)
        padded["labels"][b, start:length] = padded["input_ids"][b, start:length]
        padded["attention_mask"][b, :length] = 1
    return padded


def least_operations(model: LoraModel, examples: Sequence[TrainingExample]) -> float:
    """Count the floating point operations that training LoRA on some examples cannot do without."""
    layers = sum(
        module.base_layer.weight.numel()
        for module in model.model.modules()
        if hasattr(module, "base_layer")
    )
    head = model.model.get_output_embeddings().weight.numel()
    tokens = sum(len(example.input_ids) for example in examples)
    response_tokens = sum(example.num_response_tokens for example in examples)
    return 4.0 * (layers * tokens + head * response_tokens)


def product_rate(dtype: torch.dtype) -> float:
    """Return the operations a second of large matrix products: the best of some."""
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        torch.matmul(a, b)
        seconds.append(time.perf_counter() - started)
    return 2.0 * MATRIX**3 / min(seconds)


def to_markdown(figures: dict[str, Any]) -> str:
    """Write the page."""
    table = markdown_table(HEADER, [list(row.values()) for row in figures["table"]])
    return (
        "# tuning_cpu\n\n"
        f"`python -m benchmarks.tuning --json`. Machine: {figures['machine']}, "
        f"{figures['threads']} threads. Commit {figures['commit']}. LoRA of rank {SPEC.rank} on "
        f"all linear layers; one epoch over {figures['examples']} examples, {figures['tokens']:,} "
        f"tokens, {SETTINGS.batch_size} a step, the best of {ROUNDS} rounds in turn. "
        f"{figures['seconds']} s in all.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
