"""Scoring with transformers: runs anywhere, is the oracle of the tests, and shares prefixes.

Suffix legend: B requests of a batch, S suffix tokens (padded), R response tokens of the batch,
V vocabulary.

Requests with the same prefix share one key-value cache: the prefix is computed once, alone, and
the suffixes are batched behind copies of it. Padding is on the right, where causal attention
cannot see it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nncift_ray.errors import ModelError
from nncift_ray.models.engine import (
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    find_fault,
    make_result,
)
from nncift_ray.models.tokenization import SegmentTokenizer, TokenizingEngine

MIN_SHARED_TOKENS = 8  # a shorter prefix costs more to share than to compute again
LOGIT_ROWS = 512  # rows of [R, V] logits held at a time
CACHE_TOKENS_PER_BATCH_TOKEN = 16  # bound on the copies of a prefix: this times batch_tokens
PROBE_TOLERANCE = 1e-5


class TransformersEngine(TokenizingEngine):
    """A causal language model of the transformers library as a scoring engine."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        max_length: int = 2048,
        batch_tokens: int | None = None,
        revision: str | None = None,
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
            num_threads: CPU threads of torch; None leaves them alone.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = torch.device(_pick_device(device))
        self._tokenizer = SegmentTokenizer(model_path, revision)
        self._model: Any = _load_model(model_path, revision, dtype).to(self._device).eval()
        config = self._model.config.get_text_config()
        self._vocabulary_size = int(config.vocab_size)
        # One position less than the model has: vLLM needs it for the token it must generate, and
        # both engines are to refuse the same requests.
        positions = getattr(config, "max_position_embeddings", None)
        self.max_length = min(max_length, positions - 1) if positions else max_length
        self.name = f"transformers:{Path(model_path).name}:{dtype}"
        self._batch_tokens = batch_tokens or (512 if self._device.type == "cpu" else 16384)
        self._has_plain_head = self._probe_plain_head()

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score every request; the answers are in the order of the requests."""
        answers: list[ScoringResult | ScoringFailure | None] = [
            find_fault(request, self.max_length, self._vocabulary_size) for request in requests
        ]
        sound = [i for i, answer in enumerate(answers) if answer is None]
        with torch.inference_mode():
            for prefix_ids, members in _group_by_prefix(requests, sound):
                self._score_group(requests, prefix_ids, members, answers)
        return [_require(answer) for answer in answers]

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _score_group(
        self,
        requests: Sequence[ScoringRequest],
        prefix_ids: tuple[int, ...],
        members: list[int],
        answers: list[ScoringResult | ScoringFailure | None],
    ) -> None:
        """Compute the prefix once, then its suffixes in batches of similar length."""
        cache = self._compute_prefix(prefix_ids) if prefix_ids else None
        skip = len(prefix_ids)
        members = sorted(members, key=lambda i: (requests[i].num_tokens, i))
        first = members[0]
        for batch in self._cut_batches(requests, members, skip):
            rows = self._score_or_split([requests[i] for i in batch], cache, skip)
            for i, row in zip(batch, rows, strict=True):
                if isinstance(row, ScoringFailure):
                    answers[i] = row
                    continue
                # The first of a group counts as the one that paid for the prefix.
                answers[i] = make_result(row, requests[i].num_tokens, 0 if i == first else skip)

    def _cut_batches(
        self, requests: Sequence[ScoringRequest], members: list[int], skip: int
    ) -> Iterator[list[int]]:
        """Cut requests sorted by length so that padded and cached tokens stay below their bounds.

        Longest first: the batch that needs most memory fails early if it fails at all.
        """
        batch: list[int] = []
        longest = 0
        for i in reversed(members):
            longest = longest or requests[i].num_tokens
            rows = len(batch) + 1
            too_wide = rows * (longest - skip) > self._batch_tokens
            too_deep = rows * longest > self._batch_tokens * CACHE_TOKENS_PER_BATCH_TOKEN
            if batch and (too_wide or too_deep):
                yield batch
                batch, longest = [], requests[i].num_tokens
            batch.append(i)
        if batch:
            yield batch

    def _score_or_split(
        self, batch: list[ScoringRequest], cache: Any, skip: int
    ) -> list[npt.NDArray[np.float64] | ScoringFailure]:
        """Score a batch; where the accelerator's memory does not suffice, its halves."""
        try:
            return list(self._score_batch(batch, cache, skip))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [ScoringFailure("out_of_memory", str(error).splitlines()[0])]
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return [
            *self._score_or_split(batch[:half], cache, skip),
            *self._score_or_split(batch[half:], cache, skip),
        ]

    def _compute_prefix(self, prefix_ids: tuple[int, ...]) -> Any:
        """Return the key-value cache of a prefix, batch size 1."""
        ids_1P = torch.tensor([prefix_ids], device=self._device)
        cache = _empty_cache(self._model.config)
        self._model.base_model(input_ids=ids_1P, past_key_values=cache, use_cache=True)
        return cache

    def _score_batch(
        self, batch: list[ScoringRequest], cache: Any, skip: int
    ) -> list[npt.NDArray[np.float64]]:
        """Return the log-probs of every request's response; ``skip`` tokens are in the cache."""
        suffixes = [[*r.prompt_ids, *r.response_ids][skip:] for r in batch]
        width = max(map(len, suffixes))
        ids_BS = torch.zeros((len(batch), width), dtype=torch.long)
        mask_BS = torch.zeros((len(batch), skip + width), dtype=torch.long)
        rows: list[int] = []
        columns: list[int] = []
        for b, (suffix, request) in enumerate(zip(suffixes, batch, strict=True)):
            ids_BS[b, : len(suffix)] = torch.tensor(suffix)
            mask_BS[b, : skip + len(suffix)] = 1
            # The token at t is predicted by the state at t - 1.
            last = len(suffix) - 1
            columns += range(last - len(request.response_ids), last)
            rows += [b] * len(request.response_ids)
        targets_R = torch.tensor([t for r in batch for t in r.response_ids], device=self._device)
        inputs = {
            "input_ids": ids_BS.to(self._device),
            "attention_mask": mask_BS.to(self._device),
            "use_cache": cache is not None,
        }
        if cache is not None:
            inputs["past_key_values"] = _repeat(cache, len(batch))
        where_R = (
            torch.tensor(rows, device=self._device),
            torch.tensor(columns, device=self._device),
        )
        log_probs_R = self._log_probs_at(inputs, where_R, targets_R).cpu().numpy()
        ends = np.cumsum([len(r.response_ids) for r in batch])[:-1]
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


