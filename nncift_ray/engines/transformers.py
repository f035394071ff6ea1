"""Scoring with transformers: runs anywhere, is the oracle of the tests, and shares prefixes.

Suffix legend: B jobs of a batch, P prefix tokens, S suffix tokens (padded), R states that are read
in a batch, D hidden size, V vocabulary.

Jobs with the same prefix share one key-value cache: the prefix is computed once, alone, and the
suffixes are batched behind copies of it. Padding is on the right, where causal attention cannot
see it.
"""

from __future__ import annotations

import copy
import gc
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor

from nncift_ray.engines.base import (
    AnyRequest,
    Generation,
    GenerationRequest,
    NextTokenRequest,
    NextTokenResult,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    fit_batch_tokens,
    free_memory_bytes,
    make_next_token_result,
    make_result,
    refuse_faulty,
    refuse_faulty_generations,
    shape_of,
)
from nncift_ray.engines.models import (
    Adapter,
    count_parameters,
    engine_name,
    longest_request,
    read_adapter,
    read_config,
)
from nncift_ray.engines.tokens import (
    AnswerEnds,
    Job,
    SegmentTokenizer,
    TokenizingEngine,
    cut_batches,
    group_by_prefix,
    make_job,
)
from nncift_ray.errors import EngineDiedError, ModelError

BITSANDBYTES = "bitsandbytes"


def pick_device(device: str) -> torch.device:
    """Return a device by name; "auto" is CUDA where there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_language_model(
    model_path: str | Path,
    device: torch.device,
    *,
    dtype: str,
    revision: str | None = None,
    quantization: str | None = None,
    adapter: Adapter | None = None,
) -> Any:
    """Load a causal language model for scoring.

    Args:
        model_path: A local folder, or the id of a model on the hub.
        device: Where its weights go.
        dtype: A torch dtype by name: of the weights, or of the arithmetic where they are quantised.
        revision: Commit on the hub.
        quantization: "bitsandbytes" makes the linear layers 4-bit NF4 while loading.
        adapter: A LoRA adapter; merged into the weights unless those are quantised.

    Raises:
        ModelError: If the model cannot be loaded, does not fit into memory, or ``dtype`` or
            ``quantization`` is unknown here.
    """
    from transformers import AutoModelForCausalLM

    torch_dtype = find_dtype(dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(model_path),
            revision=revision,
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            local_files_only=Path(model_path).is_dir(),
            quantization_config=_quantization_config(quantization, torch_dtype),
            device_map={"": device},
        )
        if torch_dtype == torch.float32:
            _multiply_in_float32(model)
        if adapter is not None:
            model = _add_adapter(model, adapter, device, merge=quantization is None)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model_path} does not fit into the memory of {device}: set its quantization to "
            f"{BITSANDBYTES}, its dtype to bfloat16, or choose a smaller model"
        ) from error
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"no language model can be loaded from {model_path}: {error}") from error
    return model.eval()


def find_dtype(name: str) -> torch.dtype:
    """Return a torch dtype by name.

    Raises:
        ModelError: If there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype {name!r} is unknown; use float32, bfloat16 or float16")
    return dtype


