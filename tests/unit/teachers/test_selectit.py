from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import NextTokenRequest, ScoringFailure, ScoringResult
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.recipe.sections import SelectItConfig
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    make_teacher,
)
from nncift_ray.teachers.selectit import (
    RATING_PROMPTS,
    TAIL,
    SelectItTeacher,
    example_text,
    head_text,
    sentence_scores,
    token_scores,
)
from tests.fake_engines import FakeEngine

TOLERANCE = 1e-12
HAND_TOLERANCE = 2e-6  # of numbers worked with six decimals
EXAMPLES = [
    Example("a", "What is 2 + 2?", "4"),
    Example("b", "Name a colour.", "Blue"),
    Example("c", "Say hello.", "Hello, and a good day to you."),
]
REQUESTS = [LabelRequest(example) for example in EXAMPLES]
FIVE = list(b"12345")

Rate = Callable[[str], list[float] | ScoringFailure]


class RatingEngine(FakeEngine):
    """Rates each prompt as a function of its text says, and remembers what it was asked."""

    def __init__(self, rate: Rate, num_parameters: int = 1) -> None:
        super().__init__()
        self.rate, self.num_parameters = rate, num_parameters
        self.asked: list[NextTokenRequest] = []

    def score(self, requests: Sequence[NextTokenRequest]) -> list[ScoringResult | ScoringFailure]:
        self.asked += requests
        answers = [self.rate(bytes(request.prompt_ids).decode()) for request in requests]
        return [
            answer
            if isinstance(answer, ScoringFailure)
            else ScoringResult(np.log(answer), request.num_tokens, 0)
            for request, answer in zip(requests, answers, strict=True)
        ]


def _always(*probabilities: float) -> Rate:
    return lambda prompt: list(probabilities)


def _value(answer: Measurement | MeasurementFailure) -> float:
    assert isinstance(answer, Measurement), answer
    return answer.value


def test_each_rating_prompt_is_asked_of_each_example_in_the_methods_words() -> None:
    engine = RatingEngine(_always(0.1, 0.1, 0.1, 0.1, 0.6))
    SelectItTeacher([engine]).measure(REQUESTS)
    assert [bytes(request.prompt_ids).decode() for request in engine.asked] == [
        head_text(prompt) + example_text(example) + TAIL
        for prompt in RATING_PROMPTS
        for example in EXAMPLES
    ]
    assert all(list(request.token_ids) == FIVE for request in engine.asked)


def test_neighbours_share_the_rating_prompt_as_their_prefix() -> None:
    engine = RatingEngine(_always(0.1, 0.1, 0.1, 0.1, 0.6))
    engine.start_ids = [10]
    SelectItTeacher([engine]).measure(REQUESTS)
    prefixes = [bytes(r.prompt_ids[: r.prefix_length]).decode() for r in engine.asked]
    assert prefixes == ["\n" + head_text(p) for p in RATING_PROMPTS for _ in EXAMPLES]


def test_value_is_the_score_worked_by_hand() -> None:
    # Sure of 4 to four prompts (q = e / (e + 4) = 0.404610 against 0.148848 each: gap 0.255762,
    # token score 1.023048) and without a preference to the fifth (0):
    # mean 0.818438, deviation 0.409219, 0.818438 / (1 + 0.2 * 0.409219) = 0.756522.
    even, sure = [0.2] * 5, [1e-30, 1e-30, 1e-30, 1.0, 1e-30]
    engine = RatingEngine(lambda text: even if text.startswith(RATING_PROMPTS[4]) else sure)
    answers = SelectItTeacher([engine], alpha=0.2).measure(REQUESTS[:1])
    assert _value(answers[0]) == pytest.approx(0.756522, abs=HAND_TOLERANCE)