def _group_by_prefix(
    requests: Sequence[ScoringRequest], indices: list[int]
) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield shared prefixes with their requests, then all other requests with an empty prefix."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in indices:
        request = requests[i]
        # The last prompt token is always computed: it predicts the first response token.
        length = min(request.prefix_length, len(request.prompt_ids) - 1)
        prefix = tuple(request.prompt_ids[:length]) if length >= MIN_SHARED_TOKENS else ()
        groups.setdefault(prefix, []).append(i)
    alone = groups.pop((), [])
    for prefix, members in groups.items():
        if len(members) > 1:
            yield prefix, members
        else:
            alone += members
    if alone:
        yield (), alone


def _pick_log_probs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    logits_RV = logits_RV.float()
    chosen_R = logits_RV.gather(1, targets_R[:, None])[:, 0]
    return chosen_R - torch.logsumexp(logits_RV, dim=1)


def _empty_cache(config: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=config)


def _repeat(cache: Any, num_copies: int) -> Any:
    """Return copies of a prefix's cache as a batch; the original stays as it is."""
    copies = copy.deepcopy(cache)
    if num_copies > 1:
        copies.batch_repeat_interleave(num_copies)
    return copies


def _pick_device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_model(model_path: str | Path, revision: str | None, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ModelError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(model_path),
            revision=revision,
            dtype=torch_dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            local_files_only=Path(model_path).is_dir(),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no language model can be loaded from {model_path}: {error}") from error


def _require(answer: ScoringResult | ScoringFailure | None) -> ScoringResult | ScoringFailure:
    assert answer is not None, "a request was neither scored nor refused"  # noqa: S101
    return answer
