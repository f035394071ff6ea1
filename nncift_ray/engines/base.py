"""What an engine is: a language model that scores given tokens and writes answers, in batches.

Every request ends as a result or as a failure with a reason, in the order of the requests: one bad
request neither empties a batch nor shifts its neighbours.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from nncift_ray.engines.tokens import ChatTemplate, SegmentTokenizer

ROUNDING = 1e-4  # a log-softmax may round a sure token to a hair above 0
MAX_WANTED_TOKENS = 128  # of one NextTokenRequest: vLLM's own limit, kept by all engines
SEED_BITS = 63  # engines take seeds as signed 64-bit numbers

FinishReason = Literal["stop", "length"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """A prompt and the response whose tokens are to be scored, teacher-forced."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    prefix_length: int = 0  # leading prompt tokens likely to be shared with other requests
    #: Places in response_ids of the tokens that are scored, ascending; None: all. The others are
    #: what others say between the turns of a response.
    asked: Sequence[int] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def scored(self) -> Sequence[int]:
        """Places of the tokens that are scored, counted from the start of the prompt."""
        first = len(self.prompt_ids)
        if self.asked is None:
            return range(first, self.num_tokens)
        return [first + at for at in self.asked]

    @property
    def scored_ids(self) -> Sequence[int]:
        """The tokens that are scored."""
        ids = self.response_ids
        return ids if self.asked is None else [ids[at] for at in self.asked]


@dataclass(frozen=True, slots=True)
class NextTokenRequest:
    """A prompt, and the tokens whose probability of coming next is wanted."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    prefix_length: int = 0  # leading prompt tokens likely to be shared with other requests

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, and how to go on from it."""

    prompt_ids: Sequence[int]
    max_tokens: int  # of the answer, its end token included
    temperature: float = 0.0  # 0 takes the likeliest token every time
    min_p: float = 0.0  # tokens less likely than this share of the likeliest are never taken
    seed: int = 0  # of this request's own random numbers
    stop_text: str = ""  # ends the answer and is no part of it; "": only an end token does

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a number is out of its range.
        """
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be within 0..1, got {self.min_p}")
        if not 0 <= self.seed < 1 << SEED_BITS:
            raise ValueError(f"seed must be within 0..2**{SEED_BITS} - 1, got {self.seed}")

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return len(self.prompt_ids) + self.max_tokens


AnyScoringRequest = ScoringRequest | NextTokenRequest
AnyRequest = AnyScoringRequest | GenerationRequest


@dataclass(frozen=True, slots=True, eq=False)
class ScoringResult:
    """Log-probabilities over the whole vocabulary."""

    #: Natural log of the probability of each scored token [T], or of each wanted token [K].
    log_probs: npt.NDArray[np.float64]
    num_tokens: int  # of prompt and response
    num_cached_tokens: int  # of them not computed for this request but reused


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated answer."""

    text: str  # without the end token, or up to the stop text
    num_prompt_tokens: int
    num_tokens: int  # generated, the end token or the stop text included
    finish_reason: FinishReason  # "stop": it came to its end; "length": it was cut off


@dataclass(frozen=True, slots=True)
class ScoringFailure:
    """Why a request has no result."""

    #: empty_prompt | empty_response | no_wanted_token | too_many_wanted_tokens | bad_token |
    #: too_long | not_finite | not_a_probability | out_of_memory | ...
    reason: str
    message: str


