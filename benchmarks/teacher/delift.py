"""DELIFT: pairs per second with and without prefix reuse, and by the plain loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.baselines import score_in_batches
from nncift_ray.engines.base import Engine, ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher

REFERENCE_BATCH = 8
Pairs = Mapping[str, Sequence[LabelRequest]]


class RecordingEngine:
    """An engine that remembers what it was last asked and what it answered."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine
        self.requests: list[ScoringRequest] = []
        self.answers: list[ScoringResult | ScoringFailure] = []

    def __getattr__(self, name: str) -> Any:
        """Hand everything else on."""
        return getattr(self._engine, name)

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        """Score and remember."""
        self.requests = list(requests)
        self.answers = self._engine.score(requests)
        return self.answers


def measure_engine(engine: Engine, pairs: Pairs, repeats: int) -> dict[str, dict[str, Any]]:
    """Label each setting's pairs some times and keep the best; the first pass is not counted."""
    recorder = RecordingEngine(engine)
    teacher = DeliftTeacher(recorder)
    teacher.measure(next(iter(pairs.values()))[:2])  # caches of kernels and tokens
    found: dict[str, dict[str, Any]] = {}
    for name, requests in pairs.items():
        best = {"seconds": float("inf")}
        for _ in range(repeats):
            busy, started = engine.busy_seconds, time.perf_counter()
            measured = teacher.measure(requests)
            seconds = time.perf_counter() - started
            if seconds < best["seconds"]:
                best = {
                    "seconds": seconds,
                    "pairs_per_second": len(requests) / seconds,
                    "idle_share": 1 - (engine.busy_seconds - busy) / seconds,
                }
        good = [one for one in measured if isinstance(one, Measurement)]
        computed = sum(one.num_tokens - one.num_cached_tokens for one in good)
        found[name] = best | {
            "failures": len(measured) - len(good),
            "tokens": sum(one.num_tokens for one in good),
            "tokens_computed": computed,
            "tokens_computed_over_minimum": computed / sum(one.num_minimal_tokens for one in good),
            "requests": recorder.requests,
            "answers": recorder.answers,
        }
    return found


def measure_reference(
    model_path: str | Path, asked: Mapping[str, Sequence[ScoringRequest]]
) -> dict[str, dict[str, Any]]:
    """Score the same token sequences by the plain loop."""
    model = AutoModelForCausalLM.from_pretrained(
        model_path, use_safetensors=True, dtype=torch.float32
    ).eval()
    found: dict[str, dict[str, Any]] = {}
    for name, requests in asked.items():
        score_in_batches(model, requests[:2], REFERENCE_BATCH)
        started = time.perf_counter()
        log_probs = score_in_batches(model, requests, REFERENCE_BATCH)
        seconds = time.perf_counter() - started
        found[name] = {"pairs_per_second": len(requests) / seconds, "log_probs": log_probs}
    return found


def largest_difference(
    answers: Sequence[ScoringResult | ScoringFailure], log_probs: Sequence[np.ndarray]
) -> float:
    """Return the largest difference of two scorers in d_i, the quantity a label is made of."""
    return max(
        abs(_distance(answer.log_probs) - _distance(reference.astype(np.float64)))
        for answer, reference in zip(answers, log_probs, strict=True)
        if isinstance(answer, ScoringResult)
    )


def _distance(log_probs_T: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.expm1(np.minimum(log_probs_T, 0.0)) ** 2)))
