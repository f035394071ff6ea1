from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import LessConfig
from nncift_ray.teachers import gradients as training_loop
from nncift_ray.teachers.gradients import (
    WarmupCheckpoint,
    per_example_gradients,
    precondition,
    warm_up,
)
from tests.tiny_models import make_tiny_llama

SETTINGS = LessConfig(
    rank=4,
    alpha=16.0,
    dropout=0.0,
    target_modules=("q_proj", "v_proj"),
    num_epochs=2,
    learning_rate=1e-2,
    lr_warmup_fraction=0.1,
    batch_size=3,
    seed=1,
)
STEPS_AN_EPOCH = 3  # 7 examples by 3
TOLERANCE = 1e-5  # of weights that two orders of summation reached
TEXTS = [Example(str(n), f"What is {n} and {n}?", f"{2 * n}.") for n in range(7)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


def changed(**update: Any) -> LessConfig:
    return SETTINGS.model_copy(update=update)


def make_model(path: Path, less: LessConfig = SETTINGS) -> tuple[LoraModel, list[TrainingExample]]:
    model = LoraModel(path, less, num_threads=1)
    encoded = [model.encode(text) for text in TEXTS]
    return model, [one for one in encoded if isinstance(one, TrainingExample)]


def assert_same_state(first: WarmupCheckpoint, second: WarmupCheckpoint, tolerance: float) -> None:
    for name in first.adapter:
        np.testing.assert_allclose(first.adapter[name], second.adapter[name], atol=tolerance)
        np.testing.assert_allclose(first.exp_avg[name], second.exp_avg[name], atol=tolerance)


def test_the_loss_falls_and_each_epoch_leaves_its_own_checkpoint(path: Path) -> None:
    model, examples = make_model(path)
    checkpoints = warm_up(model, examples, changed(num_epochs=4))
    losses = [checkpoint.summary.train_loss for checkpoint in checkpoints]
    assert losses[-1] < 0.8 * losses[0]
    assert [c.summary.num_steps for c in checkpoints] == [3, 6, 9, 12]
    name = list(model.parameters)[1]
    assert not np.array_equal(checkpoints[0].adapter[name], checkpoints[1].adapter[name])


def test_the_moments_foretell_the_optimisers_next_step(path: Path) -> None:
    model, examples = make_model(path)
    settings = changed(batch_size=len(examples), lr_warmup_fraction=0.0)
    first, second = warm_up(model, examples, settings)
    model.load_adapter(first.adapter)
    gradients = per_example_gradients(model, examples)
    for name in model.parameters:
        direction = precondition(
            gradients[name].mean(0),
            torch.from_numpy(first.exp_avg[name]),
            torch.from_numpy(first.exp_avg_sq[name]),
            first.summary.num_steps,
            epsilon=1e-16,  # PyTorch adds its 1e-8 to the root: the same where there is no gradient
        )
        step = (first.adapter[name] - second.adapter[name]) / second.summary.mean_learning_rate
        # An entry of hardly any gradient moves by a ratio of two roundings.
        assert np.mean(np.abs(step - direction.numpy()) < 1e-2) > 0.99


def test_two_shards_that_average_gradients_equal_one_worker(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = make_model(path)
    alone = warm_up(model, examples, SETTINGS)
    together = run_two_workers(path, examples, monkeypatch)
    for checkpoints in together:
        for one, other in zip(alone, checkpoints, strict=True):
            assert_same_state(one, other, TOLERANCE)
            assert other.summary.train_loss == pytest.approx(one.summary.train_loss, rel=TOLERANCE)


def run_two_workers(
    path: Path, examples: list[TrainingExample], monkeypatch: pytest.MonkeyPatch
) -> list[list[WarmupCheckpoint]]:
    """Two threads that meet at a barrier in place of two processes that all-reduce."""
    barrier = threading.Barrier(2, timeout=60)
    grads: list[list[torch.Tensor]] = [[], []]
    results: list[list[WarmupCheckpoint]] = [[], []]

    def average(parameters: list[torch.nn.Parameter]) -> None:
        grads[int(threading.current_thread().name)] = [p.grad.clone() for p in parameters]
        barrier.wait()
        for parameter, a, b in zip(parameters, *grads, strict=True):
            parameter.grad = (a + b) / 2
        barrier.wait()

    def work(rank: int) -> None:
        results[rank] = warm_up(models[rank][0], examples, SETTINGS, rank=rank, world=2)

    monkeypatch.setattr(training_loop, "average_gradients", average)

    models = [make_model(path), make_model(path)]
    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_size_of_a_pass_does_not_change_the_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = warm_up(*make_model(path), SETTINGS)[-1]
    monkeypatch.setattr(training_loop, "CPU_PASS_TOKENS", 1)
    parts = warm_up(*make_model(path), SETTINGS)[-1]
    assert_same_state(whole, parts, TOLERANCE)


def test_a_seed_gives_the_same_checkpoints_again_dropout_included(path: Path) -> None:
    dropped = changed(dropout=0.5)
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        runs.append(warm_up(*make_model(path, dropped), SETTINGS)[-1])
    assert_same_state(runs[0], runs[1], 0.0)
    undropped = warm_up(*make_model(path), SETTINGS)[-1]
    assert undropped.summary.train_loss != runs[0].summary.train_loss


def test_training_leaves_the_random_numbers_of_the_process_alone(path: Path) -> None:
    model, examples = make_model(path, changed(dropout=0.5))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    warm_up(model, examples, SETTINGS)
    assert torch.equal(torch.rand(3), expected)


def test_mean_learning_rates_follow_the_schedule(path: Path) -> None:
    checkpoints = warm_up(*make_model(path), changed(lr_warmup_fraction=0.0))
    rates = [checkpoint.summary.mean_learning_rate for checkpoint in checkpoints]
    assert rates == pytest.approx([1e-2 * 5 / 6, 1e-2 * 2 / 6])


def test_a_loss_that_is_not_finite_stops_with_the_key_to_change(path: Path) -> None:
    model, examples = make_model(path)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="teacher.less.learning_rate"):
        warm_up(model, examples, SETTINGS)
