"""SelectIT: how highly a language model rates an example, and how sure it is of its rating.

    q      = softmax(P / sum P),   P_k = P(the next token is rating k) over the K ratings
    token  = argmax_k q_k * sum_k (q_max - q_k) / (K - 1)
    sent   = mean_r token_r / (1 + alpha * std_r token_r)   over the R rating prompts
    model  = sum_m theta_m sent_m / sum_m theta_m           over M models of theta_m parameters

Suffix legend: K ratings, R rating prompts, M models. Every function reduces the last axis and takes
any number of axes before it. Only the texts and the arithmetic are here; the probabilities come
from a scoring engine.
Source: SelectIT, NeurIPS 2024, arXiv 2402.16705, section 3; the rating prompts are our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nncift_ray.core.examples import Example
from nncift_ray.errors import ShapeError

ALPHA = 0.2
RATINGS = ("1", "2", "3", "4", "5")

# Constants of the teacher: one changed character and the labels are another teacher's.
RATING_PROMPTS = (
    "Below are an instruction and a response to it. How well does the response do what the "
    "instruction asks? Answer with one digit: 1 if it fails entirely, 5 if nothing could be "
    "better.",
    "You review examples that an assistant will learn from. Read the example and grade its "
    "response with a digit from 1 (must not be learned from) to 5 (a model answer).",
    "Is this response correct, complete and clear? Weigh all three and write a single digit, "
    "where 1 is the worst grade, 3 is fair and 5 is the best.",
    "Somebody wrote the instruction below and got the response below. How content can they be "
    "with it? Choose 1, 2, 3, 4 or 5, from not at all to fully.",
    "Compare the response with the one that an expert would have written for the same "
    "instruction. 5 means just as good, 1 means of no use; reply with the number only.",
)
#: What asks for the rating, which is the next token: the same for all requests.
TAIL = "The answer is: \n"


def head_text(rating_prompt: str) -> str:
    """Write what stands before an example: the same for all that a rating prompt is asked about.

    Head, example and tail are tokenised apart and their tokens joined, so that the tokens of a head
    are the same for every example and an engine may compute them once.
    """
    return f"{rating_prompt}\nInstruction:"


def example_text(example: Example) -> str:
    """Write an example as it is rated, between a head and the tail."""
    return f"{example.prompt}\nResponse:{example.response}\n"


def token_scores(log_probs_K: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the likeliest rating, times how far it stands above the others.

    Only the ratios of the probabilities matter, and they are taken between logarithms: a model that
    gives all ratings next to no mass still has a preference. Of ratings that are equally likely the
    lowest counts.

    Args:
        log_probs_K: Natural log of the probability of each rating, lowest rating first [..., K].

    Returns:
        [...] scores, from 0 (no preference) to K (e - 1) / (e + K - 1): 1.28 with five ratings.

    Raises:
        ShapeError: If there are fewer than two ratings: one alone has nothing to stand above.
        ValueError: If a log-probability is not finite.
    """
    if log_probs_K.ndim == 0 or log_probs_K.shape[-1] < 2:
        raise ShapeError(f"log_probs must be [..., K] with K >= 2, got {log_probs_K.shape}")
    if not np.isfinite(log_probs_K).all():
        raise ValueError("log-probabilities of ratings must be finite")
    shares_K = _softmax(log_probs_K.astype(np.float64))
    q_K = _softmax(shares_K)
    gaps_K = q_K.max(axis=-1, keepdims=True) - q_K
    ratings = np.argmax(log_probs_K, axis=-1) + 1
    return ratings * gaps_K.sum(axis=-1) / (log_probs_K.shape[-1] - 1)


def sentence_scores(
    token_scores_R: npt.NDArray[np.float64], alpha: float = ALPHA
) -> npt.NDArray[np.float64]:
    """Return the mean over the rating prompts, lowered by how much they disagree.

    Args:
        token_scores_R: Token scores, one a rating prompt [..., R].
        alpha: Weight of the population standard deviation.

    Raises:
        ShapeError: If there is no rating prompt.
    """
    if token_scores_R.ndim == 0 or token_scores_R.shape[-1] == 0:
        raise ShapeError(f"token_scores must be [..., R] with R >= 1, got {token_scores_R.shape}")
    return token_scores_R.mean(axis=-1) / (1.0 + alpha * token_scores_R.std(axis=-1))


def model_scores(
    sentence_scores_M: npt.NDArray[np.float64], num_parameters_M: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return the mean over the models, weighted by their size; one model keeps its score.

    Args:
        sentence_scores_M: Sentence scores, one a model [..., M].
        num_parameters_M: Size of each model, all in the same unit [M].

    Raises:
        ShapeError: If there is no model, or not one size a model.
        ValueError: If a size is not positive.
    """
    sizes_M = np.asarray(num_parameters_M, dtype=np.float64)
    if sizes_M.ndim != 1 or not sizes_M.size or sentence_scores_M.shape[-1:] != sizes_M.shape:
        raise ShapeError(
            f"sentence_scores must be [..., M] with M >= 1 sizes, got {sentence_scores_M.shape} "
            f"and {sizes_M.shape}"
        )
    if sizes_M.min() <= 0:
        raise ValueError(f"every model needs a positive size, got {list(num_parameters_M)}")
    return (sentence_scores_M * (sizes_M / sizes_M.sum())).sum(axis=-1)


def _softmax(x_K: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax over the last axis [..., K]; of log-probabilities, their shares."""
    powers_K = np.exp(x_K - x_K.max(axis=-1, keepdims=True))
    return powers_K / powers_K.sum(axis=-1, keepdims=True)
