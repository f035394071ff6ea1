"""What is taken off vLLM's outputs: never a shifted value, never a row that is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nncift_ray.engines.base import NextTokenRequest, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.engines.vllm import VllmEngine, read_scores

PROMPT, RESPONSE = list(range(100, 140)), [7, 8, 9]
REQUEST = ScoringRequest(PROMPT, RESPONSE, 32)
NUM_TOKENS = len(PROMPT) + len(RESPONSE)


def log_prob(position: int) -> float:
    return -float(position)


class Flat:
    """vLLM's flat log-probabilities of one token a position."""

    def __init__(self, positions: Sequence[int]) -> None:
        ids = [*PROMPT, *RESPONSE]
        self.token_ids = [ids[position] for position in positions]
        self.logprobs = [log_prob(position) for position in positions]
        self.start_indices = [0, *range(len(positions))]  # the first token of a prompt has none

    def __len__(self) -> int:
        return len(self.start_indices)


def output(positions: Sequence[int], num_cached: int) -> Any:
    """Return what vLLM hands out: one None, and then a value a computed position."""
    return SimpleNamespace(prompt_logprobs=Flat(positions), num_cached_tokens=num_cached)


COMPUTED = output(range(33, NUM_TOKENS), 32)  # the tokens behind the 32 cached ones
WHOLE = output(range(1, NUM_TOKENS), 0)
RIGHT = [log_prob(position) for position in range(len(PROMPT), NUM_TOKENS)]


@pytest.mark.parametrize(
    ("found", "only_computed"),
    [(COMPUTED, True), (WHOLE, True), (WHOLE, False), (output(range(1, NUM_TOKENS), 32), False)],
)
def test_a_list_of_the_right_length_is_read_from_its_end(found: Any, only_computed: bool) -> None:
    result = read_scores(REQUEST, found, only_computed=only_computed)
    assert isinstance(result, ScoringResult)
    np.testing.assert_array_equal(result.log_probs, RIGHT)


def test_of_some_tokens_of_a_response_those_are_read() -> None:
    request = ScoringRequest(PROMPT, RESPONSE, 32, [0, 2])
    result = read_scores(request, COMPUTED, only_computed=True)
    assert isinstance(result, ScoringResult)
    np.testing.assert_array_equal(result.log_probs, [RIGHT[0], RIGHT[2]])


@pytest.mark.parametrize(
    "found",
    [
        output(range(20, NUM_TOKENS), 0),  # went on from its own blocks: the first part is lost
        output(range(20, NUM_TOKENS), 32),  # recomputed a part of what the cache had
        output(range(1, NUM_TOKENS - 1), 0),
        output([*range(1, 30), *range(20, NUM_TOKENS)], 0),  # a part twice
    ],
)
def test_a_list_of_any_other_length_is_that_of_a_request_put_off(found: Any) -> None:
    result = read_scores(REQUEST, found, only_computed=True)
    assert isinstance(result, ScoringFailure)
    assert result.reason == "missing_positions"


def test_a_cached_response_is_never_read() -> None:
    found = output(range(NUM_TOKENS - 2, NUM_TOKENS), len(PROMPT))
    result = read_scores(REQUEST, found, only_computed=True)
    assert isinstance(result, ScoringFailure)
    assert result.reason == "cached_response"


class PuttingOff(VllmEngine):
    """Hands out fake outputs: whatever is in a group with others is put off so many times."""

    def __init__(self, times: int) -> None:
        self._generates, self._only_computed = False, True
        self.max_length, self._vocabulary_size = 1000, 1000
        self.times, self.asked = times, list[tuple[int, bool]]()

    def _run(
        self, requests: Any, places: Sequence[int], *, read_cache: bool = True
    ) -> Iterator[tuple[int, Any]]:
        self.asked.append((len(places), read_cache))
        is_bad = len(self.asked) <= self.times
        for place in reversed(places):  # they finish in any order
            yield place, output(range(20, NUM_TOKENS), 0) if is_bad else WHOLE


@pytest.mark.parametrize(
    ("times", "asked"),
    [
        (0, [(3, True)]),
        (1, [(3, True), (3, False)]),
        (2, [(3, True), (3, False), (1, False), (1, False), (1, False)]),
    ],
)
def test_requests_put_off_are_run_again_without_the_cache_and_none_is_lost(
    times: int, asked: list[tuple[int, bool]]
) -> None:
    engine = PuttingOff(times)
    results = engine.score([REQUEST] * 3)
    assert [isinstance(result, ScoringResult) for result in results] == [True] * 3
    assert engine.asked == asked


def test_next_tokens_stand_behind_the_sampled_one() -> None:
    flat = SimpleNamespace(token_ids=[3, 5, 6], logprobs=[-0.1, -1.0, -2.0])
    found = SimpleNamespace(num_cached_tokens=16, outputs=[SimpleNamespace(logprobs=flat)])
    result = read_scores(NextTokenRequest(PROMPT, [5, 6]), found, only_computed=True)
    assert isinstance(result, ScoringResult)
    np.testing.assert_array_equal(result.log_probs, [-1.0, -2.0])
