"""The transformers engine: it runs anywhere, and is the oracle of the tests.

Suffix legend: B jobs of a batch, P prefix tokens, S suffix tokens (padded), R states that are read
in a batch, D hidden size, V vocabulary.

Jobs with the same prefix share one key-value cache: the prefix is computed once, alone, and the
suffixes are batched behind copies of it. Padding is on the right, where causal attention cannot
see it.

Answers come from a loop of our own. ``model.generate`` draws a whole batch from one random stream,
and keeps finished rows in the batch: with a logits processor that draws each row from its own seed
it gave the same answers in 1.75 times the time (24 questions, SmolLM2-135M, one core).
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
    AnyScoringRequest,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringResult,
    make_result,
)
from nncift_ray.engines.memory import (
    Adapter,
    LoadedEngine,
    fit_batch_tokens,
    free_memory_bytes,
    gpu_share,
    read_adapter,
)
from nncift_ray.engines.tokens import Job, cut_batches, group_by_prefix, make_job
from nncift_ray.errors import EngineDiedError, ModelError
from nncift_ray.recipe.sections import EngineConfig

BITSANDBYTES = "bitsandbytes"
#: Padded tokens computed at once where the options do not say.
SCORING_BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}
#: Padded tokens of prompts and longest answers generated at once, which the cache has to hold.
GENERATION_BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}
LOGIT_ROWS = 512  # rows of [R, V] logits held at a time
PROBE_TOKENS = 8
PROBE_TOLERANCE = 1e-5

LogProbs = npt.NDArray[np.float64]
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class TransformersEngine(LoadedEngine):
    """A causal language model of the transformers library that scores and generates."""

    block_tokens = 1  # a prefix is shared to the token

    def __init__(
        self,
        model_path: str | Path,
        options: EngineConfig | None = None,
        *,
        generates: bool = False,
        device: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        """Load model and tokenizer.

        Args:
            model_path: Folder of the model.
            options: How it is loaded; ``batch_tokens`` is what it computes at once.
            generates: Whether it will generate answers: then it must have the memory for the cache
                of one, and batches are cut to what fits.
            device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If the model, its tokenizer or the adapter cannot be loaded, or there is
                not the memory for it.
        """
        options = options or EngineConfig()
        if options.tensor_parallel_size != 1:
            raise ModelError(
                f"teacher.tensor_parallel_size {options.tensor_parallel_size} needs teacher.engine "
                "vllm: the transformers engine keeps a model on one device"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = pick_device(device)
        kind = "cpu" if self._device.type == "cpu" else "cuda"
        options, shape = self._read_files("transformers", model_path, options, on_cpu=kind == "cpu")
        self._batch_tokens = options.batch_tokens or SCORING_BATCH_TOKENS[kind]
        self._answer_tokens = options.batch_tokens or GENERATION_BATCH_TOKENS[kind]
        if generates:
            on_cpu = kind == "cpu"
            free = free_memory_bytes() if on_cpu else free_gpu_bytes(self._device)
            self._answer_tokens = fit_batch_tokens(
                shape, self.max_length, free, self._answer_tokens
            )
        self._model: Any = load_language_model(
            model_path,
            self._device,
            dtype=options.dtype,
            quantization=options.quantization,
            adapter=None if options.adapter is None else read_adapter(options.adapter),
        )
        widen_logits(self._model)
        self._has_plain_head = has_plain_head(self._model, self._device)

    def score(self, requests: Sequence[AnyScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Return the log-probabilities that each request asks for, in order; float32 at least.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """

        def run(places: list[int]) -> Iterator[tuple[int, ScoringResult | ScoringFailure]]:
            jobs = [make_job(requests[place]) for place in places]
            for prefix_ids, members in group_by_prefix(jobs):
                rows = self._run_group([jobs[at] for at in members], prefix_ids)
                for rank, (at, row) in enumerate(zip(members, rows, strict=True)):
                    if not isinstance(row, ScoringFailure):
                        # The first of a group counts as the one that paid for the prefix.
                        num_cached = len(prefix_ids) if rank else 0
                        row = make_result(row, len(jobs[at].token_ids), num_cached)
                    yield places[at], row

        with self._computing():
            return self._answer(requests, run)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation | ScoringFailure]:
        """Return the answer to each request, in order.

        What is drawn for a request depends on its own seed. Which requests share a batch depends on
        the requests of the call; it can change the last digits of a probability, and so the choice
        between two tokens that are nearly as likely.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """

        def run(places: list[int]) -> Iterator[tuple[int, Generation | ScoringFailure]]:
            lengths = [requests[place].num_tokens for place in places]
            for batch in cut_batches(lengths, 0, self._answer_tokens):
                asked = [places[at] for at in batch]
                found = run_or_split(self._generate_batch, [requests[place] for place in asked])
                yield from zip(asked, found, strict=True)

        with self._computing():
            return self._answer(requests, run)

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Count the time of a block; every batch in it ends with its numbers on the CPU."""
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                yield
        except torch.AcceleratorError as error:  # every later call would fail with it too
            raise EngineDiedError(f"{self.name} died: {error}") from error
        finally:
            self.busy_seconds += time.perf_counter() - start

    def _run_group(
        self, jobs: list[Job], prefix_ids: tuple[int, ...]
    ) -> list[LogProbs | ScoringFailure]:
        """Compute the prefix once, then its suffixes in batches of similar length."""
        rows: dict[int, LogProbs | ScoringFailure] = {}
        skip = len(prefix_ids)
        cache = self._compute_prefix(prefix_ids) if prefix_ids else None
        for batch in cut_batches([len(job.token_ids) for job in jobs], skip, self._batch_tokens):
            found = run_or_split(
                lambda part: self._run_batch(part, cache, skip), [jobs[at] for at in batch]
            )
            rows.update(zip(batch, found, strict=True))
        return [rows[at] for at in range(len(jobs))]

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
        self, inputs: dict[str, Any], where_R: tuple[Tensor, Tensor], targets_R: Tensor
    ) -> Tensor:
        """Return the log-probability of each target at its (row, column) [R], float32.

        Memory: LOGIT_ROWS * V * 4 bytes with a plain output layer, B * S * V * 4 without.
        """
        if not self._has_plain_head:
            return _pick_log_probs(self._model(**inputs).logits[where_R], targets_R)
        hidden_RD = self._model.base_model(**inputs).last_hidden_state[where_R]
        head = self._model.get_output_embeddings()
        parts = zip(hidden_RD.split(LOGIT_ROWS), targets_R.split(LOGIT_ROWS), strict=True)
        return torch.cat([_pick_log_probs(head(states), targets) for states, targets in parts])

    def _generate_batch(self, batch: list[GenerationRequest]) -> list[Generation | ScoringFailure]:
        answers = generate_batch(self._model, batch, self._tokenizer.is_ended, self._device)
        return [
            self._tokenizer.read_answer(answer.request, answer.token_ids)
            if answer.is_finite
            else ScoringFailure(
                "not_finite", f"the logits of token {len(answer.token_ids)} are not finite"
            )
            for answer in answers
        ]


def run_or_split(
    run: Callable[[list[Item]], list[Answer]], batch: list[Item]
) -> list[Answer | ScoringFailure]:
    """Run a batch; where the accelerator's memory does not suffice, its halves."""
    try:
        return [*run(batch)]
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            return [ScoringFailure("out_of_memory", str(error).splitlines()[0])]
    # Outside the handler: the traceback would keep the failed batch's tensors alive.
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return [*run_or_split(run, batch[:half]), *run_or_split(run, batch[half:])]


