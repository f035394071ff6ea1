from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.teachers import gradients as per_example
from nncift_ray.teachers.gradients import (
    EpochSummary,
    RademacherProjector,
    WarmupCheckpoint,
    per_example_gradients,
    precondition,
    project_gradients,
)
from tests.tiny_models import make_tiny_llama, write_model, write_tokenizer

TOLERANCE = 1e-4  # relative, of a gradient
FEATURE_TOLERANCE = 1e-4  # of a unit vector
LESS = LessConfig(rank=4, alpha=16.0, dropout=0.5, seed=1)
ONE_A_PASS, ALL_A_PASS = 1, 10_000
TEXTS = [
    Example("a", "What is the capital of France?", "Paris."),
    Example("b", "Count to four.", "one two three four"),
    Example("c", "Query: What is two and two? Please generate a response in the same style.", "4"),
    Example("d", "", "1. one 2. two"),
]


def changed(**update: Any) -> LessConfig:
    return LESS.model_copy(update=update)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LoraModel]:
    model = LoraModel(path, LESS, num_threads=1)
    stir(model)
    yield model
    model.close()


@pytest.fixture(scope="module")
def examples(model: LoraModel) -> list[TrainingExample]:
    return encoded(model, TEXTS)


def encoded(model: LoraModel, texts: list[Example]) -> list[TrainingExample]:
    found = [model.encode(text) for text in texts]
    assert all(isinstance(one, TrainingExample) for one in found)
    return [one for one in found if isinstance(one, TrainingExample)]


@torch.no_grad()
def stir(model: LoraModel) -> None:
    """Give B random weights: at zero no gradient reaches A."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.parameters.items():
        if name.endswith("lora_B.weight"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def loop(model: LoraModel, examples: list[TrainingExample]) -> list[dict[str, torch.Tensor]]:
    """The oracle: autograd, one example at a time, with the library's own loss."""
    rows = []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.response_start] = -100
        model.model.zero_grad()
        model.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels
        ).loss.backward()
        rows.append({name: p.grad.clone() for name, p in model.parameters.items()})
    return rows


def flat(model: LoraModel, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in model.parameters])


def checkpoint_of(model: LoraModel) -> WarmupCheckpoint:
    generator = np.random.default_rng(0)
    state = model.adapter_state()
    return WarmupCheckpoint(
        adapter=state,
        exp_avg={k: generator.normal(size=v.shape).astype(np.float32) for k, v in state.items()},
        exp_avg_sq={k: generator.random(v.shape).astype(np.float32) for k, v in state.items()},
        summary=EpochSummary(epoch=1, num_steps=9, mean_learning_rate=1e-5, train_loss=1.0),
    )  # fmt: skip


def projector_of(model: LoraModel, output_dim: int = 256) -> RademacherProjector:
    return RademacherProjector(model.num_adapter_parameters, output_dim, seed=0)


def assert_equal_to_loop(
    model: LoraModel, examples: list[TrainingExample], oracle: LoraModel | None = None
) -> None:
    batched = per_example_gradients(model, examples)
    for row, expected in enumerate(loop(oracle or model, examples)):
        for name in model.parameters:
            error = (batched[name][row] - expected[name]).norm() / expected[name].norm()
            assert float(error) < TOLERANCE, (row, name)


