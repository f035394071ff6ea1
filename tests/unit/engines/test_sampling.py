from __future__ import annotations

import numpy as np
import pytest
import torch

from nncift_ray.engines.transformers import choose_tokens

PROBABILITIES = [0.5, 0.05, 0.3, 0.15]
LOGITS = torch.tensor(PROBABILITIES).log()


def _choose(
    uniform: list[float], temperature: float, min_p: float, logits: torch.Tensor = LOGITS
) -> list[int]:
    size = len(uniform)

    def column(value: float) -> torch.Tensor:
        return torch.full((size,), value, dtype=torch.float64)

    return choose_tokens(
        logits.expand(size, -1),
        column(temperature),
        column(min_p),
        torch.tensor(uniform, dtype=torch.float64),
    ).tolist()


def test_without_min_p_every_token_has_its_own_share() -> None:
    # In the order of ids, from the top: 1 - u falls into (0, .5], (.5, .55], (.55, .85], (.85, 1].
    assert _choose([0.0, 0.14, 0.16, 0.44, 0.46, 0.49, 0.51, 0.999], 1.0, 0.0) == [
        3, 3, 2, 2, 1, 1, 0, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("min_p", "kept"), [(0.05, {0, 1, 2, 3}), (0.2, {0, 2, 3}), (0.31, {0, 2}), (1.0, {0})]
)
def test_min_p_leaves_out_what_is_below_its_share_of_the_likeliest(
    min_p: float, kept: set[int]
) -> None:
    # The likeliest has 0.5, so at 0.2 the limit is 0.1 and at 0.31 it is 0.155.
    assert set(_choose(np.linspace(0, 0.999, 200).tolist(), 1.0, min_p)) == kept


def test_min_p_counts_after_the_temperature() -> None:
    # At temperature 2 the weights are square roots: token 1 has sqrt(0.1) = 0.32 of the likeliest.
    uniform = np.linspace(0, 0.999, 200).tolist()
    assert 1 in _choose(uniform, 2.0, 0.3)
    assert 1 not in _choose(uniform, 1.0, 0.3)
    # At 0.5 they are squares, so token 3 has 0.09.
    assert set(_choose(uniform, 0.5, 0.1)) == {0, 2}


def test_shares_after_min_p_are_those_of_the_tokens_left() -> None:
    # 0.5 and 0.3 are left: 5/8 and 3/8.
    uniform = ((np.arange(800) + 0.5) / 800).tolist()
    tokens = _choose(uniform, 1.0, 0.5)
    assert [tokens.count(token) for token in range(4)] == [500, 0, 300, 0]


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert _choose([0.0, 0.999], 0.0, 0.0) == [0, 0]
    assert _choose([0.3], 0.0, 0.0, torch.tensor([1.0, 7.0, 7.0])) == [1]


def test_a_very_low_temperature_is_all_but_greedy() -> None:
    assert _choose([0.0, 0.5, 0.999], 1e-300, 0.0) == [0, 0, 0]


def test_a_token_that_cannot_come_never_comes() -> None:
    logits = torch.tensor([-np.inf, 0.0, 0.0, -np.inf], dtype=torch.float32)
    largest = float(np.nextafter(1.0, 0.0))
    assert set(_choose([0.0, 0.4, 0.6, largest], 1.0, 0.0, logits)) == {1, 2}


def test_rows_of_a_batch_are_chosen_each_for_itself() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    chosen = choose_tokens(
        logits,
        torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64),
        torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        torch.tensor([0.9, 0.9, 0.01], dtype=torch.float64),
    )
    assert chosen.tolist() == [0, 3, 3]
