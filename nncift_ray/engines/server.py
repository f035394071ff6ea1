"""A language model behind an OpenAI-compatible server, asked for the likelihood of given tokens.

The tokens are made here, by the tokenizer of the model that the server is said to have, and sent as
numbers: a text would be tokenised there, perhaps with tokens of its own put before it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np

from nncift_ray.engines.base import (
    AnyScoringRequest,
    Engine,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    make_result,
)
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig, ServerConfig

CONNECT_SECONDS = 10.0
ATTEMPTS = 5
LONGEST_PAUSE_SECONDS = 30.0
#: Answers that another try may change: a time limit, too many requests, a server that starts.
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
SHOWN_CHARS = 300
UNREADABLE = "unreadable_answer"  # why a request failed
PROBE = "The capital of France is Paris."
#: The ways to ask for the log-probabilities of a prompt: vLLM's own, and the one of old.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 0},
    "echo": {"echo": True, "logprobs": 1},
}


class _AnswerError(Exception):
    """An answer that is of no use, whoever asks again; the arguments are a reason and a message."""

    def __str__(self) -> str:
        return str(self.args[1])


class ServerEngine(Engine):
    """A causal language model on a server; it scores and does not generate."""

    num_parameters = 0  # the server does not tell
    block_tokens = 1

    def __init__(self, model_path: str | Path, options: EngineConfig) -> None:
        """Load the tokenizer, and find out whether and how the server scores prompts.

        The token is read from the environment now.

        Args:
            model_path: Folder of the tokenizer.
            options: The recipe's section, whose engine is a server.

        Raises:
            ModelError: If there is no tokenizer, the server does not answer, does not have the
                model, has one of another tokenizer, or returns no log-probabilities of prompts.
        """
        self._tokenizer = SegmentTokenizer(
            model_path, template=options.template, turns=options.turns
        )
        self._vocabulary_size = self._tokenizer.vocabulary_size
        self._model, self.busy_seconds = options.served_name, 0.0
        self.name = f"server:{self._model}"
        self._server = server = cast("ServerConfig", options.server)
        token = os.environ.get(server.token_variable)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(server.timeout_seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=server.concurrency),
        )
        #: What messages call the server.
        self._called = f"the server of teacher.engine, {server.url.rstrip('/')},"
        longest = self._find_model()
        # One token is written, though nobody reads it.
        self.max_length = min(options.max_length, longest - 1 if longest else options.max_length)
        self._way = self._find_way()

    def score(self, requests: Sequence[AnyScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Return the log-probabilities that each request asks for, in order.

        Raises:
            ModelError: If the server does not answer any more.
        """

        def run(places: list[int]) -> Iterator[tuple[int, ScoringResult | ScoringFailure]]:
            begun = time.perf_counter()
            with ThreadPoolExecutor(self._server.concurrency) as pool:
                answers = pool.map(lambda place: self._score_one(requests[place]), places)
                yield from zip(places, answers, strict=True)
            self.busy_seconds += time.perf_counter() - begun

        return self._answer(requests, run)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Refuse: nothing that asks a server has it write.

        Raises:
            ModelError: Always.
        """
        raise ModelError("a server as engine scores prompts only; load the model with vllm")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _score_one(self, request: AnyScoringRequest) -> ScoringResult | ScoringFailure:
        if not isinstance(request, ScoringRequest):
            return ScoringFailure("not_served", "a server is not asked for chosen next tokens")
        try:
            found = self._log_probs([*request.prompt_ids, *request.response_ids], self._way)
        except _AnswerError as error:
            return ScoringFailure(*error.args)
        return make_result(found[list(request.scored)], request.num_tokens, 0)

    def _find_model(self) -> int | None:
        """Return the longest request that the server takes of the model, where it tells."""
        try:
            served = {entry["id"]: entry for entry in self._ask("GET", "/models")["data"]}
        except (_AnswerError, KeyError, TypeError) as error:
            raise ModelError(
                f"{self._called} lists no models as OpenAI's does ({error}); give its address with "
                "/v1"
            ) from error
        if self._model not in served:
            raise ModelError(
                f"{self._called} has no model {self._model!r}; name one of {', '.join(served)} in "
                "teacher.engine.model"
            )
        longest = served[self._model].get("max_model_len")
        return longest if isinstance(longest, int) else None

    def _find_way(self) -> str:
        """Return the first way of asking that the server understands, by asking once."""
        ids = [*self._tokenizer.document_start, *self.encode(PROBE)]
        reasons: list[str] = []
        for way in WAYS:
            try:
                if np.isfinite(self._log_probs(ids, way)[1:]).all():
                    return way
                reasons.append(f"{way}: log-probabilities that are no numbers")
            except _AnswerError as error:
                reasons.append(f"{way}: {error}")
        raise ModelError(
            f"{self._called} returns no log-probabilities of the tokens of a prompt, which the "
            "teacher needs; vLLM and SGLang do, many hosted services do not "
            f"({'; '.join(reasons)})"
        )

    def _log_probs(self, ids: Sequence[int], way: str) -> np.ndarray:
        """Return the log-probability of each token [T]; not a number where there is none."""
        asked = {"model": self._model, "prompt": list(map(int, ids)), "max_tokens": 1}
        answer = self._ask("POST", "/completions", asked | {"temperature": 0.0, **WAYS[way]})
        try:
            choice = answer["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise _AnswerError(UNREADABLE, "the answer holds no choice") from error
        return read_log_probs(choice, ids, way)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what the server answers, asking again where that may help."""
        reason, wanted, server = "", 0.0, self._server
        for attempt in range(ATTEMPTS):
            if attempt:  # at random, lest all that wait come back at once
                pause = max(wanted, 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0))
                time.sleep(min(pause, LONGEST_PAUSE_SECONDS))
            try:
                answer = self._client.request(method, server.url.rstrip("/") + path, json=body)
            except httpx.TimeoutException:
                reason = f"no answer within {server.timeout_seconds:g} s"
                continue
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.status_code in PASSING:
                reason, after = _describe(answer), answer.headers.get("retry-after", "")
                wanted = float(after) if after.isdigit() else 0.0
                continue
            return self._read(answer)
        raise ModelError(
            f"{self._called} does not answer ({reason}); {ATTEMPTS} tries were made. Look whether "
            "it is up and reached from here; with many requests at a time a larger "
            "teacher.engine.timeout_seconds or a smaller concurrency helps. The same command goes "
            "on from here"
        )

    def _read(self, answer: httpx.Response) -> Any:
        """Return what an answer says, or raise what it means."""
        if answer.status_code in (401, 403):
            variable = self._server.token_variable
            raise ModelError(
                f"{self._called} wants a token ({answer.status_code}): put a valid one in the "
                f"environment variable {variable} (teacher.engine.token_variable)"
            )
        if answer.status_code >= httpx.codes.MULTIPLE_CHOICES:
            raise _AnswerError("refused", _describe(answer))
        try:
            return answer.json()
        except ValueError as error:
            raise _AnswerError(UNREADABLE, "the answer is no JSON") from error


def _describe(answer: httpx.Response) -> str:
    text = " ".join(answer.text.split())[:SHOWN_CHARS]
    return f"HTTP {answer.status_code}: {text or answer.reason_phrase}"


def read_log_probs(choice: Mapping[str, Any], ids: Sequence[int], way: str) -> np.ndarray:
    """Return the log-probability of each prompt token [T]; not a number where there is none."""
    told = choice.get("prompt_logprobs") or []
    if way == "echo":
        told = (choice.get("logprobs") or {}).get("token_logprobs") or []
        told = told[: len(ids)]  # behind them stands the token that was written
    if len(told) != len(ids):
        raise _AnswerError(UNREADABLE, f"{len(told)} log-probabilities for {len(ids)} tokens")
    if way == "echo":
        return np.array([np.nan if value is None else value for value in told], dtype=np.float64)
    found = [(at or {}).get(str(token), {}) for at, token in zip(told, ids, strict=True)]
    if not all(found[1:]):
        raise _AnswerError(
            UNREADABLE,
            "log-probabilities of other tokens: the tokenizer of teacher.model is not that of the "
            "server's model",
        )
    return np.array([value.get("logprob", np.nan) for value in found], dtype=np.float64)
