"""Scoring with vLLM, on a GPU or with its CPU build: teacher-forced, prefixes reused.

vLLM stops reading its prefix cache as soon as prompt log-probabilities are asked for, because it
cannot give them for positions it did not compute. Here only the response's are needed, so reading
is switched on again and every output is checked: no position that predicts a response token may
have come from the cache. The few that did are run again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nncift_ray.errors import EngineDiedError
from nncift_ray.models.engine import (
    NextTokenRequest,
    NextTokenResult,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    make_next_token_result,
    make_result,
    refuse_faulty,
)
from nncift_ray.models.vllm_loading import VllmOptions
from nncift_ray.models.vllm_model import VllmModel

Request = TypeVar("Request", ScoringRequest, NextTokenRequest)
Result = TypeVar("Result", ScoringResult, NextTokenResult)


class VllmEngine(VllmModel):
    """A causal language model in vLLM as a scoring engine."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        dtype: str = "float32",
        max_length: int = 2048,
        revision: str | None = None,
        enable_prefix_caching: bool = True,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        batch_tokens: int | None = None,
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        adapter: str | Path | None = None,
        num_threads: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            dtype: float32, bfloat16 or float16.
            max_length: Most tokens a request may have; lowered to what the model's positions hold.
            revision: Commit on the hub.
            enable_prefix_caching: Reuse the tokens that the requests of a call share.
            kv_cache_memory_bytes: Size of the key-value cache; None: on a CPU a few requests of
                ``max_length``, on a GPU what ``gpu_memory_utilization`` leaves.
            gpu_memory_utilization: Share of the GPU's memory for all there is, the logits of the
                prompts included.
            batch_tokens: Tokens computed in one step; None: as many as memory and vocabulary
                allow (see ``engine_sizing``).
            tensor_parallel_size: GPUs that share one copy of the model.
            quantization: A method that the installed vLLM knows; None: as the files say.
            adapter: Folder of a LoRA adapter as PEFT writes it.
            num_threads: CPU threads of torch; None leaves them alone.
            seed: Seed of vLLM; scoring draws nothing, so it changes nothing.

        Raises:
            ModelError: If vLLM is not installed, cannot load model or adapter, or has not the
                memory for them.
        """
        options = VllmOptions(
            dtype=dtype,
            max_length=max_length,
            revision=revision,
            enable_prefix_caching=enable_prefix_caching,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            batch_tokens=batch_tokens,
            tensor_parallel_size=tensor_parallel_size,
            quantization=quantization,
            adapter=adapter,
            seed=seed,
        )
        super().__init__(model_path, options, num_threads)

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests.

        Prefixes are reused within a call and never across calls: a reused position differs from a
        computed one in its last digits, and a label must not depend on what this actor did before.

        Raises:
            EngineDiedError: If vLLM cannot go on; the engine is of no more use.
        """
        return self._answer(requests, self._score_sound)

    def next_token_log_probs(
        self, requests: Sequence[NextTokenRequest]
    ) -> list[NextTokenResult | ScoringFailure]:
        """Return the log-probabilities of some tokens after each prompt, in order.

        Raises:
            EngineDiedError: If vLLM cannot go on; the engine is of no more use.
        """
        return self._answer(requests, self._rate_sound)

    def _answer(
        self,
        requests: Sequence[Request],
        run: Callable[[list[Request], bool], dict[int, Result | ScoringFailure]],
    ) -> list[Result | ScoringFailure]:
        """Refuse the faulty requests and run the others; ``run`` answers by their places."""
        faults, sound = refuse_faulty(requests, self.max_length, self._vocabulary_size)
        answers: dict[int, Result | ScoringFailure] = dict(faults)
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            # Refused only while blocks are in use; then this call reads no cache at all.
            read_cache = bool(self._llm.reset_prefix_cache())
            found = run([requests[i] for i in sound], read_cache)
        except (EngineDeadError, RuntimeError) as error:
            # A failed step leaves requests behind in vLLM that nobody will ever answer.
            raise EngineDiedError(f"{self.name} died: {error}") from error
        answers.update((sound[place], answer) for place, answer in found.items())
        return [answers[i] for i in range(len(requests))]

    def _score_sound(
        self, requests: list[ScoringRequest], read_cache: bool
    ) -> dict[int, ScoringResult | ScoringFailure]:
        """Score sound requests, those whose response was cached a second time."""
        answers: dict[int, ScoringResult | ScoringFailure] = {}
        cached: list[int] = []
        parameters = _scoring_parameters(read_cache=read_cache)
        prompts = [((*r.prompt_ids, *r.response_ids), parameters) for r in requests]
        for place, output in self._run_all(prompts):
            # The last prompt position predicts the first response token: it must be computed too.
            if (output.num_cached_tokens or 0) > len(requests[place].prompt_ids) - 1:
                cached.append(place)
            else:
                answers[place] = _read_response(requests[place], output)
        cached.sort()
        parameters = _scoring_parameters(read_cache=False)
        for again, output in self._run_all([(prompts[place][0], parameters) for place in cached]):
            answers[cached[again]] = _read_response(requests[cached[again]], output)
        return answers

    def _rate_sound(
        self, requests: list[NextTokenRequest], read_cache: bool
    ) -> dict[int, NextTokenResult | ScoringFailure]:
        """Ask for the next token of sound requests; vLLM always computes the last position."""
        prompts = [
            (r.prompt_ids, _next_token_parameters(r.token_ids, read_cache=read_cache))
            for r in requests
        ]
        return {
            place: _read_next_token(requests[place], output)
            for place, output in self._run_all(prompts)
        }


