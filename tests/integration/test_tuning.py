"""Fine-tuning against what others make of it: transformers' Trainer, PEFT, vLLM, two workers."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine, ScoringRequest, ScoringResult
from nncift_ray.engines.load import TunedModel, apply_tuning
from nncift_ray.engines.lora import LoraModel, TrainableModel, TrainingExample
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.evaluate.tune import tune
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.warmup import TrainingSettings, Workers
from tests.unit.stages.evaluation.tune_chain import QUANTIZATION, make_base, make_factory

TEXTS = [
    Example(str(n), f"What is {n} and{' and' * n} {n}?", f"{2 * n}." * (n + 1)) for n in range(7)
]
#: All examples in every step, so that no order can differ.
SETTINGS = TrainingSettings(
    num_epochs=3, learning_rate=1e-2, lr_warmup_fraction=0.0, batch_size=len(TEXTS), seed=0
)
METHODS = ("lora", "full", "qlora")
SAME_WEIGHTS = 1e-5
SAME_NLL = 1e-4
OTHER_ENGINE_NLL = 1e-3
#: Of 4-bit layers that bitsandbytes, left to itself, multiplies in bfloat16 where the CPU can.
BFLOAT16_NLL = 0.05


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


def make_model(base: Path, method: str) -> tuple[TrainableModel, list[TrainingExample]]:
    model = make_factory(base, method, num_threads=1)()
    encoded = [model.encode(text) for text in TEXTS]
    return model, [one for one in encoded if isinstance(one, TrainingExample)]


@dataclasses.dataclass
class Tuned:
    files: TunedModel
    examples: list[TrainingExample]
    nll: list[float]  # by the model that was trained, of each example
    fresh_nll: list[float]  # before that


@pytest.fixture(scope="module", params=METHODS)
def tuned(request: pytest.FixtureRequest, base: Path, tmp_path_factory: Any) -> Tuned:
    method: str = request.param
    model, examples = make_model(base, method)
    with torch.no_grad():
        fresh = model.losses(examples).tolist()
    tune(model, examples, SETTINGS)
    with torch.no_grad():
        trained = model.losses(examples).tolist()
    folder = tmp_path_factory.mktemp(method)
    model.save(folder, "tiny")
    files = TunedModel(folder, method != "full", QUANTIZATION[method])
    return Tuned(files, examples, trained, fresh)


def nll_of(engine: Engine, examples: list[TrainingExample]) -> list[float]:
    requests = [
        ScoringRequest(e.input_ids[: e.response_start], e.input_ids[e.response_start :])
        for e in examples
    ]
    results = engine.score(requests)
    assert all(isinstance(result, ScoringResult) for result in results)
    return [-float(r.log_probs.mean()) for r in results if isinstance(r, ScoringResult)]


def test_an_engine_with_the_files_is_the_model_that_was_trained(tuned: Tuned, base: Path) -> None:
    options = EngineConfig(engine="transformers", max_length=600)
    engine = TransformersEngine(*apply_tuning(base, options, tuned.files), device="cpu")
    assert nll_of(engine, tuned.examples) == pytest.approx(tuned.nll, abs=SAME_NLL)
    assert np.mean(tuned.nll) < np.mean(tuned.fresh_nll) - 0.5


def test_peft_and_transformers_load_the_files_whole(tuned: Tuned, base: Path) -> None:
    from bitsandbytes.functional import has_avx512bf16
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    rounds = tuned.files.quantization is not None and has_avx512bf16()
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    folder = tuned.files.folder
    model: Any = AutoModelForCausalLM.from_pretrained(
        base if tuned.files.is_adapter else folder,
        dtype=torch.float32,
        quantization_config=quantised if tuned.files.quantization else None,
        device_map={"": "cpu"},
    )
    if tuned.files.is_adapter:
        model = PeftModel.from_pretrained(model, folder)
        loaded = model.peft_config["default"]
        assert (loaded.r, loaded.lora_alpha) == (4, 8)
        assert loaded.base_model_name_or_path == "tiny"
    else:
        before, after = (AutoTokenizer.from_pretrained(path) for path in (base, folder))
        text = "What is 12?\n\n1. é 中 <|end|>"
        assert before(text)["input_ids"] == after(text)["input_ids"]
        assert before.eos_token_id == after.eos_token_id
    for example, expected in zip(tuned.examples, tuned.nll, strict=True):
        labels = torch.tensor([example.input_ids])
        labels[0, : example.response_start] = -100
        with torch.no_grad():
            loss = model.eval()(torch.tensor([example.input_ids]), labels=labels).loss
        assert float(loss) == pytest.approx(expected, abs=BFLOAT16_NLL if rounds else SAME_NLL)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_vllm_with_the_files_is_the_model_that_was_trained(tuned: Tuned, base: Path) -> None:
    options = EngineConfig(engine="vllm", kv_cache_memory_bytes=64 << 20, max_length=600)
    engine = VllmEngine(*apply_tuning(base, options, tuned.files))
    found = nll_of(engine, tuned.examples)
    engine.close()
    if tuned.files.quantization is None:
        assert found == pytest.approx(tuned.nll, abs=OTHER_ENGINE_NLL)
        return
    # On weights that are not rounded to 4 bits the adapter still does what it was trained for.
    assert found != pytest.approx(tuned.nll, abs=OTHER_ENGINE_NLL)
    assert np.mean(found) < np.mean(tuned.fresh_nll) - 0.5


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_weights_are_those_of_transformers_trainer(
    base: Path, tmp_path: Path, method: str
) -> None:
    ours, examples = make_model(base, method)
    theirs, _ = make_model(base, method)
    summary = tune(ours, examples, SETTINGS)
    losses = train_with_trainer(theirs.model, examples, tmp_path)
    assert summary.train_loss == pytest.approx(losses, rel=SAME_NLL)
    moved = 0.0
    fresh, _ = make_model(base, method)
    for name, parameter in ours.parameters.items():
        difference = (parameter - theirs.parameters[name]).abs()
        # An entry of hardly any gradient moves by a ratio of two roundings.
        assert float((difference < SAME_WEIGHTS).float().mean()) > 0.99, name
        moved = max(moved, float((parameter - fresh.parameters[name]).abs().max()))
    assert moved > SETTINGS.learning_rate


def train_with_trainer(model: Any, examples: list[TrainingExample], folder: Path) -> list[float]:
    """Train with the library's own loop, collator and loss; return the loss of every step."""
    from transformers import Trainer, TrainingArguments

    def collate(batch: list[TrainingExample]) -> dict[str, torch.Tensor]:
        width = max(len(example.input_ids) for example in batch)
        shape = (len(batch), width)
        ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        mask = torch.zeros(shape, dtype=torch.long)
        for b, example in enumerate(batch):
            length, start = len(example.input_ids), example.response_start
            ids[b, :length] = torch.tensor(example.input_ids)
            labels[b, start:length] = ids[b, start:length]
            mask[b, :length] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=SETTINGS.batch_size,
        num_train_epochs=SETTINGS.num_epochs,
        learning_rate=SETTINGS.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    dataset: Any = examples
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_two_workers_end_as_one_does(base: Path) -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=3)  # 3, 3 and 1: one has nothing to do
    alone, examples = make_model(base, "lora")
    expected = tune(alone, examples, settings)
    models = [make_model(base, "lora")[0] for _ in range(2)]
    for model, summary in zip(models, tune_together(models, examples, settings), strict=True):
        assert summary.train_loss == pytest.approx(expected.train_loss, rel=SAME_NLL)
        assert isinstance(model, LoraModel)
        for name, parameter in model.parameters.items():
            difference = (parameter - alone.parameters[name]).abs()
            assert float((difference < SAME_WEIGHTS).float().mean()) > 0.99, name


