from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from nncift_ray.engines.base import (
    MAX_WANTED_TOKENS,
    Engine,
    Generation,
    GenerationRequest,
    NextTokenRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    find_fault,
    make_result,
    minimal_tokens,
    row_seed,
)
from tests.fake_engines import NUM_BYTES, POISON_ID, FakeEngine


def test_first_request_of_a_prefix_pays_and_the_others_pay_what_whole_blocks_do_not_cover() -> None:
    prompt = list(range(40))  # 37 shared tokens: two whole blocks of 16
    requests = [ScoringRequest([*prompt, 90 + n], [1, 2], 37) for n in range(3)]
    assert minimal_tokens(requests, 16) == [43, 43 - 32, 43 - 32]
    assert minimal_tokens(requests, 1) == [43, 43 - 37, 43 - 37]


def test_a_request_scores_its_whole_response_or_the_places_asked_for() -> None:
    whole = ScoringRequest([1, 2, 3], [7, 8, 9])
    assert (list(whole.scored), list(whole.scored_ids)) == ([3, 4, 5], [7, 8, 9])
    some = ScoringRequest([1, 2, 3], [7, 8, 9], 0, [0, 2])
    assert (list(some.scored), list(some.scored_ids)) == ([3, 5], [7, 9])


def test_other_prefixes_pay_for_themselves_in_any_order() -> None:
    a, b = [1] * 32, [2] * 32
    requests = [ScoringRequest([*p, 5], [6], 32) for p in (a, b, a, b)]
    assert minimal_tokens(requests, 16) == [34, 34, 2, 2]
    assert sum(minimal_tokens(requests[::-1], 16)) == 72


def test_a_prefix_shorter_than_a_block_shares_nothing() -> None:
    requests = [ScoringRequest([7] * 20, [1], 15)] * 2
    assert minimal_tokens(requests, 16) == [21, 21]
    assert minimal_tokens([ScoringRequest([7] * 20, [1])] * 2, 1) == [21, 21]


def test_the_last_prompt_token_is_never_saved() -> None:
    # It predicts what is asked for, so of 32 equal tokens one whole block of 16 is reusable.
    assert minimal_tokens([ScoringRequest([7] * 32, [1], 32)] * 2, 16) == [33, 17]
    assert minimal_tokens([NextTokenRequest([7] * 32, [1], 32)] * 2, 16) == [32, 16]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (NextTokenRequest([], [1]), "empty_prompt"),
        (NextTokenRequest([1], []), "no_wanted_token"),
        (NextTokenRequest([1], [2] * (MAX_WANTED_TOKENS + 1)), "too_many_wanted_tokens"),
        (NextTokenRequest([1] * 11, [1]), "too_long"),
        (NextTokenRequest([1], [100]), "bad_token"),
        (NextTokenRequest([100], [1]), "bad_token"),
    ],
)
def test_a_next_token_request_that_cannot_be_run_says_why(
    bad: NextTokenRequest, reason: str
) -> None:
    fault = find_fault(bad, max_length=10, vocabulary_size=100)
    assert fault is not None
    assert fault.reason == reason
    assert find_fault(NextTokenRequest([1] * 10, [99]), 10, 100) is None


def test_a_next_token_that_is_not_finite_is_a_failure() -> None:
    answer = make_result(np.array([-1.0, -np.inf]), 3, 0)
    assert isinstance(answer, ScoringFailure)
    assert answer.reason == "not_finite"
    assert "1 of 2" in answer.message
    poisoned = FakeEngine().score([NextTokenRequest([POISON_ID], [1])])[0]
    assert isinstance(poisoned, ScoringFailure)
    assert poisoned.reason == "not_finite"


PROMPT = GenerationRequest(list(b"two and two?\n"), 20)
SOUND = ScoringRequest([1, 2, 3], [4, 5])


def test_the_fake_has_what_engines_have() -> None:
    wanted = {name for name in (*dir(Engine), *Engine.__annotations__) if name[0] != "_"}
    assert wanted <= set(dir(FakeEngine()))


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
def test_one_bad_prompt_leaves_its_neighbours_alone(bad: GenerationRequest, reason: str) -> None:
    before, failure, after = FakeEngine(max_length=40).generate([PROMPT, bad, PROMPT])
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == reason
    assert isinstance(before, Generation)
    assert before == after


def test_a_prompt_must_leave_room_for_the_longest_answer() -> None:
    assert find_fault(GenerationRequest([1] * 35, 5), 40, 2) is None
    fault = find_fault(GenerationRequest([1] * 36, 5), 40, 2)
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
    generator = FakeEngine(reply=lambda prompt: f"{len(prompt)}é!")
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
    texts = [a.text for a in FakeEngine().generate(prompts) if isinstance(a, Generation)]
    assert texts[0] == texts[1]
    assert len(set(texts[1:])) == 3


def test_a_row_has_a_stream_of_its_own() -> None:
    seeds = {row_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "0:a")}
    assert len(seeds) == 6
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    # First 63 bits of SHA-256("0:a"): a published answer can be made again.
    digest = hashlib.sha256(b"0:a").digest()
    assert row_seed(0, "a") == int("".join(f"{byte:08b}" for byte in digest)[:63], 2)


def test_same_request_scores_the_same_and_another_prompt_does_not() -> None:
    first, other, again = FakeEngine().score([SOUND, ScoringRequest([1, 2], [4, 5]), SOUND])
    assert isinstance(first, ScoringResult)
    assert isinstance(other, ScoringResult)
    assert isinstance(again, ScoringResult)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert (first.log_probs != other.log_probs).all()
    assert (first.log_probs < 0).all()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ScoringRequest([], [1]), "empty_prompt"),
        (ScoringRequest([1], []), "empty_response"),
        (ScoringRequest([1] * 9, [1, 1]), "too_long"),
        (ScoringRequest([1], [257]), "bad_token"),
        (ScoringRequest([-1], [1]), "bad_token"),
        (ScoringRequest([1], [POISON_ID]), "not_finite"),
    ],
)
def test_one_bad_request_leaves_its_neighbours_alone(bad: ScoringRequest, reason: str) -> None:
    before, failure, after = FakeEngine(max_length=10).score([SOUND, bad, SOUND])
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == reason
    assert isinstance(before, ScoringResult)
    assert isinstance(after, ScoringResult)
    np.testing.assert_array_equal(before.log_probs, after.log_probs)


def test_a_probability_above_one_is_a_failure() -> None:
    answer = make_result(np.array([-1.0, 0.1]), 2, 0)
    assert isinstance(answer, ScoringFailure)
    assert answer.reason == "not_a_probability"
