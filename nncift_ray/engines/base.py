"""What a scoring engine is: log-probabilities of given responses, teacher-forced, in batches.

An engine never samples. Every request ends as a result or as a failure with a reason, in the order
of the requests: one bad request neither empties a batch nor shifts its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import psutil

from nncift_ray.errors import ModelError

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


# What a generation engine is: answers written token by token, in batches, each from its own seed.

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


# How large vLLM may make a step and its cache: plain arithmetic on a model's shape and the memory.

LOGIT_BYTES = 4
#: How often the model runner of vLLM 0.29 holds the logits of a prompt, at its worst moment: raw
#: and as log-probabilities, for the prompt before it too. Not compiled, the comparison that ranks
#: them takes two copies more (4.3 were measured on a CPU).
LOGIT_COPIES_ON_CPU = 5
LOGIT_COPIES_ON_GPU = 3
LOGITS_SHARE_OF_CPU = 1 / 8  # of the memory that is free
LOGITS_SHARE_OF_GPU = 1 / 10  # of the device
MAX_LOGITS_BYTES_ON_CPU = 1 << 30  # larger steps compute no faster there
MAX_STEP_TOKENS_ON_CPU = 2048
MAX_STEP_TOKENS_ON_GPU = 8192
MIN_STEP_TOKENS = 64
STEP_TOKENS_MULTIPLE = 32  # whole cache blocks
TOKENS_PER_SEQUENCE = 16  # fewer new tokens a request has hardly ever
MAX_SEQUENCES = 256
MIN_SEQUENCES = 8
CACHED_REQUESTS_ON_CPU = 4  # of the greatest length: a helper's prefix and what runs beside it
WRITTEN_AT_ONCE_ON_CPU = 64  # answers; beyond that two cores compute no faster
WRITTEN_AT_ONCE_ON_GPU = 256
CACHED_ANSWERS_ON_CPU = 8  # of the greatest length; most are far shorter, so more are in work
CACHE_SHARE = 1 / 2  # of the memory that weights and logits leave free
BYTES_PER_QUANTISED_WEIGHT = 0.5  # at the least
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes."""

    vocabulary_size: int
    num_parameters: int
    bytes_per_weight: float
    cache_bytes_per_token: int  # keys and values of all layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights; of quantised ones a lower bound."""
        return math.ceil(self.num_parameters * self.bytes_per_weight)

    def logit_bytes(self, step_tokens: int, copies: int) -> int:
        """Bytes that a step of prompt tokens takes for their log-probabilities."""
        return copies * LOGIT_BYTES * self.vocabulary_size * step_tokens


@dataclass(frozen=True, slots=True)
class EngineSize:
    """Settings of vLLM that its memory depends on."""

    max_num_batched_tokens: int  # computed in one step
    max_num_seqs: int  # requests in one step
    kv_cache_memory_bytes: int | None  # None: what the GPU's share leaves
    gpu_memory_utilization: float | None  # None on a CPU


def shape_of(config: Any, num_parameters: int, dtype: str, *, quantised: bool) -> ModelShape:
    """Read a model's shape off its transformers configuration.

    Layers that look back over a window only count as layers that look back over everything, so
    ``cache_bytes_per_token`` is an upper bound for such models.

    Raises:
        ModelError: If ``dtype`` is unknown.
    """
    dtype_bytes = DTYPE_BYTES.get(dtype)
    if dtype_bytes is None:
        raise ModelError(f"dtype {dtype!r} is unknown; use {', '.join(DTYPE_BYTES)}")
    num_heads = getattr(config, "num_attention_heads", None)
    if not num_heads:  # a state of fixed size in place of a cache
        numbers = 0
    elif getattr(config, "kv_lora_rank", None):  # latent attention: one small vector
        numbers = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        numbers = 2 * num_kv_heads * head_dim
    return ModelShape(
        vocabulary_size=int(config.vocab_size),
        num_parameters=num_parameters,
        bytes_per_weight=BYTES_PER_QUANTISED_WEIGHT if quantised else dtype_bytes,
        cache_bytes_per_token=config.num_hidden_layers * numbers * dtype_bytes,
    )


