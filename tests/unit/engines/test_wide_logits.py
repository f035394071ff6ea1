"""Logits of 32 bits from weights of 16: the rounding that 16 bits would add is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.engines.transformers import TransformersEngine, widen_logits
from nncift_ray.recipe.sections import EngineConfig
from tests.tiny_models import make_tiny_llama

ROUNDING = 2e-5
SCALE = 30.0  # so that logits are as large as a trained model's


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_16_bit_head_gives_what_its_weights_give_in_64_bits(has_bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 300, bias=has_bias, dtype=torch.bfloat16)
    states = torch.randn(5, 64, dtype=torch.bfloat16) * SCALE
    exact = torch.nn.functional.linear(
        states.double(), head.weight.double(), head.bias.double() if has_bias else None
    )
    narrow = head(states).double()
    widen_logits(_Model(head))
    wide = head(states)
    assert wide.dtype == torch.float32
    assert (wide.double() - exact).abs().max() < 1e-3
    assert (narrow - exact).abs().max() > 0.02


class _Model:
    def __init__(self, head: torch.nn.Module | None) -> None:
        self.head = head

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return self.head


def test_a_32_bit_head_and_a_model_without_one_are_left_alone() -> None:
    head = torch.nn.Linear(4, 4)
    widen_logits(_Model(head))
    assert "forward" not in vars(head)
    widen_logits(_Model(None))


def test_the_engine_scores_with_wide_logits(tmp_path: Path) -> None:
    options = EngineConfig(dtype="bfloat16")
    engine = TransformersEngine(make_tiny_llama(tmp_path), options, device="cpu")
    ids = engine.encode("The capital of France is Paris, and that of Peru is Lima.")
    (result,) = engine.score([ScoringRequest(ids[:5], ids[5:])])
    assert isinstance(result, ScoringResult)
    model = engine._model
    with torch.inference_mode():
        states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        logits = states.double() @ model.get_output_embeddings().weight.double().T
        expected = torch.log_softmax(logits, dim=1)
    wanted = [float(expected[at - 1, ids[at]]) for at in range(5, len(ids))]
    np.testing.assert_allclose(result.log_probs, wanted, rtol=0, atol=ROUNDING)
