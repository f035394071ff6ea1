"""Writing answers with transformers: runs anywhere, and is the oracle of the tests."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nncift_ray.errors import EngineDiedError
from nncift_ray.models.answer_ends import AnswerEnds
from nncift_ray.models.batching import cut_batches
from nncift_ray.models.decoding import Writing, write_batch
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.engine_sizing import fit_batch_tokens, shape_of
from nncift_ray.models.generation import (
    Generation,
    GenerationRequest,
    refuse_faulty_generations,
)
from nncift_ray.models.host_memory import free_memory_bytes
from nncift_ray.models.model_files import (
    count_parameters,
    engine_name,
    longest_request,
    read_adapter,
    read_config,
)
from nncift_ray.models.tokenization import SegmentTokenizer, TokenizingEngine
from nncift_ray.models.transformers_loading import load_language_model, pick_device

CPU_BATCH_TOKENS = 16_384
GPU_BATCH_TOKENS = 65_536


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
            batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS),
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
