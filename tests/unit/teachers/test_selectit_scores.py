from __future__ import annotations

import math

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.errors import ShapeError
from nncift_ray.teachers.selectit import (
    RATING_PROMPTS,
    RATINGS,
    TAIL,
    example_text,
    head_text,
    model_scores,
    sentence_scores,
    token_scores,
)

TOLERANCE = 1e-12
HAND_TOLERANCE = 1e-6  # of numbers worked with six decimals
# Worked by hand, from the shares P / sum P:
#   0.1 0.1 0.1 0.1 0.6   e^0.1 = 1.105171, e^0.6 = 1.822119, sum 4 * 1.105171 + 1.822119 = 6.242803
#     q = 0.177031 (four), 0.291875; gap (4 * 0.114844) / 4 = 0.114844; rating 5: 0.574220
#   0.2 0.5 0.1 0.1 0.1   e^0.2 = 1.221403, e^0.5 = 1.648721, sum 3 * 1.105171 + ... = 6.185637
#     q = 0.197458, 0.266540, 0.178667 (three); gap (0.069082 + 3 * 0.087873) / 4 = 0.083175;
#     rating 2: 0.166350
#   mean 0.370285, population deviation 0.203935; 0.370285 / (1 + 0.2 * 0.203935) = 0.355774
SHARES_RK = np.array([[0.1, 0.1, 0.1, 0.1, 0.6], [0.2, 0.5, 0.1, 0.1, 0.1]])
HAND_TOKEN_R = [0.574220, 0.166350]
HAND_SENTENCE = 0.355774
SURE, NEVER = 0.0, -60.0


def _sure_of(rating: int) -> np.ndarray:
    log_probs_K = np.full(len(RATINGS), NEVER)
    log_probs_K[rating - 1] = SURE
    return log_probs_K


def _oracle(P: list[float]) -> float:
    """Follow the formula word by word, in plain Python."""
    powers = [math.exp(p / sum(P)) for p in P]
    q = [power / sum(powers) for power in powers]
    return (q.index(max(q)) + 1) * sum(abs(x - max(q)) for x in q) / (len(q) - 1)


def test_prompt_is_the_methods_template() -> None:
    example = Example("i", "What is {2} + 2?", "4")
    assert head_text("Rate it.") + example_text(example) + TAIL == (
        "Rate it.\nInstruction:What is {2} + 2?\nResponse:4\nThe answer is: \n"
    )


def test_five_different_rating_prompts_are_asked() -> None:
    assert len(set(RATING_PROMPTS)) == 5
    assert all("1" in prompt and "5" in prompt for prompt in RATING_PROMPTS)


def test_token_and_sentence_score_are_those_worked_by_hand() -> None:
    tokens_R = token_scores(np.log(SHARES_RK))
    assert tokens_R == pytest.approx(HAND_TOKEN_R, abs=HAND_TOLERANCE)
    assert sentence_scores(tokens_R) == pytest.approx(HAND_SENTENCE, abs=HAND_TOLERANCE)


def test_token_scores_match_the_formula_on_random_probabilities() -> None:
    P_NRK = np.random.default_rng(0).dirichlet(np.ones(7), size=(20, 5))[..., :5]
    expected = [[_oracle(list(P_K)) for P_K in P_RK] for P_RK in P_NRK]
    np.testing.assert_allclose(token_scores(np.log(P_NRK)), expected, atol=TOLERANCE)


def test_only_ratios_count_however_small_the_probabilities() -> None:
    tiny_RK = np.log(SHARES_RK) - 2000.0  # exp of it is 0
    np.testing.assert_allclose(
        token_scores(tiny_RK), token_scores(np.log(SHARES_RK)), atol=TOLERANCE
    )


def test_a_sure_high_rating_scores_above_a_sure_low_one() -> None:
    scores = token_scores(np.stack([_sure_of(rating) for rating in range(1, 6)]))
    assert (np.diff(scores) > 0).all()
    assert scores[-1] == pytest.approx(5 * (math.e - 1) / (math.e + 4), abs=TOLERANCE)


def test_a_model_without_a_preference_scores_zero() -> None:
    assert token_scores(np.full(5, -3.0)) == pytest.approx(0.0, abs=TOLERANCE)


def test_disagreeing_prompts_score_below_agreeing_ones_of_the_same_mean() -> None:
    agreeing, disagreeing = sentence_scores(np.array([[0.5, 0.5], [0.1, 0.9]]))
    assert agreeing == pytest.approx(0.5, abs=TOLERANCE)
    # The population's deviation is 0.4, the sample's would be 0.57.
    assert disagreeing == pytest.approx(0.5 / (1 + 0.2 * 0.4), abs=TOLERANCE)
    assert sentence_scores(np.array([0.1, 0.9]), alpha=0.0) == pytest.approx(0.5, abs=TOLERANCE)


def test_the_number_of_rating_prompts_is_not_the_number_of_ratings() -> None:
    for num_prompts in (1, 3, 9):
        scores = token_scores(np.tile(_sure_of(4), (num_prompts, 1)))
        assert sentence_scores(scores) == pytest.approx(float(scores[0]), abs=TOLERANCE)


def test_weights_of_models_have_a_common_denominator() -> None:
    scores_M = np.array([0.2, 0.4, 0.8])
    expected = (7 * 0.2 + 13 * 0.4 + 70 * 0.8) / 90
    assert model_scores(scores_M, [7, 13, 70]) == pytest.approx(expected, abs=TOLERANCE)
    alike_M = np.full(3, 0.3)
    assert model_scores(alike_M, [7, 13, 70]) == pytest.approx(0.3, abs=TOLERANCE)


def test_one_model_keeps_its_score() -> None:
    assert model_scores(np.array([0.3]), [135_000_000]) == 0.3


def test_one_rating_alone_is_an_error_not_a_division_by_zero() -> None:
    with pytest.raises(ShapeError, match="K >= 2"):
        token_scores(np.zeros((3, 1)))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_rating_without_a_probability_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        token_scores(np.array([-1.0, bad]))


def test_models_and_sizes_must_agree() -> None:
    with pytest.raises(ShapeError, match="sizes"):
        model_scores(np.zeros(2), [1])
    with pytest.raises(ShapeError, match="M >= 1"):
        model_scores(np.zeros(0), [])
    with pytest.raises(ValueError, match="positive"):
        model_scores(np.zeros(2), [1, 0])
    with pytest.raises(ShapeError, match="R >= 1"):
        sentence_scores(np.zeros((4, 0)))
