from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from nncift_ray.engines.base import free_memory_bytes
from nncift_ray.engines.models import longest_request, read_adapter
from nncift_ray.errors import ModelError

LAYER = "base_model.model.model.layers.0.self_attn"


def _write_adapter(folder: Path, **settings: object) -> Path:
    config = {"peft_type": "LORA", "r": 8, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [f"{LAYER}.{module}.lora_{x}.weight" for module in ("v_proj", "q_proj") for x in "AB"]
    weights = {name: np.zeros((1, 1), dtype=np.float32) for name in names}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_known_by_its_largest_rank_and_the_layers_it_changes(tmp_path: Path) -> None:
    adapter = read_adapter(_write_adapter(tmp_path, rank_pattern={"q_proj": 24}))
    assert (adapter.path, adapter.rank) == (tmp_path, 24)
    assert adapter.modules == ("q_proj", "v_proj")


def test_a_missing_adapter_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*not a folder"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"teacher\.adapter: .*no adapter_config\.json"):
        read_adapter(tmp_path)


def test_pickled_adapter_weights_are_refused(tmp_path: Path) -> None:
    _write_adapter(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="never read"):
        read_adapter(tmp_path)


def test_broken_adapter_weights_are_a_model_error(tmp_path: Path) -> None:
    weights = _write_adapter(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA"}'])
def test_a_broken_adapter_configuration_is_a_model_error(tmp_path: Path, text: str) -> None:
    _write_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="as PEFT writes it"):
        read_adapter(tmp_path)


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="PREFIX_TUNING"):
        read_adapter(_write_adapter(tmp_path, peft_type="PREFIX_TUNING"))


def test_one_position_is_left_for_the_token_that_vllm_generates() -> None:
    assert longest_request(SimpleNamespace(max_position_embeddings=512), 2048) == 511
    assert longest_request(SimpleNamespace(max_position_embeddings=4096), 2048) == 2048
    assert longest_request(SimpleNamespace(), 2048) == 2048


@pytest.mark.parametrize(
    ("names", "cached_key"),
    [
        (("memory.max", "memory.current", "memory.stat"), "inactive_file"),
        (
            (
                "memory/memory.limit_in_bytes",
                "memory/memory.usage_in_bytes",
                "memory/memory.stat",
            ),
            "total_inactive_file",
        ),
    ],
)
def test_a_containers_limit_bounds_the_free_memory(
    tmp_path: Path, names: tuple[str, str, str], cached_key: str
) -> None:
    (tmp_path / "memory").mkdir()
    limit, used, statistics = (tmp_path / name for name in names)
    limit.write_text("5000000\n")
    used.write_text("4000000\n")
    statistics.write_text(f"anon 17\n{cached_key} 1500000\n")
    assert free_memory_bytes(tmp_path) == 2_500_000


def test_without_a_limit_the_machines_memory_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    free = free_memory_bytes(tmp_path)
    assert 0 < free <= psutil.virtual_memory().total
    assert free > 5_000_000