def size_for_cpu(
    shape: ModelShape,
    max_length: int,
    free_bytes: int,
    *,
    batch_tokens: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    generates: bool = False,
) -> EngineSize:
    """Size an engine that shares a machine's memory.

    Args:
        shape: The model.
        max_length: Tokens of the longest request.
        free_bytes: Memory free before the model is loaded.
        batch_tokens: Tokens of a step, where the user says so.
        kv_cache_memory_bytes: Bytes of the cache, where the user says so.
        generates: Whether it writes answers, and so needs no logits of prompts.

    Raises:
        ModelError: If the weights, the logits of a step or the cache of one request do not fit.
    """
    left = free_bytes - shape.weight_bytes
    if left <= 0:
        raise _weights_too_large(shape, free_bytes)
    copies = LOGIT_COPIES_ON_CPU
    if generates:
        # Whole prompts: vLLM cannot take back what a seeded request draws behind half a prompt.
        tokens = max(batch_tokens or MAX_STEP_TOKENS_ON_CPU, max_length + 1)
        rows = sequences = min(tokens, WRITTEN_AT_ONCE_ON_CPU)
    else:
        budget = min(MAX_LOGITS_BYTES_ON_CPU, left * LOGITS_SHARE_OF_CPU)
        rows = tokens = batch_tokens or _step_tokens(shape, copies, budget, MAX_STEP_TOKENS_ON_CPU)
        sequences = _sequences(tokens)
    left -= _require_logits(shape, copies, rows, left)
    cache = kv_cache_memory_bytes
    if cache is None:
        request = shape.cache_bytes_per_token * (max_length + STEP_TOKENS_MULTIPLE)
        wanted = CACHED_ANSWERS_ON_CPU if generates else CACHED_REQUESTS_ON_CPU
        cache = min(wanted * request, int(left * CACHE_SHARE))
        if cache < request:
            raise ModelError(
                f"not enough memory: the key-value cache of one request of {max_length} tokens "
                f"takes {_gib(request)}, and only {_gib(cache)} of {_gib(free_bytes)} may be taken "
                "for it; lower teacher.max_length or choose a smaller teacher.model"
            )
    return EngineSize(tokens, sequences, cache, None)


def size_for_gpu(
    shape: ModelShape,
    device_bytes: int,
    gpu_memory_utilization: float,
    *,
    tensor_parallel_size: int = 1,
    batch_tokens: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    generates: bool = False,
) -> EngineSize:
    """Size an engine that has a share of each of its GPUs.

    The logits are taken off the share that vLLM is told of; it measures the rest itself and gives
    to the cache what is left.

    Args:
        shape: The model.
        device_bytes: Memory of one GPU.
        gpu_memory_utilization: Share of it for weights, cache, activations and logits.
        tensor_parallel_size: GPUs that share the weights; each may hold whole logits.
        batch_tokens: Tokens of a step, where the user says so.
        kv_cache_memory_bytes: Bytes of the cache on each GPU, where the user says so.
        generates: Whether it writes answers, and so needs no logits of prompts.

    Raises:
        ModelError: If the weights or the logits of a step do not fit.
    """
    share = int(device_bytes * gpu_memory_utilization)
    left = share - shape.weight_bytes // tensor_parallel_size
    if left <= 0:
        raise ModelError(
            f"not enough memory: the weights take {_gib(shape.weight_bytes)} on "
            f"{tensor_parallel_size} GPU(s), each with {_gib(share)} for the teacher; raise "
            "teacher.tensor_parallel_size or teacher.gpu_memory_utilization, or set "
            "teacher.quantization"
        )
    copies = LOGIT_COPIES_ON_GPU
    if generates:
        tokens = batch_tokens or MAX_STEP_TOKENS_ON_GPU
        rows = sequences = min(tokens, WRITTEN_AT_ONCE_ON_GPU)
    else:
        budget = min(device_bytes * LOGITS_SHARE_OF_GPU, left / 2)
        rows = tokens = batch_tokens or _step_tokens(shape, copies, budget, MAX_STEP_TOKENS_ON_GPU)
        sequences = _sequences(tokens)
    logits = _require_logits(shape, copies, rows, left)
    utilization = gpu_memory_utilization - logits / device_bytes
    return EngineSize(tokens, sequences, kv_cache_memory_bytes, utilization)