def test_batched_gradients_equal_an_autograd_loop(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    assert_equal_to_loop(model, examples)


def test_batched_gradients_equal_a_loop_where_logits_are_not_the_plain_head(
    tmp_path: Path,
) -> None:
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=write_tokenizer(tmp_path), hidden_size=32, intermediate_size=64, head_dim=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=256, final_logit_softcapping=2.0, initializer_range=0.2,
        eos_token_id=0, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LoraModel(write_model(tmp_path, config), LESS, num_threads=1)
    stir(model)
    assert_equal_to_loop(model, encoded(model, TEXTS))


def test_gradients_over_a_four_bit_base_equal_a_loop_over_its_dequantised_weights(
    path: Path,
) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    four_bit = LoraModel(path, changed(quantization="bitsandbytes"), num_threads=1)
    stir(four_bit)
    plain = LoraModel(path, LESS, num_threads=1)
    stir(plain)
    quantised = {n: m for n, m in four_bit.model.named_modules() if isinstance(m, Linear4bit)}
    assert len(quantised) == 2 * 7  # of two layers
    for name, layer in quantised.items():
        weight = dequantize_4bit(layer.weight, layer.weight.quant_state)
        plain.model.get_submodule(name).weight.data = weight
    assert_equal_to_loop(four_bit, encoded(plain, TEXTS), oracle=plain)


def test_features_are_the_projected_loop_gradients_at_unit_norm(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    projector = projector_of(model)
    expected = projector.project(torch.stack([flat(model, row) for row in loop(model, examples)]))
    features = project_gradients(model, examples, projector, adam=None, batch_tokens=ALL_A_PASS)
    expected = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(features, expected, atol=FEATURE_TOLERANCE)


def test_helper_features_are_the_directions_of_adams_next_step(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    checkpoint, projector = checkpoint_of(model), projector_of(model)
    moments = [
        flat(model, {name: torch.from_numpy(array) for name, array in group.items()})
        for group in (checkpoint.exp_avg, checkpoint.exp_avg_sq)
    ]
    gradients = torch.stack([flat(model, row) for row in loop(model, examples)])
    directions = precondition(gradients, moments[0], moments[1], checkpoint.summary.num_steps)
    expected = torch.nn.functional.normalize(projector.project(directions), dim=1)
    features = project_gradients(
        model, examples, projector, adam=checkpoint, batch_tokens=ALL_A_PASS
    )
    np.testing.assert_allclose(features, expected, atol=FEATURE_TOLERANCE)


def test_features_do_not_depend_on_the_pass_size_or_on_how_many_fit_the_memory(
    model: LoraModel, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    projector = projector_of(model)
    whole = project_gradients(model, examples, projector, adam=None, batch_tokens=ALL_A_PASS)
    monkeypatch.setitem(per_example.GRADIENT_BYTES, "cpu", 8 * model.num_adapter_parameters)
    parts = project_gradients(model, examples, projector, adam=None, batch_tokens=ONE_A_PASS)
    np.testing.assert_allclose(whole, parts, atol=FEATURE_TOLERANCE)


def test_the_tokens_of_the_prompt_bear_no_loss(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    whole = model.losses([replace(examples[1], spans=((1, len(examples[1].input_ids)),))])
    response = model.losses([examples[1]])
    ids = torch.tensor([examples[1].input_ids])
    nats = -model.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    nats = nats.gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(response[0], nats[examples[1].response_start - 1 :].mean())
    assert not torch.isclose(whole, response)


def test_a_longer_neighbour_changes_nothing(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    longest = max(examples, key=lambda example: len(example.input_ids))
    shortest = min(examples, key=lambda example: len(example.input_ids))
    alone = per_example_gradients(model, [shortest])
    padded = per_example_gradients(model, [longest, shortest])
    for name in model.parameters:
        error = (padded[name][1] - alone[name][0]).norm() / alone[name][0].norm()
        assert float(error) < TOLERANCE


def test_an_example_without_a_finite_gradient_is_nan_and_its_neighbours_are_sound(
    path: Path,
) -> None:
    model = LoraModel(path, LESS, num_threads=1)
    sound, broken = encoded(model, TEXTS[:2])
    poison = sorted(set(broken.input_ids) - set(sound.input_ids))[0]
    with torch.no_grad():
        embedding = model.model.get_input_embeddings().weight
        model.model.get_output_embeddings().weight = torch.nn.Parameter(embedding.clone())
        embedding[poison] = float("nan")
    features = project_gradients(
        model, [broken, sound], projector_of(model), adam=None, batch_tokens=ALL_A_PASS
    )
    assert np.isnan(features[0]).all()
    assert np.linalg.norm(features[1]) == pytest.approx(1.0, abs=FEATURE_TOLERANCE)


def test_a_zero_gradient_is_nan_though_adam_would_still_move(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoraModel(path, LESS, num_threads=1)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()  # every token equally likely
    features = project_gradients(
        model,
        encoded(model, TEXTS[:1]),
        projector_of(model),
        adam=checkpoint_of(model),
        batch_tokens=ALL_A_PASS,
    )
    assert np.isnan(features).all()


def test_taking_gradients_leaves_the_model_trainable_and_without_hooks(
    model: LoraModel, examples: list[TrainingExample]
) -> None:
    per_example_gradients(model, examples)
    assert all(parameter.requires_grad for parameter in model.parameters.values())
    assert not any(half._forward_hooks for _, *halves in model.adapted_layers() for half in halves)


def test_the_first_weights_depend_on_the_seed_alone(path: Path, model: LoraModel) -> None:
    torch.manual_seed(99)
    again, other = (
        LoraModel(path, changed(seed=seed), num_threads=1).adapter_state()
        for seed in (LESS.seed, LESS.seed + 1)
    )
    name = next(iter(model.parameters))
    assert np.array_equal(again[name], model.adapter_state()[name])  # stir() left A alone
    assert not np.array_equal(other[name], again[name])


def test_an_adapter_comes_back_as_it_was_saved(path: Path, model: LoraModel) -> None:
    fresh = LoraModel(path, LESS, num_threads=1)
    fresh.load_adapter(model.adapter_state())
    for name, array in fresh.adapter_state().items():
        assert np.array_equal(array, model.adapter_state()[name])


def test_an_adapter_of_another_rank_is_refused_by_name(path: Path, model: LoraModel) -> None:
    other = LoraModel(path, changed(rank=2), num_threads=1)
    with pytest.raises(ModelError, match=r"lora_A.weight is \(4, 64\).*has \(2, 64\)"):
        other.load_adapter(model.adapter_state())


def test_a_model_without_the_named_layers_is_refused_with_the_key(path: Path) -> None:
    less = changed(target_modules=("c_attn",))
    with pytest.raises(ModelError, match="teacher.less.target_modules"):
        LoraModel(path, less, num_threads=1)


def test_encode_joins_prompt_newline_response_and_end_token(model: LoraModel) -> None:
    example = model.encode(Example("a", "Count to two.", "one two"))
    assert isinstance(example, TrainingExample)
    text = model.tokenizer._tokenizer.decode(list(example.input_ids))
    assert text == "Count to two.\none two<|end|>"
    response = list(example.input_ids[example.response_start :])
    assert model.tokenizer._tokenizer.decode(response) == "one two<|end|>"


def test_encode_refuses_what_has_no_response_or_does_not_fit(path: Path) -> None:
    model = LoraModel(path, changed(max_length=16), num_threads=1)
    empty = model.encode(Example("a", "Count to two.", ""))
    long = model.encode(Example("a", "Count to two. " * 9, "one"))
    assert isinstance(empty, ScoringFailure)
    assert isinstance(long, ScoringFailure)
    assert (empty.reason, long.reason) == ("no_response", "too_long")
