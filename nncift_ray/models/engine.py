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
class ScoringFailure:
    """Why a request has no result."""

    reason: str  # empty_prompt | empty_response | bad_token | too_long | not_finite | ...
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

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        ...


def find_fault(
    request: ScoringRequest, max_length: int, vocabulary_size: int
) -> ScoringFailure | None:
    """Return why a request cannot be run, or None: checked before a model sees the batch."""
    if not request.prompt_ids:
        return ScoringFailure("empty_prompt", "the first response token has nothing to follow")
    if not request.response_ids:
        return ScoringFailure("empty_response", "there is no response token to score")
    if request.num_tokens > max_length:
        return ScoringFailure(
            "too_long", f"{request.num_tokens} tokens, the engine's limit is {max_length}"
        )
    for ids in (request.prompt_ids, request.response_ids):
        if min(ids) < 0 or max(ids) >= vocabulary_size:
            return ScoringFailure("bad_token", f"a token id is outside 0..{vocabulary_size - 1}")
    return None


def make_result(
    log_probs: npt.NDArray[np.float64], num_tokens: int, num_cached_tokens: int
) -> ScoringResult | ScoringFailure:
    """Wrap log-probabilities [T]; one that cannot be one makes the request a failure."""
    bad = int(np.count_nonzero(~np.isfinite(log_probs)))
    if bad:
        return ScoringFailure(
            "not_finite", f"{bad} of {len(log_probs)} token log-probabilities are not finite"
        )
    if log_probs.max() > ROUNDING:
        return ScoringFailure("not_a_probability", f"a log-probability is {log_probs.max():.3g}")
    return ScoringResult(log_probs, num_tokens, num_cached_tokens)