def fit_batch_tokens(shape: ModelShape, max_length: int, free_bytes: int, batch_tokens: int) -> int:
    """Return how many tokens an engine of one key-value cache may hold in it.

    Args:
        shape: The model, not loaded yet.
        max_length: Tokens of the longest request.
        free_bytes: Memory free on the device it will be loaded to.
        batch_tokens: Tokens wanted.

    Raises:
        ModelError: If the weights or the cache of one request do not fit.
    """
    left = free_bytes - shape.weight_bytes
    if left <= 0:
        raise _weights_too_large(shape, free_bytes)
    # A layer's cache is held twice while a token is put to its end.
    fitting = int(left * CACHE_SHARE) // max(1, shape.cache_bytes_per_token)
    if fitting < max_length:
        raise ModelError(
            f"not enough memory: the key-value cache of one request of {max_length} tokens takes "
            f"{_gib(shape.cache_bytes_per_token * max_length)}, and only "
            f"{_gib(left * CACHE_SHARE)} of {_gib(free_bytes)} may be taken for it; lower "
            "max_length, or choose a smaller model or a dtype of fewer bytes"
        )
    return min(batch_tokens, fitting)


def cache_remedy(shape: ModelShape, max_length: int, cache_bytes: float) -> str | None:
    """Say what to change where a cache cannot hold one request; None where it can.

    Args:
        shape: The model.
        max_length: Tokens of the longest request.
        cache_bytes: The most that the cache can have had, over all GPUs.
    """
    request = shape.cache_bytes_per_token * (max_length + 1)
    if request <= cache_bytes:
        return None
    return (
        f"the key-value cache of one request of {max_length} tokens takes {_gib(request)} and "
        f"{_gib(max(0, cache_bytes))} are left for it: lower teacher.max_length, raise "
        "teacher.kv_cache_memory_bytes or teacher.gpu_memory_utilization, set "
        "teacher.quantization, or raise teacher.tensor_parallel_size"
    )


def _weights_too_large(shape: ModelShape, free_bytes: int) -> ModelError:
    return ModelError(
        f"not enough memory: the weights take {_gib(shape.weight_bytes)}, "
        f"{_gib(free_bytes)} are free; choose a smaller teacher.model or a dtype of fewer bytes"
    )


def _step_tokens(shape: ModelShape, copies: int, budget: float, most: int) -> int:
    tokens = int(budget // shape.logit_bytes(1, copies))
    whole = tokens // STEP_TOKENS_MULTIPLE * STEP_TOKENS_MULTIPLE
    return max(MIN_STEP_TOKENS, min(most, whole))


def _sequences(step_tokens: int) -> int:
    return min(step_tokens, MAX_SEQUENCES, max(MIN_SEQUENCES, step_tokens // TOKENS_PER_SEQUENCE))


def _require_logits(shape: ModelShape, copies: int, rows: int, left: float) -> int:
    """Return the bytes of a step's logits, which must leave some of what there is."""
    taken = shape.logit_bytes(rows, copies)
    if taken >= left:
        raise ModelError(
            f"not enough memory: the log-probabilities of {rows} tokens of a step take "
            f"{_gib(taken)} with a vocabulary of {shape.vocabulary_size}, and {_gib(left)} are "
            "left beside the weights; lower teacher.batch_tokens, or choose a smaller teacher.model"
        )
    return taken


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


# How much memory a process may still take: a container has less than its machine.

CGROUPS = Path("/sys/fs/cgroup")
#: Limit, use and statistics of control groups version 2 and version 1, with the statistic that
#: counts cached files, which make room when memory is asked for.
_LAYOUTS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the bytes that the machine, and the container if this is one, still have."""
    free = int(psutil.virtual_memory().available)
    for limit_name, used_name, statistics_name, cached_key in _LAYOUTS:
        try:
            limit = int((cgroups / limit_name).read_text())  # "max": no limit
            used = int((cgroups / used_name).read_text())
            statistics = (cgroups / statistics_name).read_text().split()
        except (OSError, ValueError):
            continue
        cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cached_key, "0")
        free = min(free, max(0, limit - used + int(cached)))
    return free
