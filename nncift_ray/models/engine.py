"""What a scoring engine is: log-probabilities of given responses, teacher-forced, in batches.

An engine never samples. Every request ends as a result or as a failure with a reason, in the order
of the requests: one bad request neither empties a batch nor shifts its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

ROUNDING = 1e-4  # a log-softmax may round a sure token to a hair above 0
MAX_WANTED_TOKENS = 128  # of one NextTokenRequest: vLLM's own limit, kept by all engines


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One prompt and the response whose tokens are to be scored."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    prefix_length: int = 0  # leading prompt tokens likely to be shared with other requests

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, eq=False)
class ScoringResult:
    """The scored response."""

    log_probs: npt.NDArray[np.float64]  # [T] natural log of each response token's probability
    num_tokens: int  # of prompt and response
    num_cached_tokens: int  # of them not computed for this request but reused


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


@dataclass(frozen=True, slots=True, eq=False)
class NextTokenResult:
    """How likely each of the wanted tokens is to come next, over the whole vocabulary."""

    log_probs: npt.NDArray[np.float64]  # [K] natural log, in the order of token_ids
    num_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class ScoringFailure:
    """Why a request has no result."""

    #: empty_prompt | empty_response | no_wanted_token | too_many_wanted_tokens | bad_token |
    #: too_long | not_finite | not_a_probability | ...
    reason: str
    message: str


@runtime_checkable
class ScoringEngine(Protocol):
    """A language model that scores responses."""

    @property
    def name(self) -> str:
        """Engine and model, for reports."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens that prompt and response may have together."""
        ...

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, as many as they are before any quantisation."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens that are reused or computed together: a cache reuses whole blocks only."""
        ...

    @property
    def busy_seconds(self) -> float:
        """Seconds the model has been computing since it was loaded."""
        ...

    @property
    def start_ids(self) -> list[int]:
        """Tokens the model expects at the start of every text; empty for many models."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a response."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text, with no special tokens added."""
        ...

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests."""
        ...

    def next_token_log_probs(
        self, requests: Sequence[NextTokenRequest]
    ) -> list[NextTokenResult | ScoringFailure]:
        """Return the log-probabilities of some tokens after each prompt, in order."""
        ...

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        ...


AnyRequest = ScoringRequest | NextTokenRequest


def find_fault(request: AnyRequest, max_length: int, vocabulary_size: int) -> ScoringFailure | None:
    """Return why a request cannot be run, or None: checked before a model sees the batch."""
    if not request.prompt_ids:
        return ScoringFailure("empty_prompt", "there is nothing for a token to follow")
    if isinstance(request, ScoringRequest):
        asked_ids = request.response_ids
        if not asked_ids:
            return ScoringFailure("empty_response", "there is no response token to score")
    else:
        asked_ids = request.token_ids
        if not asked_ids:
            return ScoringFailure("no_wanted_token", "there is no token to return a score of")
        if len(asked_ids) > MAX_WANTED_TOKENS:
            return ScoringFailure(
                "too_many_wanted_tokens",
                f"{len(asked_ids)} tokens are asked about, the limit is {MAX_WANTED_TOKENS}",
            )
    if request.num_tokens > max_length:
        return ScoringFailure(
            "too_long", f"{request.num_tokens} tokens, the engine's limit is {max_length}"
        )
    for ids in (request.prompt_ids, asked_ids):
        if min(ids) < 0 or max(ids) >= vocabulary_size:
            return ScoringFailure("bad_token", f"a token id is outside 0..{vocabulary_size - 1}")
    return None


def refuse_faulty(
    requests: Sequence[AnyRequest], max_length: int, vocabulary_size: int
) -> tuple[dict[int, ScoringFailure], list[int]]:
    """Return the failures of requests that cannot be run, by place, and the places of the rest."""
    faults = {
        place: fault
        for place, request in enumerate(requests)
        if (fault := find_fault(request, max_length, vocabulary_size)) is not None
    }
    return faults, [place for place in range(len(requests)) if place not in faults]


def make_result(
    log_probs: npt.NDArray[np.float64], num_tokens: int, num_cached_tokens: int
) -> ScoringResult | ScoringFailure:
    """Wrap log-probabilities [T]; one that cannot be one makes the request a failure."""
    return _find_bad(log_probs) or ScoringResult(log_probs, num_tokens, num_cached_tokens)


def make_next_token_result(
    log_probs: npt.NDArray[np.float64], num_tokens: int, num_cached_tokens: int
) -> NextTokenResult | ScoringFailure:
    """Wrap log-probabilities [K]; one that cannot be one makes the request a failure."""
    return _find_bad(log_probs) or NextTokenResult(log_probs, num_tokens, num_cached_tokens)


def shareable_tokens(request: AnyRequest) -> int:
    """Leading tokens that may come from a cache: the last prompt token predicts what is asked."""
    return max(0, min(request.prefix_length, len(request.prompt_ids) - 1))


def minimal_tokens(requests: Sequence[AnyRequest], block_tokens: int) -> list[int]:
    """Count the tokens that each request of one call costs at the least.

    The first request with a given prefix pays for all its tokens, every other one for what whole
    cached blocks of the prefix do not cover. A prefix shorter than a block shares nothing. What
    requests have in common beyond their ``prefix_length`` is not counted on.

    Args:
        requests: The requests of one call, in any order; the sum does not depend on it.
        block_tokens: Tokens of a cache block, the engine's ``block_tokens``.
    """
    costs: list[int] = []
    paid: set[tuple[int, ...]] = set()
    for request in requests:
        covered = shareable_tokens(request) // block_tokens * block_tokens
        prefix = tuple(request.prompt_ids[:covered])
        costs.append(request.num_tokens - (covered if prefix in paid else 0))
        paid.add(prefix)
    return costs


def _find_bad(log_probs: npt.NDArray[np.float64]) -> ScoringFailure | None:
    bad = int(np.count_nonzero(~np.isfinite(log_probs)))
    if bad:
        return ScoringFailure(
            "not_finite", f"{bad} of {len(log_probs)} token log-probabilities are not finite"
        )
    if log_probs.max() > ROUNDING:
        return ScoringFailure("not_a_probability", f"a log-probability is {log_probs.max():.3g}")
    return None
