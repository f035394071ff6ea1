"""Small picklable things that load a model to train inside a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nncift_ray.config import LessConfig, TuningConfig
from nncift_ray.models.embedded import ResolvedModel, locate_model
from nncift_ray.models.lora_model import AdapterSpec, LoraModel
from nncift_ray.models.trainable_model import ModelOptions, TrainableModel, WholeModel
from nncift_ray.models.training_loop import TrainingSettings
from nncift_ray.models.transformers_loading import BITSANDBYTES
from nncift_ray.models.tuning import FULL, QLORA, Arithmetic, choose_arithmetic
from nncift_ray.pipeline.factories import actor_threads


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
            ModelOptions(
                dtype=self.dtype,
                quantization=less.quantization,
                max_length=less.max_length,
                num_threads=actor_threads(),
            ),
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
class TuningFactory:
    """Loads the language model that is fine-tuned."""

    model: ResolvedModel
    tuning: TuningConfig
    on_gpu: bool

    def __call__(self) -> TrainableModel:
        """Load it."""
        tuning = self.tuning
        path = locate_model(self.model, "language model").path
        options = ModelOptions(
            dtype=self._arithmetic.dtype,
            autocast=self._arithmetic.autocast,
            quantization=self.quantization,
            max_length=tuning.max_length,
            num_threads=actor_threads(),
            section="evaluation.tuning",
        )
        if tuning.method == FULL:
            return WholeModel(path, options)
        spec = AdapterSpec(
            tuning.rank, tuning.alpha, tuning.dropout, tuning.target_modules, tuning.seed
        )
        return LoraModel(path, spec, options)

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""
        tuning = self.tuning
        return TrainingSettings(
            num_epochs=tuning.num_epochs,
            learning_rate=tuning.learning_rate,
            lr_warmup_fraction=tuning.lr_warmup_fraction,
            batch_size=tuning.batch_size,
            seed=tuning.seed,
        )

    @property
    def quantization(self) -> str | None:
        """How the base is quantised."""
        return BITSANDBYTES if self.tuning.method == QLORA else None

    @property
    def _arithmetic(self) -> Arithmetic:
        dtype = self.tuning.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.on_gpu else "float32"
        return choose_arithmetic(self.tuning.method, dtype, on_gpu=self.on_gpu)

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers, the optimiser aside."""
        tuning = self.tuning
        adapter = {
            "rank": tuning.rank,
            "alpha": tuning.alpha,
            "dropout": tuning.dropout,
            "target_modules": tuning.target_modules and sorted(tuning.target_modules),
        }
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "method": tuning.method,
            "dtype": self._arithmetic.dtype,
            "autocast": self._arithmetic.autocast,
            "max_length": tuning.max_length,
            "adapter": None if tuning.method == FULL else adapter,
        }
