from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import NextTokenRequest, ScoringFailure, ScoringRequest
from nncift_ray.engines.tokens import (
    MIN_SHARED_TOKENS,
    Prompt,
    SegmentTokenizer,
    build_prompt_ids,
    cut_batches,
    encode_example,
    group_by_prefix,
    make_job,
)
from tests.tiny_models import write_tokenizer


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


NEAR = Example("near", "What is two?", "2")
FAR = Example("far", "Which is the capital of France?", "Paris, é 中.")
QUESTION = "What is four?"
QUESTION_TEXT = QUESTION + "\n"
SHOWN_TEXT = "Which is the capital of France?\nParis, é 中.\n\nWhat is two?\n2\n\n"


class Characters:
    """A token a character, behind one start token."""

    start_ids = [-1]

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(chr(token) for token in ids)


def build(max_length: int, reserve: int = 0) -> Prompt | ScoringFailure:
    return build_prompt_ids(
        Characters(), QUESTION, [NEAR, FAR], max_length=max_length, reserve=reserve
    )


def test_the_nearest_example_stands_next_to_the_question() -> None:
    prompt = build(1000)
    assert isinstance(prompt, Prompt)
    assert prompt.ids[0] == -1
    assert text_of(prompt.ids[1:]) == SHOWN_TEXT + QUESTION_TEXT
    assert prompt.num_cut == 0


def test_a_question_alone_is_written_as_in_training() -> None:
    prompt = build_prompt_ids(Characters(), QUESTION, max_length=100, reserve=10)
    assert prompt == Prompt((-1, *Characters().encode(QUESTION_TEXT)), 0)


@pytest.mark.parametrize("room", range(0, len(SHOWN_TEXT) + 2))
@pytest.mark.parametrize("reserve", [0, 5])
def test_examples_are_cut_from_the_left_and_the_question_never(room: int, reserve: int) -> None:
    max_length = 1 + room + len(QUESTION_TEXT) + reserve
    prompt = build(max_length, reserve)
    assert isinstance(prompt, Prompt)
    kept = min(room, len(SHOWN_TEXT))
    assert prompt.ids[0] == -1  # the start token stays too
    assert text_of(prompt.ids[1:]) == SHOWN_TEXT[len(SHOWN_TEXT) - kept :] + QUESTION_TEXT
    assert prompt.num_cut == len(SHOWN_TEXT) - kept
    assert len(prompt.ids) + reserve <= max_length


def test_a_question_that_does_not_fit_alone_is_a_failure() -> None:
    failure = build(1 + len(QUESTION_TEXT) + 5 - 1, reserve=5)
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == "too_long"
    assert f"{1 + len(QUESTION_TEXT) + 5} tokens" in failure.message


def test_with_a_real_tokenizer_the_pieces_are_those_of_training(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = SegmentTokenizer(tmp_path)
    example_ids = encode_example(tokenizer, FAR)
    question_ids = tokenizer.encode(FAR.prompt + "\n")
    assert example_ids[: len(question_ids)] == question_ids
    assert example_ids[len(question_ids) :] == tokenizer.encode(FAR.response + "\n\n")
    prompt = build_prompt_ids(tokenizer, QUESTION, [FAR], max_length=500, reserve=0)
    assert isinstance(prompt, Prompt)
    assert list(prompt.ids) == [
        *tokenizer.start_ids,
        *example_ids,
        *tokenizer.encode(QUESTION_TEXT),
    ]
