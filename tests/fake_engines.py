"""A language model of no weight, for tests without a model: its numbers and answers are hashes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from nncift_ray.engines.base import (
    AnyScoringRequest,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    find_fault,
    make_result,
)

NUM_BYTES = 256
POISON_ID = 0  # the NUL byte: a request that holds it fails, so tests can provoke a failure
WORST_NATS = 6.0


class FakeEngine:
    """One token a byte of UTF-8, then one end token.

    The same request gets the same numbers and the same answer on any machine and in any batch;
    another prompt gives others.
    """

    def __init__(self, max_length: int = 2048, reply: Callable[[str], str] | None = None) -> None:
        """Take up to ``max_length`` tokens a request; ``reply`` answers to a prompt's text.

        Without ``reply`` an answer is a hash of the prompt, and of the seed if it is sampled.
        """
        self.name = "fake:hash"
        self.max_length = max_length
        self.start_ids: list[int] = []
        self.eos_id = NUM_BYTES
        self.chat = None
        self.num_requests = 0  # asked so far: tests count calls with it
        self.num_parameters = 1_000
        self.block_tokens = 1
        self.busy_seconds = 0.0
        self._reply = reply

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text in UTF-8."""
        return list(text.encode("utf-8", errors="surrogatepass"))

    def encode_message(self, text: str) -> list[int]:
        """Return the bytes of the text: there is no chat template."""
        return self.encode(text)

    def score(self, requests: Sequence[AnyScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Return a hash of what stands before a token and the token itself as its log-prob."""
        self.num_requests += len(requests)
        return [self._score_one(request) for request in requests]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Return the answer to each request, in order."""
        self.num_requests += len(requests)
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _score_one(self, request: AnyScoringRequest) -> ScoringResult | ScoringFailure:
        fault = find_fault(request, self.max_length, NUM_BYTES + 1)
        if fault is not None:
            return fault
        forced = isinstance(request, ScoringRequest)
        tokens = request.response_ids if forced else request.token_ids
        start = state = zlib.crc32(np.asarray(request.prompt_ids, dtype="<i4").tobytes())
        log_probs = np.empty(len(tokens))
        for t, token in enumerate(tokens):
            state = zlib.crc32(int(token).to_bytes(4, "little"), state if forced else start)
            poisoned = token == POISON_ID if forced else POISON_ID in request.prompt_ids
            log_probs[t] = np.nan if poisoned else -WORST_NATS * state / 2**32
        if forced and request.asked is not None:
            log_probs = log_probs[list(request.asked)]
        return make_result(log_probs, request.num_tokens, 0)

    def _answer(self, request: GenerationRequest) -> Generation | ScoringFailure:
        fault = find_fault(request, self.max_length, NUM_BYTES + 1)
        if fault is not None:
            return fault
        if POISON_ID in request.prompt_ids:
            return ScoringFailure("not_finite", "the prompt holds the byte that fails")
        prompt = bytes(i for i in request.prompt_ids if i < NUM_BYTES)
        if self._reply is None:
            seed = request.seed if request.temperature > 0 else 0
            text = f"{zlib.crc32(prompt + seed.to_bytes(8, 'big')):08x}"
        else:
            text = self._reply(prompt.decode("utf-8", errors="replace"))
        written = [*self.encode(text), self.eos_id][: request.max_tokens]
        ended = written[-1] == self.eos_id
        kept = bytes(written[:-1] if ended else written).decode("utf-8", errors="replace")
        if request.stop_text and request.stop_text in kept:
            ended, kept = True, kept.partition(request.stop_text)[0]
        reason = "stop" if ended else "length"
        return Generation(kept, len(request.prompt_ids), len(written), reason)


class FakeGenerator(FakeEngine):
    """A fake engine that is told what to answer first."""

    def __init__(self, reply: Callable[[str], str] | None = None, max_length: int = 2048) -> None:
        """Answer with ``reply``, or a hash."""
        super().__init__(max_length, reply)
