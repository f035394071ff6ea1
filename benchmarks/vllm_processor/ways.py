"""The two ways to send requests through vLLM on Ray: an actor of ours, and Ray Data's processor.

Both return a data set whose rows have ``row`` (which request), ``log_probs`` (nats, of the
response), ``error`` (why there are none, else ""), ``started`` (when the engine was asked, seconds
since the epoch) and ``handed_on_bytes`` (what the engine's actor passed on of log-probabilities).
"""

from __future__ import annotations

import pickle  # only to count the bytes that the processor's own rows travel as
import time
from typing import Any

from nncift_ray.engines.base import ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.recipe.sections import EngineConfig

MAX_LENGTH = 2048
BLOCK_TOKENS = 32
KV_CACHE_BYTES = 1 << 30
STEP_TOKENS = 512  # computed at once
BATCH_ROWS = 256  # most of a Ray Data block and of an engine call: here all there are


def as_blocks(rows: list[dict[str, Any]], batch_rows: int) -> Any:
    """Return a data set of one block a batch."""
    import ray.data

    return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_rows))


class EngineActor:
    """Our engine in an actor of Ray Data: a batch of rows is one call of ``score``."""

    def __init__(self, model_path: str) -> None:
        """Load the engine."""
        from nncift_ray.engines.vllm import VllmEngine

        self._engine = VllmEngine(
            model_path,
            EngineConfig(
                max_length=MAX_LENGTH,
                kv_cache_memory_bytes=KV_CACHE_BYTES,
                batch_tokens=STEP_TOKENS,
            ),
            num_threads=1,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Score a batch."""
        started = time.time()
        columns = zip(
            batch["prompt_ids"], batch["response_ids"], batch["prefix_length"], strict=True
        )
        requests = [
            ScoringRequest([int(t) for t in prompt], [int(t) for t in response], int(prefix))
            for prompt, response, prefix in columns
        ]
        answers = self._engine.score(requests)
        scored = [a if isinstance(a, ScoringResult) else None for a in answers]
        failed = [a.reason if isinstance(a, ScoringFailure) else "" for a in answers]
        return {
            "row": batch["row"].tolist(),
            "log_probs": [a.log_probs.tolist() if a else [] for a in scored],
            "error": failed,
            "num_cached_tokens": [a.num_cached_tokens if a else 0 for a in scored],
            "started": [started] * len(answers),
            "handed_on_bytes": [a.log_probs.nbytes if a else 0 for a in scored],
        }


def with_actor(rows: list[dict[str, Any]], model_path: str, *, batch_rows: int = BATCH_ROWS) -> Any:
    """Return the data set that our actor answers."""
    import ray.data

    return as_blocks(rows, batch_rows).map_batches(
        EngineActor,
        fn_constructor_args=(model_path,),
        batch_size=batch_rows,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )


def with_processor(
    rows: list[dict[str, Any]],
    model_path: str,
    *,
    batch_rows: int = BATCH_ROWS,
    reuse: bool = True,
) -> Any:
    """Return the data set that Ray Data's vLLM processor answers."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    parameters: dict[str, Any] = {
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "detokenize": False,
        "flat_logprobs": True,
    }
    if reuse:
        parameters["skip_reading_prefix_cache"] = False

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        tokens = [*row["prompt_ids"], *row["response_ids"]]
        return {"tokenized_prompt": tokens, "sampling_params": parameters}

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        # What the cache covers is arbitrary memory, token ids and all: where they happen to be the
        # right ones nothing tells, since the count of cached tokens is not handed on.
        response = [int(t) for t in row["response_ids"]]
        tail = zip(row["prompt_logprobs"][-len(response) :], response, strict=True)
        found = [position[token]["logprob"] for position, token in tail if token in position]
        complete = len(found) == len(response)
        return {
            "row": row["row"],
            "log_probs": found if complete else [],
            "error": "" if complete else "wrong_positions",
            "started": row["metrics"]["arrival_time"],
            "handed_on_bytes": len(pickle.dumps(row["prompt_logprobs"])),
        }

    config = vLLMEngineProcessorConfig(
        model_source=model_path,
        engine_kwargs={
            "dtype": "float32",
            "max_model_len": MAX_LENGTH + 1,
            "enforce_eager": True,
            "block_size": BLOCK_TOKENS,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "enable_prefix_caching": True,
            "max_num_batched_tokens": STEP_TOKENS,
            "max_logprobs": 1,
            "skip_tokenizer_init": True,
        },
        concurrency=1,
        batch_size=batch_rows,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        should_continue_on_error=True,
    )
    return build_processor(config, preprocess=ask, postprocess=answer)(as_blocks(rows, batch_rows))
