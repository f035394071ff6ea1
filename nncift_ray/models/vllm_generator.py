"""Writing answers with vLLM, on a GPU or with its CPU build: requests join and leave every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nncift_ray.errors import EngineDiedError
from nncift_ray.models.answer_ends import AnswerEnds
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.generation import (
    Generation,
    GenerationRequest,
    refuse_faulty_generations,
)
from nncift_ray.models.vllm_loading import VllmOptions
from nncift_ray.models.vllm_model import VllmModel


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
                    _parameters(r, self._ends.end_ids, read_cache=read_cache),
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


def _parameters(request: GenerationRequest, end_ids: frozenset[int], *, read_cache: bool) -> Any:
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