def _quantization_config(quantization: str | None, dtype: torch.dtype) -> Any:
    if quantization is None:
        return None  # or as the model's own files say
    if quantization != BITSANDBYTES:
        raise ModelError(
            f"teacher.quantization {quantization!r} is not for the transformers engine: use "
            f"{BITSANDBYTES}, set teacher.engine to vllm, or leave it out for a model whose files "
            "are quantised already"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _multiply_in_float32(model: Any) -> None:
    """Keep 4-bit layers from rounding their input to bfloat16 where float32 was asked for.

    On a CPU that multiplies bfloat16, bitsandbytes does so for every layer that is not being
    trained: log-likelihoods move in the third digit, and differ between kinds of machine.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _add_adapter(model: Any, adapter: Adapter, device: torch.device, *, merge: bool) -> Any:
    """Return the model with the adapter: as plain weights, or as layers beside 4-bit ones."""
    from peft import PeftModel

    dressed: Any = PeftModel.from_pretrained(model, str(adapter.path), torch_device=str(device))
    return dressed.merge_and_unload() if merge else dressed.get_base_model()


# Scoring with transformers: runs anywhere, is the oracle of the tests, and shares prefixes.

CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 16_384
LOGIT_ROWS = 512  # rows of [R, V] logits held at a time
PROBE_TOLERANCE = 1e-5

LogProbs = npt.NDArray[np.float64]
Result = TypeVar("Result", ScoringResult, NextTokenResult)


class TransformersEngine(TokenizingEngine):
    """A causal language model of the transformers library as a scoring engine."""

    block_tokens = 1  # a prefix is shared to the token

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_length: int = 2048,
        batch_tokens: int | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        adapter: str | Path | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
            dtype: A torch dtype by name; log-probabilities are computed in float32 at least.
            max_length: Most tokens a request may have; lowered to what the model's positions hold.
            batch_tokens: Padded tokens computed at once; default 512 on a CPU, 16,384 on a GPU.
            revision: Commit on the hub.
            quantization: "bitsandbytes" for 4-bit weights; None leaves them as the files say.
            adapter: Folder of a LoRA adapter as PEFT writes it.
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If the model, its tokenizer or the adapter cannot be loaded.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = pick_device(device)
        self._tokenizer = SegmentTokenizer(model_path, revision)
        config = read_config(model_path, revision)
        self._model: Any = load_language_model(
            model_path,
            self._device,
            dtype=dtype,
            revision=revision,
            quantization=quantization,
            adapter=None if adapter is None else read_adapter(adapter),
        )
        self._vocabulary_size = int(config.vocab_size)
        self.max_length = longest_request(config, max_length)
        self.num_parameters = count_parameters(config)
        self.busy_seconds = 0.0
        self.name = engine_name("transformers", model_path, dtype, quantization, adapter)
        on_cpu = self._device.type == "cpu"
        self._batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)
        self._has_plain_head = self._probe_plain_head()

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """
        return self._answer(requests, make_result)

    def next_token_log_probs(
        self, requests: Sequence[NextTokenRequest]
    ) -> list[NextTokenResult | ScoringFailure]:
        """Return the log-probabilities of some tokens after each prompt, in order.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """
        return self._answer(requests, make_next_token_result)

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer(
        self,
        requests: Sequence[AnyRequest],
        make: Callable[[LogProbs, int, int], Result | ScoringFailure],
    ) -> list[Result | ScoringFailure]:
        """Refuse the faulty requests and run the others, prefix by prefix."""
        faults, sound = refuse_faulty(requests, self.max_length, self._vocabulary_size)
        answers: dict[int, Result | ScoringFailure] = dict(faults)
        jobs = [make_job(requests[i]) for i in sound]
        for prefix_ids, members in group_by_prefix(jobs):
            try:
                rows = self._run_group([jobs[place] for place in members], prefix_ids)
            except torch.AcceleratorError as error:  # every later call would fail with it too
                raise EngineDiedError(f"{self.name} died: {error}") from error
            for rank, (place, row) in enumerate(zip(members, rows, strict=True)):
                if isinstance(row, ScoringFailure):
                    answers[sound[place]] = row
                else:
                    # The first of a group counts as the one that paid for the prefix.
                    num_cached = len(prefix_ids) if rank else 0
                    answers[sound[place]] = make(row, len(jobs[place].token_ids), num_cached)
        return [answers[i] for i in range(len(requests))]

    def _run_group(
        self, jobs: list[Job], prefix_ids: tuple[int, ...]
    ) -> list[LogProbs | ScoringFailure]:
        """Compute the prefix once, then its suffixes in batches of similar length."""
        rows: dict[int, LogProbs | ScoringFailure] = {}
        skip = len(prefix_ids)
        lengths = [len(job.token_ids) for job in jobs]
        with torch.inference_mode(), self._busy():
            cache = self._compute_prefix(prefix_ids) if prefix_ids else None
            for batch in cut_batches(lengths, skip, self._batch_tokens):
                found = self._run_or_split([jobs[place] for place in batch], cache, skip)
                rows.update(zip(batch, found, strict=True))
        return [rows[place] for place in range(len(jobs))]

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Count the time of a block; every batch in it ends with its numbers on the CPU."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.busy_seconds += time.perf_counter() - start

    def _run_or_split(
        self, batch: list[Job], cache: Any, skip: int
    ) -> list[LogProbs | ScoringFailure]:
        """Run a batch; where the accelerator's memory does not suffice, its halves."""
        try:
            return list(self._run_batch(batch, cache, skip))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [ScoringFailure("out_of_memory", str(error).splitlines()[0])]
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return [
            *self._run_or_split(batch[:half], cache, skip),
            *self._run_or_split(batch[half:], cache, skip),
        ]

    def _compute_prefix(self, prefix_ids: tuple[int, ...]) -> Any:
        """Return the key-value cache of a prefix, batch size 1."""
        from transformers import DynamicCache

        ids_1P = torch.tensor([prefix_ids], device=self._device)
        cache = DynamicCache(config=self._model.config)
        self._model.base_model(input_ids=ids_1P, past_key_values=cache, use_cache=True)
        return cache

    def _run_batch(self, batch: list[Job], cache: Any, skip: int) -> list[LogProbs]:
        """Return the log-probs that every job asks for; ``skip`` tokens are in the cache."""
        width = max(len(job.token_ids) for job in batch) - skip
        ids_BS = torch.zeros((len(batch), width), dtype=torch.long)
        mask_BS = torch.zeros((len(batch), skip + width), dtype=torch.long)
        for b, job in enumerate(batch):
            ids_BS[b, : len(job.token_ids) - skip] = torch.tensor(job.token_ids[skip:])
            mask_BS[b, : len(job.token_ids)] = 1
        inputs = {
            "input_ids": ids_BS.to(self._device),
            "attention_mask": mask_BS.to(self._device),
            "use_cache": cache is not None,
        }
        if cache is not None:
            inputs["past_key_values"] = _repeat(cache, len(batch))
        rows = [b for b, job in enumerate(batch) for _ in job.positions]
        columns = [position - skip for job in batch for position in job.positions]
        targets = [target for job in batch for target in job.targets]
        rows_R, columns_R, targets_R = (
            torch.tensor(values, device=self._device) for values in (rows, columns, targets)
        )
        log_probs_R = self._log_probs_at(inputs, (rows_R, columns_R), targets_R).cpu().numpy()
        ends = np.cumsum([len(job.targets) for job in batch])[:-1]
        return [part.astype(np.float64) for part in np.split(log_probs_R, ends)]

    def _log_probs_at(
        self,
        inputs: dict[str, Any],
        where_R: tuple[torch.Tensor, torch.Tensor],
        targets_R: torch.Tensor,
    ) -> torch.Tensor:
        """Return the log-probability of each target at its (row, column) [R], float32.

        Memory: LOGIT_ROWS * V * 4 bytes with a plain output layer, B * S * V * 4 without.
        """
        if not self._has_plain_head:
            logits_RV = self._model(**inputs).logits[where_R]
            return _pick_log_probs(logits_RV, targets_R)
        hidden_RD = self._model.base_model(**inputs).last_hidden_state[where_R]
        head = self._model.get_output_embeddings()
        return torch.cat(
            [
                _pick_log_probs(head(hidden_RD[i : i + LOGIT_ROWS]), targets_R[i : i + LOGIT_ROWS])
                for i in range(0, len(targets_R), LOGIT_ROWS)
            ]
        )

    def _probe_plain_head(self) -> bool:
        """Say whether logits are the output embedding of the last state and nothing else.

        Some families scale or cap their logits on the way. Then the short cut of computing them at
        the response positions only would be wrong, and the model's own forward is used.
        """
        head = self._model.get_output_embeddings()
        if head is None:
            return False
        ids = torch.arange(min(8, self._vocabulary_size), device=self._device)[None]
        with torch.inference_mode():
            whole = self._model(input_ids=ids, use_cache=False).logits.float()
            state = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            short = head(state).float()
        return whole.shape == short.shape and torch.allclose(
            whole, short, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE
        )


def _pick_log_probs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    logits_RV = logits_RV.float()
    chosen_R = logits_RV.gather(1, targets_R[:, None])[:, 0]
    return chosen_R - torch.logsumexp(logits_RV, dim=1)


def _repeat(cache: Any, num_copies: int) -> Any:
    """Return copies of a prefix's cache as a batch; the original stays as it is."""
    copies = copy.deepcopy(cache)
    if num_copies > 1:
        copies.batch_repeat_interleave(num_copies)
    return copies


# Which token comes next: greedy, or drawn from the request's own stream after min-p.


def choose_tokens(
    logits_BV: Tensor, temperature_B: Tensor, min_p_B: Tensor, uniform_B: Tensor
) -> Tensor:
    """Choose the next token of every request.

    At temperature 0 it is the likeliest token, the first of equals. Above, the probabilities are
    p = softmax(logits / temperature); tokens with p < min_p * max(p) are left out; and the token is
    the one in whose share of the rest, laid out in the order of token ids, the uniform number
    falls. A row depends on its own numbers alone.

    Args:
        logits_BV: Logits.
        temperature_B: Temperatures, float64.
        min_p_B: Shares of the likeliest token's probability, float64.
        uniform_B: One number in [0, 1) a request, float64.

    Returns:
        Token ids [B], int64.

    Memory: 24 * B * V bytes where the temperature is above 0.
    Source: min-p sampling, arXiv 2407.01082, section 3; the temperature comes first, as in vLLM.
    """
    token_B = logits_BV.argmax(dim=1)
    sampled = torch.nonzero(temperature_B > 0)[:, 0]
    if len(sampled):
        scores_SV = logits_BV[sampled].double()
        scores_SV -= scores_SV.amax(dim=1, keepdim=True)
        # Relative to the likeliest token, whose weight is 1.
        weight_SV = torch.exp(scores_SV / temperature_B[sampled, None])
        weight_SV[weight_SV < min_p_B[sampled, None]] = 0.0
        sum_SV = weight_SV.cumsum(dim=1)
        # In (0, total]: a token of weight 0 is never the first to reach it.
        wanted_S1 = (1.0 - uniform_B[sampled, None]) * sum_SV[:, -1:]
        token_B[sampled] = torch.searchsorted(sum_SV, wanted_S1)[:, 0]
    return token_B


# Writing answers with a model of transformers: one batch, token by token, with its own cache.

#: Says whether the last of a request's tokens ended its answer.
IsEnded = Callable[[GenerationRequest, Sequence[int]], bool]


@dataclass(slots=True)
class Writing:
    """A request and what is written of its answer."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list[int])
    is_broken: bool = False  # its logits were not finite
    _uniform: np.random.Generator | None = None

    def draw(self) -> float:
        """Return the next number of the request's stream; 0 where nothing is drawn."""
        if self.request.temperature == 0:
            return 0.0
        if self._uniform is None:
            self._uniform = np.random.Generator(np.random.PCG64(self.request.seed))
        return float(self._uniform.random())

    def add(self, token_id: int, is_ended: IsEnded) -> bool:
        """Take a token; say whether another one is to follow."""
        self.token_ids.append(token_id)
        is_full = len(self.token_ids) == self.request.max_tokens
        return not is_full and not is_ended(self.request, self.token_ids)


def write_batch(
    model: Any,
    requests: Sequence[GenerationRequest],
    is_ended: IsEnded,
    device: torch.device,
) -> list[Writing]:
    """Write the answers of one batch, in order; each ends where it is told or at its limit.

    Args:
        model: A causal language model.
        requests: Sound requests.
        is_ended: Says where an answer ends.
        device: Where the model is.
    """
    from transformers import DynamicCache

    writings = [Writing(request) for request in requests]
    step = _Step(model, DynamicCache(config=model.config), _accepted(model))
    active = list(writings)
    ids_BP, mask_BP = _pad_left([writing.request.prompt_ids for writing in active])
    mask_BP = mask_BP.to(device)
    logits_BV = step(ids_BP.to(device), mask_BP, (mask_BP.cumsum(1) - 1).clamp(min=0))
    while True:
        token_B, kept = _choose(logits_BV, active, is_ended)
        if not kept:
            return writings
        if len(kept) < len(active):
            active = [active[b] for b in kept]
            kept_B = torch.tensor(kept, device=device)
            step.cache.batch_select_indices(kept_B)
            token_B, mask_BP = token_B[kept_B], mask_BP[kept_B]
        mask_BP = torch.cat([mask_BP, mask_BP.new_ones((len(active), 1))], dim=1)
        logits_BV = step(token_B[:, None], mask_BP, mask_BP.sum(1, keepdim=True) - 1)


@dataclass(frozen=True)
class _Step:
    """Runs the model over new tokens behind its cache."""

    model: Any
    cache: Any
    accepted: frozenset[str]

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Return the logits behind the last token [B, V]."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        )
        return output.logits[:, -1]


def _accepted(model: Any) -> frozenset[str]:
    """Return what the model's forward can be told: not every family knows everything."""
    return frozenset(inspect.signature(model.forward).parameters)


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [B, P]: all prompts end in the last column."""
    width = max(map(len, prompts))
    ids_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt_ids in enumerate(prompts):
        ids_BP[b, width - len(prompt_ids) :] = torch.tensor(list(prompt_ids))
        mask_BP[b, width - len(prompt_ids) :] = 1
    return ids_BP, mask_BP


def _choose(
    logits_BV: Tensor, active: Sequence[Writing], is_ended: IsEnded
) -> tuple[Tensor, list[int]]:
    """Give every request its next token; return the tokens [B] and who is to go on."""
    finite = torch.isfinite(logits_BV.amax(dim=1)).tolist()

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_BV.device)

    token_B = choose_tokens(
        torch.nan_to_num(logits_BV) if not all(finite) else logits_BV,
        column([writing.request.temperature for writing in active]),
        column([writing.request.min_p for writing in active]),
        column([writing.draw() for writing in active]),
    )
    kept: list[int] = []
    for b, (writing, token_id) in enumerate(zip(active, token_B.tolist(), strict=True)):
        if not finite[b]:
            writing.is_broken = True
        elif writing.add(token_id, is_ended):
            kept.append(b)
    return token_B, kept


# Writing answers with transformers: runs anywhere, and is the oracle of the tests.

CPU_BATCH_TOKENS_of_transformers_generator = 16_384
GPU_BATCH_TOKENS_of_transformers_generator = 65_536


class TransformersGenerator(TokenizingEngine):
    """A causal language model of the transformers library that writes answers."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_length: int = 2048,
        batch_tokens: int | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        adapter: str | Path | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
            dtype: A torch dtype by name; tokens are drawn in float64.
            max_length: Most tokens that a prompt and its answer may have together; lowered to what
                the model's positions hold.
            batch_tokens: Padded tokens of the prompts and longest answers written at once, which
                the key-value cache has to hold; default 16,384 on a CPU, 65,536 on a GPU, fewer
                where the memory does not suffice.
            revision: Commit on the hub.
            quantization: "bitsandbytes" for 4-bit weights; None leaves them as the files say.
            adapter: Folder of a LoRA adapter as PEFT writes it.
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If the model, its tokenizer or the adapter cannot be loaded, or there is
                not the memory for it.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = pick_device(device)
        self._tokenizer = SegmentTokenizer(model_path, revision)
        config = read_config(model_path, revision)
        self.max_length = longest_request(config, max_length)
        quantised = bool(quantization or getattr(config, "quantization_config", None))
        shape = shape_of(config, count_parameters(config), dtype, quantised=quantised)
        on_cpu = self._device.type == "cpu"
        self._batch_tokens = fit_batch_tokens(
            shape,
            self.max_length,
            free_memory_bytes() if on_cpu else torch.cuda.mem_get_info(self._device)[0],
            batch_tokens
            or (
                CPU_BATCH_TOKENS_of_transformers_generator
                if on_cpu
                else GPU_BATCH_TOKENS_of_transformers_generator
            ),
        )
        self._model: Any = load_language_model(
            model_path,
            self._device,
            dtype=dtype,
            revision=revision,
            quantization=quantization,
            adapter=None if adapter is None else read_adapter(adapter),
        )
        self._vocabulary_size = shape.vocabulary_size
        self._ends = AnswerEnds(model_path, revision, self._tokenizer)
        self.busy_seconds = 0.0
        self.name = engine_name("transformers", model_path, dtype, quantization, adapter)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Answer every request; the answers are in the order of the requests.

        What is drawn for a request depends on its own seed. Which requests share a batch depends on
        the requests of the call; it can change the last digits of a probability, and so the choice
        between two tokens that are nearly as likely.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """
        faults, sound = refuse_faulty_generations(requests, self.max_length, self._vocabulary_size)
        answers: dict[int, Generation | ScoringFailure] = dict(faults)
        lengths = [requests[place].num_tokens for place in sound]
        start = time.perf_counter()
        try:
            for batch in cut_batches(lengths, 0, self._batch_tokens):
                places = [sound[at] for at in batch]
                found = self._write_or_split([requests[place] for place in places])
                answers.update(zip(places, found, strict=True))
        except torch.AcceleratorError as error:  # every later call would fail with it too
            raise EngineDiedError(f"{self.name} died: {error}") from error
        self.busy_seconds += time.perf_counter() - start
        return [answers[place] for place in range(len(requests))]

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _write_or_split(self, batch: list[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Write a batch; where the accelerator's memory does not suffice, its halves."""
        try:
            with torch.inference_mode():
                writings = write_batch(self._model, batch, self._ends.is_ended, self._device)
            return [self._read(writing) for writing in writings]
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [ScoringFailure("out_of_memory", str(error).splitlines()[0])]
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return [*self._write_or_split(batch[:half]), *self._write_or_split(batch[half:])]

    def _read(self, writing: Writing) -> Generation | ScoringFailure:
        if writing.is_broken:
            return ScoringFailure(
                "not_finite", f"the logits of token {len(writing.token_ids)} are not finite"
            )
        return self._ends.read(writing.request, writing.token_ids)
