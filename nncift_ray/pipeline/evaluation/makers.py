"""What loads the models of an evaluation inside actors, and what fine-tunes one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nncift_ray.config import Config
from nncift_ray.models.embedded import resolve_language_model
from nncift_ray.models.engines import resolve_engine_kind
from nncift_ray.pipeline.factories import LikelihoodFactory, TuningFactory
from nncift_ray.pipeline.runner import TRAINING_FOLDER
from nncift_ray.stages.tune import Tuner
from nncift_ray.storage.filesystem import Location


@dataclass(frozen=True)
class Makers:
    """Factories; each also says what of it shapes numbers."""

    trainable: TuningFactory
    train: Tuner
    engine: LikelihoodFactory
    notices: tuple[str, ...] = ()


def makers_of(config: Config, has_gpu: bool) -> Makers:
    """Find the models that a recipe evaluates with.

    Raises:
        ModelError: If one cannot be found.
    """
    # Ray Train's import takes seconds, which a plan need not pay.
    from nncift_ray.stages.ray_train import RayTuner

    evaluation, tuning = config.evaluation, config.evaluation.tuning
    model = resolve_language_model(evaluation.model, evaluation.revision)
    dtype = evaluation.dtype
    if dtype == "auto":
        dtype = "bfloat16" if has_gpu else "float32"
    kind = resolve_engine_kind(evaluation.engine)
    num_cpus = tuning.pool.num_cpus or max(1, (os.cpu_count() or 1) // tuning.num_workers)
    return Makers(
        trainable=TuningFactory(model, tuning, has_gpu),
        train=RayTuner(
            storage=Location.of(config.run_dir) / TRAINING_FOLDER,
            num_workers=tuning.num_workers,
            num_cpus=num_cpus,
            use_gpu=has_gpu,
        ),
        engine=LikelihoodFactory(model, kind, dtype, evaluation.in_context.max_length),
        notices=(model.notice,) if model.notice else (),
    )
