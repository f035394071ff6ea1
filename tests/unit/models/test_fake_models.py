from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.engines.base import (
    ScoringEngine,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    make_result,
)
from tests.fake_engines import POISON_ID, FakeEngine
from tests.hash_embedder import HashEmbedder

UNIT_TOLERANCE = 1e-6
SOUND = ScoringRequest([1, 2, 3], [4, 5])


def test_fakes_follow_the_protocols() -> None:
    assert isinstance(FakeEngine(), ScoringEngine)


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


def test_hash_embeddings_are_unit_vectors_and_shared_words_are_similar() -> None:
    a, b, c, empty = HashEmbedder(64).embed(["red green blue", "red green teal", "one two", ""])
    for vector in (a, b, c, empty):
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=UNIT_TOLERANCE)
    assert a @ b > a @ c
