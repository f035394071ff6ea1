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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from nncift_ray.errors import EngineDiedError
from nncift_ray.models.batching import Job, cut_batches, group_by_prefix, make_job
from nncift_ray.models.engine import (
    AnyRequest,
    NextTokenRequest,
    NextTokenResult,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    make_next_token_result,
    make_result,
    refuse_faulty,
)
from nncift_ray.models.model_files import (
    count_parameters,
    engine_name,
    longest_request,
    read_adapter,
    read_config,
)
from nncift_ray.models.tokenization import SegmentTokenizer, TokenizingEngine
from nncift_ray.models.transformers_loading import load_language_model, pick_device

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
