"""Small picklable things that load a model, or what needs one, inside an actor.

This file imports no torch, which a teacher without a language model does without; what loads a
model to train is in ``training_factories``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from nncift_ray.engines.base import GenerationEngine, ScoringEngine
from nncift_ray.engines.choose import TunedModel, load_options, make_engine, make_generator
from nncift_ray.engines.models import ResolvedModel, locate_model
from nncift_ray.recipe.sections import JudgeConfig, TeacherConfig


@dataclass(frozen=True)
class EngineFactory:
    """Loads one of the teacher's language models."""

    model: ResolvedModel
    kind: str
    dtype: str
    teacher: TeacherConfig
    memory_share: float = 1.0  # of what the teacher may take, where several models share a device

    def __call__(self) -> ScoringEngine:
        """Load it."""
        teacher = self.teacher
        return make_engine(
            self.kind,
            locate_model(self.model, "language model").path,
            dtype=self.dtype,
            max_length=teacher.max_length,
            batch_tokens=teacher.batch_tokens,
            kv_cache_memory_bytes=teacher.kv_cache_memory_bytes,
            gpu_memory_utilization=teacher.gpu_memory_utilization * self.memory_share,
            tensor_parallel_size=teacher.tensor_parallel_size,
            quantization=teacher.quantization,
            adapter=teacher.adapter,
            num_threads=actor_threads(),
        )


@dataclass(frozen=True)
class _EvaluatedModel:
    """The model under evaluation, as it came or tuned, and the engine that holds it."""

    model: ResolvedModel
    kind: str  # "vllm" or "transformers"
    dtype: str
    max_length: int

    def options(self, tuned: TunedModel | None) -> dict[str, Any]:
        """What the engine is loaded with."""
        base = locate_model(self.model, "language model").path
        return {
            **load_options(tuned, base, self.kind),
            "dtype": self.dtype,
            "max_length": self.max_length,
            "num_threads": actor_threads(),
        }

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers and answers."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "engine": self.kind,
            "dtype": self.dtype,
        }


class LikelihoodFactory(_EvaluatedModel):
    """Loads the engine of a likelihood stage."""

    def __call__(self, tuned: TunedModel | None) -> ScoringEngine:
        """Load it."""
        return make_engine(self.kind, **self.options(tuned))


class GeneratorFactory(_EvaluatedModel):
    """Loads the engine that writes answers."""

    def __call__(self, tuned: TunedModel | None) -> GenerationEngine:
        """Load it."""
        return make_generator(self.kind, **self.options(tuned))


@dataclass(frozen=True)
class JudgeFactory:
    """Loads the judge."""

    model: ResolvedModel
    kind: str  # "vllm" or "transformers"
    dtype: str
    judge: JudgeConfig

    def __call__(self) -> GenerationEngine:
        """Load it."""
        return make_generator(
            self.kind,
            locate_model(self.model, "language model").path,
            dtype=self.dtype,
            max_length=self.judge.max_length,
            quantization=self.judge.quantization,
            num_threads=actor_threads(),
        )

    def settings(self) -> dict[str, Any]:
        """What of it shapes verdicts."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "engine": self.kind,
            "dtype": self.dtype,
            "quantization": self.judge.quantization,
            "max_length": self.judge.max_length,
        }


def actor_threads() -> int | None:
    """Return the threads that Ray gave this actor: untold, a library takes every core there is."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or None