def _pick_log_probs(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    logits_RV = logits_RV.float()
    chosen_R = logits_RV.gather(1, targets_R[:, None])[:, 0]
    return chosen_R - torch.logsumexp(logits_RV, dim=1)


def _repeat(cache: Any, num_copies: int) -> Any:
    """Return copies of a prefix's cache as a batch; the original stays as it is."""
    copies = copy.deepcopy(cache)
    if num_copies > 1:
        copies.batch_repeat_interleave(num_copies)
    return copies


# Loading a model.


def pick_device(device: str) -> torch.device:
    """Return a device by name; "auto" is CUDA where there is one."""
    if device != "auto":
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if (share := gpu_share()) < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    return torch.device("cuda")


def free_gpu_bytes(device: torch.device) -> int:
    """Return the memory that this process may still take of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(free, int(total * gpu_share()) - torch.cuda.memory_reserved(device)))


def load_language_model(
    model_path: str | Path,
    device: torch.device,
    *,
    dtype: str,
    quantization: str | None = None,
    adapter: Adapter | None = None,
) -> Any:
    """Return a causal language model in evaluation mode.

    Args:
        model_path: Folder of the model.
        device: Where its weights go.
        dtype: A torch dtype by name: of the weights, or of the arithmetic where they are quantised.
        quantization: "bitsandbytes" makes the linear layers 4-bit NF4 while loading.
        adapter: A LoRA adapter; merged into the weights unless those are quantised.

    Raises:
        ModelError: If the model cannot be loaded, does not fit into memory, or ``quantization`` is
            unknown here.
    """
    from transformers import AutoModelForCausalLM

    torch_dtype = getattr(torch, dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(model_path),
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            local_files_only=True,
            quantization_config=_quantization_config(quantization, torch_dtype),
            device_map={"": device},
        )
        if torch_dtype == torch.float32:
            keep_four_bit_input_whole(model)
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


def keep_four_bit_input_whole(model: Any) -> None:
    """Keep 4-bit layers from rounding their input to bfloat16, or repacking themselves.

    On a CPU that multiplies bfloat16, bitsandbytes does so for every layer that is not being
    trained. Log-likelihoods move in the third digit and differ between kinds of machine, and the
    kernel for the repacked weights has no backward pass: gradients would be lost without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def widen_logits(model: Any) -> None:
    """Let a 16-bit output layer that is not quantised give logits of 32 bits; no gradients.

    Logits of 16 bits round log-probabilities to some 0.06 nats.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        return
    weight_VD, bias_V = head.weight, getattr(head, "bias", None)
    if weight_VD.dtype not in (torch.bfloat16, torch.float16):
        return

    def forward(states: Tensor) -> Tensor:
        if weight_VD.is_cuda:  # adds up in 32 bits, with no copy of the weights
            flat_RD = states.reshape(-1, states.shape[-1])
            logits = torch.mm(flat_RD, weight_VD.T, out_dtype=torch.float32)
            logits = logits.reshape(*states.shape[:-1], -1)
        else:
            logits = torch.nn.functional.linear(states.float(), weight_VD.float())
        return logits if bias_V is None else logits + bias_V.float()

    head.forward = forward


def _add_adapter(model: Any, adapter: Adapter, device: torch.device, *, merge: bool) -> Any:
    """Return the model with the adapter: as plain weights, or as layers beside 4-bit ones."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, str(adapter.path), torch_device=str(device))
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


@torch.no_grad()
def has_plain_head(model: Any, device: torch.device) -> bool:
    """Return whether logits are the output embedding of the last state and nothing else.

    Some families scale or cap their logits on the way. Then the short cut of computing them at
    response positions only would be wrong, and the model's own forward must be used.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    num_tokens = min(PROBE_TOKENS, int(model.config.get_text_config().vocab_size))
    ids = torch.arange(num_tokens, device=device)[None]
    whole = model(input_ids=ids, use_cache=False).logits.float()
    short = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
    return whole.shape == short.shape and torch.allclose(
        whole, short, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE
    )


# Generating a batch of answers, token by token.

#: Returns whether the last of a request's tokens ended its answer.
IsEnded = Callable[[GenerationRequest, Sequence[int]], bool]


def choose_tokens(
    logits_BV: Tensor, temperature_B: Tensor, min_p_B: Tensor, uniform_B: Tensor
) -> Tensor:
    """Return the next token of every request [B], int64.

    At temperature 0 it is the likeliest token, the first of equals. Above, the probabilities are
    p = softmax(logits / temperature); tokens with p < min_p * max(p) are left out; and the token is
    the one in whose share of the rest, laid out in the order of token ids, the uniform number
    falls. A row depends on its own numbers alone.

    Args:
        logits_BV: Logits.
        temperature_B: Temperatures, float64.
        min_p_B: Shares of the likeliest token's probability, float64.
        uniform_B: One number in [0, 1) a request, float64.

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


@dataclass(slots=True)
class PartialAnswer:
    """A request and what is generated of its answer."""

    request: GenerationRequest
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list[int])
    is_finite: bool = True  # its logits are

    def draw(self) -> float:
        """Return the next number of the request's stream; 0 where nothing is drawn."""
        return float(self.random.random()) if self.request.temperature > 0 else 0.0

    def add(self, token_id: int, is_ended: IsEnded) -> bool:
        """Add a token; return whether another one is to follow."""
        self.token_ids.append(token_id)
        is_full = len(self.token_ids) == self.request.max_tokens
        return not is_full and not is_ended(self.request, self.token_ids)


