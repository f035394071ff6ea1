"""One pass over an example: every number is that of a plain forward pass, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.profiles.blocks import FEATURE_BLOCKS, SKETCH_SIDE, FeatureBlock
from nncift_ray.profiles.reader import (
    ProfilingEngine,
    _compress,
    _signs,
    profile_examples,
    profile_request,
    surprises,
)
from nncift_ray.recipe.sections import EngineConfig
from tests.tiny_models import make_tiny_llama

TOLERANCE = 2e-5
EXAMPLES = [
    Example("a", "What is two and two?", "four"),
    Example("b", "Capital of France?", "The capital of France is Paris, as everybody knows."),
    Example("c", "Count to three, please, slowly and one by one.", "1. one 2. two 3. three"),
    Example("d", "Say it.", "it"),
]
PLAIN = [FeatureBlock("answer", 0.5, "answer"), FeatureBlock("last_prompt", 0.5, "last_prompt")]
SKETCH = FeatureBlock("sketch", 1.0, "sketch")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ProfilingEngine:
    return ProfilingEngine(make_tiny_llama(tmp_path_factory.mktemp("tiny")), device="cpu")


def test_losses_and_pooled_states_are_those_of_a_plain_forward_pass(
    engine: ProfilingEngine,
) -> None:
    found = profile_examples(engine, EXAMPLES, PLAIN)
    for at, example in enumerate(EXAMPLES):
        request = profile_request(engine, example)
        middle = len(request.prompt_ids)
        ids = torch.tensor([[*request.prompt_ids, *request.response_ids]])
        with torch.no_grad():
            output = engine._model(ids, output_hidden_states=True)
        log_probs = output.logits[0].log_softmax(-1)[middle - 1 : -1]
        chosen = log_probs.gather(1, ids[0, middle:, None])[:, 0].double().numpy()
        states = output.hidden_states[1][0]  # of 0..2, half the depth
        expected = {
            "nll": [-chosen.mean()],
            "distance": [np.sqrt(np.mean((1 - np.exp(chosen)) ** 2))],
            "max_surprise": [-chosen.min()],
            "answer": _compress(states[None, middle:].mean(1), 256)[0].numpy(),
            "last_prompt": _compress(states[None, middle - 1], 256)[0].numpy(),
        }
        for name, value in expected.items():
            assert np.atleast_1d(found[name][at]) == pytest.approx(value, abs=TOLERANCE), name


def test_loss_without_the_prompt_does_not_see_the_prompt(engine: ProfilingEngine) -> None:
    asked = [Example(str(k), prompt, "four") for k, prompt in enumerate(["x", "a long prompt"])]
    found = profile_examples(engine, asked, PLAIN)
    assert found["nll_alone"][0] == pytest.approx(found["nll_alone"][1], abs=TOLERANCE)
    assert abs(found["nll"][0] - found["nll"][1]) > TOLERANCE


def test_the_sketch_is_the_projected_gradient_of_the_output_layer(tmp_path: Path) -> None:
    engine = ProfilingEngine(make_tiny_llama(tmp_path), device="cpu")
    request = profile_request(engine, EXAMPLES[1])
    ids = torch.tensor([[*request.prompt_ids, *request.response_ids]])
    with torch.no_grad():
        states = engine._model.base_model(ids).last_hidden_state[0]
    weight = engine._model.get_output_embeddings().weight.detach().clone().requires_grad_()
    logits = states[len(request.prompt_ids) - 1 : -1] @ weight.T
    torch.nn.functional.cross_entropy(
        logits, torch.tensor(request.response_ids), reduction="sum"
    ).backward()
    assert weight.grad is not None
    tokens = engine._model.get_input_embeddings().weight.detach()
    left = tokens @ _signs(tokens.shape[1], SKETCH_SIDE, CPU)
    right = _signs(weight.shape[1], SKETCH_SIDE, CPU)
    expected = _compress((left.T @ weight.grad @ right).flatten()[None], SKETCH.width).numpy()
    found = profile_examples(engine, [EXAMPLES[1]], [SKETCH])["sketch"]
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_rows_do_not_depend_on_what_they_are_batched_with(engine: ProfilingEngine) -> None:
    together = profile_examples(engine, EXAMPLES)
    narrow = EngineConfig(batch_tokens=32)
    alone = ProfilingEngine(engine._model.config._name_or_path, narrow, device="cpu")
    single = profile_examples(alone, EXAMPLES)
    for name, values in together.items():
        assert single[name] == pytest.approx(values, abs=1e-4), name


def test_blocks_are_unit_vectors_and_keep_cosines(engine: ProfilingEngine) -> None:
    whole = torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.manual_seed(0)))
    small = _compress(whole, 4096)
    assert small.norm(dim=1).numpy() == pytest.approx(1.0, abs=TOLERANCE)
    assert (small @ small.T).numpy() == pytest.approx((whole @ whole.T).numpy(), abs=0.1)
    stored = profile_examples(engine, EXAMPLES[:1], FEATURE_BLOCKS)
    assert [stored[each.name].shape[1] for each in FEATURE_BLOCKS] == [
        each.width for each in FEATURE_BLOCKS
    ]


def test_what_cannot_be_measured_is_a_failure_and_moves_nobody(engine: ProfilingEngine) -> None:
    bad = [Example("e", "Say nothing.", ""), Example("f", "Say much.", "word " * 900)]
    asked = [EXAMPLES[0], *bad, EXAMPLES[1]]
    answers = engine.profile([profile_request(engine, example) for example in asked])
    reasons = [answer.reason for answer in answers if isinstance(answer, ScoringFailure)]
    assert reasons == ["empty_response", "too_long"]
    found = profile_examples(engine, asked)
    whole = profile_examples(engine, EXAMPLES[:2])
    assert np.isnan(found["nll"][1:3]).all()
    assert found["nll"][[0, 3]] == pytest.approx(whole["nll"], abs=TOLERANCE)


def test_surprise_of_a_short_response_is_that_of_its_worst_token() -> None:
    assert surprises(np.log(np.array([0.5, 0.25])).astype(np.float64)) == pytest.approx(
        (np.log(4), np.log(4))
    )
    many = -np.arange(1.0, 21.0)
    assert surprises(many.astype(np.float64)) == pytest.approx((20.0, 19.5))
