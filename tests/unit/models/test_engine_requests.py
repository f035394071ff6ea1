from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.engines.base import (
    MAX_WANTED_TOKENS,
    NextTokenRequest,
    ScoringFailure,
    ScoringRequest,
    find_fault,
    make_next_token_result,
    minimal_tokens,
)
from tests.fake_engines import POISON_ID, FakeEngine


def test_first_request_of_a_prefix_pays_and_the_others_pay_what_whole_blocks_do_not_cover() -> None:
    prompt = list(range(40))  # 37 shared tokens: two whole blocks of 16
    requests = [ScoringRequest([*prompt, 90 + n], [1, 2], 37) for n in range(3)]
    assert minimal_tokens(requests, 16) == [43, 43 - 32, 43 - 32]
    assert minimal_tokens(requests, 1) == [43, 43 - 37, 43 - 37]


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
    answer = make_next_token_result(np.array([-1.0, -np.inf]), 3, 0)
    assert isinstance(answer, ScoringFailure)
    assert answer.reason == "not_finite"
    assert "1 of 2" in answer.message
    poisoned = FakeEngine().next_token_log_probs([NextTokenRequest([POISON_ID], [1])])[0]
    assert isinstance(poisoned, ScoringFailure)
    assert poisoned.reason == "not_finite"