def test_two_models_count_by_their_size() -> None:
    low, high = _always(0.6, 0.1, 0.1, 0.1, 0.1), _always(0.1, 0.1, 0.1, 0.1, 0.6)
    small, large = RatingEngine(low, 7), RatingEngine(high, 13)
    one, other = (
        _value(SelectItTeacher([engine]).measure(REQUESTS[:1])[0]) for engine in (small, large)
    )
    both = _value(SelectItTeacher([small, large]).measure(REQUESTS[:1])[0])
    assert other == pytest.approx(5 * one, abs=TOLERANCE)
    assert both == pytest.approx((7 * one + 13 * other) / 20, abs=TOLERANCE)


def test_alpha_is_the_recipes() -> None:
    context = TeacherContext((FakeEngine,), selectit=SelectItConfig(alpha=0.0))
    values = [_value(a) for a in make_teacher("selectit", context).measure(REQUESTS)]
    engine = FakeEngine()
    for example, value in zip(EXAMPLES, values, strict=True):
        prompts = [head_text(p) + example_text(example) + TAIL for p in RATING_PROMPTS]
        results = engine.score(
            [NextTokenRequest(engine.encode(prompt), FIVE) for prompt in prompts]
        )
        log_probs_RK = np.stack([r.log_probs for r in results if isinstance(r, ScoringResult)])
        expected = sentence_scores(token_scores(log_probs_RK), 0.0)
        assert value == pytest.approx(float(expected), abs=TOLERANCE)


def test_order_and_company_change_no_value() -> None:
    teacher = SelectItTeacher([FakeEngine(), FakeEngine()])
    together = [_value(answer) for answer in teacher.measure(REQUESTS)]
    backwards = [_value(answer) for answer in teacher.measure(REQUESTS[::-1])]
    alone = [_value(teacher.measure([request])[0]) for request in REQUESTS]
    assert together == backwards[::-1] == alone
    assert len(set(together)) == len(EXAMPLES)


def test_one_failed_rating_prompt_fails_the_example_and_no_neighbour() -> None:
    def rate(prompt: str) -> list[float] | ScoringFailure:
        if prompt.startswith(RATING_PROMPTS[2]) and "colour" in prompt:
            return ScoringFailure("not_finite", "3 log-probabilities are not finite")
        return [0.1, 0.1, 0.1, 0.1, 0.6]

    answers = SelectItTeacher([RatingEngine(rate)]).measure(REQUESTS)
    assert [type(a) for a in answers] == [Measurement, MeasurementFailure, Measurement]
    assert answers[1] == MeasurementFailure(
        "not_finite", "rating prompt 3: 3 log-probabilities are not finite"
    )


def test_an_example_that_one_model_refuses_is_not_asked_of_the_next() -> None:
    fails = RatingEngine(lambda prompt: ScoringFailure("not_finite", "no"))
    second = RatingEngine(_always(0.1, 0.1, 0.1, 0.1, 0.6))
    answers = SelectItTeacher([fails, second]).measure(REQUESTS)
    assert all(isinstance(answer, MeasurementFailure) for answer in answers)
    assert not second.asked


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example("e", "q", ""), "no_response"),
        (Example("w", "q", " \n"), "no_response"),
        (Example("l", "q", "r" * 3000), "too_long"),
        (Example("p", "q" * 3000, "r"), "too_long"),
        (Example("n", "q", "\0"), "not_finite"),
    ],
)
def test_an_example_that_cannot_be_rated_whole_fails_alone(example: Example, reason: str) -> None:
    teacher = SelectItTeacher([FakeEngine()])
    answers = teacher.measure([REQUESTS[0], LabelRequest(example), REQUESTS[1]])
    failure = answers[1]
    assert isinstance(failure, MeasurementFailure)
    assert failure.reason == reason
    assert [_value(answers[0]), _value(answers[2])] == [
        _value(answer) for answer in teacher.measure(REQUESTS[:2])
    ]


