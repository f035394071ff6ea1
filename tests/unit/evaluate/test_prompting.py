from __future__ import annotations

from pathlib import Path

import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.evaluation.ask import build_prompt_ids, encode_shown
from tests.tiny_models import write_tokenizer

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


def build(max_length: int, reserve: int = 0) -> tuple[int, ...] | ScoringFailure:
    return build_prompt_ids(
        Characters(), QUESTION, [NEAR, FAR], max_length=max_length, reserve=reserve
    )


def test_the_nearest_example_stands_next_to_the_question() -> None:
    prompt = build(1000)
    assert isinstance(prompt, tuple)
    assert prompt[0] == -1
    assert text_of(prompt[1:]) == SHOWN_TEXT + QUESTION_TEXT


def test_a_question_alone_is_written_as_in_training() -> None:
    prompt = build_prompt_ids(Characters(), QUESTION, max_length=100, reserve=10)
    assert prompt == (-1, *Characters().encode(QUESTION_TEXT))


@pytest.mark.parametrize("room", range(0, len(SHOWN_TEXT) + 2))
@pytest.mark.parametrize("reserve", [0, 5])
def test_examples_are_cut_from_the_left_and_the_question_never(room: int, reserve: int) -> None:
    max_length = 1 + room + len(QUESTION_TEXT) + reserve
    prompt = build(max_length, reserve)
    assert isinstance(prompt, tuple)
    kept = min(room, len(SHOWN_TEXT))
    assert prompt[0] == -1  # the start token stays too
    assert text_of(prompt[1:]) == SHOWN_TEXT[len(SHOWN_TEXT) - kept :] + QUESTION_TEXT
    assert len(prompt) + reserve <= max_length


def test_a_question_that_does_not_fit_alone_is_a_failure() -> None:
    failure = build(1 + len(QUESTION_TEXT) + 5 - 1, reserve=5)
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == "too_long"
    assert f"{1 + len(QUESTION_TEXT) + 5} tokens" in failure.message


def test_with_a_real_tokenizer_the_pieces_are_those_of_training(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = SegmentTokenizer(tmp_path)
    example_ids = encode_shown(tokenizer, FAR)
    question_ids = tokenizer.encode(FAR.prompt + "\n")
    assert example_ids[: len(question_ids)] == question_ids
    assert example_ids[len(question_ids) :] == tokenizer.encode(FAR.response + "\n\n")
    prompt = build_prompt_ids(tokenizer, QUESTION, [FAR], max_length=500, reserve=0)
    assert isinstance(prompt, tuple)
    assert list(prompt) == [
        *tokenizer.start_ids,
        *example_ids,
        *tokenizer.encode(QUESTION_TEXT),
    ]
