"""What loads the models of an evaluation inside actors, and what fine-tunes one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from nncift_ray.config import Config
from nncift_ray.models.embedded import ResolvedModel, resolve_embedder, resolve_language_model
from nncift_ray.models.embedder import Embedder
from nncift_ray.models.engines import resolve_engine_kind
from nncift_ray.pipeline.factories import (
    EmbedderFactory,
    GeneratorFactory,
    JudgeFactory,
    LikelihoodFactory,
)
from nncift_ray.pipeline.runner import TRAINING_FOLDER
from nncift_ray.pipeline.training_factories import TuningFactory
from nncift_ray.stages.evaluation.tune import Tuner
from nncift_ray.storage.filesystem import Location


@dataclass(frozen=True)
class Makers:
    """Factories; each also says what of it shapes numbers."""

    trainable: TuningFactory
    train: Tuner
    engine: LikelihoodFactory
    generator: GeneratorFactory
    embedder: ResolvedModel
    make_embedder: Callable[[], Embedder]
    judge: JudgeFactory | None  # None: no metric asks one

    @property
    def notices(self) -> list[str]:
        """What was decided for the user about models."""
        models = [self.engine.model, self.embedder, *([self.judge.model] if self.judge else [])]
        return [model.notice for model in models if model.notice]


def makers_of(config: Config, has_gpu: bool) -> Makers:
    """Find the models that a recipe evaluates with.

    Raises:
        ModelError: If one cannot be found.
    """
    evaluation = config.evaluation
    model = resolve_language_model(evaluation.model, evaluation.revision)
    kind, dtype = resolve_engine_kind(evaluation.engine), _dtype(evaluation.dtype, has_gpu)
    longest = evaluation.in_context.max_length
    embedder = resolve_embedder(config.embedder.model, config.embedder.revision)
    return Makers(
        trainable=TuningFactory(model, evaluation.tuning, has_gpu),
        train=_tuner(config, has_gpu),
        engine=LikelihoodFactory(model, kind, dtype, longest),
        generator=GeneratorFactory(model, kind, dtype, longest),
        embedder=embedder,
        make_embedder=EmbedderFactory(embedder),
        judge=_judge(config, has_gpu) if "judge" in evaluation.metrics else None,
    )


def _tuner(config: Config, has_gpu: bool) -> Tuner:
    # Ray Train's import takes seconds, which a plan need not pay.
    from nncift_ray.stages.ray_train import RayTuner

    tuning = config.evaluation.tuning
    num_cpus = tuning.pool.num_cpus or max(1, (os.cpu_count() or 1) // tuning.num_workers)
    return RayTuner(
        storage=Location.of(config.run_dir) / TRAINING_FOLDER,
        num_workers=tuning.num_workers,
        num_cpus=num_cpus,
        use_gpu=has_gpu,
        labels=tuning.pool.labels or config.cluster.labels,
        placement_timeout=config.cluster.placement_timeout,
    )


def _judge(config: Config, has_gpu: bool) -> JudgeFactory:
    judge = config.evaluation.judge
    model = resolve_language_model(judge.model, judge.revision)
    return JudgeFactory(model, resolve_engine_kind(judge.engine), _dtype(judge.dtype, has_gpu),
                        judge)  # fmt: skip


def _dtype(given: str, has_gpu: bool) -> str:
    if given != "auto":
        return given
    return "bfloat16" if has_gpu else "float32"
