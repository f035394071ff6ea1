"""The ways to write the same answers, each measured in a process of its own."""

from __future__ import annotations

import gzip
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.generation.limits import least_seconds, measure_limits, weights_of
from nncift_ray.engines.base import Engine, Generation, GenerationRequest
from nncift_ray.engines.load import load_engine
from nncift_ray.evaluation.ask import build_prompt_ids
from nncift_ray.recipe.sections import EngineConfig

VLLM, TRANSFORMERS, PLAIN = WAYS = ("vllm", "transformers", "plain")
FILE = "t0_train.jsonl.gz"
MAX_LENGTH = 2048

Write = Callable[[Sequence[GenerationRequest]], list[Generation]]


@dataclass(frozen=True)
class Task:
    """What is written."""

    model: str  # a folder
    data: str  # the folder of the texts
    num_prompts: int
    max_tokens: int
    rounds: int
    num_threads: int | None


def measure_way(way: str, task: Task) -> dict[str, Any]:
    """Write all answers some times over; return the best round, with what it could have been.

    Limits are measured before every round, so that both speak of the same state of the machine.
    """
    started = time.perf_counter()
    kind = VLLM if way == VLLM else TRANSFORMERS
    engine = load_engine(
        task.model,
        EngineConfig(engine=kind, max_length=MAX_LENGTH),
        generates=True,
        num_threads=task.num_threads,
    )
    load_seconds = time.perf_counter() - started
    write = plain_writer(engine) if way == PLAIN else engine_writer(engine)
    requests = make_requests(engine, task)
    write(requests[:1])
    best: dict[str, Any] = {"seconds": float("inf")}
    for _ in range(task.rounds):
        limits = measure_limits()
        started = time.perf_counter()
        answers = write(requests)
        seconds = time.perf_counter() - started
        if seconds < best["seconds"]:
            least = least_seconds(answers, weights_of(task.model), limits, at_once=way != PLAIN)
            best = {"seconds": seconds, "limits": asdict(limits), "least_seconds": least}
            best["answers"] = [asdict(answer) for answer in answers]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return best | {"load_seconds": load_seconds, "peak_memory_bytes": memory}


def make_requests(engine: Engine, task: Task) -> list[GenerationRequest]:
    """Return greedy requests on the first rows of T0 that fit."""
    requests: list[GenerationRequest] = []
    with gzip.open(Path(task.data) / FILE, "rt", encoding="utf-8") as lines:
        for line in islice(lines, 10 * task.num_prompts):
            prompt = build_prompt_ids(
                engine,
                json.loads(line)["prompt"],
                max_length=engine.max_length,
                reserve=task.max_tokens,
            )
            if isinstance(prompt, tuple) and len(requests) < task.num_prompts:
                requests.append(GenerationRequest(prompt, task.max_tokens))
    return requests


def engine_writer(engine: Engine) -> Write:
    """Return a way that hands all requests to an engine at once."""

    def write(requests: Sequence[GenerationRequest]) -> list[Generation]:
        answers = engine.generate(requests)
        return [answer for answer in answers if isinstance(answer, Generation)]

    return write


def plain_writer(engine: Any) -> Write:
    """Return the usual loop: the model's own ``generate``, one prompt at a time."""

    def write(requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [_write_one(engine, request) for request in requests]

    return write


def _write_one(engine: Any, request: GenerationRequest) -> Generation:
    ids_1P = torch.tensor([list(request.prompt_ids)])
    with torch.inference_mode():
        output = engine._model.generate(
            ids_1P,
            attention_mask=torch.ones_like(ids_1P),
            do_sample=False,
            max_new_tokens=request.max_tokens,
            eos_token_id=sorted(engine._tokenizer.end_ids),
            pad_token_id=engine.eos_id,
        )
    return engine._tokenizer.read_answer(request, output[0, ids_1P.shape[1] :].tolist())