def tune_together(
    models: list[TrainableModel], examples: list[TrainingExample], settings: TrainingSettings
) -> list[Any]:
    """Two threads that meet at a barrier in place of two processes that all-reduce."""
    barrier = threading.Barrier(2, timeout=120)
    grads: list[list[torch.Tensor]] = [[], []]
    results: list[Any] = [None, None]

    def make_reduce(rank: int) -> Callable[[list[torch.nn.Parameter]], None]:
        def reduce(parameters: list[torch.nn.Parameter]) -> None:
            grads[rank] = [p.grad.clone() for p in parameters if p.grad is not None]
            barrier.wait()
            for parameter, a, b in zip(parameters, *grads, strict=True):
                parameter.grad = (a + b) / 2
            barrier.wait()

        return reduce

    def work(rank: int) -> None:
        workers = Workers(rank, 2, make_reduce(rank))
        results[rank] = tune(models[rank], examples, settings, workers=workers)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_batch_weighs_tokens_alike_and_not_examples(base: Path) -> None:
    model, examples = make_model(base, "lora")
    with torch.no_grad():
        each = model.losses(examples).tolist()
    sizes = [example.num_response_tokens for example in examples]
    expected = sum(loss * size for loss, size in zip(each, sizes, strict=True)) / sum(sizes)
    first = tune(model, examples, dataclasses.replace(SETTINGS, num_epochs=1)).train_loss
    assert first == pytest.approx([expected], rel=SAME_NLL)
    assert expected != pytest.approx(np.mean(each), rel=10 * SAME_NLL)
