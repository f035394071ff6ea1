from __future__ import annotations

from nncift_ray.engines.base import NextTokenRequest, ScoringRequest
from nncift_ray.engines.tokens import (
    MIN_SHARED_TOKENS,
    cut_batches,
    group_by_prefix,
    make_job,
)


def test_a_response_is_predicted_by_the_states_before_its_tokens() -> None:
    job = make_job(ScoringRequest([5, 6, 7], [8, 9], prefix_length=3))
    assert job.token_ids == (5, 6, 7, 8, 9)
    assert (job.positions, job.targets) == ((2, 3), (8, 9))
    assert job.prefix_length == 2  # the last prompt token is always computed


def test_next_tokens_are_all_read_off_the_last_state() -> None:
    job = make_job(NextTokenRequest([5, 6, 7], [1, 2, 1]))
    assert (job.positions, job.targets) == ((2, 2, 2), (1, 2, 1))
    assert job.token_ids == (5, 6, 7)


def test_jobs_are_grouped_by_long_prefixes_that_more_than_one_has() -> None:
    long, short = [1] * MIN_SHARED_TOKENS, [2] * (MIN_SHARED_TOKENS - 1)
    requests = [
        ScoringRequest([*prompt, 3], [4], len(prompt))
        for prompt in (long, short, [9, *long], long, short)
    ]
    groups = dict(group_by_prefix([make_job(request) for request in requests]))
    assert groups == {tuple(long): [0, 3], (): [1, 4, 2]}


def test_batches_hold_every_place_once_longest_first_within_their_bound() -> None:
    lengths = [3, 10, 4, 10, 9]
    batches = list(cut_batches(lengths, skip=2, batch_tokens=16))
    assert batches == [[1, 3], [4, 2], [0]]
    assert all(len(b) * (max(lengths[i] for i in b) - 2) <= 16 for b in batches)


def test_copies_of_a_long_prefix_are_bounded_too() -> None:
    batches = list(cut_batches([101] * 40, skip=100, batch_tokens=64))
    assert [len(batch) for batch in batches] == [10, 10, 10, 10]  # 10 * 101 < 16 * 64 < 11 * 101


def test_a_place_longer_than_the_bound_is_a_batch_of_its_own() -> None:
    assert list(cut_batches([50, 60], skip=0, batch_tokens=8)) == [[1], [0]]
