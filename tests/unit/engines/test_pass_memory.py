"""How much a pass of training may hold: probed, halved where it does not fit, recomputed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nncift_ray.engines import lora
from nncift_ray.engines.lora import (
    MOST_PASS_TOKENS,
    PROBE_TOKENS,
    LoraModel,
    fit_pass_tokens,
    is_checkpointed,
)
from nncift_ray.engines.memory import GIB
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.teachers.gradients import per_example_gradients, warm_up
from tests.tiny_models import make_tiny_llama
from tests.unit.engines.test_trainable_model import LESS, OPTIONS, encode

SETTINGS = LessConfig(
    num_epochs=2, learning_rate=1e-2, lr_warmup_fraction=0.0, batch_size=3, seed=0
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


def load(path: Path, checkpointing: bool | None) -> LoraModel:
    model = LoraModel(
        path, LESS.model_copy(update={"gradient_checkpointing": checkpointing}), **OPTIONS
    )
    with torch.no_grad():  # an adapter that does something
        for parameter in model.parameters.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


def test_a_pass_takes_four_fifths_of_what_is_free() -> None:
    bytes_per_token = 1 << 20
    assert fit_pass_tokens(PROBE_TOKENS * bytes_per_token, 10 * GIB) == 8192
    assert fit_pass_tokens(PROBE_TOKENS * bytes_per_token, 1000 * GIB) == MOST_PASS_TOKENS
    assert fit_pass_tokens(PROBE_TOKENS * bytes_per_token, 1) == PROBE_TOKENS


def test_an_8b_model_trains_on_48_gb_with_recomputed_layers_and_not_without() -> None:
    # 289 kB a token and layer were measured, 32 layers; recomputed ones keep their input.
    free = 48 * GIB - 17 * GIB
    kept = 289_000 * 32 * PROBE_TOKENS
    recomputed = (8_192 * 32 + 289_000) * PROBE_TOKENS
    assert fit_pass_tokens(kept, free) < 3_000
    assert fit_pass_tokens(recomputed, free) == MOST_PASS_TOKENS


class Memory:
    """Holds passes of so many tokens."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, list[int]()

    def __call__(self, tokens: int) -> int:
        self.tried.append(tokens)
        if tokens > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens


def test_a_pass_is_halved_until_it_fits_and_stays_so(path: Path) -> None:
    model, memory = load(path, None), Memory(most=3000)
    assert model.in_passes(memory, 8192) == 2048
    assert memory.tried == [8192, 4096, 2048]
    assert model.in_passes(memory, 8192) == 2048
    assert memory.tried[3:] == [2048]


def test_a_model_that_does_not_fit_at_all_names_the_remedies(path: Path) -> None:
    with pytest.raises(ModelError, match=r"gradient_checkpointing.*quantization.*max_length"):
        load(path, None).in_passes(Memory(most=0), 4096)


def test_a_step_that_ran_out_of_memory_in_the_middle_counts_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, hurt = load(path, None), load(path, None)
    examples = encode(calm)
    warm_up(calm, examples, SETTINGS)
    whole = LoraModel.losses
    calls = 0

    def losses(model: LoraModel, batch: list[lora.TrainingExample]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # the step's first pass is added up already
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, batch)

    monkeypatch.setattr(LoraModel, "losses", losses)
    monkeypatch.setattr(LoraModel, "_probe_pass_tokens", lambda self: 8192)
    monkeypatch.setattr("nncift_ray.teachers.gradients.CPU_PASS_TOKENS", PROBE_TOKENS * 4)
    batches = [[0], [1, 2]]
    monkeypatch.setattr("nncift_ray.teachers.gradients.cut_batches", lambda *_: batches)
    warm_up(hurt, examples, SETTINGS)
    assert calls > 4
    for name, array in calm.adapter_state().items():
        np.testing.assert_allclose(hurt.adapter_state()[name], array, rtol=0, atol=1e-6)


def saved_bytes(model: LoraModel) -> int:
    """Return the bytes of the activations that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.train()
        model.losses(encode(model))
    model.model.eval()
    return sum(kept.values())


def test_recomputed_layers_keep_less_and_give_the_same_gradients(path: Path) -> None:
    plain, recomputed = load(path, False), load(path, True)
    assert saved_bytes(recomputed) < saved_bytes(plain) / 2
    examples = encode(plain)
    expected = per_example_gradients(plain, examples)
    for name, found in per_example_gradients(recomputed, examples).items():
        np.testing.assert_array_equal(found.numpy(), expected[name].numpy())
    assert not any(module.training for module in recomputed.model.modules())


def test_a_model_trains_alike_with_recomputed_layers(path: Path) -> None:
    states = []
    for checkpointing in (False, True):
        model = load(path, checkpointing)
        warm_up(model, encode(model), SETTINGS)
        states.append(model.adapter_state())
    for name, array in states[0].items():
        np.testing.assert_allclose(states[1][name], array, rtol=0, atol=1e-6)


def test_layers_are_recomputed_above_a_billion_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, is_large in ((1_000_000_000, False), (8_000_000_000, True)):
        monkeypatch.setattr(lora, "count_parameters", lambda config, size=size: size)
        assert is_checkpointed(None, None) is is_large
        assert is_checkpointed(None, True)
        assert not is_checkpointed(None, False)