def test_tokens_are_summed_over_rating_prompts_and_models() -> None:
    engine = FakeEngine()
    one = SelectItTeacher([engine]).measure(REQUESTS[:2])
    length = [
        sum(len(head_text(p) + example_text(x) + TAIL) for p in RATING_PROMPTS)
        for x in EXAMPLES[:2]
    ]
    heads = sum(len(head_text(prompt)) for prompt in RATING_PROMPTS)
    assert [a.num_tokens for a in one if isinstance(a, Measurement)] == length
    # The second example finds every rating prompt computed.
    minimal = [a.num_minimal_tokens for a in one if isinstance(a, Measurement)]
    assert minimal == [length[0], length[1] - heads]
    both = SelectItTeacher([engine, engine]).measure(REQUESTS[:1])[0]
    assert isinstance(both, Measurement)
    assert both.num_tokens == 2 * length[0]


class Encoding(FakeEngine):
    """Tokenises by a table of whole pieces first, then byte by byte."""

    def __init__(self, merged: dict[str, list[int]]) -> None:
        super().__init__()
        self.merged = merged

    def encode(self, text: str) -> list[int]:
        for piece, ids in self.merged.items():
            if piece in text:
                before, after = text.split(piece, 1)
                return [*self.encode(before), *ids, *self.encode(after)]
        return super().encode(text)


def _asked_ids(engine: FakeEngine) -> tuple[list[int], list[int]]:
    seen: list[NextTokenRequest] = []
    answer = engine.score

    def remember(requests: Sequence[NextTokenRequest]) -> list[ScoringResult | ScoringFailure]:
        seen.extend(requests)
        return answer(requests)

    engine.score = remember
    SelectItTeacher([engine]).measure(REQUESTS[:1])
    return list(seen[0].prompt_ids[-3:]), list(seen[0].token_ids)


def test_rating_ids_are_the_tokenizers_own() -> None:
    own = {digit: [200 + i] for i, digit in enumerate("12345")}
    assert _asked_ids(Encoding(own)) == (list(b": \n"), [200, 201, 202, 203, 204])


def test_a_rating_with_its_space_is_one_token_too() -> None:
    # The space that ends up in the rating is no longer at the end of the prompt.
    spaced = {f"\n{digit}": [180 + i] for i, digit in enumerate("12345")}
    spaced |= {f" {digit}": [180 + i] for i, digit in enumerate("12345")}
    assert _asked_ids(Encoding(spaced)) == (list(b"s: "), [180, 181, 182, 183, 184])


def test_the_prompt_ends_as_it_does_before_a_digit() -> None:
    class JoinsTrailingSpace(FakeEngine):
        def encode(self, text: str) -> list[int]:
            ids = super().encode(text)
            return [*ids[:-2], 250] if text.endswith(" \n") else ids

    assert _asked_ids(JoinsTrailingSpace()) == (list(b": \n"), FIVE)


@pytest.mark.parametrize(
    ("merged", "found"),
    [
        ({digit: [9, 10] for digit in "12345"}, r"1 is \[9, 10\] alone"),  # two tokens each
        ({digit: [7] for digit in "12345"}, r"5 is \[7\] alone"),  # all the unknown token
        ({digit: [] for digit in "12345"}, r"1 is \[\] alone"),  # dropped
        ({f"\n{digit}": [60 + int(digit)] for digit in "12345"}, r"ends in \[32, 61\]"),
        ({"\n3": [99]}, r"3 is \[51\] alone and a prompt with it ends in \[32, 99\]"),
    ],
)
def test_a_tokenizer_without_a_token_a_rating_is_refused(
    merged: dict[str, list[int]], found: str
) -> None:
    with pytest.raises(ModelError, match=rf"fake:hash.*{found}.*choose another"):
        SelectItTeacher([Encoding(merged)])


def test_selectit_follows_the_protocol_and_needs_a_model() -> None:
    teacher = make_teacher("selectit", TeacherContext((FakeEngine,)))
    assert isinstance(teacher, Teacher)
    assert (teacher.kind, teacher.needs_engine) == ("pointwise", True)
    assert teacher.utility(None, 0.25) == 0.25
    with pytest.raises(ConfigError, match="at least one language model"):
        make_teacher("selectit", TeacherContext())
