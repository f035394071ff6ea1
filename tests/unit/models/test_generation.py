from __future__ import annotations

import hashlib
from typing import Any

import pytest

from nncift_ray.engines.base import (
    Generation,
    GenerationEngine,
    GenerationRequest,
    ScoringFailure,
    find_generation_fault,
    row_seed,
)
from tests.fake_engines import NUM_BYTES, POISON_ID, FakeGenerator

SOUND = GenerationRequest(list(b"two and two?\n"), 20)


def test_the_fake_follows_the_protocol() -> None:
    assert isinstance(FakeGenerator(), GenerationEngine)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GenerationRequest([], 5), "empty_prompt"),
        (GenerationRequest([1] * 36, 5), "too_long"),
        (GenerationRequest([1, NUM_BYTES + 1], 5), "bad_token"),
        (GenerationRequest([-1], 5), "bad_token"),
        (GenerationRequest([1, POISON_ID], 5), "not_finite"),
    ],
)
def test_one_bad_request_leaves_its_neighbours_alone(bad: GenerationRequest, reason: str) -> None:
    before, failure, after = FakeGenerator(max_length=40).generate([SOUND, bad, SOUND])
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == reason
    assert isinstance(before, Generation)
    assert before == after


def test_a_prompt_must_leave_room_for_the_longest_answer() -> None:
    assert find_generation_fault(GenerationRequest([1] * 35, 5), 40, 2) is None
    fault = find_generation_fault(GenerationRequest([1] * 36, 5), 40, 2)
    assert fault is not None
    assert "36 prompt tokens and an answer of up to 5 are 41" in fault.message
    assert "limit is 40" in fault.message


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"min_p": 1.1}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GenerationRequest(**({"prompt_ids": [1], "max_tokens": 5} | wrong))


def test_a_told_answer_ends_with_the_end_token_or_is_cut() -> None:
    generator = FakeGenerator(lambda prompt: f"{len(prompt)}é!")
    requests = [GenerationRequest(list(b"abc"), length) for length in (5, 4, 2)]
    # Three characters in four bytes, then the end token.
    assert generator.generate(requests) == [
        Generation("3é!", 3, 5, "stop"),
        Generation("3é!", 3, 4, "length"),
        Generation("3\N{REPLACEMENT CHARACTER}", 3, 2, "length"),
    ]
    assert generator.num_requests == 3


def test_only_sampling_reads_the_seed() -> None:
    prompts = [GenerationRequest([1, 2], 20, temperature, 0.1, seed)
               for temperature in (0.0, 0.7) for seed in (1, 2)]  # fmt: skip
    texts = [a.text for a in FakeGenerator().generate(prompts) if isinstance(a, Generation)]
    assert texts[0] == texts[1]
    assert len(set(texts[1:])) == 3


def test_a_row_has_a_stream_of_its_own() -> None:
    seeds = {row_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "0:a")}
    assert len(seeds) == 6
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    # First 63 bits of SHA-256("0:a"): a published answer can be made again.
    digest = hashlib.sha256(b"0:a").digest()
    assert row_seed(0, "a") == int("".join(f"{byte:08b}" for byte in digest)[:63], 2)
