"""A language model of no weight: log-probabilities that are a hash, for tests without a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from nncift_ray.engines.base import (
    Generation,
    GenerationRequest,
    NextTokenRequest,
    NextTokenResult,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    find_fault,
    find_generation_fault,
    make_next_token_result,
    make_result,
)

NUM_BYTES = 256
POISON_ID = 0  # the NUL byte: a response that holds it scores NaN, so tests can provoke a failure
WORST_NATS = 6.0


class FakeEngine:
    """Scores each response token by a hash of everything before it and the token itself.

    One token a byte of UTF-8, then one end token. The same request scores the same on any machine
    and in any batch; another example in the prompt gives other scores.
    """

    def __init__(self, max_length: int = 2048) -> None:
        """Make an engine that takes up to ``max_length`` tokens a request."""
        self.name = "fake:hash"
        self.max_length = max_length
        self.start_ids: list[int] = []
        self.eos_id = NUM_BYTES
        self.num_requests = 0  # asked so far: tests count calls with it
        self.num_parameters = 1_000
        self.block_tokens = 1
        self.busy_seconds = 0.0

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text in UTF-8."""
        return list(text.encode("utf-8", errors="surrogatepass"))

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests."""
        self.num_requests += len(requests)
        return [self._score_one(request) for request in requests]

    def next_token_log_probs(
        self, requests: Sequence[NextTokenRequest]
    ) -> list[NextTokenResult | ScoringFailure]:
        """Return a hash of prompt and token for every wanted token, as a log-probability."""
        self.num_requests += len(requests)
        return [self._rate_one(request) for request in requests]

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _score_one(self, request: ScoringRequest) -> ScoringResult | ScoringFailure:
        fault = find_fault(request, self.max_length, NUM_BYTES + 1)
        if fault is not None:
            return fault
        state = zlib.crc32(np.asarray(request.prompt_ids, dtype="<i4").tobytes())
        log_probs_T = np.empty(len(request.response_ids))
        for t, token in enumerate(request.response_ids):
            state = zlib.crc32(int(token).to_bytes(4, "little"), state)
            log_probs_T[t] = np.nan if token == POISON_ID else -WORST_NATS * state / 2**32
        return make_result(log_probs_T, request.num_tokens, 0)

    def _rate_one(self, request: NextTokenRequest) -> NextTokenResult | ScoringFailure:
        fault = find_fault(request, self.max_length, NUM_BYTES + 1)
        if fault is not None:
            return fault
        state = zlib.crc32(np.asarray(request.prompt_ids, dtype="<i4").tobytes())
        log_probs_K = np.array(
            [
                -WORST_NATS * zlib.crc32(int(token).to_bytes(4, "little"), state) / 2**32
                for token in request.token_ids
            ]
        )
        if POISON_ID in request.prompt_ids:
            log_probs_K[:] = np.nan
        return make_next_token_result(log_probs_K, request.num_tokens, 0)


# A language model of no weight that writes answers: a hash, or what a test tells it to say.

NUM_BYTES = 256
POISON_ID = 0  # the NUL byte: a prompt that holds it fails, so tests can provoke a failure

Reply = Callable[[str], str]


class FakeGenerator:
    """Writes one token a byte of UTF-8, then one end token.

    Left alone it answers with a hash of the prompt, and of the seed where the temperature is above
    0: the same request gets the same answer on any machine and in any batch.
    """

    def __init__(self, reply: Reply | None = None, max_length: int = 2048) -> None:
        """Make a generator that takes up to ``max_length`` tokens a request.

        Args:
            reply: What to answer to a prompt's text; None: a hash.
            max_length: Most tokens of a prompt and its answer.
        """
        self.name = "fake:hash" if reply is None else "fake:reply"
        self.max_length = max_length
        self.start_ids: list[int] = []
        self.eos_id = NUM_BYTES
        self.busy_seconds = 0.0
        self.num_requests = 0  # asked so far: tests count calls with it
        self._reply = reply

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text in UTF-8."""
        return list(text.encode("utf-8", errors="surrogatepass"))

    def encode_message(self, text: str) -> list[int]:
        """Return the bytes of the text: there is no chat template."""
        return self.encode(text)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Answer every request; the answers are in the order of the requests."""
        self.num_requests += len(requests)
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _answer(self, request: GenerationRequest) -> Generation | ScoringFailure:
        fault = find_generation_fault(request, self.max_length, NUM_BYTES + 1)
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
        tokens = [*self.encode(text), self.eos_id]
        written = tokens[: request.max_tokens]
        ended = written[-1] == self.eos_id
        kept = bytes(written[:-1] if ended else written).decode("utf-8", errors="replace")
        if request.stop_text and request.stop_text in kept:
            ended, kept = True, kept.partition(request.stop_text)[0]
        return Generation(
            kept,
            len(request.prompt_ids),
            len(written),
            "stop" if ended else "length",
        )
