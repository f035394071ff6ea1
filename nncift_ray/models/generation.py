"""What a generation engine is: answers written token by token, in batches, each from its own seed.

Every request ends as an answer or as a failure with a reason, in the order of the requests: one bad
request neither empties a batch nor shifts its neighbours. A sampled request draws from a stream of
its own, so the answers beside it do not change what is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from nncift_ray.models.engine import ScoringFailure

SEED_BITS = 63  # engines take seeds as signed 64-bit numbers

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, and how to go on from it."""

    prompt_ids: Sequence[int]
    max_tokens: int  # of the answer, its end token included
    temperature: float = 0.0  # 0 takes the likeliest token every time
    min_p: float = 0.0  # tokens less likely than this share of the likeliest are never taken
    seed: int = 0  # of this request's own stream
    stop_text: str = ""  # ends the answer and is no part of it; "": only an end token does

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: If one is out of its range.
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


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine wrote."""

    text: str  # without the end token, or up to the stop text
    num_prompt_tokens: int
    num_tokens: int  # written, the end token or the stop text included
    finish_reason: FinishReason  # "stop": it came to its end; "length": it was cut off


@runtime_checkable
class GenerationEngine(Protocol):
    """A language model that writes answers."""

    @property
    def name(self) -> str:
        """Engine and model, for reports."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
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
        """The token that ends an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text, with no special tokens added."""
        ...

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, ready to be answered.

        Start tokens are included; a model without a template gets the bare text behind them.
        """
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Answer every request; the answers are in the order of the requests."""
        ...

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        ...


def find_generation_fault(
    request: GenerationRequest, max_length: int, vocabulary_size: int
) -> ScoringFailure | None:
    """Return why a request cannot be run, or None: checked before a model sees the batch.

    A prompt that leaves no room for the longest answer is too long: a shorter answer would be
    another measurement than its neighbours'.
    """
    ids = request.prompt_ids
    if not ids:
        return ScoringFailure("empty_prompt", "there is nothing for a token to follow")
    if request.num_tokens > max_length:
        return ScoringFailure(
            "too_long",
            f"{len(ids)} prompt tokens and an answer of up to {request.max_tokens} are "
            f"{request.num_tokens}, the engine's limit is {max_length}",
        )
    if min(ids) < 0 or max(ids) >= vocabulary_size:
        return ScoringFailure("bad_token", f"a token id is outside 0..{vocabulary_size - 1}")
    return None


def refuse_faulty_generations(
    requests: Sequence[GenerationRequest], max_length: int, vocabulary_size: int
) -> tuple[dict[int, ScoringFailure], list[int]]:
    """Return the failures of requests that cannot be run, by place, and the places of the rest."""
    faults = {
        place: fault
        for place, request in enumerate(requests)
        if (fault := find_generation_fault(request, max_length, vocabulary_size)) is not None
    }
    return faults, [place for place in range(len(requests)) if place not in faults]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How all answers of a stage are written."""

    max_tokens: int
    temperature: float
    min_p: float
    seed: int

    def request(
        self, prompt_ids: Sequence[int], example_id: str, stop_text: str = ""
    ) -> GenerationRequest:
        """Return the request of one row, with the row's own stream."""
        seed = row_seed(self.seed, example_id)
        return GenerationRequest(
            prompt_ids, self.max_tokens, self.temperature, self.min_p, seed, stop_text
        )


def row_seed(seed: int, example_id: str) -> int:
    """Return the seed of one row's stream, the same wherever and with whatever the row is run.

    Args:
        seed: Of all rows together.
        example_id: The row's own.

    Returns:
        The first 63 bits of a SHA-256 of both.
    """
    digest = hashlib.sha256(f"{seed}:{example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
