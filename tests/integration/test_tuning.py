"""Fine-tuned files as others load them: PEFT, transformers, vLLM."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.models import TunedModel, apply_tuning
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.evaluation.tune import fine_tune
from nncift_ray.recipe.sections import EngineConfig
from tests.unit.evaluate.tune_chain import encode, load, make_base, make_job, nll_of

TEXTS = [
    Example(str(n), f"What is {n} and{' and' * n} {n}?", f"{2 * n}." * (n + 1)) for n in range(7)
]
SAME_NLL = 1e-4
OTHER_ENGINE_NLL = 1e-3
#: Of 4-bit layers that bitsandbytes, left to itself, multiplies in bfloat16 where the CPU can.
BFLOAT16_NLL = 0.05


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


@dataclasses.dataclass
class Tuned:
    files: TunedModel
    examples: list[TrainingExample]
    nll: float  # of all response tokens, by our engine
    fresh_nll: float  # before that


@pytest.fixture(scope="module", params=["lora", "full", "qlora"])
def tuned(request: pytest.FixtureRequest, base: Path, tmp_path_factory: Any) -> Tuned:
    method, folder = str(request.param), tmp_path_factory.mktemp("tuned")
    job = make_job(base, method=method, num_epochs=3, batch_size=7, max_length=600)
    fine_tune(job, TEXTS, folder, lambda *_: None)
    files = TunedModel(folder, method != "full", job.quantization)
    examples = encode(base, TEXTS)
    return Tuned(
        files, examples, nll_of(load(files, base), examples), nll_of(load(None, base), examples)
    )


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
    else:
        before, after = (AutoTokenizer.from_pretrained(path) for path in (base, folder))
        text = "What is 12?\n\n1. é 中 <|end|>"
        assert before(text)["input_ids"] == after(text)["input_ids"]
        assert before.eos_token_id == after.eos_token_id
    nats = 0.0
    for example in tuned.examples:
        labels = torch.tensor([example.input_ids])
        labels[0, : example.response_start] = -100
        with torch.no_grad():
            loss = model.eval()(torch.tensor([example.input_ids]), labels=labels).loss
        nats += float(loss) * example.num_response_tokens
    found = nats / sum(example.num_response_tokens for example in tuned.examples)
    assert found == pytest.approx(tuned.nll, abs=BFLOAT16_NLL if rounds else SAME_NLL)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")
def test_vllm_with_the_files_is_the_model_that_was_trained(tuned: Tuned, base: Path) -> None:
    options = EngineConfig(
        engine="vllm", dtype="float32", kv_cache_memory_bytes=64 << 20, max_length=600
    )
    engine = VllmEngine(*apply_tuning(base, options, tuned.files))
    found = nll_of(engine, tuned.examples)
    engine.close()
    if tuned.files.quantization is None:
        assert found == pytest.approx(tuned.nll, abs=OTHER_ENGINE_NLL)
        return
    # On weights that are not rounded to 4 bits the adapter still does what it was trained for.
    assert found != pytest.approx(tuned.nll, abs=OTHER_ENGINE_NLL)
    assert found < tuned.fresh_nll - 0.5