class Engine(ABC):
    """A language model that scores tokens and generates answers."""

    name: str  # engine and model, for reports
    max_length: int  # most tokens that a prompt and its response or answer may have together
    num_parameters: int  # of the model, counted before any quantisation
    block_tokens: int  # that a cache reuses together: only whole blocks are
    busy_seconds: float  # the model has been computing since it was loaded
    _tokenizer: SegmentTokenizer
    _vocabulary_size: int

    @property
    def start_ids(self) -> list[int]:
        """Tokens the model expects at the start of every text; empty for many models."""
        return self._tokenizer.start_ids

    @property
    def eos_id(self) -> int:
        """The token that ends a response."""
        return self._tokenizer.eos_id

    @property
    def chat(self) -> ChatTemplate | None:
        """The chat template that examples are written in; None: as plain text."""
        return self._tokenizer.chat

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text, with no special tokens added."""
        return self._tokenizer.encode(text)

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, ready to be answered."""
        return self._tokenizer.encode_message(text)

    @abstractmethod
    def score(self, requests: Sequence[AnyScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Return the log-probabilities that each request asks for, in order."""

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Return the answer to each request, in order."""

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""

    def _answer(
        self,
        requests: Sequence[AnyRequest],
        run: Callable[[list[int]], Iterable[tuple[int, Result | ScoringFailure]]],
    ) -> list[Result | ScoringFailure]:
        """Return an answer to each request; ``run`` is given the places of those that can be run.

        The others never reach the model.
        """
        answers: dict[int, Result | ScoringFailure] = {}
        for place, request in enumerate(requests):
            fault = find_fault(request, self.max_length, self._vocabulary_size)
            if fault is not None:
                answers[place] = fault
        answers.update(run([place for place in range(len(requests)) if place not in answers]))
        return [answers[place] for place in range(len(requests))]


def find_fault(request: AnyRequest, max_length: int, vocabulary_size: int) -> ScoringFailure | None:
    """Return why a request cannot be run, or None: checked before a model sees the batch.

    A prompt that leaves no room for the longest answer is too long: a shorter answer would be
    another measurement than its neighbours'.
    """
    if not request.prompt_ids:
        return ScoringFailure("empty_prompt", "there is nothing for a token to follow")
    asked_ids: Sequence[int] = request.prompt_ids
    too_long = f"{request.num_tokens} tokens, the engine's limit is {max_length}"
    match request:
        case ScoringRequest():
            asked_ids = request.response_ids
            if not asked_ids:
                return ScoringFailure("empty_response", "there is no response token to score")
        case NextTokenRequest():
            asked_ids = request.token_ids
            if not asked_ids:
                return ScoringFailure("no_wanted_token", "there is no token to return a score of")
            if len(asked_ids) > MAX_WANTED_TOKENS:
                return ScoringFailure(
                    "too_many_wanted_tokens",
                    f"{len(asked_ids)} tokens are asked about, the limit is {MAX_WANTED_TOKENS}",
                )
        case GenerationRequest():
            too_long = (
                f"{len(request.prompt_ids)} prompt tokens and an answer of up to "
                f"{request.max_tokens} are {too_long}"
            )
    if request.num_tokens > max_length:
        return ScoringFailure("too_long", too_long)
    for ids in (request.prompt_ids, asked_ids):
        if min(ids) < 0 or max(ids) >= vocabulary_size:
            return ScoringFailure("bad_token", f"a token id is outside 0..{vocabulary_size - 1}")
    return None


def make_result(
    log_probs: npt.NDArray[np.float64], num_tokens: int, num_cached_tokens: int
) -> ScoringResult | ScoringFailure:
    """Wrap log-probabilities; a value that cannot be one makes the request a failure."""
    bad = int(np.count_nonzero(~np.isfinite(log_probs)))
    if bad:
        return ScoringFailure(
            "not_finite", f"{bad} of {len(log_probs)} token log-probabilities are not finite"
        )
    if log_probs.max() > ROUNDING:
        return ScoringFailure("not_a_probability", f"a log-probability is {log_probs.max():.3g}")
    return ScoringResult(log_probs, num_tokens, num_cached_tokens)


def shareable_tokens(request: AnyScoringRequest) -> int:
    """Return how many leading tokens may come from a cache.

    The last prompt token never: its state predicts what is asked.
    """
    return max(0, min(request.prefix_length, len(request.prompt_ids) - 1))


def minimal_tokens(requests: Sequence[AnyScoringRequest], block_tokens: int) -> list[int]:
    """Return the least number of tokens to compute for each request of one call.

    The first request with a given prefix pays for all its tokens, every other one for what whole
    cached blocks of the prefix do not cover. What requests have in common beyond their
    ``prefix_length`` is not counted on. The sum does not depend on the order.
    """
    costs: list[int] = []
    paid: set[tuple[int, ...]] = set()
    for request in requests:
        covered = shareable_tokens(request) // block_tokens * block_tokens
        prefix = tuple(request.prompt_ids[:covered])
        costs.append(request.num_tokens - (covered if prefix in paid else 0))
        paid.add(prefix)
    return costs


def row_seed(seed: int, example_id: str) -> int:
    """Return the seed of one row, the same wherever and with whatever the row is run.

    It is the first 63 bits of a SHA-256 of the stage's seed and the row's id.
    """
    digest = hashlib.sha256(f"{seed}:{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
