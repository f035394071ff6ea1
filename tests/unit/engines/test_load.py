"""Which engine is loaded, with which options, and what actors are sent to load it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nncift_ray.engines import models, vllm
from nncift_ray.engines.memory import Adapter, EngineSize, is_head_plain
from nncift_ray.engines.models import (
    EMBEDDED_LANGUAGE_MODEL,
    EngineFactory,
    ResolvedModel,
    TunedModel,
    apply_tuning,
    find_engine,
    settle,
)
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig, TeacherConfig

OPTIONS = EngineConfig(dtype="bfloat16")
GPU_SIZE = EngineSize(4096, 256, None, 0.83)
CPU_SIZE = EngineSize(1024, 64, 1 << 28, None)


def test_one_device_needs_no_other_process_and_several_do() -> None:
    one = vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert (one["distributed_executor_backend"], one["tensor_parallel_size"]) == ("uni", 1)
    four = EngineConfig(tensor_parallel_size=4)
    several = vllm.vllm_arguments(four, 2048, GPU_SIZE, None, on_cpu=False)
    assert (several["distributed_executor_backend"], several["tensor_parallel_size"]) == ("mp", 4)


def test_a_gpu_is_told_a_share_and_a_cpu_bytes_and_a_block() -> None:
    gpu = vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert gpu["gpu_memory_utilization"] == 0.83
    assert "block_size" not in gpu
    cpu = vllm.vllm_arguments(OPTIONS, 2048, CPU_SIZE, None, on_cpu=True)
    assert (cpu["kv_cache_memory_bytes"], cpu["block_size"]) == (1 << 28, 32)
    assert (cpu["max_num_batched_tokens"], cpu["max_num_seqs"]) == (1024, 64)
    assert cpu["max_model_len"] == 2049  # one token must be generated


def test_a_head_that_is_not_quantised_gives_logits_of_32_bits() -> None:
    wide = vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False, has_plain_head=True)
    assert wide["hf_overrides"] == {"head_dtype": "float32"}
    assert vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)["hf_overrides"] == {}


@pytest.mark.parametrize(
    ("method", "quantization", "is_plain"),
    [
        (None, None, True),
        (None, "bitsandbytes", False),
        ({"quant_method": "awq", "modules_to_not_convert": None}, None, False),
        ({"quant_method": "awq", "modules_to_not_convert": ["lm_head"]}, None, True),
        ({"quant_method": "compressed-tensors", "ignore": ["re:.*lm_head"]}, None, True),
        ({"quant_method": "gptq", "ignore": ["model.layers.0"]}, None, False),
    ],
)
def test_a_head_is_plain_where_nothing_quantises_it(
    method: dict[str, Any] | None, quantization: str | None, is_plain: bool
) -> None:
    config = SimpleNamespace(quantization_config=method)
    assert is_head_plain(config, quantization) is is_plain


def test_prompts_are_computed_whole_where_a_seeded_draw_cannot_be_taken_back() -> None:
    cpu = vllm.vllm_arguments(OPTIONS, 2048, CPU_SIZE, None, on_cpu=True, generates=True)
    assert (cpu["enable_chunked_prefill"], cpu["enforce_eager"]) == (False, True)
    gpu = vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False, generates=True)
    assert "enable_chunked_prefill" not in gpu
    assert not gpu["enforce_eager"]
    scoring = vllm.vllm_arguments(OPTIONS, 2048, CPU_SIZE, None, on_cpu=True)
    assert scoring["enable_chunked_prefill"]


def test_only_safetensors_are_read_and_no_code_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = vllm.vllm_arguments(OPTIONS, 2048, GPU_SIZE, None, on_cpu=False)
    assert (arguments["load_format"], arguments["trust_remote_code"]) == ("safetensors", False)
    monkeypatch.setattr(vllm, "_require_quantization", lambda _: None)
    packed = vllm.vllm_arguments(
        EngineConfig(quantization="bitsandbytes"), 2048, GPU_SIZE, None, on_cpu=False
    )
    assert (packed["load_format"], packed["quantization"]) == ("bitsandbytes", "bitsandbytes")


@pytest.mark.parametrize(("rank", "told"), [(4, 8), (8, 8), (24, 32), (512, 512)])
def test_an_adapters_rank_is_rounded_up_to_one_that_vllm_knows(rank: int, told: int) -> None:
    adapter = Adapter(Path("a"), rank, ("q_proj",))
    arguments = vllm.vllm_arguments(OPTIONS, 2048, CPU_SIZE, adapter, on_cpu=True)
    assert arguments["max_lora_rank"] == told
    assert arguments["lora_target_modules"] == ["q_proj"]


def test_an_adapter_of_the_output_layer_names_the_other_engine() -> None:
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*teacher\.engine to transformers"):
        vllm._adapter_arguments(Adapter(Path("a"), 8, ("lm_head", "q_proj")))


def test_the_transformers_engine_refuses_several_gpus() -> None:
    options = EngineConfig(engine="transformers", tensor_parallel_size=2)
    with pytest.raises(ModelError, match=r"teacher\.tensor_parallel_size 2"):
        models.load_engine("some/model", options)


@pytest.mark.parametrize(("installed", "kind"), [(True, "vllm"), (False, "transformers")])
def test_auto_engine_is_vllm_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, *, installed: bool, kind: str
) -> None:
    monkeypatch.setattr(models, "vllm_available", lambda: installed)
    assert models.resolve_engine_kind("auto") == kind


def test_vllm_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "vllm_available", lambda: False)
    with pytest.raises(ModelError, match="set the engine to transformers"):
        models.load_engine("some/model", EngineConfig(engine="vllm"))


def test_a_packaged_model_is_loaded_with_the_options_of_its_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[Any] = []

    def load_engine(path: str, options: EngineConfig, **how: Any) -> object:
        loaded.append((Path(path), options, how["generates"]))
        return object()

    monkeypatch.setattr(models, "load_engine", load_engine)
    section = EngineConfig(model=EMBEDDED_LANGUAGE_MODEL, engine="transformers", max_length=300)
    find_engine(section, has_gpu=False, generates=True)()
    ((path, options, generates),) = loaded
    assert (path / "config.json").exists()
    assert (options.max_length, options.dtype, generates) == (300, "float32", True)


def test_a_given_dtype_is_kept_and_auto_settled() -> None:
    assert settle(EngineConfig(dtype="float16"), "bfloat16").dtype == "float16"
    settled = settle(EngineConfig(engine="transformers"), "bfloat16")
    assert (settled.engine, settled.dtype) == ("transformers", "bfloat16")


FACTORY = EngineFactory(
    ResolvedModel("owner/model", "", "c" * 40), TeacherConfig(kind="delift", engine="vllm")
)


def test_an_actor_unpickles_a_factory_without_torch() -> None:
    assert pickle.loads(pickle.dumps(FACTORY)) == FACTORY  # noqa: S301
    program = (
        f"import pickle, sys; pickle.loads({pickle.dumps(FACTORY)!r}); "
        "assert not {'torch', 'vllm', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_changes_a_number_changes_the_settings() -> None:
    settings = FACTORY.settings()
    for key, value in (("dtype", "float16"), ("quantization", "awq"), ("max_length", 99)):
        options = FACTORY.options.model_copy(update={key: value})
        assert EngineFactory(FACTORY.model, options).settings() != settings
    wide = FACTORY.options.model_copy(update={"dtype": "float32"})
    assert "head_dtype" not in EngineFactory(FACTORY.model, wide).settings()
    assert EngineFactory(FACTORY.model, OPTIONS).settings()["head_dtype"] == "float32"
    options = FACTORY.options.model_copy(update={"gpu_memory_utilization": 0.5, "batch_tokens": 64})
    assert EngineFactory(FACTORY.model, options).settings() == settings


def test_a_tuned_model_is_an_adapter_on_the_base_or_a_folder_of_its_own() -> None:
    assert apply_tuning("base", OPTIONS, None) == ("base", OPTIONS)
    assert apply_tuning("base", OPTIONS, TunedModel(Path("t"), False)) == (Path("t"), OPTIONS)
    packed = TunedModel(Path("t"), True, "bitsandbytes")
    path, options = apply_tuning("base", EngineConfig(engine="transformers"), packed)
    assert (path, options.adapter, options.quantization) == ("base", "t", "bitsandbytes")
    # vLLM serves it on the base as it is.
    assert apply_tuning("base", EngineConfig(engine="vllm"), packed)[1].quantization is None