def generate_batch(
    model: Any, requests: Sequence[GenerationRequest], is_ended: IsEnded, device: torch.device
) -> list[PartialAnswer]:
    """Return the answers of one batch of sound requests, in order; finished rows leave the batch.

    Each ends where ``is_ended`` says or at its limit, or where its logits are not finite.
    """
    from transformers import DynamicCache

    answers = [PartialAnswer(r, np.random.Generator(np.random.PCG64(r.seed))) for r in requests]
    active = list(answers)
    cache = DynamicCache(config=model.config)
    parameters = inspect.signature(model.forward).parameters  # not every family knows all
    ids, mask_BP = (side.to(device) for side in _pad_left([r.prompt_ids for r in requests]))
    positions = (mask_BP.cumsum(1) - 1).clamp(min=0)
    while True:
        optional = {"position_ids": positions, "logits_to_keep": 1}
        logits_BV = model(
            input_ids=ids,
            attention_mask=mask_BP,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in parameters},
        ).logits[:, -1]
        token_B, kept = _add_tokens(logits_BV, active, is_ended)
        if not kept:
            return answers
        if len(kept) < len(active):
            active = [active[b] for b in kept]
            kept_B = torch.tensor(kept, device=device)
            cache.batch_select_indices(kept_B)
            token_B, mask_BP = token_B[kept_B], mask_BP[kept_B]
        mask_BP = torch.cat([mask_BP, mask_BP.new_ones((len(active), 1))], dim=1)
        ids, positions = token_B[:, None], mask_BP.sum(1, keepdim=True) - 1


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [B, P]: all prompts end in the last column."""
    width = max(map(len, prompts))
    ids_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt_ids in enumerate(prompts):
        ids_BP[b, width - len(prompt_ids) :] = torch.tensor(list(prompt_ids))
        mask_BP[b, width - len(prompt_ids) :] = 1
    return ids_BP, mask_BP


def _add_tokens(
    logits_BV: Tensor, active: Sequence[PartialAnswer], is_ended: IsEnded
) -> tuple[Tensor, list[int]]:
    """Give every answer its next token; return the tokens [B] and the rows that go on."""
    finite = torch.isfinite(logits_BV.amax(dim=1)).tolist()

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_BV.device)

    token_B = choose_tokens(
        logits_BV if all(finite) else torch.nan_to_num(logits_BV),
        column([answer.request.temperature for answer in active]),
        column([answer.request.min_p for answer in active]),
        column([answer.draw() for answer in active]),
    )
    kept: list[int] = []
    for b, (answer, token_id) in enumerate(zip(active, token_B.tolist(), strict=True)):
        answer.is_finite = finite[b]
        if finite[b] and answer.add(token_id, is_ended):
            kept.append(b)
    return token_B, kept
