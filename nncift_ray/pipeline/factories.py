"""Small picklable things that load a model, or what needs one, inside an actor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from nncift_ray.config import LessConfig, TeacherConfig
from nncift_ray.models.embedded import ResolvedModel, locate_model
from nncift_ray.models.embedder import Embedder, SentenceTransformerEmbedder
from nncift_ray.models.engine import ScoringEngine
from nncift_ray.models.engines import make_engine
from nncift_ray.models.lora_model import AdapterSpec, LoraModel
from nncift_ray.models.teachers import Teacher, TeacherContext, make_teacher


@dataclass(frozen=True)
class EmbedderFactory:
    """Loads the embedder."""

    model: ResolvedModel

    def __call__(self) -> Embedder:
        """Load it."""
        path = locate_model(self.model, "embedder").path
        return SentenceTransformerEmbedder(path)


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
class LoraFactory:
    """Loads the language model that LESS warms up and takes gradients of."""

    model: ResolvedModel
    dtype: str
    less: LessConfig

    def __call__(self) -> LoraModel:
        """Load it."""
        less = self.less
        return LoraModel(
            locate_model(self.model, "language model").path,
            AdapterSpec(less.rank, less.alpha, less.dropout, less.target_modules, less.seed),
            dtype=self.dtype,
            quantization=less.quantization,
            max_length=less.max_length,
            num_threads=actor_threads(),
        )

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers."""
        less = self.less
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": self.dtype,
            "quantization": less.quantization,
            "rank": less.rank,
            "alpha": less.alpha,
            "dropout": less.dropout,
            "target_modules": list(less.target_modules),
            "max_length": less.max_length,
        }


@dataclass(frozen=True)
class TeacherFactory:
    """Loads the teacher."""

    kind: str
    context: TeacherContext

    def __call__(self) -> Teacher:
        """Load it."""
        return make_teacher(self.kind, self.context)


def actor_threads() -> int | None:
    """Return the threads that Ray gave this actor: untold, a library takes every core there is."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or None
