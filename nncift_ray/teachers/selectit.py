"""SelectIT: language models rate an example, and their doubts lower the rating.

Suffixes: K ratings, M models, R rating prompts.
Source: SelectIT, arXiv 2402.16705.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import (
    Engine,
    NextTokenRequest,
    ScoringResult,
    minimal_tokens,
)
from nncift_ray.errors import ConfigError, ModelError, ShapeError
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
)

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

    Scores [...] go from 0 (no preference) to K (e - 1) / (e + K - 1): 1.28 with five ratings. Only
    the ratios of the probabilities matter, and they are taken between logarithms: a model that
    gives all ratings next to no mass still has a preference. Of ratings that are equally likely the
    lowest counts.

    Args:
        log_probs_K: Natural log of the probability of each rating, lowest rating first [..., K].

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
    """Return the mean over the rating prompts [...], lowered by how much they disagree.

    ``alpha`` is the weight of their population standard deviation.

    Raises:
        ShapeError: If there is no rating prompt.
    """
    if token_scores_R.ndim == 0 or token_scores_R.shape[-1] == 0:
        raise ShapeError(f"token_scores must be [..., R] with R >= 1, got {token_scores_R.shape}")
    return token_scores_R.mean(axis=-1) / (1.0 + alpha * token_scores_R.std(axis=-1))


def model_scores(
    sentence_scores_M: npt.NDArray[np.float64], num_parameters_M: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return the mean over the models [...], weighted by their size; one model keeps its score.

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


class SelectItTeacher(Teacher):
    """SelectIT: the rating an example gets from one or several models, lowered by their doubts."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pointwise"
    needs_engine: ClassVar[bool] = True
    prompts_per_request: ClassVar[int] = len(RATING_PROMPTS)  # of each model, for plans

    def __init__(self, engines: Sequence[Engine], alpha: float = ALPHA) -> None:
        """Make a teacher of one or more language models, each counting by its parameters.

        Raises:
            ModelError: If a model's tokenizer has no token for each rating.
        """
        self._alpha = alpha
        self._raters = [_Rater(engine) for engine in engines]
        self._num_parameters_M = [engine.num_parameters for engine in engines]

    @classmethod
    def from_context(cls, context: TeacherContext) -> SelectItTeacher:
        """Load the context's engines and make a teacher of them."""
        if not context.engine_factories:
            raise ConfigError("teacher selectit needs at least one language model, none was given")
        engines = [make_engine() for make_engine in context.engine_factories]
        return cls(engines, context.selectit.alpha)

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the model score of every helped example.

        An example that one model cannot rate, or one rating prompt, has no score: the mean of the
        rest would be another quantity.
        """
        failures: dict[int, MeasurementFailure] = {}
        ratings: list[list[_Rating]] = [[] for _ in requests]
        for rater in self._raters:
            asked = [i for i in range(len(requests)) if i not in failures]
            answers = rater.rate([requests[i].helped for i in asked])
            for i, answer in zip(asked, answers, strict=True):
                if isinstance(answer, MeasurementFailure):
                    failures[i] = answer
                else:
                    ratings[i].append(answer)
        return [failures.get(i) or self._combine(rated) for i, rated in enumerate(ratings)]

    def close(self) -> None:
        """Free the language models."""
        for rater in self._raters:
            rater.engine.close()

    def _combine(self, ratings_M: Sequence[_Rating]) -> Measurement:
        """Reduce what all models said of one example to its score."""
        log_probs_MRK = np.stack([log_probs_RK for log_probs_RK, _ in ratings_M])
        sentence_M = sentence_scores(token_scores(log_probs_MRK), self._alpha)
        counts = np.sum([num_tokens for _, num_tokens in ratings_M], axis=0).tolist()
        return Measurement(float(model_scores(sentence_M, self._num_parameters_M)), *counts)


@dataclass(frozen=True, slots=True)
class RatingTokens:
    """How prompts end, and the token that each rating then is."""

    tail_ids: tuple[int, ...]
    rating_ids: tuple[int, ...]  # [K]


def resolve_rating_tokens(engine: Engine) -> RatingTokens:
    """Find the tokens of the ratings where the prompt ends.

    The end of the prompt is tokenised together with each rating, and what stands before the rating
    becomes the end of every prompt: a rating then follows it as it would in a text. (Alone, a space
    and a newline at the end may be one token, which is never followed by a digit in any text.) In a
    chat template a rating begins the answer, and its words end the prompt.

    Raises:
        ModelError: If a rating is not a token of its own there, the one that it is when tokenised
            alone, with or without a space before it; or if two ratings share a token.
    """
    if (chat := engine.chat) is not None:
        joined = [tuple(chat.message(TAIL.strip(), rating)) for rating in RATINGS]
    else:
        joined = [tuple(engine.encode(TAIL + rating)) for rating in RATINGS]
    alone = [[tuple(engine.encode(text)) for text in (rating, f" {rating}")] for rating in RATINGS]
    tails = {ids[:-1] for ids in joined}
    rating_ids = tuple(ids[-1] for ids in joined if ids)
    own_tokens = all(ids[-1:] in forms for ids, forms in zip(joined, alone, strict=True))
    if not own_tokens or len(tails) > 1 or len(set(rating_ids)) < len(RATINGS):
        found = "; ".join(
            f"{rating} is {list(forms[0])} alone and a prompt with it ends in {list(ids[-2:])}"
            for rating, ids, forms in zip(RATINGS, joined, alone, strict=True)
        )
        raise ModelError(
            "teacher selectit reads the probabilities of the tokens 1 to 5, and the tokenizer of "
            f"{engine.name} has no token for each of them ({found}); choose another teacher.model"
        )
    return RatingTokens(tails.pop(), rating_ids)


#: What one model said of one example: log-probabilities [R, K], and tokens: all, cached, minimal.
_Rating = tuple[npt.NDArray[np.float64], tuple[int, int, int]]


class _Rater:
    """Asks one model for its ratings."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._tokens = resolve_rating_tokens(engine)
        heads_R = [head_text(prompt) for prompt in RATING_PROMPTS]
        #: The tokens that the requests of each rating prompt begin with; the last may differ.
        self._heads_R = [
            (*engine.start_ids, *engine.encode(head))
            if engine.chat is None
            else tuple(engine.encode_message(head))
            for head in heads_R
        ]

    def rate(self, examples: Sequence[Example]) -> list[_Rating | MeasurementFailure]:
        """Ask every rating prompt about every example; answers are in the order of the examples."""
        prepared = [self._prepare(example) for example in examples]
        sound = [requests for requests in prepared if not isinstance(requests, MeasurementFailure)]
        # All requests of one rating prompt, then all of the next: neighbours share their prefix.
        asked = [request for of_prompt in zip(*sound, strict=True) for request in of_prompt]
        results = self.engine.score(asked)
        least = minimal_tokens(asked, self.engine.block_tokens)
        step = len(sound)
        joined = (_join(results[n::step], sum(least[n::step])) for n in range(step))
        return [one if isinstance(one, MeasurementFailure) else next(joined) for one in prepared]

    def _prepare(self, example: Example) -> list[NextTokenRequest] | MeasurementFailure:
        """Write the requests about one example, one a rating prompt.

        Nothing is cut: the rating of a part is not the rating of the example.
        """
        engine = self.engine
        if not example.response.strip():
            return MeasurementFailure("no_response", "the example has no response to be rated")
        if engine.chat is None:
            body = (*engine.encode(example_text(example)), *self._tokens.tail_ids)
            prompts_R = [(*head, *body) for head in self._heads_R]
        else:
            texts = [f"{head_text(p)}{example_text(example)}{TAIL}" for p in RATING_PROMPTS]
            prompts_R = [tuple(engine.encode_message(text.strip())) for text in texts]
        num_tokens = max(map(len, prompts_R))
        if num_tokens > engine.max_length:
            return MeasurementFailure(
                "too_long",
                f"to rate the example takes {num_tokens} tokens with the rating prompt, the limit "
                f"of {engine.name} is {engine.max_length}",
            )
        return [
            NextTokenRequest(
                prompt, self._tokens.rating_ids, len(os.path.commonprefix([head, prompt]))
            )
            for head, prompt in zip(self._heads_R, prompts_R, strict=True)
        ]


def _join(
    results_R: Sequence[ScoringResult | MeasurementFailure], num_minimal_tokens: int
) -> _Rating | MeasurementFailure:
    """Gather the answers about one example; the first failure is the example's."""
    sound: list[ScoringResult] = []
    for number, result in enumerate(results_R, start=1):
        if isinstance(result, MeasurementFailure):
            return MeasurementFailure(result.reason, f"rating prompt {number}: {result.message}")
        sound.append(result)
    num_tokens = sum(result.num_tokens for result in sound)
    num_cached = sum(result.num_cached_tokens for result in sound)
    log_probs_RK = np.stack([result.log_probs for result in sound])
    return log_probs_RK, (num_tokens, num_cached, num_minimal_tokens)