def _scoring_parameters(*, read_cache: bool) -> Any:
    return _parameters(prompt_logprobs=0, skip_reading_prefix_cache=not read_cache)


def _next_token_parameters(token_ids: Sequence[int], *, read_cache: bool) -> Any:
    return _parameters(logprob_token_ids=list(token_ids), skip_reading_prefix_cache=not read_cache)


def _parameters(**what: Any) -> Any:
    """Return sampling parameters that sample nothing of interest."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **what,
    )


def _read_response(request: ScoringRequest, output: Any) -> ScoringResult | ScoringFailure:
    """Take the response's log-probabilities off the end of an output.

    The head of the list is what the cache covered: missing on a GPU, arbitrary memory on a CPU.
    """
    num_cached = output.num_cached_tokens or 0
    if num_cached > len(request.prompt_ids) - 1:
        return ScoringFailure("cached_response", "vLLM read response positions from its cache")
    flat = output.prompt_logprobs
    length = len(request.response_ids)
    if flat is None or len(flat) < length:
        found = 0 if flat is None else len(flat)
        return ScoringFailure("missing_positions", f"vLLM returned {found} of {length} positions")
    starts = flat.start_indices[-length:]
    if [flat.token_ids[s] for s in starts] != list(request.response_ids):
        return ScoringFailure("wrong_positions", "vLLM returned log-probs of other tokens")
    log_probs_T = np.array([flat.logprobs[s] for s in starts], dtype=np.float64)
    return make_result(log_probs_T, request.num_tokens, num_cached)


def _read_next_token(request: NextTokenRequest, output: Any) -> NextTokenResult | ScoringFailure:
    """Take the wanted log-probabilities; the sampled token's comes before them."""
    flat = output.outputs[0].logprobs
    wanted = slice(1, 1 + len(request.token_ids))
    if flat is None or list(flat.token_ids[wanted]) != list(request.token_ids):
        return ScoringFailure("wrong_tokens", "vLLM returned log-probs of other tokens")
    log_probs_K = np.array(flat.logprobs[wanted], dtype=np.float64)
    return make_next_token_result(log_probs_K, request.num_tokens, output.num_cached_tokens or 0)
